// The preview of a run's records: numbers, a histogram of lengths, samples with their supervised tokens.
import {button, el, t} from "./page.js";

const STATISTICS = ["min", "median", "mean", "90%", "99%", "max"];
const count = (number) => number.toLocaleString("en");
const cell = (text) => el("td", {class: "number"}, text);

// A table of lengths: a line for each of prompt, answer and sample.
function lengths(statistics) {
  const head = STATISTICS.map((name) =>
    el("th", {scope: "col", class: "number"}, name.endsWith("%") ? name : t(`train.${name}`)));
  const lines = Object.entries(statistics).map(([name, numbers]) =>
    el("tr", {}, el("th", {scope: "row"}, t(`train.${name}`)), numbers.map((number) => cell(count(number)))));
  const table = el("table", {}, el("caption", {}, t("train.lengths")), el("tr", {}, el("td"), head), lines);
  return el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": t("train.lengths")}, table);
}

// Bars of ranges of lengths; those over --max_len are marked.
function histogram(ranges, limit) {
  const max = Math.max(...ranges.map(([, , number]) => number));
  const lines = ranges.map(([low, high, number]) => {
    const isOver = low > limit && number > 0;
    return el("tr", {class: isOver ? "problem" : null},
      el("th", {scope: "row", class: "number"}, `${count(low)}–${count(high)}`),
      el("td", {"aria-hidden": "true"}, el("meter", {min: 0, max, value: number})),
      cell(count(number)), el("td", {}, isOver ? t("train.over") : ""));
  });
  return el("table", {class: "histogram"}, el("caption", {}, t("train.histogram")), lines);
}

// A run of tokens; ids are seen on hover, or all with the button.
function part({supervised, length, head, gap, tail, cut}) {
  const tokens = (pairs) =>
    pairs.map(([id, text]) => el("ruby", {title: id}, text, el("rt", {}, String(id))));
  const title = t(supervised ? "train.supervisedPart" : "train.promptPart", count(length));
  return el("p", {class: supervised ? "tokens supervised" : "tokens"}, el("b", {}, title, " "), tokens(head),
    gap ? el("span", {class: "dim"}, ` … ${t("train.gap", count(gap))} … `) : null, tokens(tail),
    cut ? el("span", {class: "problem"}, ` ✂ ${t("train.cut", count(cut))}`) : null);
}

function sample({line, why, parts, more}) {
  const reasons = why.split(", ").map((reason) => t(`train.why.${reason}`)).join(", ");
  return el("div", {}, el("h3", {}, t("train.sample", line, reasons)), parts.map(part), more ? "…" : null);
}

// What a file has, in a few lines.
function summary(file) {
  const formats = Object.entries(file.formats).map(([name, number]) => `${name} (${count(number)})`);
  const lines = [
    t("train.records", count(file.records), count(file.problem_count), formats.join(", ") || "–"),
    file.ignored.length ? t("train.ignored", file.ignored.join(", ")) : "",
    file.rows ? t("train.truncated", count(file.truncated), count(file.rows)) : "",
    file.rows ? t("train.tokens", count(file.tokens), count(file.supervised)) : "",
    file.empty ? t("train.empty", count(file.empty)) : "",
    file.unsupervised ? t("train.unsupervised", count(file.unsupervised)) : "",
  ];
  return el("ul", {}, lines.filter(Boolean).map((line) => el("li", {}, line)));
}

// A button that uses limits.
function limitButton(key, limits, use) {
  const pairs = Object.entries(limits).map(([name, number]) => [name, String(number)]);
  const words = pairs.map(([name, text]) => `--${name} ${text}`).join(" ");
  return button(t(key, words), () => use(Object.fromEntries(pairs)));
}

function fileNode(file, use) {
  const numbers = () => [lengths(file.statistics), histogram(file.histogram, file.max_len),
    el("p", {class: "row"}, limitButton("train.limitsNothing", file.limits.nothing, use),
      limitButton("train.limitsFew", file.limits.few, use)), ...file.samples.map(sample)];
  const problems = file.problems.map((line) => el("li", {}, line));
  return el("details", {open: true}, el("summary", {}, `--${file.flag} ${file.path}`), summary(file),
    el("ul", {class: "problem"}, problems), file.rows ? numbers() : null);
}

// Shows an answer of api/preview; use: takes values for the form.
export function showPreview(box, {files = [], bounded}, use) {
  const toggle = () => ids.setAttribute("aria-pressed", String(box.classList.toggle("ids")));
  const ids = button(t("train.ids"), toggle, {"aria-pressed": "false"});
  box.className = "preview";
  box.replaceChildren(...files.length ? [el("h2", {tabindex: "-1"}, t("train.previewTitle")), ids] : [],
    bounded ? el("p", {class: "dim"}, t("train.bounded", count(bounded))) : "",
    ...files.map((file) => fileNode(file, use)));
  box.querySelector("h2")?.focus();
}
