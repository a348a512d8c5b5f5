// Asking the agent, and hearing of it. What changes anything needs the token, which is asked for once.
"use strict";

const token = { get: () => sessionStorage.getItem("token"), set: (value) => { sessionStorage.setItem("token", value); Letters.forget(); }, drop: () => sessionStorage.removeItem("token") };

// `outrigger dashboard` prints an address with the token behind the `#`, which no browser sends anywhere. It is taken
// out at once, so that it stays neither in sight nor among the visited addresses.
{
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given.replace(/[^\x21-\x7e]/g, ""));
    history.replaceState(null, "", location.pathname + location.search);
  }
}

/** With what the agent's log says of whoever changes something. */
function headers() {
  return token.get() ? { Authorization: `Bearer ${token.get()}`, "X-Outrigger-User": "dashboard" } : {};
}

/** Asks for the token, once for all who need it; false when the person leaves it. */
let asking = null;
function askForToken(wasRefused) {
  asking ??= openDialog(wasRefused).finally(() => { asking = null; });
  return asking;
}

/** Shows a dialog; true when the person goes on. */
function confirmed(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}

async function openDialog(wasRefused) {
  $("token-error").hidden = !wasRefused;
  $("token").value = "";
  // A header takes nothing else, and a token is nothing else.
  const given = (await confirmed($("token-dialog"))) && $("token").value.replace(/[^\x21-\x7e]/g, "");
  if (given) token.set(given);
  return Boolean(given);
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

/** Does something, and says so. */
async function act(method, path, body, done) {
  try {
    const answer = await ask(method, path, body);
    toast(typeof done === "function" ? done(answer) : done);
    Letters.forget();
    return true;
  } catch (error) {
    toast(`Not done: ${error.message}`);
    return false;
  }
}

$("token-cancel").addEventListener("click", () => $("token-dialog").close());

// --- the stream of events ---------------------------------------------------------------------

/** What the agent tells: objects with nothing but what is in them, so that a collection may be called `__proto__`. */
const parsed = (json) => JSON.parse(json, (_, value) => (
  value !== null && typeof value === "object" && !Array.isArray(value) ? Object.setPrototypeOf(value, null) : value));

/** RFC 7396: what is `null` is gone. */
function patched(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const made = target !== null && typeof target === "object" && !Array.isArray(target) ? target : Object.create(null);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete made[name];
    else made[name] = patched(made[name], value);
  }
  return made;
}

/** Follows the agent: hands on what it tells, and says when it does not. A view is what is looked at of the collections. */
const Link = (() => {
  const SILENCE_MS = 6000;
  const AGAIN_MS = 2000;
  let heardAt = null;
  let lostAt = null;
  let state = null;
  let view = { filter: "", sort: "trouble", limit: "20" };
  let again = null;

  function is(link, words) {
    document.body.dataset.link = link;
    text("link", words);
  }

  function lost(why) {
    lostAt ??= Date.now();
    is("lost", why ? `Trying again: ${why}` : "No connection, trying again");
    showLost(heardAt, lostAt);
  }

  function dispatch(block) {
    let name = "message";
    const data = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    }
    if (data.length === 0) return;
    const value = parsed(data.join("\n"));
    if (name === "history") Charts.load(value);
    if (name === "status") state = value;
    if (name === "change") state = patched(state, value);
    if (name === "status" || name === "change") {
      [heardAt, lostAt] = [Date.now(), null];
      is("up", "Live");
      show(state);
    }
  }

  // Not an EventSource, which can send no token. A stream that falls silent without ending, as behind a machine
  // that sleeps, is given up.
  async function follow() {
    const began = Date.now();
    const stop = new AbortController();
    let isMeant = false;
    again = () => { isMeant = true; stop.abort(); };
    let timer = setTimeout(() => stop.abort(), SILENCE_MS);
    try {
      const used = token.get();
      const query = new URLSearchParams({ changes: "true", since: Charts.newest(), ...view });
      const response = await fetch(`/api/events?${query}`, { headers: headers(), signal: stop.signal, cache: "no-store" });
      if (response.status === 401) {
        clearTimeout(timer);
        if (token.get() === used && !(await askForToken(used != null))) {
          is("lost", "This needs the token; click anywhere to be asked again.");
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
    } catch (error) {
      if (isMeant) return true;
      throw error;
    } finally {
      clearTimeout(timer);
      // Whatever ended it: a stream that nobody reads would keep its place in the agent.
      stop.abort();
    }
  }

  return {
    async begin() {
      for (;;) {
        // One that ends in order is asked for again at once.
        let why = "";
        if (await follow().catch((error) => { why = error.name === "Error" ? error.message : ""; return false; })) continue;
        lost(why);
        await new Promise((wait) => setTimeout(wait, AGAIN_MS));
      }
    },
    /** Other collections are looked at from now on. */
    look(other) { view = other; again?.(); },
    isUp: () => lostAt === null && heardAt !== null,
  };
})();
