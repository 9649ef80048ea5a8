import { desk } from "./desk.js";
import { disk } from "./disk.js";
import { ask, say, unsay } from "./link.js";
import { overview } from "./overview.js";
import { replacement } from "./replacement.js";

const PAGES = { "": overview, disk, replacement, vcr: desk };
const main = document.getElementById("main");
let leave = new AbortController();
let me = null;

async function show() {
  leave.abort();
  leave = new AbortController();
  const mine = leave.signal;
  const [, name = "", id = ""] = location.hash.split("/");
  unsay();
  try {
    if (me === null) {
      me = await ask("me");
      document.getElementById("who").textContent = me.asked ? `${me.name} (${me.operator ? "operator" : "viewer"})` : "";
    }
    if (!mine.aborted) await (PAGES[name] || overview)(main, mine, decodeURIComponent(id), me);
  } catch (error) {
    if (!mine.aborted) say(error);
  }
}

window.addEventListener("hashchange", () => { if (location.hash !== "#main") { show(); main.focus(); } });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
show();
