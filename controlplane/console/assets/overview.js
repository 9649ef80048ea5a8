import { bytes, el, seconds, word } from "./draw.js";
import { watch } from "./link.js";
import { pages } from "./pages.js";

// The worst come first.
const ORDER = ["degraded", "away", "healthy"];

export function health(disk) {
  if (!disk.state) return "away";
  const whole = disk.state === "VOLUME_STATE_ACTIVE" && disk.slots.every((slot) => slot.state === "SLOT_STATE_ACTIVE");
  return whole ? "healthy" : "degraded";
}

function slots(disk) {
  return disk.slots.map((slot) => `${slot.slot} ${slot.address} ${word(slot.state, "SLOT_STATE_")}`).join(" · ") || "no machine answers";
}

function diskTable() {
  return pages({
    id: "disks", empty: "no disk is recorded", columns: ["Disk", "Health", "Machine", "Size", "Slots"],
    words: (disk) => `${disk.name} ${disk.health} ${disk.instance} ${slots(disk)}`,
    cells: (disk) => [
      el("a", { href: `#/disk/${encodeURIComponent(disk.name)}` }, disk.name),
      el("td", { class: disk.health === "healthy" ? "ok" : "bad" }, disk.health),
      disk.instance, bytes(disk.totalBytes), el("td", { class: "long" }, slots(disk)),
    ],
  });
}

function replacementTable() {
  return pages({
    id: "replacements", empty: "none yet", columns: ["Disk", "Slot", "State", "Done", "Rate", "ETA", "Waits for"],
    words: (one) => `${one.disk} ${word(one.state, "REPLACEMENT_STATE_")} ${one.oldTarget} ${one.newTarget}`,
    cells: (one) => [
      el("a", { href: `#/replacement/${one.id}` }, one.disk), one.slot, word(one.state, "REPLACEMENT_STATE_"),
      `${bytes(one.bytesDone)} of ${bytes(one.bytesTotal)}`, one.bytesPerSecond ? `${bytes(one.bytesPerSecond)}/s` : "-",
      one.etaSeconds ? seconds(one.etaSeconds) : "-", el("td", { class: "long" }, one.blockedOn || "-"),
    ],
  });
}

function downstairsTable() {
  return pages({
    id: "downstairs", empty: "none is known", columns: ["Address", "Role", "Health", "Stored", "Free", "Disks"],
    words: (one) => `${one.address} ${word(one.role, "DOWNSTAIRS_ROLE_")} ${word(one.health, "DOWNSTAIRS_HEALTH_")} ${one.disks.join(" ")}`,
    cells: (one) => [
      one.address, word(one.role, "DOWNSTAIRS_ROLE_"), word(one.health, "DOWNSTAIRS_HEALTH_"), bytes(one.storedBytes),
      one.freeBytes === undefined ? "-" : bytes(one.freeBytes), el("td", { class: "long" }, one.disks.join(", ") || "-"),
    ],
  });
}

// A list, its rows by `key`: messages tell what changed, the first one of a watch everything.
function list(name, key, order) {
  const rows = new Map();
  return ({ whole, [name]: { changed, gone } }) => {
    if (whole) rows.clear();
    for (const one of gone) rows.delete(one);
    for (const row of changed) rows.set(row[key], row);
    return [...rows.values()].sort(order);
  };
}

const byAddress = (a, b) => a.address.localeCompare(b.address, undefined, { numeric: true });
const newest = (a, b) => Date.parse(b.createTime) - Date.parse(a.createTime);
const worst = (a, b) => ORDER.indexOf(a.health) - ORDER.indexOf(b.health) || a.name.localeCompare(b.name);

export function overview(main, signal) {
  const looking = el("p", { class: "dim" }, "looking…");
  const heading = el("h2", {}, "Disks");
  const [disks, replacements, downstairs] = [diskTable(), replacementTable(), downstairsTable()];
  const parts = el("div", { id: "overview", hidden: true }, heading, disks.nodes,
    el("h2", {}, "Replacements"), replacements.nodes, el("h2", {}, "Downstairs"), downstairs.nodes);
  main.replaceChildren(el("h1", {}, "Overview"), looking, parts);
  const allDisks = list("disks", "name", worst);
  const allReplacements = list("replacements", "id", newest);
  const allDownstairs = list("downstairs", "address", byAddress);
  return watch("overview", {}, (news) => {
    for (const one of news.disks.changed) one.health = health(one);
    const found = allDisks(news);
    heading.textContent = `Disks: ${ORDER.map((kind) => `${found.filter((disk) => disk.health === kind).length} ${kind}`).join(", ")}`;
    disks.show(found);
    replacements.show(allReplacements(news));
    downstairs.show(allDownstairs(news));
    [looking.hidden, parts.hidden] = [true, false];
    document.getElementById("link").textContent = news.away ? `not live: ${news.away}` : "live";
  }, signal);
}
