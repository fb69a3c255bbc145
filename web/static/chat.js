// The chat tab: models that are loaded and unloaded, one question to one or two of them, votes, records.
import {address, button, draft, el, get, gib, options, poll, post, say, send as request, t,
  taken} from "./page.js";
import {pickPath} from "./files.js";

const SAMPLING = {temperature: "0–2", top_p: "0–1", max_tokens: "", seed: ""}; // and what fits
const LOADING = {precision: ["", "bf16", "fp16", "fp32"], quantization_bit: ["", "8", "4"]};
const KEPT = 500; // milliseconds between two drafts of an answer that grows

// models: of the left and the right side, "" for none.
// turns: {question, answers: [{model, text, note}], vote: 0, 1 for the better one, -1 for neither, or null}.
const state = {models: ["", ""], settings: {file: "chat"}, turns: [], ...draft("chat")};
const running = new Map(); // answer -> its AbortController
const shown = new WeakMap(); // answer -> the element of its text
let models = null; // of the server; null before it was asked
let editing = null; // number of the turn that is asked again
let ui = {};

// Fills the tab.
export function mount(panel) {
  build(panel);
  window.addEventListener("hashchange", follow);
  follow();
  drawTurns();
  poll(panel, readModels, 1000);
}

const save = () => draft("chat", state);
const isLoaded = (name) => models?.some((model) => model.name === name && model.state === "loaded");
const answered = (text) => ({role: "assistant", content: text});

// A labelled control of a setting.
function setting(name, tag, attributes = {}, choices = []) {
  const input = (event) => { state.settings[name] = event.target.value; save(); };
  const node = el(tag, {name, autocomplete: "off", ...attributes, on: {input}},
    options(choices.map((choice) => [choice, choice || t("chat.default")])));
  node.value = state.settings[name] ?? "";
  return el("label", {}, t(`chat.${name}`), " ", node);
}

// The elements of the tab.
function build(panel) {
  const number = ([name, placeholder]) => setting(name, "input", {inputmode: "decimal", placeholder, size: 6});
  const select = (name, change) => el("select", {"aria-label": t(`chat.${name}`), on: {change}});
  const side = (number) => select(`side${number}`, () => use(number, ui.sides[number].value));
  const row = (...nodes) => el("div", {class: "row"}, nodes);
  const browse = async () => load(await pickPath({want: "model"}));
  const clear = () => state.turns.length && confirm(t("chat.sure")) && forget(0);
  ui = {list: el("ul", {class: "models"}), missing: el("div", {role: "alert"}), sides: [side(0), side(1)],
    turns: el("ol", {class: "turns", role: "log", "aria-label": t("chat.turns")}), found: select("found"),
    tally: el("p", {class: "dim"}), editing: el("p", {class: "row", hidden: true}),
    send: el("button", {type: "button", class: "primary", on: {click: send}}, t("chat.send")),
    question: el("textarea", {rows: 3, "aria-label": t("chat.question"), placeholder: t("chat.hint"),
      value: draft("question") ?? "", on: {keydown, input: () => draft("question", ui.question.value)}})};
  const loading = row(ui.found, button(t("chat.load"), () => load(ui.found.value)),
    button(t("chat.browse"), browse),
    ...Object.entries(LOADING).map(([name, choices]) => setting(name, "select", {}, choices)));
  panel.append(
    el("details", {open: true}, el("summary", {}, t("chat.models")), ui.list, loading),
    el("details", {}, el("summary", {}, t("chat.settings")), setting("system", "textarea", {rows: 2}),
      row(...Object.entries(SAMPLING).map(number)), setting("file", "input")),
    row(...ui.sides, button(t("chat.new"), clear)),
    ui.missing, ui.turns, ui.tally, ui.editing, el("div", {class: "compose"}, ui.question, ui.send));
}

// Takes the models of an address such as #chat?model=base&model=output/best, and loads those of a click.
async function follow() {
  if (address().tab !== "chat") return;
  const named = taken("chat")?.getAll("model");
  if (named) state.models = [named[0] ?? "", named[1] ?? ""];
  save();
  const wanted = draft("load") ?? [];
  draft("load", []);
  const found = await get("api/models/found");
  ui.found.replaceChildren(...options(found.map(({path}) => [path, path])));
  await readModels();
  drawModels();
  const isThere = (name) => models.some((model) => model.name === name && model.state !== "failed");
  for (const name of wanted) if (!isThere(name)) await load(name);
}

// Chooses the model of a side.
function use(side, name) {
  state.models[side] = name;
  save();
  drawModels();
}

// Reads which models are loaded.
async function readModels() {
  const found = (await get("api/models")).models;
  if (JSON.stringify(found) === JSON.stringify(models)) return;
  models = found;
  drawModels();
}

// What is said about a model.
function about({state: now, problem, memory, shared, train_type: method, base}) {
  if (now === "failed") return `${t("chat.failed")} ${problem}`;
  if (now !== "loaded") return t(`chat.${now}`);
  const parts = [method === "all" ? "" : `${method}, ${base}`, memory && t("chat.memory", gib(memory, 3)),
    shared && t("chat.shared", gib(shared, 3))];
  return parts.filter(Boolean).join(" · ");
}

// Shows the models, those of both sides, and which of these have to be loaded.
function drawModels() {
  const names = (models ?? []).map(({name}) => name);
  for (const [side, select] of ui.sides.entries()) {
    const offered = new Set(["", ...names.filter(isLoaded), state.models[side]]);
    select.replaceChildren(...options([...offered].map((name) => [name, name || t(`chat.none${side}`)])));
    select.value = state.models[side];
  }
  ui.list.replaceChildren(...(models ?? []).map((model) => {
    const unload = async () => { await post("api/models/unload", {name: model.name}); await readModels(); };
    const kind = model.state === "failed" ? "problem" : "dim";
    const free = {loaded: t("chat.unload"), failed: t("chat.dismiss")}[model.state];
    return el("li", {class: "row", dataset: {state: model.state}}, el("code", {}, model.name),
      el("small", {class: kind}, about(model)), free ? button(free, unload) : null);
  }));
  const missing = [...new Set(state.models)].filter((name) => models && name && !names.includes(name));
  ui.missing.replaceChildren(...missing.map((name) => el("p", {class: "row"}, t("chat.missing", name),
    button(t("chat.loadIt"), () => load(name)))));
  if (!state.turns.length) drawTurns();
}

// Loads a model, unless none was picked; the first free side takes it.
async function load(path) {
  if (!path) return;
  const {precision = "", quantization_bit = ""} = state.settings;
  const {name} = await post("api/models/load", {path, precision, quantization_bit});
  const side = state.models.indexOf("");
  if (side >= 0 && !state.models.includes(name)) use(side, name);
  await readModels();
}

// Enter sends, but not the Enter that ends the input of a Chinese word.
function keydown(event) {
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Escape") edit(null);
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  send();
}

// Asks the models of both sides.
function send() {
  const question = ui.question.value.trim(), asked = [...new Set(state.models)].filter(Boolean);
  if (!question || running.size) return;
  const absent = asked.filter((name) => !isLoaded(name)).map((name) => t("chat.missing", name));
  say(asked.length ? absent.join(" ") : t("chat.noModel"), true);
  if (!asked.length || absent.length) return;
  if (editing !== null) forget(editing);
  state.turns.push({question, answers: asked.map((model) => ({model, text: "", note: ""})), vote: null});
  ui.question.value = draft("question", "");
  ask(state.turns.at(-1).answers);
}

// The messages before an answer: on each side its own answers so far, after a vote the better ones.
function promptOf(index, side) {
  const messages = state.settings.system ? [{role: "system", content: state.settings.system}] : [];
  for (const {question, answers, vote} of state.turns.slice(0, index)) {
    const own = answers[vote === 0 || vote === 1 ? vote : side];
    const {text} = own?.text ? own : answers.find((answer) => answer.text) ?? {};
    if (text) messages.push({role: "user", content: question}, answered(text));
  }
  return [...messages, {role: "user", content: state.turns[index].question}];
}

// Streams some answers of the last turn, all at once.
async function ask(answers) {
  const last = state.turns.length - 1, all = state.turns[last].answers;
  state.turns[last].vote = null;
  for (const answer of answers) running.set(answer, new AbortController());
  for (const answer of answers) stream(answer, promptOf(last, all.indexOf(answer)));
  drawTurns();
  document.documentElement.scrollTop = document.documentElement.scrollHeight;
}

// Streams one answer; what goes wrong is its note.
async function stream(answer, messages) {
  const {signal} = running.get(answer);
  Object.assign(answer, {text: "", note: t("chat.cut")}); // kept if the page is closed meanwhile
  try {
    const body = {model: answer.model, messages, stream: true, ...sampling()};
    const response = await request("v1/chat/completions", body, signal);
    for await (const chunk of chunks(response)) take(answer, chunk);
  } catch (error) {
    if (signal.aborted) answer.note = t("chat.stopped");
    else if (!(error instanceof TypeError)) answer.note = error.message; // else the connection is lost
  }
  running.delete(answer);
  save();
  drawTurns();
}

// Appends a chunk to an answer.
function take(answer, {error, choices}) {
  if (error) throw new Error(error.message);
  const [{delta, finish_reason: reason}] = choices, page = document.documentElement;
  const isAtEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 80; // then it stays there
  answer.text += delta.content ?? "";
  if (reason) answer.note = reason === "length" ? t("chat.length") : "";
  shown.get(answer).textContent = answer.text;
  if (isAtEnd) page.scrollTop = page.scrollHeight;
  if (Date.now() - (stream.kept ?? 0) < KEPT) return;
  stream.kept = Date.now();
  save();
}

// The JSON values of server-sent events.
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {done, value} = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event !== "data: [DONE]") yield JSON.parse(event.slice("data: ".length));
  }
}

// The fields of a request; what is no number goes as it is, and the server says so.
function sampling() {
  const texts = Object.keys(SAMPLING).map((name) => [name, (state.settings[name] ?? "").trim()]);
  const value = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);
  return Object.fromEntries(texts.filter(([, text]) => text).map(([name, text]) => [name, value(text)]));
}

// Forgets a turn and all that follow.
function forget(index) {
  for (const control of running.values()) control.abort();
  state.turns.length = index;
  edit(null);
  save();
  drawTurns();
}

// Begins to edit a question; sending it replaces what follows. null: ends that.
function edit(index) {
  editing = index;
  ui.editing.hidden = index === null;
  if (index === null) return;
  ui.editing.replaceChildren(t("chat.editing", index + 1), button(t("chat.cancel"), () => edit(null)));
  ui.question.value = state.turns[index].question;
  ui.question.focus();
}

// Appends a record to a file.
async function keep(kind, content) {
  const {file} = await post("api/records", {kind, file: `${state.settings.file}-${kind}.jsonl`, ...content});
  say(t("chat.saved", file));
}

// Shows the conversation; without one, what to do first.
function drawTurns() {
  const focused = document.activeElement, boxes = () => [...ui.turns.querySelectorAll("li, article")];
  const place = boxes().indexOf(focused.closest("li, article"));
  ui.turns.replaceChildren(...state.turns.map(turnNode));
  const buttons = [...(boxes()[place]?.querySelectorAll("button") ?? [])]; // the focus stays at the same one
  const same = buttons.find(({textContent}) => textContent === focused.textContent) ?? buttons[0];
  same?.focus({preventScroll: true});
  ui.send.disabled = running.size > 0;
  const count = (wanted) => state.turns.filter(({vote}) => vote === wanted).length;
  const first = models?.length ? "" : t(ui.found.value ? "chat.first" : "chat.nothing");
  const isVoted = state.turns.some(({vote}) => vote !== null);
  const tally = isVoted ? t("chat.tally", count(0), count(1), count(-1)) : "";
  ui.tally.textContent = state.turns.length ? tally : first;
}

// A question, its answers, and the votes about two of them.
function turnNode(turn, index) {
  const {question, answers} = turn, isTwo = answers.length > 1;
  return el("li", {},
    el("div", {class: "question"}, el("div", {class: "said"}, question),
      button(t("chat.edit"), () => edit(index))),
    el("div", {class: isTwo ? "columns" : ""}, answers.map((answer, side) => answerNode(answer, index, side))),
    isTwo && answers.every((answer) => answer.text && !running.has(answer)) ? votesNode(turn, index) : null);
}

// An answer, and what can be done with it.
function answerNode(answer, index, side) {
  const control = running.get(answer);
  shown.set(answer, el("div", {class: "said"}, answer.text));
  const record = () => ({messages: [...promptOf(index, side), answered(answer.text)]});
  const buttons = control ? [button(t("chat.stop"), () => control.abort())] : [
    index === state.turns.length - 1 ? button(t("chat.again"), () => ask([answer])) : null,
    answer.text ? button(t("chat.keep"), () => keep("training", record())) : null];
  return el("article", {class: "answer", "aria-busy": control ? "true" : null},
    el("small", {class: "dim"}, answer.model), shown.get(answer),
    el("p", {class: answer.text ? "dim" : "problem", hidden: Boolean(control) || !answer.note}, answer.note),
    el("p", {class: "row"}, buttons.filter(Boolean)));
}

// The votes about two answers, and a button that keeps the pair.
function votesNode(turn, index) {
  const {answers, vote} = turn;
  const choose = (value) => () => { turn.vote = vote === value ? null : value; save(); drawTurns(); };
  const votes = [[0, "left"], [-1, "tie"], [1, "right"]].map(([value, name]) =>
    button(t(`chat.${name}`), choose(value), {"aria-pressed": String(vote === value)}));
  const pair = () => ({prompt: promptOf(index, vote), chosen: [answered(answers[vote].text)],
    rejected: [answered(answers[1 - vote].text)]});
  const isDecided = vote === 0 || vote === 1;
  return el("p", {class: "row"}, votes,
    isDecided ? button(t("chat.keepPair"), () => keep("preference", pair())) : null);
}
