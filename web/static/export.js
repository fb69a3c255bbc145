// The export tab: the form of merge_lora.py, and the merges that were started, with their logs.
import {button, chatWith, draft, el, get, poll, post, t, taken} from "./page.js";
import {Form} from "./form.js";

const LIVE = ["queued", "running", "stopping"];

// Fills the tab.
export function mount(panel, {programs}) {
  const box = el("div"), problems = el("div", {role: "alert"}), list = el("ul", {class: "merges"});
  const form = new Form(box, programs.merge, draft("export") ?? {}, () => draft("export", form.values()));
  let seen = "";
  // Starts a merge; a problem is shown at its field.
  async function begin() {
    const refused = ({param, message}) => [{field: param, text: message}];
    const rest = form.setProblems(await post("api/merges", {values: form.values()}).then(() => [], refused));
    problems.replaceChildren(...rest.map(({text}) => el("p", {class: "problem"}, text)));
    box.querySelector("[aria-invalid=true]")?.focus(); // it may be far above the button
    await read();
  }
  // Reads the merges; elements stay while nothing changes, and so does the focus.
  async function read() {
    const merges = await get("api/merges");
    if (JSON.stringify(merges) === seen) return;
    seen = JSON.stringify(merges);
    list.replaceChildren(...(merges.length ? merges.map(item) : [el("li", {class: "dim"}, t("export.none"))]));
  }
  // Fills the form with what an address such as #export?model_dir=output/best names.
  function follow() {
    const values = taken("export");
    if (values) form.set(draft("export", {...form.values(), output_dir: "", ...Object.fromEntries(values)}));
  }
  // Fills in the base that the chosen checkpoint was trained on, if none is chosen.
  async function complete({target}) {
    const {ori_model_dir: base, model_dir: path} = form.values();
    if (target.name !== "model_dir" || base || !path) return;
    const found = (await get("api/models/found")).find((model) => model.path === path);
    if (found?.base) form.set(draft("export", {...form.values(), ori_model_dir: found.base}));
  }
  box.addEventListener("change", complete);
  window.addEventListener("hashchange", follow);
  follow();
  panel.append(el("div", {class: "columns"},
    el("div", {}, box, problems, button(t("export.start"), begin, {class: "primary"})),
    el("section", {}, el("h2", {}, t("export.merges")), list)));
  poll(panel, read, 1000);
}

// A merge: its state, its log with the check of what was written, and what can be done.
function item({output, state, log, can_chat: canChat}) {
  const chat = canChat ? button(t("export.chat"), () => chatWith([output])) : null;
  const stop = button(t("export.stop"), () => post("api/merges/stop", {output}));
  const live = LIVE.includes(state) ? [el("progress", {"aria-label": output}), stop] : null;
  const word = el("span", {class: `state ${state}`}, t(`export.${state}`));
  return el("li", {dataset: {state}}, el("p", {class: "row"}, el("code", {}, output), word, live, chat),
    log ? el("pre", {tabindex: 0, role: "group", "aria-label": t("export.log", output)}, log) : null);
}
