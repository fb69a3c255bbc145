// What all tabs share: requests, texts in two languages, elements, drafts, polling, the address.

let texts = {};
let token = "";

export class Failure extends Error {
  // A refused request: its status, and the field that it is about.
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param;
    this.code = error.code;
  }
}

// The JSON of a response; throws Failure.
async function answer(response) {
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failure(response.status, content.error ?? {message: response.statusText});
  return content;
}

// A relative URL with parameters; an array repeats its parameter.
export function url(path, params = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of [value].flat()) search.append(name, one);
  }
  return search.size ? `${path}?${search}` : path;
}

export async function get(path, params, options = {}) {
  return answer(await fetch(url(path, params), options));
}

// Headers of a request that changes something.
export function headers() {
  return {"Content-Type": "application/json", "X-CSRF-Token": token};
}

export async function post(path, body, options = {}) {
  return answer(await fetch(path, {method: "POST", headers: headers(), body: JSON.stringify(body), ...options}));
}

// Loads the texts, and what the page starts with.
export async function begin() {
  texts = await get("texts.json");
  document.documentElement.lang = lang() === "zh" ? "zh-CN" : "en";
}

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

// An element: attributes, class, on: {event: function}, dataset; true is an empty attribute, null and false none.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// A button that calls a function.
export function button(text, click, attributes = {}) {
  return el("button", {type: "button", ...attributes, on: {click}}, text);
}

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

// Runs an action of a button, which is disabled meanwhile; a failure is shown.
export async function act(button, action) {
  button.disabled = true;
  try {
    say("");
    return await action();
  } catch (error) {
    say(error.message, true);
    return undefined;
  } finally {
    button.disabled = false;
  }
}

// Calls an async function again and again, never twice at once; less often in a hidden page. Returns stop().
export function poll(run, visible = 500, hidden = 3000) {
  let stopped = false;
  let timer = 0;
  let failed = false;
  const next = async () => {
    clearTimeout(timer);
    try {
      await run();
      if (failed) say("");
      failed = false;
    } catch (error) {
      failed = true;
      say(error instanceof Failure ? error.message : t("page.offline"), true);
    }
    if (!stopped) timer = setTimeout(next, document.hidden ? hidden : visible);
  };
  next();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
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
