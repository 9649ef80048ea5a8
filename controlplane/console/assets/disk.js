import { chart } from "./chart.js";
import { bytes, el, table, word } from "./draw.js";
import { extentMap, legend } from "./extents.js";
import { call, watch } from "./link.js";

const SPAN_SECONDS = 600;
const TICK_MS = 1000;

function repairOf(slot) {
  if (!slot.repair) return slot.state === "SLOT_STATE_ACTIVE" ? "whole" : "-";
  const { bytesDone, bytesTotal, bytesCopied } = slot.repair;
  const bar = el("progress", { max: 1, value: Number(bytesTotal) ? Number(bytesDone) / Number(bytesTotal) : 0, "aria-label": `slot ${slot.slot} is filled` });
  return el("td", {}, bar, ` ${bytes(bytesDone)} of ${bytes(bytesTotal)}, ${bytes(bytesCopied)} copied`);
}

// The parts of the page that tell of regions: made once for each, so that a map stays as its table changes.
function regionParts(signal) {
  const parts = new Map();
  const place = el("div", { id: "regions" });
  const of = (path) => {
    if (!parts.has(path)) {
      const made = { head: el("h2"), map: extentMap(signal), slots: el("div"), text: "" };
      made.node = el("section", {}, made.head, ...made.map.nodes, made.slots);
      parts.set(path, made);
    }
    return parts.get(path);
  };
  const show = (found) => {
    const nodes = found.map((region) => {
      const part = of(region.path);
      const text = JSON.stringify(region);
      if (part.text === text) return part.node;
      part.text = text;
      part.head.textContent = `${region.path || "region"}: ${word(region.state, "VOLUME_STATE_")}`;
      part.slots.replaceChildren(table(["Slot", "Address", "State", "Copied", "Last error"], region.slots.map((slot) => [
        slot.slot, slot.address, el("td", { class: slot.state === "SLOT_STATE_ACTIVE" ? "ok" : "bad" }, word(slot.state, "SLOT_STATE_")),
        repairOf(slot), el("td", { class: "long" }, slot.lastError || "-")]), ""));
      return part.node;
    });
    if (nodes.length !== place.children.length || nodes.some((node, index) => node !== place.children[index])) place.replaceChildren(...nodes);
  };
  const map = (found) => {
    for (const region of found) of(region.path).map.take(region);
    if (!found.length) for (const part of parts.values()) part.map.lose();
  };
  return { place, show, map };
}

export async function disk(main, signal, name) {
  const head = el("h1", {}, name);
  const facts = el("dl");
  const regions = regionParts(signal);
  const rate = el("canvas", { class: "chart", role: "img" });
  const flow = el("canvas", { class: "chart", role: "img" });
  const latency = el("canvas", { class: "chart", role: "img" });
  main.replaceChildren(head, facts, legend(), regions.place, el("h2", {}, "The guest"), latency, flow, rate);
  let samples = [];
  let asking = false;

  const look = async () => {
    if (asking) return;
    asking = true;
    try {
      const after = samples.length ? samples[samples.length - 1].endTime : new Date(Date.now() - SPAN_SECONDS * 1e3).toISOString();
      const found = (await call("DiskService/GetDiskHistory", { name, afterTime: after })).samples;
      const oldest = Date.now() - SPAN_SECONDS * 1e3;
      samples = [...samples, ...found].filter((each) => Date.parse(each.endTime) > oldest);
    } catch (error) {
      // Without a machine there is no history; the watch says what there is.
      if (error.status === 401) throw error;
    } finally {
      asking = false;
    }
    if (signal.aborted) return;
    const now = Date.now() / 1e3;
    const points = (value) => samples.map((each) => [Date.parse(each.endTime) / 1e3, value(each)]);
    const requests = (each) => (Number(each.reads) + Number(each.writes) + Number(each.flushes)) / each.seconds;
    const moved = (each) => (Number(each.readBytes) + Number(each.writeBytes)) / each.seconds;
    const repaired = (each) => Number(each.repairBytes) / each.seconds;
    chart(flow, [
      { name: "guest", colour: "lit", points: points(moved) },
      { name: "repair", colour: "dim", points: points(repaired) },
    ], now, SPAN_SECONDS, (value) => `${bytes(value)}/s`);
    chart(rate, [{ name: "requests/s", colour: "lit", points: points(requests) }], now, SPAN_SECONDS, (value) => value.toFixed(0));
    chart(latency, [
      { name: "p50", colour: "dim", points: points((each) => each.p50Milliseconds) },
      { name: "p99", colour: "lit", points: points((each) => each.p99Milliseconds) },
    ], now, SPAN_SECONDS, (value) => `${value.toFixed(1)} ms`);
    const last = samples[samples.length - 1];
    if (last) {
      rate.setAttribute("aria-label", `${requests(last).toFixed(0)} requests a second`);
      flow.setAttribute("aria-label", `guest ${bytes(moved(last))} a second, repair ${bytes(repaired(last))} a second`);
      latency.setAttribute("aria-label", `p50 ${last.p50Milliseconds.toFixed(1)} ms, p99 ${last.p99Milliseconds.toFixed(1)} ms`);
    }
  };
  const clock = setInterval(look, TICK_MS);
  signal.addEventListener("abort", () => clearInterval(clock));
  look();

  const maps = watch("DiskService/WatchDiskExtents", { name }, ({ regions: found }) => regions.map(found), signal);
  const news = watch("DiskService/WatchDisk", { name }, ({ disk: one }) => {
    const volume = one.volume;
    const counters = (volume && volume.counters) || {};
    const rows = [["machine", one.instance], ["device", `${one.device} at ${one.pciPath}`],
      ["recorded generation", one.recordedGeneration],
      ["state", volume ? word(volume.state, "VOLUME_STATE_") + (volume.reason ? `: ${volume.reason}` : "") : "no machine runs it"],
      ["size", volume ? bytes(volume.totalBytes) : "-"],
      ["served", volume && volume.counters ? `${counters.reads} reads, ${counters.writes} writes, ${counters.flushes} flushes, ${counters.failed} failed` : "-"],
      ["replacement", one.replacementId ? el("a", { href: `#/replacement/${one.replacementId}` }, one.replacementId) : "none runs"]];
    facts.replaceChildren(...rows.flatMap(([key, text]) => [el("dt", { class: "dim" }, key), el("dd", {}, text)]));
    regions.show((volume && volume.regions) || []);
  }, signal);
  return Promise.all([news, maps]).finally(() => clearInterval(clock));
}
