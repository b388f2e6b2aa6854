// The gallery's behaviour. The state is in the address after the #, so that a view can be bookmarked: query, status, rank,
// seed, score, sort, descending, layout, across, open (position of a row in the data).
"use strict";
const CAPTION = 56; // pixels under a picture
const fileName = (row) => besides("files", row);
const failed = (row) => fileName(row) === null;
const address = (row) => (failed(row) ? null : data.base + encoded(fileName(row)));
const small = (row) => besides("thumbnails", row) ?? address(row);
const title = (row) => fileName(row) ?? (isLost(row) ? `row ${row}` : `index ${value("index", row)}, failed`);
const trouble = (row) => (isLost(row) ? `${addressOf(fileOf(row))} is not along with this page` : value("error", row) ?? "failed");

// -- search, filter, sort ------------------------------------------------------------------------------------------

function textAt(row) {
  const parts = ["prompt", "rewritten_prompt", "negative_prompt", "error"].map((name) => value(name, row) ?? "");
  return [fileName(row) ?? "", ...parts].join("\n").toLowerCase();
}
function seedAt(row) {
  const seed = value("seed", row);
  return /^\d+$/.test(seed) ? BigInt(seed) : null; // up to 2^63: more than a number holds
}
const texts = [], seeds = [];
if (!data.rows) for (let row = 0; row < data.count; row++) {
  texts.push(textAt(row));
  seeds.push(seedAt(row));
}
const textOf = (row) => texts[row] ?? textAt(row);
const seedOf = (row) => (data.rows ? seedAt(row) : seeds[row]);
let fitting = new Set(); // of them, those that fit the search; a grid is shown whole

function seedRanges(text) {
  const ranges = [];
  for (const part of text.split(/[\s,]+/).filter(Boolean)) {
    const found = /^(\d+)(?:-(\d+))?$/.exec(part);
    if (!found) return null;
    ranges.push([BigInt(found[1]), BigInt(found[2] ?? found[1])]);
  }
  return ranges;
}

const HOLDS = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b };

function scoreLimits(text) { // "clip > 0.3, aesthetic >= 6"; without a name it is the first score
  const limits = [];
  for (const part of text.split(",").map((part) => part.trim()).filter(Boolean)) {
    const found = /^(\w*)\s*(>=|<=|>|<)\s*(-?\d*\.?\d+(?:e-?\d+)?)$/.exec(part);
    const name = found && (found[1] ? [found[1], `score_${found[1]}`].find((name) => data.scores.includes(name)) : data.scores[0]);
    if (!name) return null;
    limits.push((row) => value(name, row) !== null && HOLDS[found[2]](value(name, row), Number(found[3])));
  }
  return limits;
}

function tests() {
  const words = wordsOf($("query").value);
  const status = $("status").value, rank = $("rank").value, ranges = seedRanges($("seed").value);
  const limits = scoreLimits($("score").value);
  $("score").setAttribute("aria-invalid", String(limits === null));
  $("seed").setAttribute("aria-invalid", String(ranges === null));
  const found = [];
  if (words.length) found.push((row) => { const text = textOf(row); return words.every((word) => text.includes(word)); });
  if (status) found.push((row) => failed(row) === (status === "failed"));
  if (rank) found.push((row) => String(value("rank", row)) === rank);
  if (ranges?.length)
    found.push((row) => { const seed = seedOf(row); return seed !== null && ranges.some(([low, high]) => low <= seed && seed <= high); });
  return [...found, ...(limits ?? [])];
}

const number = (name) => (row) => value(name, row) ?? Infinity;
const ORDER = { // the value that each order compares; rows stay in the order of their index otherwise
  prompt: (row) => value("prompt", row) ?? "",
  seed: (row) => seedOf(row) ?? -1n,
  rank: number("rank"),
  status: (row) => (failed(row) ? 0 : 1),
  seconds: number("seconds"),
  ...Object.fromEntries(data.scores.map((name) => [name, (row) => value(name, row) ?? -Infinity])),
};

function sorted(rows) {
  const key = ORDER[$("sort").value];
  if (key) rows = sortedBy(rows, key);
  return descends() ? rows.reverse() : rows;
}

function apply() {
  if (data.rows) return seek();
  const start = performance.now();
  const conditions = tests(), rows = [];
  for (let row = 0; row < data.count; row++) if (conditions.every((test) => test(row))) rows.push(row);
  const bad = rows.filter(failed).length, loose = gridded() ? rows.filter((row) => gridKey(row) === null).length : 0;
  $("count").textContent =
    (rows.length === data.count ? "" : `${counted(rows.length)} of `) + `${counted(data.count)} images` +
    (bad ? `, ${counted(bad)} failed` : "") + (loose ? `, ${counted(loose)} in no grid` : "");
  $("nothing").hidden = rows.length > 0;
  fitting = new Set(rows);
  shown = gridded() ? grouped(sorted(rows)) : sorted(rows);
  active = 0;
  list.clear();
  list.part = 0;
  draw();
  root.dataset.shown = rows.length;
  root.dataset.filterMs = (performance.now() - start).toFixed(1);
  return null;
}

// -- the images: only those in sight exist -------------------------------------------------------------------------

const list = new SightList($("grid"), (n) => (gridded() ? block(n) : tile(n)));
list.redraw = draw;
const itemOf = (position) => (gridded() ? blockOf[position] : position); // of the list
let columns = 1; // positions in `shown` from one line of pictures to the next

function draw() {
  const width = $("grid").clientWidth, wanted = Number($("size").value);
  const fit = Math.max(1, Math.floor((width + GAP) / (wanted + GAP)));
  const side = gridded() ? wanted : Math.floor((width - GAP * (fit - 1)) / fit);
  root.style.setProperty("--side", `${side}px`);
  columns = gridded() ? axes[acrossAxis()][1].length : fit;
  if (gridded()) list.shape(blocks.length, 1, blockHeight(side));
  else list.shape(shown.length, fit, side + CAPTION + GAP);
  const first = list.draw((item, n) => {
    if (!gridded()) Object.assign(item.style, { width: `${side}px`, height: `${side + CAPTION}px`, left: `${((n - list.start) % fit) * (side + GAP)}px` });
  });
  const reachable = list.items.has(itemOf(active)) ? active : gridded() ? [...blocks[first]?.values() ?? [0]][0] : first;
  for (const item of list.items.values())
    for (const one of item.querySelectorAll(".tile")) one.tabIndex = Number(one.dataset.position) === reachable ? 0 : -1;
  if (data.rows) bring([...new Set(waitingTiles().map((tile) => fileOf(rowOf(tile))))]);
}

const rowOf = (tile) => shown[Number(tile.dataset.position)];
const waitingTiles = () => [...list.items.values()].flatMap((item) => [...item.querySelectorAll(".waiting")]);

function fillWaiting() { // the tiles whose rows have come
  for (const tile of waitingTiles()) if (isHere(rowOf(tile))) fill(tile, rowOf(tile));
}

function button(position) {
  const found = make("button", { type: "button", className: "tile waiting" }), row = shown[position];
  found.onclick = () => { active = position; open(position); };
  found.onfocus = () => { active = position; };
  found.dataset.position = position;
  if (isHere(row)) fill(found, row);
  return found;
}

function fill(found, row) {
  const picture = make("span", { className: "picture" }), bad = failed(row);
  if (bad) missing(picture, trouble(row));
  else tileImage(picture, small(row));
  const name = make("span", { className: "name" }, make("span", { textContent: title(row) }),
    make("span", { textContent: noted(row) }));
  const text = make("span", { className: "text", textContent: value("prompt", row) ?? "", dir: "auto" });
  const classes = ["tile", ...(bad ? ["failed"] : []), ...(gridded() && !fitting.has(row) ? ["faded"] : [])];
  Object.assign(found, { className: classes.join(" "), title: value("prompt", row) ?? "" });
  found.replaceChildren(picture, make("span", { className: "caption" }, name, text));
}

function noted(row) { // the score that the images are sorted by, or the first; else whether it is an edit
  const name = data.scores.includes($("sort").value) ? $("sort").value : data.scores[0];
  const score = name && value(name, row);
  return typeof score === "number" ? score.toPrecision(3) : besides("inputs", row)?.length ? "edit" : "";
}

function tile(position) {
  const item = make("li", {}, button(position));
  item.setAttribute("aria-setsize", shown.length);
  item.setAttribute("aria-posinset", position + 1);
  item.dataset.row = shown[position];
  return item;
}

function focusOn(position) {
  if (!shown.length) return;
  active = Math.min(Math.max(position, 0), shown.length - 1);
  list.show(itemOf(active));
  draw();
  const found = list.items.get(itemOf(active))?.querySelector(`[data-position="${active}"]`);
  found?.focus({ preventScroll: true });
  if (gridded()) found?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// -- one image -----------------------------------------------------------------------------------------------------

const FIRST = [...data.scores, "index", "sample", "seed", "width", "height", "num_inference_steps", "guidance_scale", "rewritten_prompt",
  "negative_prompt", "seconds", "batch_size", "rank", "node", "time", "bytes"];
const NAMES = { num_inference_steps: "steps", guidance_scale: "guidance", negative_prompt: "negative prompt", rewritten_prompt: "rewritten to",
  seconds: "seconds of its batch", batch_size: "batch size", input_images: "input images" };

function open(position) {
  if (position < 0 || position >= shown.length) return;
  const row = shown[position], bad = failed(row);
  if (!isHere(row)) return whenHere(row, () => open(position));
  if (data.rows) pinned = fileOf(row);
  opened = active = position;
  $("view-title").textContent = title(row);
  $("error").hidden = !bad;
  $("error").textContent = bad ? trouble(row) : "";
  $("prompt").textContent = value("prompt", row) ?? "";
  $("file").hidden = $("copy-replay").hidden = bad;
  $("along").hidden = true;
  if (!bad) $("file").href = address(row);
  $("previous").disabled = position === 0;
  $("next").disabled = position === shown.length - 1;
  const names = [...FIRST, ...Object.keys(partOf(row).columns).filter((name) => !FIRST.includes(name))];
  const hidden = ["prompt", "instruction", ...(bad ? ["error"] : [])];
  $("pairs").replaceChildren(...names.filter((name) => !hidden.includes(name) && value(name, row) !== null).flatMap((name) => [
    make("dt", { textContent: NAMES[name] ?? name }), make("dd", { textContent: plain(value(name, row)), dir: "auto" }),
  ]));
  $("stage").replaceChildren(stage(row));
  if (!$("view").open) $("view").showModal();
  remember();
}

function stage(row) {
  if (failed(row)) return make("p", { className: "note", textContent: "No image was made." });
  const frame = make("div", { className: "frame" });
  const result = picture(row, frame);
  const width = value("width", row), height = value("height", row);
  if (width > 0 && height > 0) frame.style.setProperty("--ratio", width / height);
  const befores = besides("inputs", row) ?? [];
  if (befores.length) beforeAndAfter(row, frame, result, befores);
  else frame.append(result);
  return frame;
}

function picture(row, frame) {
  const image = make("img", { className: "after", alt: value("prompt", row) ?? title(row) });
  image.onerror = () => {
    const copy = besides("thumbnails", row);
    image.onerror = null;
    $("file").hidden = true;
    $("along").hidden = !copy;
    if (copy) image.src = copy;
    else {
      image.hidden = true;
      frame.append(make("span", { className: "tag first", textContent: "the file is not there" }));
    }
  };
  image.src = address(row);
  return image;
}

function beforeAndAfter(row, frame, result, befores) {
  const before = make("img", { alt: "before the edit" });
  const label = "Before and after: where the result begins, in per cent of the width";
  const parts = slider(frame, before, result, ["before", "after"], label);
  before.onerror = () => {
    const copy = besides("input_thumbnails", row);
    if (copy && before.src !== copy) before.src = copy;
    else {
      before.remove();
      parts.end();
      parts.tags[0].textContent = "before: the file is not along";
    }
  };
  before.src = befores[0];
  if (befores.length > 1) frame.append(make("div", { className: "sources" }, ...befores.map((source, n) =>
    make("button", { type: "button", textContent: `input ${n + 1}`, onclick: () => { before.src = source; } }))));
}

const replayCommand = (row) => `dglaunch replay ${quoted(`${data.folder}/${fileName(row)}`)}`;

// -- the state in the address --------------------------------------------------------------------------------------

const FIELDS = { query: "", status: "", rank: "", seed: "", score: "", sort: "index", layout: "grid", across: axes.at(-1)?.[0] ?? "" };

// -- events --------------------------------------------------------------------------------------------------------

const PAUSE_MS = 300; // of typing, before all files are gone through
let pausing = 0;
function asked() {
  clearTimeout(pausing);
  if (data.rows) pausing = setTimeout(changed, PAUSE_MS);
  else changed();
}
for (const name of Object.keys(FIELDS)) $(name).addEventListener("input", asked);
$("reset").onclick = () => { for (const name of ["query", "status", "rank", "seed", "score"]) $(name).value = FIELDS[name]; changed(); $("query").focus(); };
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
    focusOn(0);
  } else if (event.key === "/" && !typing) {
    $("query").select();
    event.preventDefault();
  } else if (STEPS[event.key] && !typing) {
    const within = $("grid").contains(event.target) && event.target !== $("grid");
    focusOn(within ? active + STEPS[event.key]() : active);
    event.preventDefault();
  }
});

const ranks = new Set(data.rows ? data.rows.ranks.flatMap((some) => some ?? []) : Array.from({ length: data.count }, (_, row) => value("rank", row)));
for (const rank of [...ranks].filter((rank) => rank !== null).sort((a, b) => a - b)) $("rank").append(make("option", { value: rank, textContent: rank }));
for (const name of data.scores) $("sort").append(make("option", { value: name, textContent: name.replace("_", " ") }));
$("score-label").hidden = !data.scores.length;
begin();
