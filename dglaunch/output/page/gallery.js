// The gallery's behaviour. Text from the ledger is only ever set as text. The state is in the address after the #, so
// that a view can be bookmarked: query, status, rank, seed, sort, descending, open (position of a row in the data).
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const GAP = 10, CAPTION = 56, AHEAD = 2; // AHEAD: rows of tiles kept beyond the edges of the window

const column = (list, row) => (Array.isArray(list) ? list[row] : list?.all) ?? null;
const value = (name, row) => column(data.columns[name], row);
const failed = (row) => data.files[row] === null;
const encoded = (name) => name.split("/").map(encodeURIComponent).join("/");
const address = (row) => (failed(row) ? null : data.base + encoded(data.files[row]));
const small = (row) => data.thumbnails?.[row] ?? address(row);
const title = (row) => data.files[row] ?? `index ${value("index", row)}, failed`;
const make = (tag, options = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
};

// -- search, filter, sort ------------------------------------------------------------------------------------------

const texts = [], seeds = [];
for (let row = 0; row < data.count; row++) {
  const parts = ["prompt", "negative_prompt", "error"].map((name) => value(name, row) ?? "");
  texts.push([data.files[row] ?? "", ...parts].join("\n").toLowerCase());
  const seed = value("seed", row);
  seeds.push(/^\d+$/.test(seed) ? BigInt(seed) : null); // up to 2^63: more than a number holds
}
let shown = []; // rows that fit, in the order of the grid
let active = 0; // position in `shown` that the keyboard is at

function seedRanges(text) {
  const ranges = [];
  for (const part of text.split(/[\s,]+/).filter(Boolean)) {
    const found = /^(\d+)(?:-(\d+))?$/.exec(part);
    if (!found) return null;
    ranges.push([BigInt(found[1]), BigInt(found[2] ?? found[1])]);
  }
  return ranges;
}

function tests() {
  const words = $("query").value.toLowerCase().match(/"[^"]+"|[^\s"]+/g)?.map((word) => word.replaceAll('"', "")) ?? [];
  const status = $("status").value, rank = $("rank").value, ranges = seedRanges($("seed").value);
  $("seed").setAttribute("aria-invalid", String(ranges === null));
  const found = [];
  if (words.length) found.push((row) => words.every((word) => texts[row].includes(word)));
  if (status) found.push((row) => failed(row) === (status === "failed"));
  if (rank) found.push((row) => String(value("rank", row)) === rank);
  if (ranges?.length)
    found.push((row) => seeds[row] !== null && ranges.some(([low, high]) => low <= seeds[row] && seeds[row] <= high));
  return found;
}

const collator = new Intl.Collator(undefined, { numeric: true });
const number = (name) => (row) => value(name, row) ?? Infinity;
const ORDER = { // the value that each order compares; rows stay in the order of their index otherwise
  prompt: (row) => value("prompt", row) ?? "",
  seed: (row) => seeds[row] ?? -1n,
  rank: number("rank"),
  status: (row) => (failed(row) ? 0 : 1),
  seconds: number("seconds"),
};

function sorted(rows) {
  const key = ORDER[$("sort").value];
  if (key) {
    const keys = new Map(rows.map((row) => [row, key(row)]));
    const compare = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a < b ? -1 : a > b ? 1 : 0);
    rows.sort((one, other) => compare(keys.get(one), keys.get(other)));
  }
  return $("direction").getAttribute("aria-pressed") === "true" ? rows.reverse() : rows;
}

function apply() {
  const start = performance.now();
  const conditions = tests(), rows = [];
  for (let row = 0; row < data.count; row++) if (conditions.every((test) => test(row))) rows.push(row);
  shown = sorted(rows);
  active = 0;
  const bad = shown.filter(failed).length, count = (n) => n.toLocaleString("en");
  $("count").textContent =
    (shown.length === data.count ? "" : `${count(shown.length)} of `) + `${count(data.count)} images` +
    (bad ? `, ${count(bad)} failed` : "");
  $("nothing").hidden = shown.length > 0;
  for (const item of tiles.values()) item.remove();
  tiles.clear();
  draw();
  root.dataset.shown = shown.length;
  root.dataset.filterMs = (performance.now() - start).toFixed(1);
}

// -- the grid: only the tiles in sight exist -----------------------------------------------------------------------

const tiles = new Map(); // position -> <li>
let columns = 1, side = 176;

function measure() {
  const width = $("grid").clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (Number($("size").value) + GAP)));
  side = Math.floor((width - GAP * (columns - 1)) / columns);
  $("grid").style.height = `${Math.max(0, Math.ceil(shown.length / columns) * (side + CAPTION + GAP) - GAP)}px`;
}

function draw() {
  measure();
  const pitch = side + CAPTION + GAP, top = -$("grid").getBoundingClientRect().top;
  const first = Math.max(0, (Math.floor(top / pitch) - AHEAD) * columns);
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / pitch) + AHEAD) * columns);
  for (const [position, item] of tiles)
    if ((position < first || position >= last) && !item.contains(document.activeElement)) {
      item.remove();
      tiles.delete(position);
    }
  for (let position = first; position < last; position++) {
    if (!tiles.has(position)) {
      tiles.set(position, tile(position));
      $("grid").append(tiles.get(position));
    }
  }
  const reachable = tiles.has(active) ? active : first;
  for (const [position, item] of tiles) {
    Object.assign(item.style, {
      width: `${side}px`, height: `${side + CAPTION}px`,
      left: `${(position % columns) * (side + GAP)}px`, top: `${Math.floor(position / columns) * pitch}px`,
    });
    item.querySelector(".picture").style.height = `${side}px`;
    item.firstChild.tabIndex = position === reachable ? 0 : -1;
  }
}

function tile(position) {
  const row = shown[position], bad = failed(row);
  const picture = make("span", { className: "picture" });
  const missing = (text) => picture.replaceChildren(make("span", { className: "missing", textContent: text, dir: "auto" }));
  if (bad) missing(value("error", row) ?? "failed");
  else {
    const image = make("img", { loading: "lazy", decoding: "async", alt: "" });
    image.onerror = () => missing("the file is not there");
    image.src = small(row);
    picture.append(image);
  }
  const name = make("span", { className: "name" }, make("span", { textContent: title(row) }),
    make("span", { textContent: column(data.inputs, row)?.length ? "edit" : "" }));
  const text = make("span", { className: "text", textContent: value("prompt", row) ?? "", dir: "auto" });
  const button = make("button", { type: "button", className: bad ? "tile failed" : "tile", title: value("prompt", row) ?? "" },
    picture, make("span", { className: "caption" }, name, text));
  button.onclick = () => { active = position; open(position); };
  button.onfocus = () => { active = position; };
  const item = make("li", {}, button);
  item.setAttribute("aria-setsize", shown.length);
  item.setAttribute("aria-posinset", position + 1);
  item.dataset.row = row;
  return item;
}

function focusTile(position) {
  if (!shown.length) return;
  active = Math.min(Math.max(position, 0), shown.length - 1);
  const pitch = side + CAPTION + GAP, top = Math.floor(active / columns) * pitch;
  const edge = $("controls").offsetHeight + GAP, box = $("grid").getBoundingClientRect().top;
  if (box + top < edge) scrollBy(0, box + top - edge);
  else if (box + top + pitch > innerHeight) scrollBy(0, box + top + pitch - innerHeight);
  draw();
  tiles.get(active)?.firstChild.focus({ preventScroll: true });
}

// -- one image -----------------------------------------------------------------------------------------------------

const FIRST = ["index", "sample", "seed", "width", "height", "num_inference_steps", "guidance_scale", "negative_prompt",
  "seconds", "batch_size", "rank", "node", "time", "bytes"];
const NAMES = { num_inference_steps: "steps", guidance_scale: "guidance", negative_prompt: "negative prompt",
  seconds: "seconds of its batch", batch_size: "batch size", input_images: "input images" };
let opened = null; // position in `shown`

function open(position) {
  if (position < 0 || position >= shown.length) return;
  opened = active = position;
  const row = shown[position], bad = failed(row);
  $("view-title").textContent = title(row);
  $("error").hidden = !bad;
  $("error").textContent = bad ? value("error", row) ?? "failed" : "";
  $("prompt").textContent = value("prompt", row) ?? "";
  $("file").hidden = $("copy-replay").hidden = bad;
  if (!bad) $("file").href = address(row);
  $("previous").disabled = position === 0;
  $("next").disabled = position === shown.length - 1;
  const names = [...FIRST, ...Object.keys(data.columns).filter((name) => !FIRST.includes(name))];
  const hidden = ["prompt", "instruction", ...(bad ? ["error"] : [])];
  $("pairs").replaceChildren(...names.filter((name) => !hidden.includes(name) && value(name, row) !== null).flatMap((name) => [
    make("dt", { textContent: NAMES[name] ?? name }), make("dd", { textContent: plain(value(name, row)), dir: "auto" }),
  ]));
  $("stage").replaceChildren(stage(row));
  if (!$("view").open) $("view").showModal();
  remember();
}

const plain = (item) => (typeof item === "object" ? JSON.stringify(item) : String(item));

function stage(row) {
  if (failed(row)) return make("p", { className: "note", textContent: "No image was made." });
  const frame = make("div", { className: "frame" });
  const result = picture(row, frame);
  const width = value("width", row), height = value("height", row);
  if (width > 0 && height > 0) frame.style.setProperty("--ratio", width / height);
  const befores = column(data.inputs, row) ?? [];
  if (befores.length) compare(frame, result, befores);
  else frame.append(result);
  return frame;
}

function picture(row, frame) {
  const image = make("img", { className: "after", alt: value("prompt", row) ?? title(row) });
  image.onerror = () => {
    const copy = data.thumbnails?.[row];
    image.onerror = null;
    if (copy) image.src = copy;
    const text = copy ? "a small copy: the file is not beside this page" : "the file is not there";
    frame.append(make("span", { className: "tag first", textContent: text }));
    if (!copy) image.hidden = true;
  };
  image.src = address(row);
  return image;
}

function compare(frame, result, befores) {
  frame.classList.add("compare");
  const before = make("img", { className: "before", alt: "before the edit", src: befores[0] });
  const slider = make("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  slider.setAttribute("aria-label", "Before and after: where the result begins, in per cent of the width");
  slider.oninput = () => frame.style.setProperty("--split", `${slider.value}%`);
  slider.oninput();
  frame.append(before, result, make("div", { className: "handle" }), slider,
    make("span", { className: "tag first", textContent: "before" }), make("span", { className: "tag last", textContent: "after" }));
  if (befores.length > 1) frame.append(make("div", { className: "sources" }, ...befores.map((source, n) =>
    make("button", { type: "button", textContent: `input ${n + 1}`, onclick: () => { before.src = source; } }))));
}

function closed() {
  const position = opened;
  opened = null;
  $("stage").replaceChildren();
  remember();
  if (position !== null) focusTile(position);
}

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
const replayCommand = (row) => `dglaunch replay ${quoted(`${data.folder}/${data.files[row]}`)}`;

// -- state in the address, colours ---------------------------------------------------------------------------------

const FIELDS = { query: "", status: "", rank: "", seed: "", sort: "index" };

function remember() {
  const state = new URLSearchParams();
  for (const [name, unset] of Object.entries(FIELDS)) if ($(name).value !== unset) state.set(name, $(name).value);
  if ($("direction").getAttribute("aria-pressed") === "true") state.set("descending", "1");
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
  apply();
  const position = state.has("open") ? shown.indexOf(Number(state.get("open"))) : -1;
  if (position >= 0) open(position);
  else if ($("view").open) $("view").close();
}

function direct(descending) {
  $("direction").setAttribute("aria-pressed", String(descending));
  $("direction").textContent = descending ? "↓" : "↑";
}

const THEMES = ["auto", "light", "dark"];

function setTheme(name) {
  $("theme").value = name;
  $("theme").textContent = `◐ ${name}`;
  $("theme").setAttribute("aria-label", `Colours: ${name}`);
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
}

const storage = (call) => { try { return call(localStorage); } catch { return null; } }; // a browser may forbid it

// -- events --------------------------------------------------------------------------------------------------------

const changed = () => { apply(); remember(); };
for (const name of Object.keys(FIELDS)) $(name).addEventListener("input", changed);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("direction").onclick = () => { direct($("direction").getAttribute("aria-pressed") !== "true"); changed(); };
$("reset").onclick = () => { for (const [name, unset] of Object.entries(FIELDS)) $(name).value = unset; changed(); $("query").focus(); };
$("size").oninput = draw;
$("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf($("theme").value) + 1) % THEMES.length];
  setTheme(next);
  storage((kept) => kept.setItem("dglaunch-theme", next));
};
$("previous").onclick = () => open(opened - 1);
$("next").onclick = () => open(opened + 1);
$("close").onclick = () => $("view").close();
$("view").addEventListener("close", closed);
$("copy-prompt").onclick = (event) => copy(event.target, $("prompt").textContent);
$("copy-replay").onclick = (event) => copy(event.target, replayCommand(shown[opened]));

const STEPS = { // what a key adds to the position in the grid
  ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns, ArrowDown: () => columns,
  Home: () => -shown.length, End: () => shown.length,
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, summary");
  if ($("view").open) {
    if (!typing && (event.key === "ArrowLeft" || event.key === "ArrowRight")) open(opened + STEPS[event.key]());
  } else if (event.key === "Escape" && event.target === $("query")) {
    $("query").value = "";
    changed();
    focusTile(0);
  } else if (event.key === "/" && !typing) {
    $("query").select();
    event.preventDefault();
  } else if (STEPS[event.key] && !typing) {
    const within = $("grid").contains(event.target) && event.target !== $("grid");
    focusTile(within ? active + STEPS[event.key]() : active);
    event.preventDefault();
  }
});
let waiting = false;
function later() {
  if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
  waiting = true;
}
addEventListener("scroll", later, { passive: true });
new ResizeObserver(later).observe($("grid"));
addEventListener("resize", later);
addEventListener("hashchange", restore);

const chosen = storage((kept) => kept.getItem("dglaunch-theme"));
setTheme(THEMES.includes(chosen) ? chosen : "auto");
const ranks = new Set(Array.from({ length: data.count }, (_, row) => value("rank", row)));
for (const rank of [...ranks].filter((rank) => rank !== null).sort((a, b) => a - b)) $("rank").append(make("option", { value: rank, textContent: rank }));
restore();
root.dataset.ready = performance.now().toFixed(1);
