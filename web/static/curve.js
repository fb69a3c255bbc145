// Curves over steps on one canvas (uPlot): no more points than pixels show are drawn, at most once per frame.
import uPlot from "./vendor/uPlot.esm.js";
import {el, t} from "./page.js";

const COLORS = ["#2f7ed8", "#d9541e", "#2e9e5b", "#a259d9", "#b98500", "#d6457f", "#159a9a", "#7d7d7d"];
const HEIGHT = 340;
const [NEAR, FAR] = [[0.25, -0.25], [-0.5, 0.5]]; // how the ends of what is shown move, in its widths
const KEYS = {"+": NEAR, "=": NEAR, "-": FAR, ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2]};

// The color of a run by its place among those shown.
export const colorOf = (place) => COLORS[place % COLORS.length];

// A number for an axis or a table.
export function brief(value) {
  if (value === null || value === undefined) return "–";
  return String(Number.isInteger(value) ? value : +value.toPrecision(5));
}

// The exponential moving average with bias correction; a null is left out.
export function smooth(values, weight) {
  let [mean, share] = [0, 1];
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    share *= weight;
    return mean / (1 - share);
  });
}

// [steps, values] from..to: of each pixel the least and the greatest value, and the first null of a gap.
function thin(steps, values, [from, to], pixels) {
  const first = Math.max(steps.findLastIndex((step) => step < from), 0); // one more on either side
  const end = steps.findLastIndex((step) => step <= to) + 2;
  const size = Math.ceil(Math.max((end - first) / pixels, 1));
  const kept = [];
  for (let start = first; start < Math.min(end, steps.length); start += size) {
    let [least, most, gap] = [-1, -1, -1];
    for (let at = start; at < Math.min(start + size, end, steps.length); at += 1) {
      const value = values[at];
      if (value === null) gap = gap < 0 ? at : gap;
      else if (least < 0) least = most = at;
      else if (value < values[least]) least = at;
      else if (value > values[most]) most = at;
    }
    const places = [least, most, gap].filter((place) => place >= 0).sort((a, b) => a - b);
    kept.push(...new Set(places));
  }
  return [kept.map((at) => steps[at]), kept.map((at) => values[at])];
}

// The place nearest to one where a line has a value, for lines of different steps; null if it is far away.
function nearest(plot, line, place) {
  const [steps, values, {min, max}] = [plot.data[0], plot.data[line], plot.scales.x];
  const isNear = (at) => Math.abs(steps[at] - steps[place]) <= (max - min) / 20; // false beyond the ends
  for (let away = 0; isNear(place - away) || isNear(place + away); away += 1) {
    for (const at of [place - away, place + away]) if (isNear(at) && Number.isFinite(values[at])) return at;
  }
  return null;
}

export class Curves {
  // A chart in an element; the label says what it is and which keys it takes.
  constructor(parent, label) {
    this.box = el("div", {class: "curve", tabindex: 0, role: "group", "aria-label": label, title: label,
      on: {keydown: (event) => this.key(event), dblclick: () => this.zoom(null)}});
    parent.append(this.box);
    Object.assign(this, {lines: [], shape: "", view: null, frame: 0});
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  // Shows lines [{label, color, steps, values, faint, dots}]; title: of the values; log: a logarithmic axis.
  show(lines, title, log) {
    Object.assign(this, {lines, title, log});
    this.draw();
  }

  // Draws in the next frame, however often it is called before.
  draw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const width = this.box.clientWidth;
      if (!width) return;
      const shape = JSON.stringify([this.log, this.title, this.lines.map(({label, color}) => label + color)]);
      if (shape !== this.shape) this.build(shape, width);
      if (this.plot.width !== width) this.plot.setSize({width, height: HEIGHT});
      const view = this.view ?? this.range();
      const positive = (values) => values.map((value) => (value > 0 ? value : null));
      const columns = this.lines.map(({steps, values}) =>
        thin(steps, this.log ? positive(values) : values, view, width));
      this.plot.setData(columns.length ? uPlot.join(columns) : [[]]);
    });
  }

  // The first and the last step of all lines.
  range() {
    const lines = this.lines.filter(({steps}) => steps.length);
    if (!lines.length) return [0, 1];
    const last = Math.max(...lines.map(({steps}) => steps.at(-1)));
    return [Math.min(last - 1, ...lines.map(({steps}) => steps[0])), last];
  }

  // Makes the chart anew: its lines or axes are others.
  build(shape, width) {
    this.plot?.destroy();
    this.shape = shape;
    const style = getComputedStyle(this.box);
    const grid = {stroke: () => style.borderTopColor, width: 1};
    const axis = {stroke: () => style.color, grid, ticks: {show: false}};
    const texts = (_, ticks) => ticks.map((tick) => (tick === null ? "" : brief(tick))); // null: no text
    this.plot = new uPlot({
      width, height: HEIGHT, cursor: {drag: {setScale: false}, dataIdx: nearest, points: {size: 7}},
      scales: {x: {time: false, range: () => this.view ?? this.range()}, y: {distr: this.log ? 3 : 1}},
      axes: [axis, {...axis, size: 64, values: texts}],
      series: [{label: t("watch.step")}, ...this.lines.map(({label, color, faint, dots}) => ({
        label, stroke: faint ? `${color}55` : color, width: faint ? 1 : 1.5, dash: dots && [5, 4],
        points: {show: Boolean(dots), size: 6}, value: (_, value) => brief(value)}))],
      hooks: {setSelect: [(plot) => this.select(plot)]},
    }, [[]], this.box);
  }

  // Zooms to what was dragged over.
  select(plot) {
    const {left, width} = plot.select;
    if (width < 4) return;
    plot.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
    this.zoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
  }

  // Shows the steps from..to; null: all.
  zoom(view) {
    const [first, last] = this.range();
    this.view = view && view[1] - view[0] < last - first ? view : null;
    this.draw();
  }

  // + and - zoom, arrows move, 0 shows all.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS || event.key === "0")) return;
    event.preventDefault();
    const view = this.view ?? this.range();
    const moved = (end, place) => end + KEYS[event.key][place] * (view[1] - view[0]);
    this.zoom(event.key === "0" ? null : view.map(moved));
  }

  // A PNG of what is shown, with a title and the names of the lines.
  png() {
    const source = this.plot.ctx.canvas;
    const [scale, canvas] = [source.width / this.plot.width, document.createElement("canvas")];
    Object.assign(canvas, {width: source.width, height: source.height + 30 * scale});
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.body).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(source, 0, 30 * scale);
    context.font = `${13 * scale}px system-ui, sans-serif`;
    let left = 8 * scale;
    const title = {label: this.title, color: getComputedStyle(this.box).color};
    for (const {label, color} of [title, ...this.lines.filter((line) => !line.faint)]) {
      context.fillStyle = color;
      context.fillText(label, left, 20 * scale);
      left += context.measureText(label).width + 16 * scale;
    }
    return new Promise((done) => canvas.toBlob(done));
  }
}
