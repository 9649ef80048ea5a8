// How the pages speak to the control plane. The token is kept for this tab.
const TOKEN = "stairwell-token";
const $ = (id) => document.getElementById(id);

export class Failure extends Error {
  constructor(status, told) {
    super(told.message || `HTTP ${status}`);
    this.status = status;
    this.reason = told.reason;
    this.violations = told.violations || [];
  }
}

async function post(path, body, signal) {
  const headers = { "content-type": "application/json", "x-stairwell-console": "1" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (answer.ok) return answer;
  const failure = new Failure(answer.status, await answer.json().catch(() => ({})));
  if (answer.status === 401) askToken();
  throw failure;
}

export function askToken() {
  const dialog = $("token");
  if (dialog.open) return;
  dialog.onclose = () => {
    sessionStorage.setItem(TOKEN, $("token-text").value.trim());
    $("token-text").value = "";
    location.reload();
  };
  dialog.showModal();
}

export async function ask(path, body = {}) {
  return (await post(`/api/${path}`, body)).json();
}

export function call(name, body) {
  return ask(`call/${name}`, body);
}

// Follows a watch for as long as the page is there; one that breaks is begun again.
export async function watch(name, body, take, signal) {
  while (!signal.aborted) {
    try {
      const answer = await post(`/api/watch/${name}`, body, signal);
      $("link").textContent = "live";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const [, kind, data] = event.match(/^event: (\w+)\ndata: (.*)$/s) || [];
          if (kind === "end") return;
          if (kind === "failure") throw new Failure(0, JSON.parse(data));
          if (kind === "message") take(JSON.parse(data));
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      $("link").textContent = `not live: ${error.message}`;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await new Promise((go) => setTimeout(go, 1000));
  }
}

export function say(error) {
  const more = (error.violations || []).map((each) => `\n${each.field}: ${each.description}`);
  $("said").textContent = error.message ? error.message + more.join("") : String(error);
}

export function unsay() {
  $("said").textContent = "";
}

// Whether the user means it, told what will happen.
export function sure(text) {
  const dialog = $("sure");
  $("sure-text").textContent = text;
  return new Promise((answer) => {
    let yes = false;
    dialog.onclose = () => answer(yes);
    $("sure-yes").onclick = () => { yes = true; dialog.close(); };
    $("sure-no").onclick = () => dialog.close();
    dialog.showModal();
    $("sure-no").focus();
  });
}
