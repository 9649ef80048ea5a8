import { bytes, el, table } from "./draw.js";
import { ask, call, say, sure, unsay } from "./link.js";

const TYPING_MS = 250;
// As in console.css.
const LINE_PX = 18;
const PADDING_PX = 4;
const GOOD = ["VCR_OUTCOME_REPLACE", "VCR_OUTCOME_GENERATION_ONLY", "VCR_OUTCOME_UNCHANGED"];

// A text to write in, with some of its lines marked behind it.
function paper(id) {
  const text = el("textarea", { id, spellcheck: "false", wrap: "off" });
  const under = el("div", { class: "under", "aria-hidden": "true" });
  text.addEventListener("scroll", () => { under.style.transform = `translateY(${-text.scrollTop}px)`; });
  const mark = (lines) => under.replaceChildren(...lines.map((line) => {
    const band = el("div", { class: "changed", "data-line": line });
    band.style.top = `${PADDING_PX + (line - 1) * LINE_PX}px`;
    return band;
  }));
  const jump = (line) => {
    const begin = text.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    text.focus();
    text.setSelectionRange(begin, begin + (text.value.split("\n")[line - 1] || "").length);
    text.scrollTop = Math.max(0, (line - 4) * LINE_PX);
  };
  const to = (line) => (line ? el("button", { type: "button", onclick: () => jump(line) }, line) : "-");
  return { text, mark, to, node: el("div", { class: "paper" }, under, text) };
}

const outcome = (name) => name.replace("VCR_OUTCOME_", "").toLowerCase().replaceAll("_", " ");

// The verdict, why, and what differs, with the lines of both.
function judgement(said, from, into) {
  const changed = said.changed ? `: ${said.changed.path}, ${said.changed.old} → ${said.changed.new}` : "";
  const side = (paper, line, value) => el("td", { class: "long" }, paper.to(line), " ", value === null ? "-" : value);
  return [
    el("p", { class: GOOD.includes(said.outcome) ? "ok" : "bad" }, `verdict: ${outcome(said.outcome)}${changed}`),
    said.violations.length ? table(["Line", "Field", "Why not"], said.violations.map((each) => [
      into.to(each.line), each.field || "-", el("td", { class: "long bad" }, each.description)]), "") : "",
    table(["What differs", "Original", "Request"], said.differences.map((each) => [
      each.path, side(from, each.originalLine, each.old), side(into, each.replacementLine, each.new)]), "nothing differs"),
  ];
}

export function desk(main, signal, _id, me) {
  const found = el("div", { id: "found", "aria-live": "polite" });
  const verdict = el("div", { id: "verdict", "aria-live": "polite" });
  const [from, into] = [paper("original"), paper("request")];
  const [original, text] = [from.text, into.text];
  const disk = el("input", { id: "disk" });
  const start = el("button", { type: "button", id: "start", disabled: !me.operator }, "Start the replacement");
  let turn = 0;
  const judge = async () => {
    const mine = ++turn;
    from.mark([]);
    into.mark([]);
    if (!text.value.trim()) { found.replaceChildren(); verdict.textContent = ""; return; }
    try {
      const answer = await ask("vcr/check", { text: text.value });
      if (mine !== turn) return;
      const sum = answer.summary;
      found.replaceChildren(answer.valid
        ? el("p", { class: "ok" }, `nothing is wrong: ${bytes(sum.totalBytes)}, ${sum.regions} regions, ${sum.targets} targets`)
        : table(["Line", "Field", "What is wrong"], answer.violations.map((each) => [
          into.to(each.line), each.field || "-", el("td", { class: "long bad" }, each.description)]), ""));
      verdict.textContent = "";
      if (!original.value.trim()) return;
      const said = await ask("vcr/compare", { original: original.value, replacement: text.value });
      if (mine !== turn) return;
      from.mark(said.lines.original);
      into.mark(said.lines.replacement);
      verdict.replaceChildren(...judgement(said, from, into));
    } catch (error) {
      if (mine === turn) verdict.textContent = error.message;
    }
  };
  let waiting;
  const typed = () => { clearTimeout(waiting); waiting = setTimeout(judge, TYPING_MS); };
  text.addEventListener("input", typed);
  original.addEventListener("input", typed);
  signal.addEventListener("abort", () => clearTimeout(waiting));
  start.addEventListener("click", async () => {
    unsay();
    try {
      // Out of what the text may wrap it in: as it was judged.
      const { request } = await ask("vcr/check", { text: text.value });
      const body = { name: disk.value.trim(), vcrJson: request };
      const plan = await call("DiskService/ReplaceVcr", { ...body, validateOnly: true });
      if (!(await sure(`On disk ${body.name}, slot ${plan.slot}: ${plan.oldTarget} is replaced by ${plan.newTarget}. All of the new copy is filled while the guest runs; the old one serves no more.`))) return;
      const answer = await call("DiskService/ReplaceVcr", body);
      if (answer.replacementId) location.hash = `#/replacement/${answer.replacementId}`;
      else verdict.textContent = answer.result;
    } catch (error) { say(error); }
  });
  main.replaceChildren(el("h1", {}, "VCR desk"), el("div", { class: "two" },
    el("div", {}, el("label", { for: "original" }, "Original, to compare with (may stay empty)"), from.node),
    el("div", {}, el("label", { for: "request" }, "Construction request"), into.node)), found, verdict,
  el("p", {}, el("label", { for: "disk" }, "Disk "), disk, " ", start));
}
