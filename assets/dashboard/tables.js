// The collections and the dead letters. Rows are brought up to date, never made anew: what a person has selected stays.
"use strict";

/** A cell that says on a phone what it is of, where there is no head above it. */
function cell(label, kind) {
  const made = make("td", { className: kind ?? "" });
  made.dataset.label = label;
  made.setAttribute("role", "cell");
  return made;
}

/** A name that may break behind its dots, and only where it does not fit elsewhere. */
function breakable(name) {
  const parts = name.split(/(?<=\.)/);
  return parts.flatMap((part, n) => (n === 0 ? [part] : [document.createElement("wbr"), part]));
}

const Collections = (() => {
  const COLUMNS = [["Collection"], ["Waiting", "number"], ["Written", "number"], ["Local", "number"], ["Atlas", "number"], ["Counted"], ["Last write"]];
  const form = $("ns-form");
  let typed = null;

  function create(name) {
    const row = make("tr", {}, ...COLUMNS.map(([label, kind]) => cell(label, kind)));
    row.setAttribute("role", "row");
    row.firstChild.append(...breakable(name), make("span", { className: "alarm" }));
    return row;
  }

  function update(row, of, now) {
    const [name, waiting, written, local, atlas, counted, last] = row.children;
    const isOff = of.localDocuments != null && of.localDocuments !== of.atlasDocuments && of.pending === 0;
    text(name.lastChild, of.alerts ? ` ${of.alerts.join(", ")}` : "");
    text(waiting, count(of.pending));
    text(written, count(of.writes));
    text(local, of.localDocuments == null ? "–" : count(of.localDocuments));
    text(atlas, of.atlasDocuments == null ? "–" : `${count(of.atlasDocuments)}${isOff ? " ≠" : ""}`);
    atlas.classList.toggle("differs", isOff);
    text(counted, of.countedMs ? ago(of.countedMs, now) : "not yet");
    text(last, ago(of.lastWriteMs, now));
  }

  function look() {
    clearTimeout(typed);
    typed = setTimeout(() => Link.look({ filter: $("ns-filter").value.trim(), sort: $("ns-sort").value, limit: $("ns-limit").value }), 250);
  }
  form.addEventListener("input", look);
  form.addEventListener("submit", (event) => { event.preventDefault(); look(); });

  return {
    show({ collections: { total, matching, order, rows } }, now) {
      $("ns-empty").hidden = order.length > 0;
      text("ns-empty", total === 0 ? "None was counted or written to yet." : "No name contains that.");
      $("ns-list").hidden = order.length === 0;
      patchList($("ns-rows"), order, create, (row, name) => update(row, rows[name], now));
      const more = matching - order.length;
      text("ns-more", more > 0 ? `${count(more)} more of ${count(total)} are not shown.` : "");
    },
  };
})();

const Letters = (() => {
  const SHOWN = 1000;
  const OF_A_GROUP = 5;
  let asked = 0;
  let shown = null;
  let letters = [];
  const open = new Set();

  // The end is enough for `outrigger dead show`, and tells apart; the beginning is a time, which many have in common.
  const short_ = (id) => id.slice(-8);
  const nameOf = (letter) => `${letter.collection} ${JSON.stringify(letter.documentId)}`;
  const groupOf = (letter) => JSON.stringify([letter.collection, letter.type, letter.reason]);

  function createLetter(letter) {
    const row = make("tr", {}, cell("Document", "id"), cell("Id", "id"), cell("Given up"), cell(""));
    row.setAttribute("role", "row");
    const [id, ours, died, actions] = row.children;
    actions.className = "do";
    text(id, JSON.stringify(letter.documentId));
    text(ours, short_(letter.id));
    ours.title = letter.id;
    text(died, moment(letter.diedMs));
    actions.append(make("p", { className: "actions" },
      button("Retry", `Retry ${nameOf(letter)}`, () => act("POST", `/api/dead-letters/${letter.id}/retry`, null, "Queued again; the letter goes when Atlas takes it.")),
      button("Discard", `Discard ${nameOf(letter)}`, () => confirm(`Discard ${nameOf(letter)}? The document differs in Atlas until it changes again.`)
        && act("DELETE", `/api/dead-letters/${letter.id}`, null, "Discarded."))));
    return row;
  }

  function createGroup(key) {
    const [collection, kind, reason] = JSON.parse(key);
    const head = make("tr", {}, ...["Document", "Id", "Given up", "Actions"].map((label) => {
      const th = make("th", { scope: "col" }, label === "Actions" ? make("span", { className: "hide", textContent: label }) : label);
      th.setAttribute("role", "columnheader");
      return th;
    }));
    head.setAttribute("role", "row");
    const [thead, tbody] = [make("thead", {}, head), make("tbody")];
    thead.setAttribute("role", "rowgroup");
    tbody.setAttribute("role", "rowgroup");
    const table = make("table", { className: "cards" }, thead, tbody);
    table.setAttribute("role", "table");
    const title = make("h3", {}, make("span", { className: "number" }), " of ", ...breakable(collection));
    const why = make("p", { className: "reason", textContent: `${kind}: ${reason}` });
    const next = make("p", { className: "note" });
    const more = button("Show all", `Show all of ${collection}`, () => { open.add(key); draw(); });
    const retry = button("Retry these", `Retry these of ${collection}: ${reason}`, () => retryGroup(key));
    const group = make("section", { className: "group" }, title, why, next, table, make("p", { className: "actions" }, more, retry));
    title.id = `group-${asked}-${$("dead-groups").children.length}`;
    group.setAttribute("aria-labelledby", title.id);
    // What they are called is what they show, which changes; what they are about stands above them.
    for (const it of [more, retry]) {
      it.removeAttribute("aria-label");
      it.setAttribute("aria-describedby", title.id);
    }
    return group;
  }

  function updateGroup(group, key) {
    const of = letters.filter((letter) => groupOf(letter) === key);
    const visible = open.has(key) ? of : of.slice(0, OF_A_GROUP);
    const [title, , next, table, actions] = group.children;
    text(title.firstChild, many(of.length, "document", "documents"));
    marked(next, `Next: mend the cause in Atlas, then retry. \`outrigger dead show ${short_(of[0].id)}\` shows what was to be written.`);
    const by = new Map(visible.map((letter) => [letter.id, letter]));
    patchList(table.tBodies[0], [...by.keys()], (id) => createLetter(by.get(id)), () => {});
    const [more, retry] = actions.children;
    more.hidden = visible.length === of.length;
    text(more, `Show all ${of.length}`);
    retry.hidden = of.length < 2;
    text(retry, `Retry these ${of.length}`);
  }

  async function retryGroup(key) {
    const ids = letters.filter((letter) => groupOf(letter) === key).map((letter) => letter.id);
    let done = 0;
    for (const id of ids) {
      try {
        await ask("POST", `/api/dead-letters/${id}/retry`);
        done += 1;
      } catch (error) {
        toast(`${done} of ${ids.length} queued again; then: ${error.message}`);
        shown = null;
        return;
      }
    }
    toast(`${many(done, "document", "documents")} queued again; each letter goes when Atlas takes it.`);
    shown = null;
  }

  function draw() {
    const groups = [...new Set(letters.map(groupOf))];
    patchList($("dead-groups"), groups, createGroup, updateGroup);
  }

  /** The list, or how long it is: without a token nobody is asked for one before they want to see it. */
  async function update(known) {
    const mine = (asked += 1);
    const isLocked = known > 0 && !token.get();
    $("dead-locked").hidden = !isLocked;
    $("dead-empty").hidden = known > 0;
    $("dead-retry").hidden = known === 0;
    text("dead-retry", known === 1 ? "Retry it" : `Retry all ${count(known)}`);
    if (isLocked || known === 0) {
      text("dead-count", known === 1 ? "One document" : `${count(known)} documents`);
      $("dead-more").hidden = true;
      letters = [];
      draw();
      return;
    }
    const answer = await ask("GET", `/api/dead-letters?limit=${SHOWN}`).catch(() => null);
    // One that was asked for later may have come first.
    if (mine !== asked) return;
    if (!answer) { shown = null; return; }
    letters = answer.deadLetters;
    $("dead-more").hidden = answer.total <= letters.length;
    text("dead-more", `${count(answer.total - letters.length)} more are shown by “outrigger dead list”.`);
    draw();
  }

  $("dead-show").addEventListener("click", () => askForToken(false));
  $("dead-retry").addEventListener("click", () => act("POST", "/api/dead-letters/retry", null, ({ queued, notRetried, leftOut }) => (
    `${many(queued, "document", "documents")} queued again; each letter goes when Atlas takes it.`
    + (notRetried ? ` ${many(notRetried, "change", "changes")} of collections cannot be: start a full sync.` : "")
    + (leftOut ? ` ${many(leftOut, "letter", "letters")} of collections that are not replicated any more: discard them.` : ""))));

  return {
    /** The stream carries their number only; what they are is asked for when it changes. */
    show({ deadRevision, health: { deadLetters } }) {
      if (shown === deadRevision) return;
      shown = deadRevision;
      update(deadLetters);
    },
    forget() { shown = null; },
  };
})();
