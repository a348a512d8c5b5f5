// The last hour, or day, in three charts (uPlot) that are zoomed and pointed at together, with what happened meanwhile.
// Colours come from the style sheet, so that they follow it.
"use strict";

const Charts = (() => {
  const RANGES = {
    hour: { ms: 3_600_000, title: "The last hour" },
    day: { ms: 86_400_000, title: "The last 24 hours" },
  };
  // What a young agent's chart spans at the least.
  const LEAST_MS = 60_000;
  const HEIGHT = 150;
  // Closer than some samples there is nothing to see.
  const CLOSEST_S = 20;

  // Rows as the agent sends them: time, lag, waiting, bytes, and tenths of the rates.
  const SERIES = {
    lag: [{ label: "behind", of: (row) => row[1] / 1000, unit: " s", color: "--accent", width: 2 }],
    // Where both are alike the one is seen around the other.
    rate: [
      { label: "read", of: (row) => row[4] / 10, unit: "/s", color: "--second", width: 6, alpha: 0.45 },
      { label: "written", of: (row) => row[5] / 10, unit: "/s", color: "--accent", width: 2 },
    ],
    queue: [{ label: "waiting", of: (row) => row[2], unit: "", color: "--accent", width: 2 }],
  };
  const KINDS = {
    "atlas-away": { tag: "A", color: "--bad", words: "Atlas away" },
    "local-away": { tag: "L", color: "--bad", words: "Local database away" },
    pause: { tag: "P", color: "--warn", words: "Paused" },
    restart: { tag: "R", color: "--soft", words: "Agent not running" },
    sync: { tag: "S", color: "--good", words: "Full sync" },
    ddl: { tag: "D", color: "--second", words: "Collections changed" },
  };

  const kept = { hour: [], day: [], seconds: { hour: 5, day: 120 } };
  let marks = [];
  let range = "hour";
  let zoom = null;
  let plots = [];
  let pointed = null;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** The rows of the range, a gap where the agent did not run. */
  function rows() {
    const fine = kept.hour;
    const all = range === "hour" ? fine : [...kept.day, ...fine.filter((row) => row[0] > (kept.day.at(-1)?.[0] ?? 0))];
    const gap = 3_000 * kept.seconds[range];
    const from = (all.at(-1)?.[0] ?? 0) - RANGES[range].ms;
    const found = [];
    for (const row of all) {
      if (row[0] < from) continue;
      const last = found.at(-1);
      if (last && row[0] - last[0] > gap) found.push([last[0] + 1, null]);
      found.push(row);
    }
    return found;
  }

  function span_() {
    const last = kept.hour.at(-1)?.[0] ?? Date.now();
    const all = range === "hour" ? kept.hour : [...kept.day, ...kept.hour];
    const first = Math.max(all[0]?.[0] ?? last, last - RANGES[range].ms);
    return [Math.min(first, last - LEAST_MS) / 1000, last / 1000];
  }

  function data(lines, shown) {
    return [shown.map((row) => row[0] / 1000), ...lines.map((line) => shown.map((row) => (row[1] === null ? null : line.of(row))))];
  }

  /** Bands and lines behind the series, each with the letter of its kind. */
  function drawMarks(plot) {
    const { ctx, bbox } = plot;
    const [from, to] = [plot.scales.x.min, plot.scales.x.max];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    let [taken, row] = [0, 0];
    for (const mark of [...marks].sort((a, b) => a.fromMs - b.fromMs)) {
      const [begin, end] = [mark.fromMs / 1000, (mark.untilMs ?? Date.now()) / 1000];
      if (end < from || begin > to) continue;
      const kind = KINDS[mark.kind];
      const left = plot.valToPos(begin, "x", true);
      const width = Math.max(devicePixelRatio, plot.valToPos(end, "x", true) - left);
      ctx.fillStyle = color(kind.color);
      ctx.globalAlpha = width > 3 * devicePixelRatio ? 0.16 : 0.7;
      ctx.fillRect(left, bbox.top, width, bbox.height);
      ctx.globalAlpha = 1;
      // One below the other where they would meet.
      const most = bbox.left + bbox.width - 11 * devicePixelRatio;
      const at = Math.min(Math.max(left, bbox.left) + 3 * devicePixelRatio, most);
      row = at < taken ? row + 1 : 0;
      taken = Math.max(taken, at + 11 * devicePixelRatio);
      ctx.fillText(kind.tag, at, bbox.top + (11 + 12 * row) * devicePixelRatio);
    }
    ctx.restore();
  }

  function legend(of, index) {
    const { lines, place, name } = of;
    const values = of.plot.data;
    const at = index ?? values[0].length - 1;
    const parts = lines.map((line, n) => {
      const value = values[n + 1][at];
      return [line.color, `${line.label} ${value == null ? "–" : short(value) + line.unit}`];
    });
    const time = values[0][at] == null ? "" : moment(values[0][at] * 1000);
    const words = $(`legend-${name}`);
    if (words.children.length !== parts.length + 1) {
      words.replaceChildren(...parts.map(([tone]) => {
        const key = make("span", { className: "key" });
        key.dataset.color = tone;
        return make("span", { className: "item" }, key, make("span"));
      }), make("span", { className: "item at" }));
    }
    parts.forEach(([, value], n) => text(words.children[n].lastChild, value));
    text(words.lastChild, index == null ? `now` : `at ${time}`);
    place.setAttribute("aria-label", `${place.dataset.title}: ${parts.map(([, value]) => value).join(", ")}`);
  }

  function pointAt(plot) {
    if (pointed) return;
    pointed = plot;
    for (const of of plots) legend(of, plot.cursor.idx);
    pointed = null;
  }

  function zoomTo(plot) {
    const { left, width } = plot.select;
    if (width < 8) return;
    zoom = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    refresh();
  }

  /** Arrows point, + and − look closer or from further off at what is pointed at, Escape shows all. */
  function byKey(event, name) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { plot } = plots.find((of) => of.name === name);
    const whole = span_();
    const [from, to] = zoom ?? whole;
    const wide = to - from;
    let at = plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : to;
    const [steps, times] = [{ ArrowLeft: -1, ArrowRight: 1 }[event.key], { "+": 0.5, "=": 0.5, "-": 2 }[event.key]];
    if (steps) {
      at = Math.min(Math.max(at + (steps * wide) / 40, whole[0]), whole[1]);
      const over = Math.max(0, at - to) - Math.max(0, from - at);
      if (zoom) zoom = [from + over, to + over];
    } else if (times) {
      const next = Math.max(CLOSEST_S, wide * times);
      const begin = Math.min(Math.max(at - next / 2, whole[0]), whole[1] - next);
      // As good as all of it is all of it.
      zoom = next < 0.9 * (whole[1] - whole[0]) ? [begin, begin + next] : null;
    } else if (event.key === "Escape") {
      zoom = null;
    } else {
      return;
    }
    event.preventDefault();
    refresh();
    // Drawn first: a place on the chart is one of the range that it then has.
    setTimeout(() => {
      const [begin, end] = zoom ?? span_();
      for (const of of plots) of.plot.setCursor({ left: ((at - begin) / (end - begin)) * of.plot.over.clientWidth, top: 10 });
    });
  }

  function draw() {
    for (const { plot } of plots) plot.destroy();
    const shown = rows();
    plots = Object.entries(SERIES).map(([name, lines]) => {
      const place = $(`plot-${name}`);
      place.dataset.title = place.parentElement.querySelector("figcaption").textContent;
      // It takes keys of its own, which a reader of screens passes on to nothing else.
      place.setAttribute("role", "application");
      place.setAttribute("aria-roledescription", "chart");
      place.tabIndex = 0;
      place.onkeydown = (event) => byKey(event, name);
      const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
      const options = {
        width: place.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, sync: { key: "outrigger" }, drag: { x: true, y: false, setScale: false } },
        scales: {
          x: { range: () => zoom ?? span_() },
          // An idle queue is a line on the ground, not noise blown up.
          y: { range: (_, __, max) => [0, Math.max(1, (max ?? 0) * 1.15)] },
        },
        axes: [
          { ...axis, space: 60, size: 28, values: (_, ticks, __, ___, step) => ticks.map((s) => (step < 60 ? moment : minute)(s * 1000)) },
          { ...axis, size: 48, values: (_, ticks) => ticks.map(short) },
        ],
        series: [{}, ...lines.map((line) => ({
          label: line.label, stroke: color(line.color), width: line.width, alpha: line.alpha ?? 1, points: { show: false },
        }))],
        hooks: { drawClear: [drawMarks], setCursor: [pointAt], setSelect: [zoomTo] },
      };
      const plot = new uPlot(options, data(lines, shown), place);
      byTouch(plot.over);
      return { name, plot, lines, place };
    });
  }

  /** A finger points and drags as a mouse does; up and down it scrolls the page. */
  function byTouch(over) {
    const pass = (type, as) => over.addEventListener(type, (event) => {
      if (event.pointerType === "mouse") return;
      const { clientX, clientY } = event;
      // uPlot passes over a move within a drag that has not moved.
      over.dispatchEvent(new MouseEvent(as, { clientX, clientY, movementX: 1, bubbles: true, button: 0 }));
    });
    pass("pointerdown", "mousedown");
    pass("pointermove", "mousemove");
    pass("pointerup", "mouseup");
  }

  function refresh() {
    $("charts-empty").hidden = kept.hour.length > 0;
    $("charts").hidden = kept.hour.length === 0;
    $("zoom-out").hidden = zoom === null;
    if (kept.hour.length === 0) return;
    if (plots.length === 0) draw();
    const shown = rows();
    for (const of of plots) {
      of.plot.setData(data(of.lines, shown));
      legend(of, of.plot.cursor.idx);
    }
  }

  function choose(next) {
    [range, zoom] = [next, null];
    for (const name of Object.keys(RANGES)) $(`range-${name}`).setAttribute("aria-pressed", `${name === next}`);
    text("charts-title", RANGES[next].title);
    refresh();
  }

  function listMarks(now) {
    const recent = [...marks].sort((a, b) => b.fromMs - a.fromMs).slice(0, 8);
    $("marks").hidden = recent.length === 0;
    const key = (mark) => `${mark.fromMs}-${mark.kind}`;
    const by = new Map(recent.map((mark) => [key(mark), mark]));
    patchList($("marks"), [...by.keys()], (id) => {
      const kind = KINDS[by.get(id).kind];
      const tag = make("span", { className: "tag", textContent: kind.tag });
      tag.dataset.color = kind.color;
      tag.setAttribute("aria-hidden", "true");
      return make("li", {}, tag, make("span"));
    }, (item, id) => text(item.lastChild, sentence(by.get(id), now)));
  }

  function sentence({ kind, fromMs, untilMs, text: why, count: n }, now) {
    const what = `${KINDS[kind].words}${why ? `, ${why}` : ""}${n ? `: ${count(n)}` : ""}`;
    if (kind === "ddl") return `${moment(fromMs)} ${what}`;
    if (kind === "restart" && untilMs - fromMs < 1000) return `${moment(fromMs)} Agent started`;
    const until = untilMs == null ? `now, ${span(Math.max(10_000, now - fromMs))}` : `${moment(untilMs)}, ${span(untilMs - fromMs)}`;
    return `${moment(fromMs)} to ${until}: ${what}`;
  }

  $("range-hour").addEventListener("click", () => choose("hour"));
  $("range-day").addEventListener("click", () => choose("day"));
  $("zoom-out").addEventListener("click", () => { zoom = null; refresh(); });
  $("charts").addEventListener("dblclick", () => { zoom = null; refresh(); });
  new ResizeObserver(() => {
    for (const { plot, place } of plots) if (place.clientWidth) plot.setSize({ width: place.clientWidth, height: HEIGHT });
  }).observe($("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => kept.hour.length && draw());

  function merge(known, more) {
    const last = known.at(-1)?.[0] ?? 0;
    // The agent's clock was set back: what was drawn is from the future.
    const from = more[0]?.[0] ?? last;
    return [...known.filter((row) => row[0] < from || from > last), ...more];
  }

  return {
    /** The time of the newest row, or 0. */
    newest: () => kept.hour.at(-1)?.[0] ?? 0,
    /** Takes the rows that come at the begin of a stream. */
    load({ samples, day, sampleSeconds, daySeconds }) {
      kept.hour = merge(kept.hour, samples);
      kept.day = merge(kept.day, day);
      kept.seconds = { hour: sampleSeconds, day: daySeconds };
      refresh();
    },
    /** Adds the newest sample, unless it is known. */
    add(sample) {
      const last = kept.hour.at(-1);
      if (!sample || (last && last[0] >= sample.atMs)) return;
      kept.hour.push([sample.atMs, sample.lagMs, sample.pending, sample.pendingBytes, sample.eventsPerSecond * 10, sample.writesPerSecond * 10]);
      while (kept.hour[0][0] < sample.atMs - RANGES.hour.ms) {
        const gone = kept.hour.shift();
        // What an open page drops from its hour is in its day, coarse, as the agent has it.
        const day = kept.day.at(-1)?.[0] ?? 0;
        if (gone[0] - day >= 1000 * kept.seconds.day) kept.day.push(gone);
      }
      while (kept.day[0]?.[0] < sample.atMs - RANGES.day.ms) kept.day.shift();
      refresh();
    },
    /** How many rows the hour has, and the time of its oldest; how wide the lines are, and what each chart shows. */
    count: () => kept.hour.length,
    oldest: () => kept.hour[0]?.[0] ?? 0,
    widths: (name) => SERIES[name].map((line) => line.width),
    shown: () => plots.map(({ plot }) => [plot.scales.x.min, plot.scales.x.max]),
    marks(found, now) {
      marks = Object.values(found ?? {});
      listMarks(now);
    },
  };
})();
