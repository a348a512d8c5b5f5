// The dashboard. The agent sends its state every second (`/api/events`); what changes anything asks for the
// token once and goes through the same API as the CLI.
"use strict";

const $ = (id) => document.getElementById(id);
const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
const count = (n) => Intl.NumberFormat("en").format(n);
const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;

function span(ms) {
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172_800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} days`;
}
const ago = (ms, now) => (ms ? `${span(Math.max(0, now - ms))} ago` : "never");
function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; n >= 1000 && at < units.length - 1; at += 1) n /= 1000;
  return `${at === 0 ? n : n.toFixed(1)} ${units[at]}`;
}
/** With the day, unless that is today. */
function moment(time) {
  const at = new Date(time);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString() : at.toLocaleString();
}

// --- what the agent tells ---------------------------------------------------------------------

const SENTENCES = {
  starting: "The agent waits for Atlas before it may write.",
  copying: "Everything is being copied or compared; changes are queued meanwhile.",
  streaming: "Changes flow from the local database to Atlas.",
  paused: "Somebody has paused the writing to Atlas; changes wait in the queue.",
  stopping: "The agent is stopping and writes what it still can.",
  failed: "The agent has failed; its log says why.",
};
const FLOWS = {
  flowing: "writes flow",
  connecting: "not connected yet",
  held: "writes are held back",
  denied: "refuses access",
  paused: "paused",
};
function sentence({ phase, breaker, flow, localError }) {
  if (phase === "streaming" && flow === "denied") return "Atlas refuses access; changes wait in the queue, and nothing is lost.";
  if (phase === "streaming" && flow === "held") return "Writes to Atlas are held back until it is certain that they are right.";
  if (phase === "streaming" && breaker !== "closed") return "Atlas does not take writes; changes wait in the queue, and nothing is lost.";
  if (phase === "streaming" && localError) return "The local database does not answer; reading goes on when it does.";
  return SENTENCES[phase] ?? "";
}
/** What a driver says, without its inner life; `outrigger status` has all of it. */
const brief = (error) => error?.split(" Topology:")[0];
const VERDICTS = { healthy: "Healthy", degraded: "Degraded", unhealthy: "Unhealthy" };

let last = null;
let deadShown = null;

function show(status) {
  last = status;
  const { health, totals, nowMs: now } = status;
  document.body.dataset.health = health.status;
  document.title = `${VERDICTS[health.status]} · Outrigger`;
  text("version", status.version);
  text("health", `${VERDICTS[health.status]}, ${health.phase}`);
  text("sentence", sentence(health));
  lines($("alerts"), health.alerts);
  $("pause").hidden = false;
  text("pause", health.paused ? "Resume writing to Atlas" : "Pause writing to Atlas");

  text("lag", health.lagKnown || health.syncLagMs > 0 ? span(health.syncLagMs) : "not known");
  text("equal", health.consistentAsOf ? `equal as of ${moment(health.consistentAsOf)}` : "not equal yet");
  text("queue", health.queueSize === 0 ? "empty" : many(health.queueSize, "change", "changes"));
  text("oldest", health.oldestPendingMs == null ? "nothing waits" : `the oldest for ${span(health.oldestPendingMs)}`);
  text("breaker", health.breaker === "half-open" ? "being tried" : FLOWS[health.flow] ?? "away");
  text("atlas-note", brief(health.atlasError) ?? `breaker ${health.breaker}, opened ${many(status.breakerOpenings, "time", "times")}; answered ${span(status.atlasSilenceMs)} ago`);
  text("oplog", health.oplogWindowS == null ? "–" : span(health.oplogWindowS * 1000));
  text("local-note", brief(health.localError) ?? `${health.oplogWindowS == null ? "has dropped nothing yet, or may not be read" : "left before the checkpoint"}; answered ${span(status.localSilenceMs)} ago`);
  text("dead", health.deadLetters === 0 ? "none" : count(health.deadLetters));
  text("errors", `${health.errorRate} of recent writes failed`);
  text("written", count(totals.writes + totals.documentsCopied));
  text("saved", `${count(totals.coalesced)} merged away, ${bytes(totals.sentBytes)} sent`);

  Charts.add(status.sample);
  sync(status.full);
  namespaces(status, now);
  // The stream carries their number only; what they are is asked for when it changes.
  const dead = `${status.deadRevision}`;
  if (dead !== deadShown) { deadShown = dead; deadLetters(health.deadLetters); }
}

function lines(list, items) {
  list.hidden = items.length === 0;
  if (list.dataset.shown === JSON.stringify(items)) return;
  list.dataset.shown = JSON.stringify(items);
  list.replaceChildren(...items.map((item) => Object.assign(document.createElement("li"), { textContent: item })));
}

function sync(full) {
  const runs = full != null && full.finishedMs == null;
  $("sync-cancel").hidden = !runs;
  $("sync-start").disabled = runs;
  $("sync-bar").hidden = !runs;
  if (!full) { text("sync-text", "None has run since the agent started."); return; }
  if (runs) {
    $("sync-bar").value = full.documents ? full.documentsDone / full.documents : 0;
    const left = full.etaSeconds == null ? "" : `, ${span(full.etaSeconds * 1000)} left`;
    text("sync-text", `Running, because ${full.reason}: ${count(full.documentsDone)} of ${many(full.documents, "document", "documents")}, `
      + `${full.collectionsDone} of ${many(full.collections, "collection", "collections")}, ${count(full.documentsPerSecond)} per second${left}.`);
  } else {
    const found = full.missing + full.extra + full.content + full.schema;
    text("sync-text", `The last one (${full.reason}) ended ${moment(full.finishedMs)}: ${full.outcome ?? "done"}; `
      + `${many(full.documentsDone, "document", "documents")}, ${found === 0 ? "no difference" : many(found, "difference", "differences")}.`);
  }
}

function row(cells) {
  const tr = document.createElement("tr");
  tr.append(...cells.map(([content, kind]) => {
    const td = document.createElement("td");
    if (kind) td.className = kind;
    td.append(content);
    return td;
  }));
  return tr;
}

function namespaces({ namespaces: list, namespacesTotal: total }, now) {
  $("ns-empty").hidden = list.length > 0;
  $("ns-list").hidden = list.length === 0;
  $("ns-rows").replaceChildren(...list.map((of) => {
    const differs = of.localDocuments != null && of.localDocuments !== of.atlasDocuments && of.pending === 0;
    return row([
      [of.ns], [count(of.pending), "number"], [count(of.writes), "number"],
      [of.localDocuments == null ? "–" : count(of.localDocuments), "number"],
      [of.atlasDocuments == null ? "–" : count(of.atlasDocuments) + (differs ? " ≠" : ""), differs ? "number differs" : "number"],
      [ago(of.lastWriteMs, now)],
    ]);
  }));
  text("ns-more", total > list.length ? `${total - list.length} more are not shown.` : "");
}

let deadAsked = 0;
/** The list, or how long it is: without a token nobody is asked for one before they want to see it. */
async function deadLetters(known) {
  const asked = (deadAsked += 1);
  const isLocked = known > 0 && !token.get();
  $("dead-locked").hidden = !isLocked;
  if (isLocked || known === 0) {
    text("dead-count", known === 1 ? "One document" : `${count(known)} documents`);
    $("dead-empty").hidden = known > 0;
    $("dead-list").hidden = $("dead-more").hidden = true;
    $("dead-rows").replaceChildren();
    return;
  }
  const answer = await ask("GET", "/api/dead-letters?limit=100").catch(() => null);
  // One that was asked for later may have come first.
  if (asked !== deadAsked) return;
  if (!answer) { deadShown = null; return; }
  const { total, deadLetters: letters } = answer;
  $("dead-empty").hidden = letters.length > 0;
  $("dead-list").hidden = letters.length === 0;
  $("dead-rows").replaceChildren(...letters.map((letter) => {
    const actions = Object.assign(document.createElement("p"), { className: "actions" });
    const name = `${letter.collection} ${JSON.stringify(letter.documentId)}`;
    actions.append(
      button("Retry", `Retry ${name}`, () => act("POST", `/api/dead-letters/${letter.id}/retry`, null, "Queued again; the letter goes when Atlas takes it.")),
      button("Discard", `Discard ${name}`, () => confirm(`Discard ${name}? The document differs in Atlas until it changes again.`)
        && act("DELETE", `/api/dead-letters/${letter.id}`, null, "Discarded.")),
    );
    return row([[letter.collection], [JSON.stringify(letter.documentId)], [`${letter.type}: ${letter.reason}`], [new Date(letter.diedMs).toLocaleString()], [actions]]);
  }));
  $("dead-more").hidden = total <= letters.length;
  text("dead-more", `${total - letters.length} more are shown by “outrigger dead list”.`);
}

function button(label, name, action) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  made.setAttribute("aria-label", name);
  made.addEventListener("click", action);
  return made;
}

// --- asking the agent -------------------------------------------------------------------------

const token = { get: () => sessionStorage.getItem("token"), set: (value) => { sessionStorage.setItem("token", value); deadShown = null; }, drop: () => sessionStorage.removeItem("token") };

// `outrigger dashboard` prints an address with the token behind the `#`, which no browser sends anywhere. It is taken
// out at once, so that it stays neither in sight nor among the visited addresses.
{
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given.replace(/[^\x21-\x7e]/g, ""));
    history.replaceState(null, "", location.pathname + location.search);
  }
}

function headers() {
  return token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
}

/** Asks for the token, once for all who need it; false when the person leaves it. */
let asking = null;
function askForToken(wasRefused) {
  asking ??= openDialog(wasRefused).finally(() => { asking = null; });
  return asking;
}

function openDialog(wasRefused) {
  const dialog = $("token-dialog");
  $("token-error").hidden = !wasRefused;
  $("token").value = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    // A header takes nothing else, and a token is nothing else.
    const given = dialog.returnValue === "ok" && $("token").value.replace(/[^\x21-\x7e]/g, "");
    if (given) token.set(given);
    dialog.returnValue = "";
    resolve(Boolean(given));
  }, { once: true }));
}

async function ask(method, path, body) {
  for (;;) {
    const used = token.get();
    const response = await fetch(path, { method, headers: headers(), body: body ? JSON.stringify(body) : undefined });
    if (response.status === 401) {
      // Somebody else may have been given a better one meanwhile.
      if (token.get() !== used) continue;
      token.drop();
      if (await askForToken(used != null)) continue;
      throw new Error("this needs the token");
    }
    const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
    if (!response.ok) throw new Error([answer.error ?? response.statusText, answer.hint].filter(Boolean).join(". "));
    return answer;
  }
}

let toastEnds;
function toast(message) {
  text("toast", message);
  $("toast").hidden = false;
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { $("toast").hidden = true; }, 8000);
}

async function act(method, path, body, done) {
  try {
    await ask(method, path, body);
    toast(done);
    deadShown = null;
  } catch (error) {
    toast(`Not done: ${error.message}`);
  }
}

$("pause").addEventListener("click", () => {
  const paused = last?.health.paused;
  act("POST", paused ? "/api/sync/resume" : "/api/sync/pause", null, paused ? "Resumed." : "Paused: changes wait in the queue.");
});
$("sync-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const namespaces = $("sync-ns").value.split(",").map((name) => name.trim()).filter(Boolean);
  act("POST", "/api/sync/full", { namespaces, dryRun: $("sync-dry").checked, digest: $("sync-digest").checked }, "The full sync has been asked for.");
});
$("sync-cancel").addEventListener("click", () => act("DELETE", "/api/sync/full", null, "Cancelled."));
$("dead-show").addEventListener("click", () => askForToken(false));
$("token-cancel").addEventListener("click", () => $("token-dialog").close());

// --- the stream of events ---------------------------------------------------------------------

const SILENCE_MS = 6000;
const AGAIN_MS = 2000;
let heardAt = null;

function link(state, words) {
  document.body.dataset.link = state;
  text("link", words);
}

function lost(why) {
  link("lost", why ? `Trying again: ${why}` : "No connection to the agent, trying again.");
  document.body.dataset.health = "unknown";
  document.title = "No connection · Outrigger";
  text("health", "Not known: the agent does not answer");
  text("sentence", heardAt ? `What is shown below is from ${moment(heardAt)}. \u201coutrigger status\u201d on the agent\u2019s host tells whether it runs.` : "Nothing has been heard of it yet.");
  $("pause").hidden = true;
}

function dispatch(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (data.length === 0) return;
  const value = JSON.parse(data.join("\n"));
  if (name === "history") Charts.load(value.samples);
  if (name === "status") { heardAt = Date.now(); link("up", "Live"); show(value); }
}

// Not an EventSource, which can send no token. A stream that falls silent without ending, as behind a machine
// that sleeps, is given up.
async function follow() {
  const began = Date.now();
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), SILENCE_MS);
  try {
    const used = token.get();
    const response = await fetch("/api/events", { headers: headers(), signal: stop.signal, cache: "no-store" });
    if (response.status === 401) {
      clearTimeout(timer);
      if (token.get() === used && !(await askForToken(used != null))) {
        link("lost", "This needs the token; click anywhere to be asked again.");
        await new Promise((clicked) => document.addEventListener("click", clicked, { once: true }));
      }
      return true;
    }
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new Error([problem.error, problem.hint].filter(Boolean).join("; ") || response.statusText);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return heardAt != null && Date.now() - heardAt < SILENCE_MS / 2 && Date.now() - began > SILENCE_MS;
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), SILENCE_MS);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      blocks.forEach(dispatch);
    }
  } finally {
    clearTimeout(timer);
    // Whatever ended it: a stream that nobody reads would keep its place in the agent.
    stop.abort();
  }
}

(async () => {
  for (;;) {
    // One that ends in order is asked for again at once.
    let why = "";
    if (await follow().catch((error) => { why = error.name === "Error" ? error.message : ""; return false; })) continue;
    lost(why);
    await new Promise((wait) => setTimeout(wait, AGAIN_MS));
  }
})();
