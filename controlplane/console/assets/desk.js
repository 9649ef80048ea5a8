import { bytes, el, table } from "./draw.js";
import { ask, call, say, sure, unsay } from "./link.js";

const TYPING_MS = 250;

export function desk(main, signal, _id, me) {
  const found = el("div", { id: "found", "aria-live": "polite" });
  const verdict = el("p", { id: "verdict", "aria-live": "polite" });
  const original = el("textarea", { id: "original", spellcheck: "false" });
  const text = el("textarea", { id: "request", spellcheck: "false" });
  const disk = el("input", { id: "disk" });
  const start = el("button", { type: "button", id: "start", disabled: !me.operator }, "Start the replacement");
  let turn = 0;
  const jump = (line) => {
    const begin = text.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    text.focus();
    text.setSelectionRange(begin, begin + (text.value.split("\n")[line - 1] || "").length);
  };
  const judge = async () => {
    const mine = ++turn;
    if (!text.value.trim()) { found.replaceChildren(); verdict.textContent = ""; return; }
    try {
      const answer = await ask("vcr/check", { text: text.value });
      if (mine !== turn) return;
      const sum = answer.summary;
      found.replaceChildren(answer.valid
        ? el("p", { class: "ok" }, `nothing is wrong: ${bytes(sum.totalBytes)}, ${sum.regions} regions, ${sum.targets} targets`)
        : table(["Line", "Field", "What is wrong"], answer.violations.map((each) => [
          each.line ? el("button", { type: "button", onclick: () => jump(each.line) }, each.line) : "-",
          each.field || "-", el("td", { class: "long bad" }, each.description)]), ""));
      verdict.textContent = "";
      if (!original.value.trim()) return;
      const said = await ask("vcr/compare", { original: original.value, replacement: text.value });
      if (mine !== turn) return;
      const changed = said.changed ? ` ${said.changed.path}: ${said.changed.old} → ${said.changed.new}` : "";
      const why = said.violations.map((each) => `${each.field}: ${each.description}`).join("; ");
      verdict.textContent = `verdict: ${said.outcome.replace("VCR_OUTCOME_", "").toLowerCase().replaceAll("_", " ")}${changed} ${why}`;
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
    el("div", {}, el("label", { for: "original" }, "Original, to compare with (may stay empty)"), original),
    el("div", {}, el("label", { for: "request" }, "Construction request"), text)), found, verdict,
  el("p", {}, el("label", { for: "disk" }, "Disk "), disk, " ", start));
}
