// How things are written, everywhere on the page the same.
"use strict";

const $ = (id) => document.getElementById(id);

/** Sets a text, and touches nothing where it is that already: a selection stays. */
function text(place, value) {
  const element = typeof place === "string" ? $(place) : place;
  if (element.textContent === value) return;
  const only = element.childNodes.length === 1 ? element.firstChild : null;
  if (only?.nodeType === Node.TEXT_NODE && value !== "") only.data = value;
  else element.textContent = value;
}

const count = (n) => Intl.NumberFormat("en").format(n);
const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;
/** Numbers on an axis, and where there is little room. */
const short = (n) => (n == null ? "–" : Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(n));

/** A number and its unit stay on one line. */
const unit = (n, name) => `${n}\u00a0${name}`;

/** A time that passes, in one unit. */
function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return unit(s.toFixed(1), "s");
  if (s < 120) return unit(Math.round(s), "s");
  if (s < 7200) return unit(Math.round(s / 60), "min");
  if (s < 172_800) return unit(Math.round(s / 3600), "h");
  return unit(Math.round(s / 86_400), "days");
}
/** How long something lasts, where more than a month is as good as for ever. */
const lasting = (s) => (s > 30 * 86_400 ? "over a month" : span(s * 1000));
/** An age, coarse enough not to change each second. */
function ago(ms, now) {
  if (!ms) return "never";
  return now - ms < 60_000 ? "just now" : `${span(Math.max(120_000, now - ms))} ago`;
}

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; n >= 1000 && at < units.length - 1; at += 1) n /= 1000;
  return unit(at === 0 ? n : n.toFixed(1), units[at]);
}

const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
/** The one format of a moment: local time, with the day unless that is today. */
function moment(time) {
  const at = new Date(time);
  const clock = at.toLocaleTimeString("en-GB", TIME);
  if (at.toDateString() === new Date().toDateString()) return clock;
  return `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${clock}`;
}
/** The same on an axis, where there is room for less. */
const minute = (ms) => new Date(ms).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A button that says to those who cannot see its place what it is about. */
function button(label, name, action) {
  const made = make("button", { type: "button", textContent: label });
  made.setAttribute("aria-label", name);
  made.addEventListener("click", action);
  return made;
}

/** `words` with what stands between backquotes as code. */
function marked(place, words) {
  if (place.dataset.words === words) return;
  place.dataset.words = words;
  place.replaceChildren(...words.split("`").map((part, n) => (n % 2 ? make("code", { textContent: part }) : part)));
}

/**
 * Makes the children of `parent` those of `keys`, in their order: made once by `create(key)`, brought up to date by
 * `update(element, key)`, and moved only where they stand elsewhere, so that what a person has selected stays.
 */
function patchList(parent, keys, create, update) {
  parent.known ??= new Map();
  for (const [key, element] of parent.known) {
    if (!keys.includes(key)) { element.remove(); parent.known.delete(key); }
  }
  let place = parent.firstElementChild;
  for (const key of keys) {
    let element = parent.known.get(key);
    if (!element) { element = create(key); parent.known.set(key, element); }
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, key);
  }
}
