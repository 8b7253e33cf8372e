// Small plots in SVG, redrawn as a whole: they hold a few hundred marks at most.

const SVG = "http://www.w3.org/2000/svg";
const SHOWN = 40; // trials
const BAND = 1.96; // standard deviations either way hold 95 % of measurements
const DECADES = [0.1, 1, 10, 100, 1000, 10000]; // ms, always the same: nothing moves without meaning

export function mark(parent, kind, attributes, text) {
  const node = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// An empty plot in units of the screen's pixels, and the box inside its axes.
function empty(svg) {
  svg.replaceChildren();
  const width = Math.max(svg.clientWidth, 160);
  const height = Math.max(svg.clientHeight, 60);
  const letter = parseFloat(getComputedStyle(svg).fontSize);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return {
    width,
    height,
    left: 3 * letter,
    right: width - 1.3 * letter,
    top: 0.6 * letter,
    bottom: height - 1.7 * letter,
    foot: height - 0.4 * letter,
    middle: 0.34 * letter, // from a text's middle down to its baseline
  };
}

export const inBand = (choice) =>
  Math.abs(choice.measured - choice.score) <= BAND * choice.uncertainty;

export const isCompared = (choice) => choice.measured !== null && choice.score !== null;

// Predicted score with its band, and what was measured, over the last trials.
export function course(svg, choices, selected) {
  const box = empty(svg);
  const shown = choices.slice(-SHOWN);
  const scored = shown.filter((choice) => choice.score !== null);
  const measured = shown.filter((choice) => choice.measured !== null);
  const ends = [
    ...scored.flatMap((c) => [c.score - BAND * c.uncertainty, c.score + BAND * c.uncertainty]),
    ...measured.map((c) => c.measured),
  ];
  if (!ends.length) {
    mark(svg, "text", { x: box.width / 2, y: box.height / 2, class: "nothing" }, "no trial yet");
    return;
  }
  const ticks = niceTicks(Math.min(0, ...ends), Math.max(0, ...ends));
  const low = Math.min(ticks[0], ...ends);
  const high = Math.max(ticks[ticks.length - 1], ...ends);
  const first = shown[0].trial;
  const last = Math.max(shown[shown.length - 1].trial, first + 9);
  const x = (trial) => box.left + 6 + ((trial - first) / (last - first)) * (box.right - box.left - 12);
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  for (const tick of ticks) {
    mark(svg, "line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "grid" });
    mark(svg, "text", { x: box.left - 5, y: y(tick) + box.middle, class: "tick end" }, number(tick));
  }
  for (const run of runs(shown)) {
    const over = run.map((c) => `${x(c.trial)},${y(c.score + BAND * c.uncertainty)}`);
    const under = run.map((c) => `${x(c.trial)},${y(c.score - BAND * c.uncertainty)}`).reverse();
    mark(svg, "polygon", { points: [...over, ...under].join(" "), class: "band" });
    mark(svg, "polyline", { points: run.map((c) => `${x(c.trial)},${y(c.score)}`).join(" "), class: "predicted" });
  }
  for (const choice of shown) {
    if (choice.trial === selected) {
      mark(svg, "line", { x1: x(selected), x2: x(selected), y1: box.top, y2: box.bottom, class: "cursor" });
    }
    if (choice.measured === null) continue;
    const dot = mark(svg, "circle", { cx: x(choice.trial), cy: y(choice.measured), r: 3.5, class: "measured" });
    mark(dot, "title", {}, `trial ${choice.trial}: measured ${signed(choice.measured)}`);
  }
  mark(svg, "text", { x: box.left + 6, y: box.foot, class: "tick" }, `trial ${first}`);
  mark(svg, "text", { x: box.right, y: box.foot, class: "tick end" }, String(last));
}

// Stretches of trials that have a score; a fallback has none and breaks the band.
function runs(choices) {
  const found = [[]];
  for (const choice of choices) {
    if (choice.score === null) found.push([]);
    else found[found.length - 1].push(choice);
  }
  return found.filter((run) => run.length);
}

// Counts over bins of log10(ms); bars that begin at the deadline or after it are hatched.
export function histogram(svg, latency, deadline) {
  const box = empty(svg);
  const [from, to] = [Math.log10(DECADES[0]), Math.log10(DECADES[DECADES.length - 1])];
  const inside = (share) => Math.min(1, Math.max(0, share));
  const x = (ms) => box.left + inside((Math.log10(ms) - from) / (to - from)) * (box.right - box.left);
  for (const decade of DECADES) {
    mark(svg, "line", { x1: x(decade), x2: x(decade), y1: box.bottom, y2: box.bottom + 4, class: "axis" });
    mark(svg, "text", { x: x(decade), y: box.foot, class: "tick middle" }, duration(decade));
  }
  mark(svg, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" });
  const most = Math.max(1, ...latency.counts);
  const top = box.top + 0.18 * (box.bottom - box.top);
  latency.counts.forEach((count, n) => {
    if (!count) return;
    const [left, right] = [x(latency.edges[n]), x(latency.edges[n + 1])];
    const height = Math.max(1.5, (count / most) * (box.bottom - top));
    const over = deadline && latency.edges[n] >= deadline * 0.999;
    const place = { x: left + 0.5, y: box.bottom - height, width: Math.max(1, right - left - 1), height };
    const bar = mark(svg, "rect", { ...place, class: over ? "bar over" : "bar" });
    mark(bar, "title", {}, `${count} from ${duration(latency.edges[n])} to ${duration(latency.edges[n + 1])}`);
  });
  mark(svg, "text", { x: box.left - 5, y: top + box.middle, class: "tick end" }, latency.count ? String(most) : "");
  if (deadline) {
    const at = x(deadline);
    const left = at > (box.left + box.right) / 2;
    mark(svg, "line", { x1: at, x2: at, y1: 0, y2: box.bottom, class: "deadline" });
    mark(svg, "text", { x: at + (left ? -4 : 4), y: box.top + box.middle, class: left ? "tick end" : "tick" }, `deadline ${duration(deadline)}`);
  }
}

function niceTicks(low, high) {
  const rough = Math.max(high - low, 1e-9) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-9; n++) ticks.push(n * step);
  return ticks.length ? ticks : [0];
}

const minus = (text) => text.replace("-", "\u2212");
const number = (value) => minus(String(Number(value.toPrecision(3))));

// With its sign: two decimals, or so many digits.
export function signed(value, digits) {
  const text = digits ? String(Number(value.toPrecision(digits))) : value.toFixed(2);
  return (value > 0 ? "+" : "") + minus(text);
}

export function duration(ms) {
  if (ms >= 1000) return `${Number((ms / 1000).toPrecision(2))} s`;
  return `${Number(ms.toPrecision(2))} ms`;
}
