// The dashboard: the state in words, how long things last, and the figures. The agent sends what changes every second
// (`/api/events?changes=true`); what changes anything goes through the same API as the CLI.
"use strict";

const FLOWS = {
  flowing: "writing",
  connecting: "connecting",
  held: "held back",
  denied: "no access",
  away: "away",
  paused: "paused",
};
const HEALTHS = { healthy: "Healthy", degraded: "Degraded", unhealthy: "Unhealthy" };

let last = null;

function show(status) {
  last = status;
  const { health, about, nowMs: now } = status;
  who(about, status.version);
  verdict(health, about, now);
  runway(health, now);
  figures(status, now);
  Charts.marks(status.marks, now);
  Charts.add(status.sample);
  sync(status.full);
  Collections.show(status, now);
  Letters.show(status);
}

// --- which agent, and how it is ---------------------------------------------------------------

function who({ host, localSet, local, atlas, databases, tokenFile }, version) {
  text("host", host);
  const place = $("ends");
  const words = [`${localSet} at ${local}`, atlas, databases?.length ? databases.join(", ") : "all databases"];
  if (place.dataset.words !== words.join()) {
    place.dataset.words = words.join();
    place.replaceChildren(...breakable(words[0]), " → ", ...breakable(words[1]), " · ", words[2]);
  }
  text("version", version);
  text("token-path", tokenFile);
}

function verdict({ status, verdict: told, alerts, paused, pause }, about, now) {
  document.body.dataset.health = status;
  document.title = `${told.state} · ${about.host} · Outrigger`;
  text("health", told.state);
  // It is the state that is so old; how bad it is may have come later.
  const asOf = status === "healthy" ? " since" : "; like this since";
  const since = told.sinceMs ? `${asOf} ${moment(told.sinceMs)}, for ${span(Math.max(1000, now - told.sinceMs))}` : "";
  text("since", `${HEALTHS[status]}${since}`);
  const who = pause?.by ? ` (${pause.by})` : "";
  const why = told.cause ?? (pause?.reason ? `“${pause.reason}”${who}` : null);
  const until = pause?.until ? ` It ends by itself at ${moment(pause.until)}.` : "";
  // Of what is paused beside a fault, the end is no end of the fault.
  const isBeside = paused && told.cause != null;
  const reason = pause?.reason ? `: “${pause.reason}”${who}` : who;
  const beside = isBeside ? ` Writing is paused as well${reason}.${until.replace("It ends", "The pause ends")}` : until;
  $("cause").hidden = !why;
  marked($("cause"), why ?? "");
  text("sentence", `${told.means}${beside}`);
  const isNothing = told.act === "Nothing.";
  $("act").hidden = isNothing;
  marked($("act-words"), told.act);
  $("runbook").hidden = !told.runbook;
  if (told.runbook) $("runbook").setAttribute("href", told.runbook);
  // What is the cause already is not said twice.
  lines($("alerts"), alerts.filter((alert) => alert !== told.cause));
  $("pause").hidden = false;
  text("pause", paused ? "Resume writing to Atlas" : "Pause writing to Atlas");
}

/** Of an agent that does not answer only that is certain. */
function showLost(heardAt, lostAt) {
  document.body.dataset.health = "unknown";
  const host = last?.about.host;
  document.title = `The agent does not answer${host ? ` · ${host}` : ""} · Outrigger`;
  text("health", "The agent does not answer");
  text("since", `Since ${moment(heardAt ?? lostAt)}`);
  $("cause").hidden = true;
  text("sentence", heardAt ? `Not known whether anything is copied. What is shown below is from ${moment(heardAt)}.` : "Nothing has been heard of it yet.");
  $("act").hidden = false;
  marked($("act-words"), `\`systemctl status outrigger\` on ${host ?? "its host"} tells whether it runs; then the line between here and there.`);
  $("runbook").hidden = true;
  $("pause").hidden = true;
  lines($("alerts"), []);
}

function lines(list, items) {
  list.hidden = items.length === 0;
  const item = (words) => { const made = make("li"); marked(made, words); return made; };
  patchList(list, [...new Set(items)], item, () => {});
}

function fact(id, words) {
  $(id).parentElement.hidden = words == null;
  text(id, words ?? "");
}

function runway({ outlook, oplogWindowS, deadLetters, flow, raised }, now) {
  const { inAtlasUntil, nextTryMs, caughtUpInS, queueFullInS, diskLowInS } = outlook;
  const butFor = deadLetters ? `, but for ${many(deadLetters, "dead letter", "dead letters")}` : "";
  fact("recovery", inAtlasUntil ? `everything until ${moment(inAtlasUntil)}${butFor}` : "not yet everything of one moment");
  fact("next-try", nextTryMs == null ? null : nextTryMs < 1000 ? "now" : `in ${span(nextTryMs)}`);
  fact("caught-up", flow === "flowing" && caughtUpInS != null ? `in ${lasting(Math.max(1, caughtUpInS))} at this rate` : null);
  // What is at its limit lasts no longer at any rate.
  const isFull = raised.some(({ name }) => name === "reading_stopped");
  fact("queue-lasts", isFull ? "no longer: it is at its limit" : queueFullInS == null ? null : `${lasting(queueFullInS)} at this rate`);
  fact("disk-lasts", isFull || diskLowInS == null ? null : `${lasting(diskLowInS)} at this rate`);
  fact("oplog-lasts", oplogWindowS == null ? null : lasting(oplogWindowS));
}

function figures({ health, totals, atlasSilenceMs, localSilenceMs, breakerOpenings }, now) {
  text("lag", health.lagKnown || health.syncLagMs > 0 ? span(health.syncLagMs) : "not known");
  text("equal", health.consistentAsOf ? `equal as of ${moment(health.consistentAsOf)}` : "not equal yet");
  text("queue", health.queueSize === 0 ? "empty" : count(health.queueSize));
  const waits = health.queueSize === 1 ? "change waits" : "changes wait";
  text("oldest", health.oldestPendingMs == null ? "nothing waits" : `${waits}, the oldest for ${span(health.oldestPendingMs)}`);
  text("breaker", health.breaker === "half-open" ? "being tried" : FLOWS[health.flow] ?? "away");
  text("atlas-note", `answered ${span(atlasSilenceMs)} ago${breakerOpenings ? `; ${many(breakerOpenings, "outage", "outages")} since the start` : ""}`);
  const isStopped = health.raised.some(({ name }) => name === "reading_stopped");
  text("local", health.localError ? "away" : isStopped ? "not read" : "read");
  text("local-note", `answered ${span(localSilenceMs)} ago${health.oplogWindowS == null ? "; its oplog has dropped nothing yet, or may not be read" : ""}`);
  text("dead", health.deadLetters === 0 ? "none" : count(health.deadLetters));
  text("errors", `${health.errorRate} of recent writes failed`);
  text("written", count(totals.writes + totals.documentsCopied));
  text("saved", `since the start; ${count(totals.coalesced)} merged away, ${bytes(totals.sentBytes)} sent`);
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

/** Shows the page of an alert: headings, paragraphs, lists and code are all that its Markdown has. */
async function openRunbook(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(response.statusText);
  const page = $("runbook-page");
  page.replaceChildren();
  const plain = (words) => words.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").replace(/\*\*/g, "");
  const add = (parent, name, words) => { const made = make(name); marked(made, plain(words)); parent.append(made); };
  const [texts, codes] = [[], []];
  (await response.text()).split(/^```.*$/m).forEach((part, n) => (n % 2 ? codes : texts).push(part));
  texts.forEach((part, n) => {
    for (const block of part.trim().split(/\n{2,}/)) {
      const words = block.replace(/\n\s*(?!\s*(?:[-*]|\d+\.) )/g, " ").trim();
      if (words.startsWith("#")) add(page, words.startsWith("##") ? "h3" : "h2", words.replace(/^#+ /, ""));
      else if (words.startsWith(">")) add(page, "blockquote", words.replace(/^> ?/, ""));
      else if (/^(?:[-*]|\d+\.) /.test(words)) {
        const list = make(/^\d/.test(words) ? "ol" : "ul");
        for (const item of words.split(/\n/)) add(list, "li", item.trim().replace(/^(?:[-*]|\d+\.) /, ""));
        page.append(list);
      } else if (words) add(page, "p", words);
    }
    if (codes[n]) page.append(make("pre", {}, make("code", { textContent: codes[n].trim() })));
  });
  $("runbook-dialog").showModal();
}

// --- what a person does -----------------------------------------------------------------------

$("pause").addEventListener("click", async () => {
  if (last?.health.paused) { act("POST", "/api/sync/resume", null, "Resumed."); return; }
  $("pause-reason").value = "";
  if (!(await confirmed($("pause-dialog")))) return;
  const wanted = { reason: $("pause-reason").value.trim() };
  if ($("pause-for").value) wanted.for = $("pause-for").value;
  act("POST", "/api/sync/pause", wanted, "Paused: changes wait in the queue.");
});
$("runbook").addEventListener("click", async (event) => {
  event.preventDefault();
  try {
    await openRunbook($("runbook").getAttribute("href"));
  } catch (error) {
    toast(`The runbook cannot be shown: ${error.message}`);
  }
});
$("pause-cancel").addEventListener("click", () => $("pause-dialog").close());
$("sync-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const namespaces = $("sync-ns").value.split(",").map((name) => name.trim()).filter(Boolean);
  act("POST", "/api/sync/full", { namespaces, dryRun: $("sync-dry").checked, digest: $("sync-digest").checked }, "The full sync has been asked for.");
});
$("sync-cancel").addEventListener("click", () => act("DELETE", "/api/sync/full", null, "Cancelled."));

text("zone", ` (${Intl.DateTimeFormat().resolvedOptions().timeZone ?? "local"})`);
Link.begin();
