// What the pages of pictures have in common: their data, elements, a list of which only what is in sight exists, the slider,
// the state in the address, the colours. Text from a ledger is only ever set as text.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const GAP = 10;

const column = (list, row) => (Array.isArray(list) ? list[row] : list?.all) ?? null;
const encoded = (name) => name.split("/").map(encodeURIComponent).join("/");
const plain = (item) => (typeof item === "object" ? JSON.stringify(item) : String(item));
const counted = (number) => number.toLocaleString("en");
const make = (tag, options = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
};
const wordsOf = (text) => text.toLowerCase().match(/"[^"]+"|[^\s"]+/g)?.map((word) => word.replaceAll('"', "")) ?? [];
const collator = new Intl.Collator(undefined, { numeric: true });

const compareKeys = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a < b ? -1 : a > b ? 1 : 0);

function sortedBy(rows, key) { // rows with equal keys stay in their order
  const keys = new Map(rows.map((row) => [row, key(row)]));
  return rows.sort((one, other) => compareKeys(keys.get(one), keys.get(other)));
}

// -- a list of which only what is in sight exists ------------------------------------------------------------------

const AHEAD = 2; // lines kept beyond the edges of the window
const HIGHEST = 15e6; // pixels; browsers let no element be much higher, so a longer list is shown in parts

class SightList {
  constructor(element, build) { // build(n) makes the <li> of item n
    Object.assign(this, { element, build, items: new Map(), part: 0, total: 0, columns: 1, pitch: 1 });
    $("part-previous").onclick = () => this.turn(this.part - 1);
    $("part-next").onclick = () => this.turn(this.part + 1);
  }

  shape(total, columns, pitch) {
    const lines = Math.max(1, Math.floor(HIGHEST / pitch)), start = this.start;
    Object.assign(this, { total, columns, pitch, most: lines * columns });
    this.part = Math.min(Math.floor(start / this.most), this.parts - 1);
    this.element.style.height = `${Math.max(0, Math.ceil((this.stop - this.start) / columns) * pitch - GAP)}px`;
    $("parts").hidden = this.parts === 1;
    $("part").textContent = `${counted(this.start + 1)} to ${counted(this.stop)} of ${counted(total)}`;
    $("part-previous").disabled = this.part === 0;
    $("part-next").disabled = this.part === this.parts - 1;
  }

  get parts() { return Math.max(1, Math.ceil(this.total / this.most)); }
  get start() { return this.part * (this.most ?? 1); }
  get stop() { return Math.min(this.total, this.start + this.most); }

  turn(part) {
    this.part = part;
    scrollTo(0, 0);
    this.redraw();
  }

  clear() {
    for (const item of this.items.values()) item.remove();
    this.items.clear();
  }

  draw(place) { // place(item, line, n) sets an item's size and where it stands in its line
    const top = -this.element.getBoundingClientRect().top, edge = (line) => this.start + line * this.columns;
    const first = Math.max(this.start, edge(Math.floor(top / this.pitch) - AHEAD));
    const last = Math.min(this.stop, edge(Math.ceil((top + innerHeight) / this.pitch) + AHEAD));
    for (const [n, item] of this.items)
      if (n < first || n >= last) if (!item.contains(document.activeElement) || n < this.start || n >= this.stop) {
        item.remove();
        this.items.delete(n);
      }
    for (let n = first; n < last; n++) if (!this.items.has(n)) {
      this.items.set(n, this.build(n));
      this.element.append(this.items.get(n));
    }
    for (const [n, item] of this.items) {
      item.style.top = `${Math.floor((n - this.start) / this.columns) * this.pitch}px`;
      place(item, n);
    }
    return first;
  }

  show(n) { // scrolls as little as needed for item n to be in the window, below what sticks to its top
    const part = Math.floor(n / this.most);
    if (part !== this.part) this.turn(part);
    const top = Math.floor((n - this.start) / this.columns) * this.pitch, box = this.element.getBoundingClientRect().top;
    const edge = $("sticky").offsetHeight + GAP;
    if (box + top < edge) scrollBy(0, box + top - edge);
    else if (box + top + this.pitch > innerHeight) scrollBy(0, Math.min(box + top - edge, box + top + this.pitch - innerHeight));
  }
}

let waiting = false;
function drawsAgain(element, draw) { // as the window and the element change
  const later = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);
  new ResizeObserver(later).observe(element);
}

// -- pictures ------------------------------------------------------------------------------------------------------

function slider(frame, first, last, names, label) { // two pictures, one over the other: left of the handle is the first
  frame.classList.add("compare");
  first.className = "before";
  last.className = "after";
  const input = make("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  input.setAttribute("aria-label", label);
  input.oninput = () => frame.style.setProperty("--split", `${input.value}%`);
  input.oninput();
  const tags = names.map((name, n) => make("span", { className: `tag ${n ? "last" : "first"}`, textContent: name, dir: "auto" }));
  const handle = make("div", { className: "handle" });
  frame.append(first, last, handle, input, ...tags);
  return { tags, end: () => { frame.style.setProperty("--split", "0%"); handle.remove(); input.remove(); } };
}

function missing(picture, text) {
  picture.replaceChildren(make("span", { className: "missing", textContent: text, dir: "auto" }));
}

function tileImage(picture, source) { // for a tile; what cannot be read is said in its place
  const image = make("img", { loading: "lazy", decoding: "async", alt: "" });
  image.onerror = () => missing(picture, "the file is not there");
  image.src = source;
  picture.append(image);
}

// -- what is shown, what of it is opened, and the state in the address ---------------------------------------------
// A page has FIELDS (its controls, and what they are at first), apply() that finds what is shown, draw(), open(position) and
// focusOn(position).

let shown = []; // rows, in the order of the list
let active = 0; // position in `shown` that the keyboard is at
let opened = null; // position in `shown`

function direct(descending) {
  $("direction").setAttribute("aria-pressed", String(descending));
  $("direction").textContent = descending ? "↓" : "↑";
}
const descends = () => $("direction").getAttribute("aria-pressed") === "true";

function remember() { // the controls that are not as they were at first, and what is opened
  const state = new URLSearchParams();
  for (const [name, unset] of Object.entries(FIELDS)) if ($(name).value !== unset) state.set(name, $(name).value);
  if (descends()) state.set("descending", "1");
  if (opened !== null) state.set("open", shown[opened]);
  history.replaceState(null, "", `#${state}`);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, unset] of Object.entries(FIELDS)) {
    $(name).value = state.get(name) ?? unset;
    if ($(name).selectedIndex === -1) $(name).value = unset;
  }
  direct(state.get("descending") === "1");
  const reopen = () => {
    const position = state.has("open") ? shown.indexOf(Number(state.get("open"))) : -1;
    if (position >= 0) open(position);
    else if ($("view").open) $("view").close();
  };
  const found = apply(); // of a large job a promise
  if (found) found.then(reopen);
  else reopen();
}

const changed = () => { apply(); remember(); };

function closed() {
  const position = opened;
  opened = null;
  $("stage").replaceChildren();
  remember();
  if (position !== null) focusOn(position);
}

function begin() { // once the page has all its controls
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("direction").onclick = () => { direct(!descends()); changed(); };
  $("size").oninput = draw;
  $("previous").onclick = () => open(opened - 1);
  $("next").onclick = () => open(opened + 1);
  $("close").onclick = () => $("view").close();
  $("view").addEventListener("close", closed);
  drawsAgain($("grid"), draw);
  addEventListener("hashchange", restore);
  restore();
  root.dataset.ready = performance.now().toFixed(1);
}

// -- colours, the clipboard ----------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const storage = (call) => { try { return call(localStorage); } catch { return null; } }; // a browser may forbid it

function setTheme(name) {
  $("theme").value = name;
  $("theme").textContent = `◐ ${name}`;
  $("theme").setAttribute("aria-label", `Colours: ${name}`);
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
}

$("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf($("theme").value) + 1) % THEMES.length];
  setTheme(next);
  storage((kept) => kept.setItem("dglaunch-theme", next));
};
const chosenTheme = storage((kept) => kept.getItem("dglaunch-theme"));
setTheme(THEMES.includes(chosenTheme) ? chosenTheme : "auto");

async function copy(button, text) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  } catch {
    prompt("Copy:", text);
  }
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
