// The export tab: the form of merge_lora.py, and the merges that were started, with their logs.
import {act, button, draft, el, get, go, poll, post, t} from "./page.js";
import {buildForm} from "./form.js";

const LIVE = ["queued", "running", "stopping"];

export function mount(panel, {programs}) {
  const box = el("div"), problems = el("div", {role: "alert"}), list = el("ul", {class: "merges"});
  const onChange = () => draft("export", form.values());
  const form = buildForm(box, programs.merge, {values: draft("export") ?? {}, onChange});
  const start = button(t("export.start"), () => act(start, begin), {class: "primary"});
  let seen = "";
  // Starts a merge; a problem is shown at its field.
  async function begin() {
    let rest = form.setProblems([]);
    try {
      await post("api/merges", {values: form.values()});
    } catch (error) {
      rest = form.setProblems([{field: error.param, text: error.message}]);
    }
    problems.replaceChildren(...rest.map(({text}) => el("p", {class: "problem"}, text)));
    await read();
  }
  // Reads the merges; elements stay while nothing changes, and so does the focus.
  async function read() {
    const merges = await get("api/merges");
    if (JSON.stringify(merges) === seen) return;
    seen = JSON.stringify(merges);
    list.replaceChildren(...(merges.length ? merges.map(item) : [el("li", {class: "dim"}, t("export.none"))]));
  }
  panel.append(el("div", {class: "columns"}, el("div", {}, box, problems, start),
    el("section", {}, el("h2", {}, t("export.merges")), list)));
  poll(async () => panel.hidden || read(), 1000);
}

// A merge: its state, its log with the check of what was written, and what can be done.
function item({output, state, log, can_chat: canChat}) {
  const stop = button(t("export.stop"), () => act(stop, () => post("api/merges/stop", {output})));
  const chat = canChat ? button(t("export.chat"), () => go("chat", {model: output})) : null;
  const live = LIVE.includes(state) ? [el("progress", {"aria-label": output}), stop] : null;
  const word = el("span", {class: `state ${state}`}, t(`export.${state}`));
  return el("li", {dataset: {state}}, el("p", {class: "row"}, el("code", {}, output), word, live, chat),
    log ? el("pre", {tabindex: 0, role: "group", "aria-label": t("export.log", output)}, log) : null);
}
