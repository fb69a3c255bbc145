// The watch tab: the runs and what is done to them; of those chosen curves, numbers, evaluations and logs.
import {address, button, chatWith, draft, el, get, gib, go, options, poll, post, t, url} from "./page.js";
import {brief, colorOf, Curves, smooth} from "./curve.js";
import {Log} from "./log.js";

const [WAITS, RUNS] = [["queued", "starting"], ["running", "stopping"]];
const ENDED = ["stopped", "failed", "finished", "unknown"];
const MOST = 16; // runs that a request may name
const NEW = {at: 0, mark: "", steps: [], values: [], evaluations: [], newest: {}}; // a run before it is read
const ACTIONS = { // name: the states in which it is offered; what it asks for, null if that is canceled
  stop: [[...WAITS, "running"]],
  kill: [RUNS, () => (confirm(t("watch.kill_asked")) ? {} : null)],
  resume: [["stopped", "failed"]],
  rename: [ENDED, (info) => asked("name", prompt(t("watch.new_name"), info.run))],
  note: [[...WAITS, ...RUNS, ...ENDED], (info) => asked("note", prompt(t("watch.new_note"), info.note))],
  delete: [ENDED, (info) => (confirm(t("watch.delete_asked", info.run)) ? {} : null)],
};
const LINKS = { // name: what it opens with a run's checkpoint
  chat: ({base, checkpoint}) => chatWith([base, checkpoint].filter(Boolean)),
  export: ({base, checkpoint}) => go("export", {ori_model_dir: base, model_dir: checkpoint}),
};
const settings = {column: "loss", smoothing: 0.9, log: false, ...draft("watch")};
const data = new Map(); // run -> what it has written so far
let rows = new Map(); // run -> its elements in the list
let ui = {};

// Fills the tab.
export function mount(panel) {
  build(panel);
  window.addEventListener("hashchange", () => address().tab === "watch" && choose());
  poll(panel, readRuns, 1000);
  poll(panel, readChanges);
  poll(panel, readMachine, 3000, 30000);
}

// The field of a request that a dialog asked for; null if it was canceled.
const asked = (name, text) => (text === null ? null : {[name]: text});

// The runs of the address that exist, the last ones chosen; without one the newest.
function chosen() {
  const named = address().params.getAll("run").filter((run) => rows.has(run)).slice(-MOST);
  return named.length ? named : [...rows.keys()].slice(0, 1);
}

// The elements of the tab.
function build(panel) {
  const area = (name, ...nodes) => el("section", {}, el("h2", {}, t(`watch.${name}`)), ...nodes);
  const field = (name, node) => el("label", {}, `${t(`watch.${name}`)} `, node);
  const input = (name, type, read) => el("input", {type, max: 0.99, step: 0.01, value: settings[name],
    checked: settings[name] === true, on: {input: (event) => set(name, read(event.target))}});
  const tables = ["numbers", "differences", "evaluations", "predictions"].map((name) => {
    ui[name] = el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": t(`watch.${name}`)});
    return area(name, ui[name]);
  });
  ui.runs = el("ul", {class: "runs"});
  ui.empty = el("p", {}, t("watch.no_runs"));
  ui.machine = el("p", {class: "dim machine"});
  ui.column = el("select", {on: {change: () => set("column", ui.column.value)}});
  ui.of = el("select", {on: {change: detail}});
  ui.csv = el("a", {download: "curves.csv"}, "CSV");
  const curves = area("curves", el("p", {class: "row"}, field("column", ui.column),
    field("smoothing", input("smoothing", "range", (node) => +node.value)),
    field("log_scale", input("log", "checkbox", (node) => node.checked)), button("PNG", download), ui.csv));
  const log = area("log");
  tables.splice(2, 0, area("details", field("of", ui.of)));
  ui.chosen = el("div", {}, curves, tables, log);
  const list = el("div", {}, area("runs", ui.empty, ui.runs), area("machine", ui.machine));
  panel.append(el("div", {class: "watch"}, list, ui.chosen));
  ui.curves = new Curves(curves, t("watch.zoom"));
  ui.log = new Log(log);
}

// Changes a setting of the curves.
function set(name, value) {
  draft("watch", Object.assign(settings, {[name]: value}));
  if (name === "column") data.clear();
  draw();
}

// Reads the list of runs; elements stay, and so does the focus.
async function readRuns() {
  const list = await get("api/runs");
  const old = rows;
  rows = new Map(list.map((info) => [info.run, old.get(info.run) ?? makeRow(info.run)]));
  for (const info of list) update(rows.get(info.run), info);
  if ([...rows.keys()].join("\n") !== [...old.keys()].join("\n")) {
    ui.runs.replaceChildren(...[...rows.values()].map((row) => row.node));
  }
  ui.empty.hidden = list.length > 0;
  ui.chosen.hidden = !list.length;
  await choose();
}

// The elements of a run in the list, which stay.
function makeRow(run) {
  const part = (tag, className) => el(tag, {class: className});
  const others = () => chosen().filter((name) => name !== run);
  const choose = () => go("watch", {run: box.checked ? [...others(), run] : others()});
  const box = el("input", {type: "checkbox", on: {change: choose}});
  const offered = (name, work) => button(t(`watch.${name}`), work, {title: run}); // its description
  const row = {box, swatch: part("span", "swatch"), state: part("span", "state"),
    bar: el("progress", {"aria-label": t("watch.progress", run)}), text: part("span", "dim"),
    note: part("span", "note"), buttons: {}};
  for (const [link, open] of Object.entries(LINKS)) {
    row.buttons[link] = offered(link, () => open(row.info));
  }
  for (const [action, [, ask]] of Object.entries(ACTIONS)) {
    row.buttons[action] = offered(action, () => perform(action, row, ask));
  }
  row.node = el("li", {dataset: {run}}, el("label", {}, row.box, row.swatch, run), row.state, row.bar,
    row.text, row.note, el("span", {class: "row"}, Object.values(row.buttons)));
  return row;
}

// Asks what an action asks for, and does it; the run may have another name then.
async function perform(action, {info}, ask = () => ({})) {
  const body = ask(info);
  if (!body) return;
  const {run: now} = await post(`api/runs/${action}`, {run: info.run, ...body});
  await readRuns();
  const named = address().params.getAll("run").map((name) => (name === info.run ? now : name));
  if (now !== info.run) go("watch", {run: named.filter((name) => rows.has(name))});
}

// Shows what is known of a run in its row.
function update(row, info) {
  row.info = info;
  row.state.textContent = t(`watch.${info.state}`);
  row.state.className = `state ${info.state}`;
  row.bar.hidden = !info.total_steps;
  Object.assign(row.bar, {max: info.total_steps || 1, value: info.step ?? 0});
  const left = info.seconds_left;
  const texts = [info.total_steps && t("watch.steps", info.step ?? 0, info.total_steps),
    info.loss && `loss ${brief(info.loss)}`, left && t("watch.left", duration(left)), info.mode,
    info.train_type];
  row.text.textContent = texts.filter(Boolean).join(" · ");
  row.note.textContent = [info.note, info.state === "failed" && info.reason].filter(Boolean).join(" · ");
  for (const [name, node] of Object.entries(row.buttons)) {
    node.hidden = name in LINKS ? !info.checkpoint : !ACTIONS[name][0].includes(info.state);
  }
}

// Seconds in hours and minutes.
function duration(seconds) {
  const minutes = Math.ceil(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? t("watch.hours", hours, minutes % 60) : t("watch.minutes", minutes);
}

// Shows which runs are chosen, and what belongs to all of them.
async function choose() {
  const names = chosen();
  for (const [name, row] of rows) {
    row.box.checked = names.includes(name);
    row.swatch.style.background = row.box.checked ? colorOf(names.indexOf(name)) : "transparent";
  }
  if (names.join("\n") === ui.names) return;
  ui.names = names.join("\n");
  ui.csv.href = url("api/curves", {run: names});
  for (const name of [...data.keys()]) if (!names.includes(name)) data.delete(name);
  setOptions(ui.of, names);
  ui.of.closest("section").hidden = names.length < 2;
  draw();
  const differing = names.length > 1 ? await get("api/differences", {run: names}) : [];
  if (ui.names !== names.join("\n")) return;
  table(ui.differences, [t("watch.option"), ...names], differing.map(({name, values}) => [name, ...values]));
  await detail();
}

// Reads new points of the chosen runs.
async function readChanges() {
  const [names, {column}] = [chosen(), settings];
  if (!names.length) return;
  const known = names.map((name) => data.get(name) ?? structuredClone(NEW));
  const [at, evaluated] = [known.map((one) => one.at), known.map((one) => one.mark)];
  const answers = await get("api/changes", {run: names, at, evaluated, columns: column});
  if (column !== settings.column) return;
  answers.forEach((answer, place) => take(known[place], answer, column));
  names.forEach((name, place) => data.set(name, known[place]));
  if (answers.some((answer) => answer.newest || answer.evaluations)) draw();
  const detailed = answers.find((answer) => answer.run === ui.log.run);
  if (detailed?.evaluations) await readPredictions();
  if (detailed) await ui.log.grown(detailed.log);
  ui.log.box.parentElement.hidden = !detailed?.log;
  if (answers.some((answer) => answer.more)) await readChanges();
}

// Adds an answer to what is known of a run; rows of a resumed run replace those from their first step on.
function take(one, answer, column) {
  if (answer.begins) Object.assign(one, {steps: [], values: []});
  const {step: steps, [column]: values} = answer.columns;
  while (steps.length && one.steps.at(-1) >= steps[0]) one.values.length = one.steps.length -= 1;
  steps.forEach((step, place) => {
    one.steps.push(step);
    one.values.push(values[place]);
  });
  const {mark, rows: evaluations} = answer.evaluations ?? {mark: one.mark, rows: one.evaluations};
  Object.assign(one, {at: answer.at, newest: answer.newest ?? one.newest, mark, evaluations});
  if (rows.has(answer.run)) rows.get(answer.run).node.dataset.step = one.steps.at(-1) ?? 0;
}

// The lines of a run: as measured, smoothed, and of its evaluations (the dev loss beside the loss).
function linesOf(name, one, color) {
  const [{column, smoothing}, lines] = [settings, []];
  const line = {label: name, color, steps: one.steps};
  if (one.values.some((value) => value !== null)) {
    if (smoothing) lines.push({...line, label: t("watch.measured", name), values: one.values, faint: true});
    lines.push({...line, values: smooth(one.values, smoothing)});
  }
  const scored = column === "loss" ? "dev_loss" : column;
  const scores = one.evaluations.filter((row) => scored in row);
  const [steps, values] = ["step", scored].map((key) => scores.map((row) => row[key]));
  if (scores.length) lines.push({label: `${name} ${scored}`, color, steps, values, dots: true});
  return lines;
}

// Draws the curves, and the numbers of the newest rows.
function draw() {
  const all = chosen();
  const shown = all.filter((name) => data.has(name)).map((name) => [name, data.get(name)]);
  const evaluations = data.get(ui.of.value)?.evaluations ?? [];
  const names = namesIn(shown.flatMap(([, one]) => [one.newest, ...one.evaluations]));
  const columns = names.filter((name) => !["step", "epoch", settings.column].includes(name));
  setOptions(ui.column, [...columns, settings.column].sort());
  ui.column.value = settings.column;
  const lines = shown.flatMap(([name, one]) => linesOf(name, one, colorOf(all.indexOf(name))));
  ui.curves.show(lines, settings.column, settings.log);
  const last = (name, one) => cell(name, one.newest[name] ?? one.evaluations.at(-1)?.[name]);
  table(ui.numbers, [t("watch.column"), ...shown.map(([name]) => name)],
    names.map((name) => [name, ...shown.map(([, one]) => last(name, one))]));
  const heads = namesIn(evaluations);
  const cells = evaluations.map((row) => heads.map((name) => cell(name, row[name])));
  table(ui.evaluations, heads, cells.reverse());
}

// The keys of all objects, each once.
const namesIn = (objects) => [...new Set(objects.flatMap(Object.keys))];

// Offers these options, unless it does already: an open menu stays.
function setOptions(select, names) {
  if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) return;
  select.replaceChildren(...options(names.map((name) => [name, name])));
}

// The text of a value in a table.
const cell = (name, value) => (name.endsWith("_bytes") && value ? `${gib(value, 2)} GiB` : brief(value));

// A table in place of what an element shows, unless it shows the same; without rows its section is hidden.
function table(parent, heads, lines) {
  const text = JSON.stringify([heads, lines]);
  if (parent.shown === text) return;
  parent.shown = text;
  parent.parentElement.hidden = !lines.length;
  const row = (kind, cells) => el("tr", {}, cells.map((one) => el(kind, {}, one)));
  const body = lines.map((cells) => row("td", cells));
  parent.replaceChildren(el("table", {}, el("thead", {}, row("th", heads)), el("tbody", {}, body)));
}

// The predictions and the log of one of the chosen runs.
async function detail() {
  draw();
  if (ui.of.value) await Promise.all([ui.log.open(ui.of.value), readPredictions()]);
}

// Reads the predictions of that run.
async function readPredictions() {
  const samples = await get("api/predictions", {run: ui.of.value});
  const names = ["step", "asked", "reference", "prediction"];
  const cells = samples.map((sample) => names.map((name) => String(sample[name])));
  table(ui.predictions, names.map((name) => t(`watch.${name}`)), cells);
}

// Reads what the machine is busy with.
async function readMachine() {
  const {cores, percent, gpus, ...ram} = await get("api/machine");
  const memory = (of) => `${gib(of.memory_used)} / ${gib(of.memory_total)} GiB`;
  const ofGpu = (gpu) => [`GPU ${gpu.index} ${gpu.name}: ${brief(gpu.percent)}%`, memory(gpu),
    `${brief(gpu.celsius)} °C`, `${brief(gpu.watts)} W`].join(", ");
  const lines = [t("watch.cpu", cores, percent), `RAM ${memory(ram)}`, ...gpus.map(ofGpu)];
  ui.machine.textContent = lines.join("\n");
}

// Saves the curves as a picture.
async function download() {
  const link = el("a", {href: URL.createObjectURL(await ui.curves.png()), download: "curves.png"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
