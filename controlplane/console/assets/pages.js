import { el, frame, row } from "./draw.js";

// As many rows as are in the page at once, however many things there are.
export const ROWS = 50;

// What was written into the filters, and where one was, for the next look at the page in this tab.
const KEPT = "stairwell-tables";

function keep(id, state) {
  sessionStorage.setItem(KEPT, JSON.stringify({ ...kept(), [id]: state }));
}

function kept() {
  return JSON.parse(sessionStorage.getItem(KEPT) || "{}");
}

// A table that is told anew again and again, some rows at a time, with a filter. Only rows that changed are made
// anew: scrolling, focus and what is selected stay. `cells` and `words` (what is searched) are of one item.
export function pages({ id, columns, cells, words, empty }) {
  let items = [];
  const before = kept()[id] || { filter: "", first: 0 };
  let first = before.first;
  const drawn = new Map();
  const body = el("tbody");
  const box = frame(columns, body, id);
  const none = el("p", { class: "dim" });
  const place = el("span", { id: `${id}-place`, role: "status" });
  const filter = el("input", { id: `${id}-filter`, type: "search", autocomplete: "off", oninput: () => { first = 0; draw(); remember(); } });
  filter.value = before.filter;
  const remember = () => keep(id, { filter: filter.value, first });
  const turn = (label, by) => el("button", { type: "button", onclick: () => { first += by; box.scrollTop = 0; draw(); remember(); } }, label);
  const [back, on] = [turn("Previous", -ROWS), turn("Next", ROWS)];
  const bar = el("p", { class: "pages" }, el("label", {}, "Filter ", filter), " ", back, " ", on, " ", place);

  function draw() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = wanted.length ? items.filter((item) => {
      const text = words(item).toLowerCase();
      return wanted.every((each) => text.includes(each));
    }) : items;
    if (items.length) first = Math.max(0, Math.min(first, Math.floor((matching.length - 1) / ROWS) * ROWS));
    const shown = matching.slice(first, first + ROWS);
    put(shown);
    bar.hidden = items.length <= ROWS && !wanted.length;
    box.hidden = !shown.length;
    none.hidden = Boolean(shown.length);
    const why = items.length ? "nothing matches the filter" : empty;
    none.textContent = shown.length ? "" : why;
    const range = shown.length ? `${first + 1}\u2013${first + shown.length} of ${matching.length}` : "0";
    place.textContent = wanted.length ? `${range} that match, of ${items.length}` : range;
    back.disabled = !first;
    on.disabled = first + ROWS >= matching.length;
  }

  // What tells the same stays the same row, wherever others came or went.
  function put(shown) {
    const focused = body.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const next = new Map(shown.map((item) => [JSON.stringify(item), item]));
    for (const [text, made] of drawn) if (!next.has(text)) { made.remove(); drawn.delete(text); }
    let here = body.firstElementChild;
    for (const [text, item] of next) {
      const known = drawn.get(text) || row(cells(item));
      drawn.set(text, known);
      if (known === here) here = here.nextElementSibling;
      else body.insertBefore(known, here);
    }
    if (focused && !body.contains(document.activeElement)) {
      [...body.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus({ preventScroll: true });
    }
  }

  draw();
  return { nodes: [bar, box, none], show: (found) => { items = found; draw(); } };
}
