// What is known of the extents of a region, a column for each slot's member: as cells of a canvas, and
// counted in words. However many extents there are, they make no elements.
import { cleared } from "./chart.js";
import { bytes, el } from "./draw.js";

// In the order of `stairlib.model.extents`: where a cell stands for several, the worst is shown.
const STATES = [
  ["s", "in sync"], ["c", "copied"], ["d", "dirty"], ["w", "being copied"], ["x", "to be copied"], ["u", "unknown"],
];
const LETTERS = STATES.map(([letter]) => letter).join("");
const GAP = 16;
const [CELL_LEAST, CELL_MOST] = [2, 12];
const HEIGHT_MOST = 480;

// [[state, how many], …] of 5000c4w7796x.
export function runs(text) {
  return Array.from(text.matchAll(/(\d*)([a-z])/g), ([, count, letter]) => [LETTERS.indexOf(letter), count ? Number(count) : 1]);
}

// The largest cells with which `count` extents are no higher than they may be; `fold` extents to each.
function grid(count, width) {
  for (let cell = CELL_MOST; cell > CELL_LEAST; cell -= 1) {
    const per = Math.max(1, Math.floor(width / cell));
    const rows = Math.ceil(count / per);
    if (rows * cell <= HEIGHT_MOST) return { cell, per, rows, fold: 1 };
  }
  const per = Math.max(1, Math.floor(width / CELL_LEAST));
  const fold = Math.max(1, Math.ceil(count / (per * (HEIGHT_MOST / CELL_LEAST))));
  return { cell: CELL_LEAST, per, rows: Math.ceil(count / fold / per), fold };
}

function cells(found, count, fold) {
  const made = new Uint8Array(Math.ceil(count / fold));
  let at = 0;
  for (const [state, many] of found) {
    const end = Math.min(count, at + many);
    if (fold === 1) made.fill(state, at, end);
    else for (let cell = Math.floor(at / fold); cell * fold < end; cell += 1) made[cell] = Math.max(made[cell], state);
    at = end;
  }
  return made;
}

// Rectangles instead of cells wherever neighbours are alike.
function paint(draw, states, { cell, per }, left, colours) {
  const edge = cell > 4 ? 1 : 0;
  for (let at = 0; at < states.length;) {
    const state = states[at];
    const [row, column] = [Math.floor(at / per), at % per];
    let end = at + 1;
    while (end < states.length && end - at < per - column && states[end] === state) end += 1;
    draw.fillStyle = colours[state];
    if (edge) for (let one = at; one < end; one += 1) draw.fillRect(left + (one % per) * cell, row * cell, cell - edge, cell - edge);
    else draw.fillRect(left + column * cell, row * cell, (end - at) * cell, cell);
    at = end;
  }
}

function counted(found) {
  const sums = STATES.map(() => 0);
  for (const [state, many] of found) sums[state] += many;
  return STATES.map(([, word], state) => [sums[state], word]).filter(([sum]) => sum).map(([sum, word]) => `${sum} ${word}`).join(", ");
}

export function legend() {
  return el("ul", { class: "legend", "aria-label": "colours of the map" }, STATES.map(([letter, word]) => el("li", {}, el("span", { class: `key ${letter}` }), word)));
}

// `take` a region as WatchDiskExtents tells it, columns that did not change left out; `lose` when nobody tells.
export function extentMap(signal) {
  const canvas = el("canvas", { class: "extents", role: "img" });
  const words = el("div", { class: "columns" });
  const size = el("p", { class: "dim" }, "no map yet");
  const columns = new Map();
  let count = 0;
  let drawing = 0;

  function draw() {
    drawing = 0;
    const found = [...columns.values()];
    if (!canvas.isConnected || !found.length) return;
    const style = getComputedStyle(canvas);
    const colours = STATES.map(([letter]) => style.getPropertyValue(`--extent-${letter}`).trim());
    const width = canvas.clientWidth;
    const each = Math.floor((width - GAP * (found.length - 1)) / found.length);
    const shape = grid(count, each);
    const on = cleared(canvas, width, shape.rows * shape.cell);
    found.forEach((column, index) => paint(on, cells(column.found, count, shape.fold), shape, index * (each + GAP), colours));
  }
  const soon = () => { if (!drawing) drawing = requestAnimationFrame(draw); };
  const watched = new ResizeObserver(soon);
  watched.observe(words);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", soon, { signal });
  signal.addEventListener("abort", () => { watched.disconnect(); cancelAnimationFrame(drawing); });

  function tell() {
    const texts = [...columns].sort(([a], [b]) => a - b).map(([slot, { address, found }]) => [`slot ${slot}`, address, counted(found)]);
    words.replaceChildren(...texts.map(([slot, address, sums]) => el("p", {}, el("strong", {}, slot), ` ${address}`, el("br"), sums)));
    canvas.setAttribute("aria-label", texts.map(([slot, , sums]) => `${slot}: ${sums}`).join("; "));
    soon();
  }

  return {
    nodes: [size, canvas, words],
    take(region) {
      if (region.extentCount !== count) columns.clear();
      count = region.extentCount;
      size.textContent = `${count} extents of ${bytes(region.extentBytes)}`;
      for (const { slot, address, runs: text } of region.columns) columns.set(slot, { address, found: runs(text) });
      if (region.columns.length) tell();
    },
    lose() {
      for (const column of columns.values()) column.found = [[LETTERS.indexOf("u"), count]];
      if (columns.size) tell();
    },
  };
}
