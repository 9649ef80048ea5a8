import { ordered, waterfall } from "./chart.js";
import { bytes, el, seconds, table, word } from "./draw.js";
import { call, say, sure, unsay, watch } from "./link.js";

const PREFIX = "REPLACEMENT_STATE_";
const FORWARD = ["VALIDATE", "PREFLIGHT", "RECORD", "APPLY", "REPAIR", "VERIFY", "RETIRE", "DONE"];
const ASIDE = ["PAUSED", "CANCELLING", "UNDO", "CANCELLED", "FAILED"];
const ENDED = ["DONE", "CANCELLED", "FAILED"];
const MIB = 1048576;
// The slider's steps are powers of two in MiB/s; the last one is no limit.
const STEPS = 11;
// Between two looks at a failed one.
const RETRIED_MS = 1000;

export function timeIn(one, log, now) {
  const spent = {};
  let state = "VALIDATE";
  let since = Date.parse(one.createTime);
  for (const line of log) {
    const at = Date.parse(line.time);
    spent[state] = (spent[state] || 0) + (at - since) / 1000;
    [state, since] = [line.state.replace(PREFIX, ""), at];
  }
  if (!ENDED.includes(state)) spent[state] = (spent[state] || 0) + Math.max(0, now - since) / 1000;
  return spent;
}

function graph(one, log) {
  const spent = timeIn(one, log, Date.now());
  const present = one.state.replace(PREFIX, "");
  const nodes = (states) => states.map((state) => el("li", {
    class: state in spent || state === present ? "been" : "", "data-state": state, "aria-current": state === present && "step",
  }, state.toLowerCase(), el("small", {}, spent[state] === undefined ? "\u2013" : seconds(spent[state]))));
  return [el("ol", { class: "graph", "aria-label": "the way to done" }, nodes(FORWARD)),
    el("ol", { class: "graph", "aria-label": "aside" }, nodes(ASIDE))];
}

const limitText = (step) => (step >= STEPS ? "no limit" : `${2 ** step} MiB/s`);
const stepOf = (limit) => (Number(limit) ? Math.min(STEPS - 1, Math.max(0, Math.round(Math.log2(Number(limit) / MIB)))) : STEPS);

// Where the time went, over all daemons; the slider widens the time.
async function showTrace(place, id) {
  unsay();
  try {
    const { spans } = await call("ReplacementService/GetReplacementTrace", { id });
    const canvas = el("canvas", { class: "waterfall", role: "img", "aria-label": `${spans.length} spans; stairwell trace ${id} prints them` });
    const left = el("p", { class: "dim" });
    const box = el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "waterfall" }, canvas);
    const zoom = el("input", { type: "range", id: "zoom", min: 0, max: 6, step: 0.5, value: 0 });
    const rows = ordered(spans);
    const draw = () => {
      const hidden = waterfall(canvas, rows, 2 ** Number(zoom.value), box.clientWidth);
      left.textContent = `${spans.length} spans` + (hidden ? `; ${hidden} of them are not drawn` : "");
    };
    zoom.addEventListener("input", draw);
    place.replaceChildren(left, el("p", {}, el("label", { for: "zoom" }, "Zoom "), zoom), box);
    if (rows.length) draw();
  } catch (error) { say(error); }
}

export function replacement(main, signal, id, me) {
  let log = [];
  let shown = null;
  const head = el("h1", {}, "Replacement");
  const states = el("div");
  const bar = el("progress", { id: "bar", max: 1, value: 0, "aria-label": "copied" });
  const facts = el("dl");
  const lines = el("div");
  const act = async (name, text) => {
    if (text && !(await sure(text))) return;
    unsay();
    try { await call(`ReplacementService/${name}`, { id }); } catch (error) { say(error); }
  };
  const button = (name, label, text) => el("button", { type: "button", id: name, disabled: true, onclick: () => act(`${label}Replacement`, text) }, label);
  const pause = button("pause", "Pause");
  const resume = button("resume", "Resume");
  const cancel = button("cancel", "Cancel", "Cancel this replacement? It is undone while the old member is there; too late for that, it is finished.");
  const retry = button("retry", "Retry");
  const falls = el("div", { id: "falls" });
  const trace = el("button", { type: "button", id: "trace", onclick: () => showTrace(falls, id) }, "Show the trace");
  const limit = el("output", { id: "limit-text", for: "limit" }, "");
  const slider = el("input", { type: "range", id: "limit", min: 0, max: STEPS, step: 1, disabled: true, "aria-describedby": "limit-text" });
  slider.addEventListener("input", () => { limit.textContent = limitText(Number(slider.value)); });
  slider.addEventListener("change", async () => {
    unsay();
    const step = Number(slider.value);
    const rate = step >= STEPS ? 0 : 2 ** step * MIB;
    try { await call("ReplacementService/SetRepairLimits", { id, bytesPerSecondMax: String(rate) }); } catch (error) { say(error); }
  });
  const role = me.operator ? "" : el("p", { class: "dim", id: "viewer" }, "You may look: pausing, cancelling and limits need the role operator.");
  main.replaceChildren(head, states, bar, facts, role, el("p", {}, pause, " ", resume, " ", cancel, " ", retry),
    el("p", {}, el("label", { for: "limit" }, "Limit of the repair: "), limit, el("br"), slider), el("h2", {}, "Transitions"), lines, el("h2", {}, "Trace"), el("p", {}, trace), falls);

  const draw = () => {
    const one = shown;
    const state = one.state.replace(PREFIX, "");
    const ended = ENDED.includes(state);
    head.textContent = `${one.disk} slot ${one.slot}: ${one.oldTarget} → ${one.newTarget}`;
    states.replaceChildren(...graph(one, log));
    bar.value = Number(one.bytesTotal) ? Number(one.bytesDone) / Number(one.bytesTotal) : 0;
    const rate = one.repairRate || {};
    const rows = [["done", `${bytes(one.bytesDone)} of ${bytes(one.bytesTotal)}, ${bytes(one.bytesCopied)} copied`],
      ["rate", one.bytesPerSecond ? `${bytes(one.bytesPerSecond)}/s, ${seconds(one.etaSeconds)} left` : "-"],
      ["limit in force", Number(rate.bytesPerSecondMax) ? `${bytes(rate.bytesPerSecondMax)}/s (${word(rate.reason, "REPAIR_RATE_REASON_")})` : "-"],
      ["waits for", one.blockedOn || "-"], ["last error", one.lastError || "-"]];
    facts.replaceChildren(...rows.flatMap(([name, text]) => [el("dt", { class: "dim" }, name), el("dd", {}, text)]));
    pause.disabled = !me.operator || ended || state === "PAUSED";
    resume.disabled = !me.operator || state !== "PAUSED";
    cancel.disabled = !me.operator || state === "DONE" || state === "CANCELLED";
    retry.disabled = !me.operator || state !== "FAILED";
    slider.disabled = !me.operator || ended;
    if (document.activeElement !== slider) {
      slider.value = stepOf(one.repairBytesPerSecondMax);
      limit.textContent = Number(one.repairBytesPerSecondMax) ? `${bytes(one.repairBytesPerSecondMax)}/s` : "no limit";
    }
  };
  const clock = setInterval(() => shown && states.replaceChildren(...graph(shown, log)), 500);
  signal.addEventListener("abort", () => clearInterval(clock));
  const take = (news) => {
    shown = news.replacement;
    const known = new Set(log.map((line) => line.number));
    const fresh = news.transitions.filter((line) => !known.has(line.number));
    log = [...log, ...fresh];
    if (fresh.length) {
      lines.replaceChildren(table(["Time", "State", "Event", "Detail"], log.map((line) => [
        new Date(line.time).toLocaleTimeString(), word(line.state, PREFIX), line.event, el("td", { class: "long" }, line.detail || "-")]), "none"));
    }
    draw();
  };
  // The watch ends with the replacement; one that failed may be retried, by whomever.
  const follow = async () => {
    do {
      await watch("ReplacementService/WatchReplacement", { id }, take, signal);
      if (shown && shown.state === `${PREFIX}FAILED`) await new Promise((go) => setTimeout(go, RETRIED_MS));
    } while (!signal.aborted && shown && shown.state === `${PREFIX}FAILED`);
  };
  return follow().finally(() => clearInterval(clock));
}
