// The last hour in three charts (uPlot). Colours come from the style sheet, so that they follow it.
"use strict";

const Charts = (() => {
  const HOUR_MS = 3_600_000;
  let samples = [];
  let plots = [];

  const series = {
    "plot-lag": [{ label: "lag", of: (s) => s.lagMs / 1000, color: "--accent" }],
    "plot-rate": [
      { label: "read", of: (s) => s.eventsPerSecond, color: "--second" },
      { label: "written", of: (s) => s.writesPerSecond, color: "--accent" },
    ],
    "plot-queue": [{ label: "waiting", of: (s) => s.pending, color: "--accent" }],
  };

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (n) => (n == null ? "–" : Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(n));

  const clock = (s) => new Date(s * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

  function data(lines) {
    const times = samples.map((s) => s.atMs / 1000);
    return [times, ...lines.map((line) => samples.map(line.of))];
  }

  function draw() {
    for (const { plot } of plots) plot.destroy();
    plots = Object.entries(series).map(([id, lines]) => {
      const place = document.getElementById(id);
      const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
      const options = {
        width: place.clientWidth,
        height: 170,
        cursor: { y: false },
        // An idle queue is a line on the ground, not noise blown up.
        scales: {
          // A young agent's minutes fill the chart, and an hour is the most.
          x: { range: (_, min, max) => [Math.min(min, max - 300), max] },
          y: { range: (_, min, max) => [0, Math.max(1, max * 1.1)] },
        },
        axes: [{ ...axis, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 48, values: (_, ticks) => ticks.map(short) }],
        series: [{ label: "at", value: (_, s) => (s == null ? "–" : clock(s)) }, ...lines.map((line) => ({
          label: line.label, stroke: color(line.color), width: 2, points: { show: false },
          value: (_, value) => short(value),
        }))],
      };
      return { plot: new uPlot(options, data(lines), place), lines, place };
    });
  }

  function refresh() {
    document.getElementById("charts-empty").hidden = samples.length > 0;
    document.getElementById("charts").hidden = samples.length === 0;
    if (samples.length === 0) return;
    if (plots.length === 0) draw();
    for (const { plot, lines } of plots) plot.setData(data(lines));
  }

  new ResizeObserver(() => {
    for (const { plot, place } of plots) if (place.clientWidth) plot.setSize({ width: place.clientWidth, height: 170 });
  }).observe(document.getElementById("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => samples.length && draw());

  return {
    /** Replaces everything. */
    load(list) { samples = list; refresh(); },
    /** Adds the newest sample, unless it is known. */
    add(sample) {
      const last = samples.at(-1);
      if (!sample || (last && last.atMs >= sample.atMs)) return;
      samples.push(sample);
      while (samples[0].atMs < sample.atMs - HOUR_MS) samples.shift();
      refresh();
    },
  };
})();
