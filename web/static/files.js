// A dialog that browses below the root, and uploads files of records.
import {act, button, el, get, send, t, url} from "./page.js";

const MODELS = ["model", "checkpoint"];
const TAKEN = {base: MODELS, model: MODELS, data: ["data", "file"], directory: []};

// An entry: a directory can be opened, what is wanted can be chosen.
function row({name, path, kind, bytes}, want, open, choose) {
  const label = bytes === undefined ? button(`${name}/`, () => open(path)) : el("span", {}, name);
  const details = {class: "primary", "aria-label": `${t("train.choose")} ${name}`};
  const choice = TAKEN[want].includes(kind) ? button(t("train.choose"), () => choose(path), details) : null;
  return el("li", {class: "row"}, label, el("small", {class: "dim"}, t(`train.kind.${kind}`)), choice);
}

// Lets the user pick what is wanted ("base", "data", "model" or "directory"); resolves to its path, or null.
export function pickPath({want, from = "."}) {
  return new Promise((resolve) => {
    let parent = null;
    const here = el("code"), list = el("ul", {class: "files"});
    const problem = el("p", {class: "problem", role: "alert"});
    const close = (result) => { dialog.remove(); resolve(result); };
    const up = button(t("train.up"), () => open(parent));
    const upload = async () => {
      const [file] = input.files;
      try {
        await send(url("api/upload", {directory: here.textContent, name: file.name}), file);
        await open(here.textContent);
      } catch (error) {
        problem.textContent = error.message;
      }
    };
    const input = el("input", {type: "file", on: {change: () => act(input, upload)}});
    const chooseHere = button(t("train.chooseHere"), () => close(here.textContent), {class: "primary"});
    const dialog = el("dialog", {"aria-label": t("train.browse"), on: {cancel: () => close(null)}},
      el("p", {class: "row"}, up, here), problem, list,
      want === "data" ? el("label", {}, t("train.upload"), " ", input) : null,
      el("p", {class: "row"}, want === "directory" ? chooseHere : null,
        button(t("train.cancel"), () => close(null))));
    // Shows a directory; the first one may be gone, then it is the root.
    async function open(path) {
      try {
        const found = await get("api/browse", {path});
        parent = found.parent;
        here.textContent = found.path;
        list.replaceChildren(...found.entries.map((entry) => row(entry, want, open, close)));
        problem.textContent = found.more ? t("train.more", found.more) : "";
      } catch (error) {
        problem.textContent = error.message;
        if (!here.textContent && path !== ".") await open(".");
      }
      up.hidden = parent === null;
      const lost = !dialog.contains(document.activeElement); // the button that was used is gone
      if (lost) (list.querySelector("button") ?? dialog.querySelector("button:not([hidden])")).focus();
    }
    document.body.append(dialog);
    dialog.showModal();
    open(from);
  });
}
