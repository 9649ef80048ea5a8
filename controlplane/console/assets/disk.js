import { chart } from "./chart.js";
import { bytes, el, table, word } from "./draw.js";
import { call, watch } from "./link.js";

const SPAN_SECONDS = 600;
const TICK_MS = 1000;

function repairOf(slot) {
  if (!slot.repair) return slot.state === "SLOT_STATE_ACTIVE" ? "whole" : "-";
  const { bytesDone, bytesTotal, bytesCopied } = slot.repair;
  const bar = el("progress", { max: 1, value: Number(bytesTotal) ? Number(bytesDone) / Number(bytesTotal) : 0, "aria-label": `slot ${slot.slot} is filled` });
  return el("td", {}, bar, ` ${bytes(bytesDone)} of ${bytes(bytesTotal)}, ${bytes(bytesCopied)} copied`);
}

// The three columns of a region: how far each slot's member is whole.
function columns(canvas, region) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, 96];
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  draw.font = "12px system-ui, sans-serif";
  const each = width / Math.max(1, region.slots.length);
  region.slots.forEach((slot, index) => {
    const left = index * each + 2;
    const whole = slot.state === "SLOT_STATE_ACTIVE";
    const share = whole ? 1 : slot.repair && Number(slot.repair.bytesTotal) ? Number(slot.repair.bytesDone) / Number(slot.repair.bytesTotal) : 0;
    draw.fillStyle = colour(whole ? "ok" : "lit");
    draw.fillRect(left, 76 * (1 - share), each - 4, 76 * share);
    draw.strokeStyle = colour(whole || slot.repair ? "line" : "bad");
    draw.strokeRect(left + 0.5, 0.5, each - 5, 75);
    draw.fillStyle = colour("dim");
    draw.fillText(`${slot.slot} ${whole ? "whole" : `${Math.floor(share * 100)} %`}`, left, 92);
  });
}

export async function disk(main, signal, name) {
  const head = el("h1", {}, name);
  const facts = el("dl");
  const regions = el("div", { id: "regions" });
  const rate = el("canvas", { class: "chart", role: "img" });
  const latency = el("canvas", { class: "chart", role: "img" });
  main.replaceChildren(head, facts, regions, el("h2", {}, "The guest"), rate, latency);
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
    chart(rate, [{ name: "requests/s", colour: "lit", points: points(requests) }], now, SPAN_SECONDS, (value) => value.toFixed(0));
    chart(latency, [
      { name: "p50", colour: "dim", points: points((each) => each.p50Milliseconds) },
      { name: "p99", colour: "lit", points: points((each) => each.p99Milliseconds) },
    ], now, SPAN_SECONDS, (value) => `${value.toFixed(1)} ms`);
    const last = samples[samples.length - 1];
    if (last) {
      rate.setAttribute("aria-label", `${requests(last).toFixed(0)} requests a second, ${bytes(moved(last))} a second`);
      latency.setAttribute("aria-label", `p50 ${last.p50Milliseconds.toFixed(1)} ms, p99 ${last.p99Milliseconds.toFixed(1)} ms`);
    }
  };
  const clock = setInterval(look, TICK_MS);
  signal.addEventListener("abort", () => clearInterval(clock));
  look();

  return watch("DiskService/WatchDisk", { name }, ({ disk: one }) => {
    const volume = one.volume;
    const counters = (volume && volume.counters) || {};
    const rows = [["machine", one.instance], ["device", `${one.device} at ${one.pciPath}`],
      ["recorded generation", one.recordedGeneration],
      ["state", volume ? word(volume.state, "VOLUME_STATE_") + (volume.reason ? `: ${volume.reason}` : "") : "no machine runs it"],
      ["size", volume ? bytes(volume.totalBytes) : "-"],
      ["served", volume ? `${counters.reads} reads, ${counters.writes} writes, ${counters.flushes} flushes, ${counters.failed} failed` : "-"],
      ["replacement", one.replacementId ? el("a", { href: `#/replacement/${one.replacementId}` }, one.replacementId) : "none runs"]];
    facts.replaceChildren(...rows.flatMap(([key, text]) => [el("dt", { class: "dim" }, key), el("dd", {}, text)]));
    const parts = ((volume && volume.regions) || []).map((region) => {
      const canvas = el("canvas", { class: "slots", role: "img", "aria-label": "how whole each slot is: as in the table" });
      return { region, canvas, shown: [el("h2", {}, `${region.path || "region"}: ${word(region.state, "VOLUME_STATE_")}`), canvas,
        table(["Slot", "Address", "State", "Copied", "Last error"], region.slots.map((slot) => [
          slot.slot, slot.address, el("td", { class: slot.state === "SLOT_STATE_ACTIVE" ? "ok" : "bad" }, word(slot.state, "SLOT_STATE_")),
          repairOf(slot), el("td", { class: "long" }, slot.lastError || "-")]), "")] };
    });
    regions.replaceChildren(...parts.flatMap((part) => part.shown));
    for (const part of parts) columns(part.canvas, part.region);
  }, signal).finally(() => clearInterval(clock));
}
