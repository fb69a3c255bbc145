// The train tab: the form, its check as it changes, the command, memory, a preview of the data, and Start.
import {button, draft, el, fail, get, go, options, post, say, t} from "./page.js";
import {buildDevices} from "./devices.js";
import {Form} from "./form.js";
import {showPreview} from "./preview.js";

const PAUSE = 300; // milliseconds without a change before a check
const AGAIN = 3000; // and before it is tried again, if the server does not answer

// A <pre> under its title, with a button that copies its text.
function copied(title) {
  const text = el("pre", {tabindex: "0", role: "region", "aria-label": title});
  const copy = () => {
    getSelection().selectAllChildren(text);
    document.execCommand("copy"); // navigator.clipboard exists in secure contexts only
    say(t("train.copied"));
  };
  const details = {"aria-label": `${t("train.copy")}: ${title}`};
  const head = el("div", {class: "row"}, el("h2", {}, title), button(t("train.copy"), copy, details));
  return {text, node: el("div", {}, head, text)};
}

// A list of sentences.
function list(lines, className) {
  return el("ul", {class: className}, lines.map((line) => el("li", {}, line)));
}

// The elements beside the form, by name.
function build(presets, train) {
  const choose = () => train.use(presets.find(({name}) => name === box.preset.value)?.values ?? {});
  const names = presets.map(({name}) => [name, name]);
  const box = {
    search: el("input", {type: "search", placeholder: t("train.search"), "aria-label": t("train.search"),
      on: {input: () => train.form.search(box.search.value)}}),
    preset: el("select", {"aria-label": t("train.preset"), on: {change: choose}},
      options([["", t("train.preset")], ...names])),
    form: el("div"),
    devices: el("div", {on: {input: () => train.changed()}}),
    queue: el("input", {type: "checkbox", checked: true}),
    others: el("div", {role: "status"}),
    memory: el("div", {"aria-live": "polite"}),
    command: copied(t("train.command")),
    file: copied("run.yaml"),
    preview: el("div"),
  };
  const actions = el("div", {class: "row actions"},
    button(t("train.start"), () => train.start(), {class: "primary"}),
    el("label", {}, box.queue, " ", t("train.queue")), button(t("train.preview"), () => train.preview()));
  const side = [box.devices, actions, box.others, box.memory, box.command.node, box.file.node];
  const left = el("div", {}, el("div", {class: "row"}, box.search, box.preset), box.form);
  box.node = el("div", {}, el("div", {class: "columns"}, left, el("div", {class: "side"}, side)), box.preview);
  return box;
}

// Shows steps and memory, and a button that uses the flags that fit.
function showMemory(box, {plan, memory, bounded}, use) {
  if (!plan) return box.replaceChildren();
  const region = {tabindex: "0", role: "region", "aria-label": t("train.estimate")};
  return box.replaceChildren(el("h2", {}, t("train.estimate")),
    bounded ? el("p", {class: "dim"}, t("train.bounded", bounded.toLocaleString("en"))) : "",
    el("pre", region, [plan, ...memory.lines].join("\n")),
    Object.keys(memory.flags).length ? button(t("train.useFlags"), () => use(memory.flags)) : "");
}

class Train {
  constructor(panel, {programs, presets}) {
    const kept = draft("train") ?? {}, fields = programs.train.flatMap((section) => section.fields);
    this.page = String(Math.random()); // of the requests of which only the newest is answered
    this.newest = this.timer = 0;
    this.failed = false; // whether the last check had no answer
    this.tried = false; // whether what is merely missing is a problem, too
    this.required = fields.filter((field) => field.required).map((field) => field.name);
    this.kept = kept.devices;
    this.devices = buildDevices([], this.kept);
    this.use = (values) => {
      this.form.set({...this.form.values(), ...values});
      this.changed();
    };
    this.box = build(presets, this);
    this.form = new Form(this.box.form, programs.train, kept.values ?? {}, () => this.changed());
    panel.append(this.box.node);
  }

  // What is checked and started.
  body() {
    const {form, devices, page} = this;
    return {values: form.values(), launch: devices.launch(), gpu_memory: devices.memory(), page};
  }

  // Finds the GPUs, which may take the driver seconds.
  async findDevices() {
    const {gpus} = await get("api/machine");
    if (gpus.length) this.devices = buildDevices(gpus, this.kept);
    this.box.devices.replaceChildren(this.devices.node);
    await this.check();
  }

  // Keeps the draft, and checks it soon.
  changed() {
    draft("train", {values: this.form.values(), devices: this.devices.state()});
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), PAUSE);
  }

  // Shows problems at their fields, and the rest in a list.
  show(problems, notes = []) {
    const values = this.form.values();
    const isDue = ({field}) => this.tried || values[field] || !this.required.includes(field);
    const rest = this.form.setProblems(problems.filter(isDue));
    this.box.others.replaceChildren(list(rest.map(({text}) => text), "problem"), list(notes, "dim"));
  }

  // Checks the flags at once, then everything; an answer is dropped if there is a newer check.
  async check() {
    const turn = ++this.newest, sent = this.body(), {command, file, memory} = this.box;
    try {
      const flags = await post("api/check", sent);
      if (turn !== this.newest) return;
      command.text.textContent = flags.command;
      file.text.textContent = flags.yaml;
      this.show(flags.problems, flags.notes);
      memory.setAttribute("aria-busy", "true");
      const run = await post("api/examine", sent);
      if (turn !== this.newest) return;
      this.show(run.problems, run.notes ?? flags.notes);
      showMemory(memory, run, this.use);
      if (this.failed) say("");
      this.failed = false;
    } catch (error) {
      if (turn !== this.newest) return;
      if (error.param) this.show([{field: error.param, text: error.message}]);
      else if (error.code !== "superseded") {
        this.failed = true;
        fail(error);
        if (error instanceof TypeError) this.timer = setTimeout(() => this.check(), AGAIN);
      }
    }
    if (turn === this.newest) memory.removeAttribute("aria-busy");
  }

  // Starts the run; a problem is shown at its field.
  async start() {
    this.tried = true;
    const {values, launch} = this.body();
    try {
      go("watch", await post("api/runs", {values, launch, queue: this.box.queue.checked}));
    } catch (error) {
      this.show([{field: error.param, text: error.message}]);
      this.changed();
      throw error;
    }
  }

  // Shows the records, and what is wrong with them.
  async preview() {
    this.tried = true;
    const found = await post("api/preview", this.body());
    this.show(found.problems);
    showPreview(this.box.preview, found, this.use);
  }
}

// Fills the tab.
export function mount(panel, start) {
  new Train(panel, start).findDevices().catch(fail);
}
