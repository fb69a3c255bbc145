// A form that is derived from flags: sections of fields, each with its help and its problem.
import {button, el, lang, options, t} from "./page.js";
import {pickPath} from "./files.js";

const OPEN = ["model", "data", "steps", "output", "merging"]; // sections that are open at first
let forms = 0;

// The native element of a field; an empty one means the default.
function control(field, id) {
  const shared = {id, name: field.name, "aria-describedby": `${id}-help ${id}-problem`};
  if (field.kind === "flag") return el("input", {...shared, type: "checkbox"});
  if (field.kind === "choice") {
    const choices = field.choices.includes(field.default) ? field.choices : ["", ...field.choices];
    return el("select", shared, options(choices.map((choice) => [choice, choice || t("train.default")])));
  }
  const text = {type: "text", placeholder: field.default, autocomplete: "off", spellcheck: "false"};
  const inputmode = field.kind === "number" ? "decimal" : null;
  return el("input", {...shared, ...text, inputmode, list: field.choices.length ? `${id}-list` : null});
}

// The text of a control; "" for the default.
function textOf({field, input}) {
  const text = field.kind === "flag" ? (input.checked ? "True" : "False") : input.value;
  return text === field.default ? "" : text;
}

// Writes a text into a control; "" for the default.
function write({field, input}, text) {
  if (field.kind === "flag") input.checked = (text || field.default) === "True";
  else input.value = text || (field.kind === "choice" ? field.default : "");
}

// Lets the user pick a field's path; of several paths, one more.
async function pick({field, input}) {
  const near = input.value.split(",").at(-1).split("/").slice(0, -1).join("/");
  const path = await pickPath({want: field.want, from: near || "."});
  if (path !== null) {
    input.value = field.several && input.value.trim() ? `${input.value},${path}` : path;
    input.dispatchEvent(new Event("input", {bubbles: true}));
    input.dispatchEvent(new Event("change", {bubbles: true}));
  }
  input.focus();
}

// A field's elements: {field, input, node, problem}.
function build(field, id) {
  const one = {field, input: control(field, id)};
  one.problem = el("p", {id: `${id}-problem`, class: "problem", hidden: true});
  const note = [field.required && t("train.required"), field.bounds].filter(Boolean).join(", ");
  const list = one.input.hasAttribute("list")
    ? el("datalist", {id: `${id}-list`}, options(field.choices.map((choice) => [choice, ""])))
    : null;
  const details = {"aria-label": `${t("train.browse")} --${field.name}`};
  one.node = el("div", {class: "field"},
    el("label", {for: id}, el("code", {}, `--${field.name}`), el("small", {class: "dim"}, ` ${note}`)),
    el("div", {class: "entry"}, one.input, list,
      field.kind === "path" ? button("…", () => pick(one), details) : null),
    el("small", {id: `${id}-help`, class: "dim"}, lang() === "zh" ? field.zh : field.help), one.problem);
  return one;
}

// A section as <details>: {fields, method, open, filled, node}.
function group(section, prefix) {
  const fields = section.fields.map((field) => build(field, `${prefix}-${field.name}`));
  const method = section.fields[0].method, open = OPEN.includes(section.name) || method !== "";
  const filled = el("small", {class: "dim"});
  const title = el("summary", {}, t(`train.section.${section.name}`), " ", filled);
  const node = el("details", {open}, title, el("div", {class: "fields"}, fields.map((one) => one.node)));
  return {fields, method, open, filled, node};
}

export class Form {
  // Fills a container with the fields of some sections; values: {name: text} at first.
  constructor(container, sections, values, onChange) {
    const prefix = `form${++forms}`;
    const methodsFirst = (a, b) => (a.fields[0].method === "") - (b.fields[0].method === "");
    const ordered = [sections[0], ...sections.slice(1).sort(methodsFirst)];
    this.words = [];
    this.groups = ordered.map((section) => group(section, prefix));
    this.fields = this.groups.flatMap(({fields}) => fields);
    container.append(...this.groups.map(({node}) => node));
    container.addEventListener("input", () => { this.refresh(); onChange(); });
    this.set(values);
  }

  // The elements of a field.
  named(name) {
    return this.fields.find(({field}) => field.name === name);
  }

  // Whether a method's fields count.
  isInForce(method) {
    return !method || method === this.named("train_type").input.value;
  }

  // Shows the chosen method's sections, what the search finds, and how many fields are filled.
  refresh() {
    for (const {node, field} of this.fields) {
      const text = `${field.name} ${field.help} ${field.zh}`.toLowerCase();
      node.hidden = !this.words.every((word) => text.includes(word));
    }
    for (const {node, method, fields, filled} of this.groups) {
      node.hidden = !this.isInForce(method) || fields.every((one) => one.node.hidden);
      const count = fields.filter(textOf).length;
      filled.textContent = count ? t("train.filled", count) : "";
    }
  }

  // The texts of the fields that differ from their defaults and are in force.
  values() {
    const inForce = this.fields.filter(({field}) => this.isInForce(field.method));
    const pairs = inForce.map((one) => [one.field.name, textOf(one)]);
    return Object.fromEntries(pairs.filter(([, text]) => text));
  }

  // Fills all fields; those without a text get their defaults.
  set(texts) {
    for (const one of this.fields) write(one, texts[one.field.name] ?? "");
    this.refresh();
  }

  // Shows sentences at their fields; returns those that have none here.
  setProblems(problems) {
    for (const {field, input, problem, node} of this.fields) {
      const own = problems.filter((one) => one.field === field.name);
      problem.textContent = own.map(({text}) => text).join(" ");
      problem.hidden = !own.length;
      input.ariaInvalid = own.length ? "true" : null;
      if (own.length) node.closest("details").open = true;
    }
    return problems.filter(({field}) => !this.named(field));
  }

  // Shows only the fields whose name or help has all words.
  search(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const {node, open} of this.groups) node.open = this.words.length > 0 || open;
    this.refresh();
  }
}
