import { bytes, el, seconds, table, word } from "./draw.js";
import { watch } from "./link.js";

// Beyond so many rows a table is slower than it is useful; the worst come first.
const ROWS = 200;
const ORDER = ["degraded", "away", "healthy"];

export function health(disk) {
  if (!disk.state) return "away";
  const whole = disk.state === "VOLUME_STATE_ACTIVE" && disk.slots.every((slot) => slot.state === "SLOT_STATE_ACTIVE");
  return whole ? "healthy" : "degraded";
}

function slots(disk) {
  return disk.slots.map((slot) => `${slot.slot} ${slot.address} ${word(slot.state, "SLOT_STATE_")}`).join(" · ") || "no machine answers";
}

export function overview(main, signal) {
  const parts = el("div", { id: "overview" }, el("p", { class: "dim" }, "looking…"));
  main.replaceChildren(el("h1", {}, "Overview"), parts);
  return watch("overview", {}, (news) => {
    const disks = news.disks.map((disk) => ({ ...disk, health: health(disk) }))
      .sort((a, b) => ORDER.indexOf(a.health) - ORDER.indexOf(b.health) || a.name.localeCompare(b.name));
    const counts = ORDER.map((kind) => `${disks.filter((disk) => disk.health === kind).length} ${kind}`).join(", ");
    parts.replaceChildren(
      el("h2", {}, `Disks: ${counts}`),
      table(["Disk", "Health", "Machine", "Size", "Slots"], disks.slice(0, ROWS).map((disk) => [
        el("a", { href: `#/disk/${encodeURIComponent(disk.name)}` }, disk.name),
        el("td", { class: disk.health === "healthy" ? "ok" : "bad" }, disk.health),
        disk.instance, bytes(disk.totalBytes), el("td", { class: "long" }, slots(disk)),
      ]), "no disk is recorded"),
      disks.length > ROWS ? el("p", { class: "dim" }, `and ${disks.length - ROWS} more`) : "",
      el("h2", {}, "Replacements"),
      table(["Disk", "Slot", "State", "Done", "Rate", "ETA", "Waits for"], news.replacements.map((one) => [
        el("a", { href: `#/replacement/${one.id}` }, one.disk), one.slot, word(one.state, "REPLACEMENT_STATE_"),
        `${bytes(one.bytesDone)} of ${bytes(one.bytesTotal)}`, one.bytesPerSecond ? `${bytes(one.bytesPerSecond)}/s` : "-",
        one.etaSeconds ? seconds(one.etaSeconds) : "-", el("td", { class: "long" }, one.blockedOn || "-"),
      ]), "none yet"),
      el("h2", {}, "Downstairs"),
      table(["Address", "Role", "Health", "Stored", "Free", "Disks"], news.downstairs.map((one) => [
        one.address, word(one.role, "DOWNSTAIRS_ROLE_"), word(one.health, "DOWNSTAIRS_HEALTH_"), bytes(one.storedBytes),
        one.freeBytes === undefined ? "-" : bytes(one.freeBytes), el("td", { class: "long" }, one.disks.join(", ") || "-"),
      ]), "none is known"));
    document.getElementById("link").textContent = news.away ? `not live: ${news.away}` : "live";
  }, signal);
}
