// The log of a run: a window of its lines that follows the end of the file, or the reader.
import {button, el, get, t} from "./page.js";

const [PART, WINDOW] = [65536, 262144]; // bytes of a node, and characters of all that is shown

export class Log {
  constructor(parent) {
    const jump = (name, place) => button(t(`watch.${name}`), () => this.open(this.run, place));
    this.box = el("pre", {role: "log", "aria-live": "off", "aria-label": t("watch.log"), tabindex: 0,
      class: "log", on: {scroll: () => this.scrolled()}});
    this.rest = el("span"); // of a line that is being written
    const jumps = el("p", {class: "row"}, jump("log_begin", {from: 0}), jump("log_end", {before: -1}));
    parent.append(jumps, this.box);
  }

  // Shows a run's log from a place on, by default its end.
  async open(run, place = {before: -1}) {
    Object.assign(this, {run, parts: [], from: 0, to: 0, size: 0, busy: false, follows: "before" in place});
    this.box.replaceChildren(this.rest);
    await this.load(place, (slice) => {
      this.from = slice.from;
      this.append(slice);
    });
  }

  // Takes the size of the file now; a smaller one is another file.
  async grown(size) {
    if (size < this.to || (size && !this.parts.length)) await this.open(this.run);
    else if (this.follows && size > this.size) await this.more();
    else await this.fill();
  }

  // Loads more while there is nothing to scroll: progress bars leave little of a slice.
  async fill() {
    if (!this.box.clientHeight || this.box.scrollHeight > this.box.clientHeight) return;
    if (this.from) await this.earlier();
    else if (!this.ends) await this.more();
  }

  // Loads what the reader comes to.
  async scrolled() {
    if (this.busy) return;
    const {scrollTop, clientHeight, scrollHeight} = this.box;
    const below = scrollTop + clientHeight >= scrollHeight - 4;
    this.follows = below && this.ends;
    if (below && !this.ends) await this.more();
    else if (scrollTop < 40 && this.from) await this.earlier();
  }

  async earlier() {
    await this.load({before: this.from}, (slice) => this.prepend(slice));
  }

  async more() {
    await this.load({from: this.to}, (slice) => this.append(slice));
  }

  // Asks for a slice, one at a time.
  async load(place, add) {
    if (this.busy) return;
    const {run, parts} = this;
    this.busy = true;
    try {
      const slice = await get("api/log", {run, ...place});
      if (parts === this.parts) add(slice);
    } finally {
      if (parts === this.parts) this.busy = false;
    }
  }

  append(slice) {
    const last = this.parts.at(-1);
    if (!last || last.bytes > PART) this.parts.push({bytes: 0, node: el("span")});
    const part = this.parts.at(-1);
    part.node.append(slice.text);
    part.bytes += slice.to - slice.from;
    this.rest.before(part.node);
    this.rest.textContent = slice.rest;
    Object.assign(this, {to: slice.to, size: slice.size, ends: slice.rest !== "" || slice.to === slice.size});
    const height = this.box.scrollHeight;
    while (this.box.textContent.length > WINDOW) this.from += this.drop(this.parts.shift());
    this.box.scrollTop += this.follows ? height : this.box.scrollHeight - height;
  }

  prepend(slice) {
    const height = this.box.scrollHeight;
    this.parts.unshift({bytes: slice.to - slice.from, node: el("span", {}, slice.text)});
    this.box.prepend(this.parts[0].node);
    this.from = slice.from;
    this.box.scrollTop += this.box.scrollHeight - height;
    while (this.box.textContent.length > WINDOW) {
      this.to -= this.drop(this.parts.pop());
      this.ends = false;
      this.rest.textContent = "";
    }
  }

  // Removes a part; its bytes.
  drop(part) {
    part.node.remove();
    return part.bytes;
  }
}
