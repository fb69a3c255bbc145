// What all tabs share: requests, texts in two languages, elements, drafts, polling, the address.

let texts = {};
let token = "";

// A refused request: its status, the field that it is about, and a word for programs.
export class Failure extends Error {
  constructor(status, {message, param, code}) {
    super(message);
    Object.assign(this, {status, param, code});
  }
}

// A relative URL with parameters; an array repeats its parameter.
export function url(path, params = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of [value].flat()) search.append(name, one);
  }
  return search.size ? `${path}?${search}` : path;
}

// The response to a request; throws Failure if it is refused.
async function request(path, options) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  throw new Failure(response.status, content.error ?? {message: response.statusText});
}

// The response to a POST of a file, or of anything else as JSON; signal: of an AbortController.
export function send(path, content, signal = null) {
  const headers = {"Content-Type": "application/json", "X-CSRF-Token": token};
  const body = content instanceof Blob ? content : JSON.stringify(content);
  return request(path, {method: "POST", headers, body, signal});
}

// The JSON that a POST of JSON is answered with.
export async function post(path, content) {
  return (await send(path, content)).json();
}

// The JSON at a path.
export async function get(path, params) {
  return (await request(url(path, params))).json();
}

// Loads the texts.
export async function begin() {
  texts = await get("texts.json");
  document.documentElement.lang = lang() === "zh" ? "zh-CN" : "en";
}

// What the page starts with; its token is sent with every POST.
export async function beginSession() {
  const start = await get("api/start");
  token = start.token;
  return start;
}

// "en" or "zh": as chosen, else as the browser prefers.
export function lang() {
  return draft("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}

// The text of "tab.key" in the chosen language, {0} replaced.
export function t(key, ...values) {
  const [tab, name] = key.split(/\.(.*)/);
  const pair = texts[tab]?.[name];
  if (!pair) throw new Error(`no text ${key}`);
  return pair[lang() === "zh" ? 1 : 0].replace(/\{(\d)\}/g, (_, number) => values[number]);
}

// An element with attributes; on: {event: function}. true is an empty attribute, null and false are none.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// A button that runs an action.
export function button(text, action, attributes = {}) {
  const node = el("button", {type: "button", ...attributes, on: {click: () => act(node, action)}}, text);
  return node;
}

// The <option>s of a select: [value, text] each.
export function options(pairs) {
  return pairs.map(([value, text]) => el("option", {value}, text));
}

// Bytes in GiB.
export const gib = (bytes, digits = 1) => (bytes / 2 ** 30).toFixed(digits);

// Reads, or writes, JSON that survives a reload.
export function draft(key, value) {
  if (value === undefined) return JSON.parse(localStorage.getItem(key) ?? "null");
  localStorage.setItem(key, JSON.stringify(value));
  return value;
}

// Shows a line of text on top of the page.
export function say(text, isError = false) {
  const line = document.getElementById("status");
  line.textContent = text;
  line.classList.toggle("problem", isError);
  line.hidden = !text;
}

// Shows why something failed; a browser's own words for a lost connection are in its language only.
export function fail(error) {
  say(error instanceof TypeError ? t("page.offline") : error.message, true);
}

// Runs an action of a control, which is disabled meanwhile and keeps the focus; a failure is shown.
export async function act(control, action) {
  const isFocused = document.activeElement === control;
  control.disabled = true;
  try {
    say("");
    await action();
  } catch (error) {
    fail(error);
  }
  control.disabled = false;
  if (isFocused && document.activeElement === document.body) control.focus();
}

// Calls an async function again and again while a panel is shown; less often in a hidden page.
export async function poll(panel, run, visible = 500, hidden = 3000) {
  for (let failed = false; ;) {
    try {
      if (!panel.hidden) await run();
      if (failed) say("");
      failed = false;
    } catch (error) {
      failed = true;
      fail(error);
    }
    await new Promise((next) => setTimeout(next, document.hidden ? hidden : visible));
  }
}

// {tab, params} of the address "#watch?run=output".
export function address() {
  const [tab, search] = location.hash.slice(1).split("?");
  return {tab, params: new URLSearchParams(search ?? "")};
}

// Opens a tab with parameters.
export function go(tab, params = {}) {
  location.hash = url(tab, params);
}

// Takes the parameters from a tab's address, so that a reload keeps the draft; null if there are none.
export function taken(tab) {
  const {tab: shown, params} = address();
  if (shown !== tab || !params.size) return null;
  history.replaceState(null, "", `#${tab}`);
  return params;
}

// Opens the chat with models, which it loads: only a click on this page does, never an address.
export function chatWith(models) {
  draft("load", models);
  go("chat", {model: models});
}
