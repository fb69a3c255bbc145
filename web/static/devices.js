// The choice of the GPUs of a run, or of its number of ranks on a CPU.
import {el, gib, t} from "./page.js";

// {node, launch(): for requests, memory(): GiB of one GPU as text, state(): to keep}; kept: an earlier state.
export function buildDevices(gpus, kept = {}) {
  const first = kept.devices?.length ? kept.devices : [Number(gpus[0]?.index)];
  const boxes = gpus.map(({index}) =>
    el("input", {type: "checkbox", value: index, checked: first.includes(Number(index))}));
  const ranks = el("input", {type: "text", inputmode: "numeric", size: 3, value: kept.ranks ?? "1"});
  const smallest = gpus.length ? gib(Math.min(...gpus.map((gpu) => gpu.memory_total))) : "";
  const memory = el("input", {type: "text", inputmode: "decimal", size: 5, value: kept.memory ?? smallest});
  const labels = gpus.map((gpu, i) =>
    el("label", {}, boxes[i], ` GPU ${gpu.index}: ${gpu.name}, ${gib(gpu.memory_total, 0)} GiB`));
  const node = el("fieldset", {class: "row"}, el("legend", {}, t("train.devices")),
    gpus.length ? labels : el("label", {}, t("train.ranks"), " ", ranks),
    el("label", {}, t("train.memoryOf"), " ", memory));
  const devices = () => boxes.filter((box) => box.checked).map((box) => Number(box.value));
  return {
    node,
    launch: () => ({devices: devices(), ranks: Number(ranks.value)}),
    memory: () => memory.value,
    state: () => ({devices: devices(), ranks: ranks.value, memory: memory.value}),
  };
}
