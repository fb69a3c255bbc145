// The train tab: the form, its check as it changes, the command, memory, a preview of the data, and Start.
import {act, button, draft, el, get, go, post, say, t} from "./page.js";
import {buildDevices} from "./devices.js";
import {buildForm} from "./form.js";
import {showPreview} from "./preview.js";

const PAUSE = 300; // milliseconds without a change before a check

// A <pre> under its title, with a button that copies its text.
function copied(title) {
  const text = el("pre", {tabindex: "0", role: "region", "aria-label": title});
  const copy = () => {
    getSelection().selectAllChildren(text);
    document.execCommand("copy"); // navigator.clipboard exists in secure contexts only
    say(t("train.copied"));
  };
  const details = {"aria-label": `${t("train.copy")}: ${title}`};
  const head = el("div", {class: "row"}, el("h3", {}, title), button(t("train.copy"), copy, details));
  return {text, node: el("div", {}, head, text)};
}

function list(lines, className) {
  return el("ul", {class: className}, lines.map((line) => el("li", {}, line)));
}

// The elements beside the form, by name.
function build(presets) {
  const names = ["", ...presets.map(({name}) => name)];
  const options = names.map((name) => el("option", {value: name}, name || t("train.preset")));
  const box = {
    search: el("input", {type: "search", placeholder: t("train.search"), "aria-label": t("train.search")}),
    preset: el("select", {"aria-label": t("train.preset")}, options),
    form: el("div"),
    devices: el("div"),
    start: el("button", {type: "button", class: "primary"}, t("train.start")),
    queue: el("input", {type: "checkbox", checked: true}),
    show: el("button", {type: "button"}, t("train.preview")),
    others: el("div", {role: "status"}),
    memory: el("div", {"aria-live": "polite"}),
    command: copied(t("train.command")),
    file: copied("run.yaml"),
    preview: el("div"),
  };
  const queue = el("label", {}, box.queue, " ", t("train.queue"));
  const actions = el("div", {class: "row actions"}, box.start, queue, box.show);
  const side = [box.devices, actions, box.others, box.memory, box.command.node, box.file.node];
  const left = el("div", {}, el("div", {class: "row"}, box.search, box.preset), box.form);
  const columns = el("div", {class: "columns"}, left, el("div", {class: "side"}, side));
  box.node = el("div", {}, columns, box.preview);
  return box;
}

// Shows steps and memory, and a button that uses the flags that fit.
function showMemory(box, {plan, memory, bounded}, use) {
  if (!plan) return box.replaceChildren();
  const region = {tabindex: "0", role: "region", "aria-label": t("train.estimate")};
  return box.replaceChildren(el("h3", {}, t("train.estimate")),
    bounded ? el("p", {class: "dim"}, t("train.bounded", bounded.toLocaleString("en"))) : "",
    el("pre", region, [plan, ...memory.lines].join("\n")),
    Object.keys(memory.flags).length ? button(t("train.useFlags"), () => use(memory.flags)) : "");
}

export function mount(panel, {programs, presets}) {
  const kept = draft("train") ?? {}, page = String(Math.random());
  const box = build(presets);
  const form = buildForm(box.form, programs.train, {values: kept.values, onChange: changed});
  const fields = programs.train.flatMap((section) => section.fields);
  const required = fields.filter((field) => field.required).map((field) => field.name);
  let devices = buildDevices([], kept.devices), newest = 0, timer = 0, tried = false;

  const body = () => ({values: form.values(), launch: devices.launch(), gpu_memory: devices.memory(), page});
  const use = (values) => { form.set({...form.values(), ...values}); changed(); };
  // Shows problems, but of what is merely missing only once Start was tried.
  function show(problems, notes = []) {
    const values = form.values();
    const due = problems.filter(({field}) => tried || values[field] || !required.includes(field));
    const rest = form.setProblems(due);
    box.others.replaceChildren(list(rest.map(({text}) => text), "problem"), list(notes, "dim"));
  }
  // Checks the flags at once, then everything; an answer is dropped if there is a newer check.
  async function check() {
    const turn = ++newest, sent = body();
    try {
      const flags = await post("api/check", sent);
      if (turn !== newest) return;
      box.command.text.textContent = flags.command;
      box.file.text.textContent = flags.yaml;
      show(flags.problems, flags.notes);
      box.memory.setAttribute("aria-busy", "true");
      const run = await post("api/examine", sent);
      if (turn !== newest) return;
      show(run.problems, run.notes ?? flags.notes);
      showMemory(box.memory, run, use);
    } catch (error) {
      if (error.code !== "superseded") say(error.message, true);
    }
    if (turn === newest) box.memory.removeAttribute("aria-busy");
  }
  function changed() {
    draft("train", {values: form.values(), devices: devices.state()});
    clearTimeout(timer);
    timer = setTimeout(check, PAUSE);
  }
  async function begin() {
    tried = true;
    try {
      const {values, launch} = body();
      go("watch", await post("api/runs", {values, launch, queue: box.queue.checked}));
    } catch (error) {
      show([{field: error.param, text: error.message}]);
      changed();
      throw error;
    }
  }
  async function preview() {
    const found = await post("api/preview", body());
    tried = true;
    show(found.problems);
    showPreview(box.preview, found, use);
  }
  // The GPUs, which the driver may take seconds to tell.
  async function findDevices() {
    const {gpus} = await get("api/machine");
    if (gpus.length) devices = buildDevices(gpus, kept.devices);
    box.devices.replaceChildren(devices.node);
    await check();
  }

  panel.append(box.node);
  box.search.addEventListener("input", () => form.search(box.search.value));
  box.preset.addEventListener("change", () => {
    use(presets.find(({name}) => name === box.preset.value)?.values ?? {});
  });
  box.start.addEventListener("click", () => act(box.start, begin));
  box.show.addEventListener("click", () => act(box.show, preview));
  box.devices.addEventListener("input", changed);
  findDevices().catch((error) => say(error.message, true));
}
