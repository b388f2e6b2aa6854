// Runs side by side. The state is in the address after the #: query, only, sort, descending, left, right, open (position of
// a row in the data). On a blind page the runs stand in another order in each row, and what is chosen is kept by the browser
// until it is downloaded.
"use strict";
const TITLE = 34, CAPTION = 34; // pixels over and under the pictures of a row
const blind = data.blind !== null;
const runs = data.runs;
const value = (name, row) => column(data.columns[name], row);
const of = (run, name, row) => column(runs[run][name], row);
const said = (run, name, row) => column(runs[run].values[name], row);
const has = (run, row) => of(run, "files", row) !== null || of(run, "thumbnails", row) !== null;
const address = (run, row) => (of(run, "files", row) === null ? null : runs[run].base + encoded(of(run, "files", row)));
const small = (run, row) => of(run, "thumbnails", row) ?? address(run, row);
const decibels = (apart) => (typeof apart === "number" ? `${apart.toFixed(2)}\u00a0dB` : apart);
const equal = (row) => value("apart", row) === "equal";
const title = (row) => `index ${value("index", row)}` + (value("sample", row) ? `, sample ${value("sample", row)}` : "");
const INPUT = "input"; // the left side may also be an edit's input image
const nameOf = (run, place) => (blind ? `${place + 1}` : runs[run].name);

// -- the order of the runs in a row --------------------------------------------------------------------------------

const straight = runs.map((_, run) => run);

function order(row) { // as the runs stand from left to right: on a blind page by chance, but always the same
  if (!blind) return straight;
  let state = 2166136261;
  for (const letter of `${data.blind}/${value("index", row)}/${value("sample", row)}`) state = Math.imul(state ^ letter.charCodeAt(0), 16777619);
  const found = [...straight];
  for (let last = found.length - 1; last > 0; last--) { // Fisher and Yates, with the mixing of MurmurHash3
    state = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35);
    state ^= state >>> 16;
    const other = (state >>> 0) % (last + 1);
    [found[last], found[other]] = [found[other], found[last]];
  }
  return found;
}

// -- choices -------------------------------------------------------------------------------------------------------

const NONE = -1; // none is better
const KEPT = `dglaunch-choices-${data.blind}`;
const choices = new Map(blind ? storage((kept) => JSON.parse(kept.getItem(KEPT))) ?? [] : []); // row -> run, or NONE
const askable = (row) => blind && !equal(row) && straight.every((run) => has(run, row));

function choose(row, run) { // the same once more takes it back
  if (!askable(row)) return;
  if (choices.get(row) === run) choices.delete(row);
  else choices.set(row, run);
  storage((kept) => kept.setItem(KEPT, JSON.stringify([...choices])));
  for (const button of document.querySelectorAll(`[data-choice^="${row}:"]`)) press(button);
  const state = document.querySelector(`li[data-row="${row}"] .state`);
  if (state) state.textContent = stateOfRow(row);
  count();
}

function press(button) {
  const [row, run] = button.dataset.choice.split(":").map(Number);
  button.setAttribute("aria-pressed", String(choices.get(row) === run));
}

function choiceButton(row, run, text, label) {
  const button = make("button", { type: "button", className: "choice", textContent: text, onclick: () => choose(row, run) });
  button.dataset.choice = `${row}:${run}`;
  button.setAttribute("aria-label", label);
  press(button);
  return button;
}

function chosenByKey(row, key) { // 1, 2, ... from the left; 0: none is better
  const place = Number(key) - 1, run = place === -1 ? NONE : order(row)[place];
  if (run === undefined || !askable(row)) return false;
  choose(row, run);
  return true;
}

function choicesText() {
  const listed = [...choices].map(([row, run]) => ({
    index: value("index", row), sample: value("sample", row), among: order(row).map((each) => of(each, "hashes", row)),
    chosen: run === NONE ? null : of(run, "hashes", row),
  }));
  return JSON.stringify({ dglaunch: "choices", page: data.blind, choices: listed }, null, 1);
}

function download() {
  const address = URL.createObjectURL(new Blob([choicesText()], { type: "application/json" }));
  make("a", { href: address, download: "choices.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// -- search and order ----------------------------------------------------------------------------------------------

const texts = Array.from({ length: data.count }, (_, row) =>
  [value("prompt", row) ?? "", ...(blind ? [] : straight.map((run) => of(run, "files", row) ?? of(run, "errors", row) ?? ""))].join("\n").toLowerCase());

const differs = (row) => !equal(row) && (value("apart", row) !== null || straight.some((run) => !has(run, row)));
const ONLY = {
  differ: differs, missing: (row) => straight.some((run) => !has(run, row)), open: (row) => askable(row) && !choices.has(row),
};
const distance = (apart) => (typeof apart === "number" ? apart : apart === "equal" ? 1e9 : 2e9); // the unknown last

function keyOf(sort) {
  if (sort === "prompt") return (row) => value("prompt", row) ?? "";
  if (sort === "apart") return (row) => distance(value("apart", row));
  return sort.startsWith("psnr-") ? (row) => distance(of(Number(sort.slice(5)), "psnr", row)) : null;
}

function apply() {
  const words = wordsOf($("query").value), test = ONLY[$("only").value] ?? (() => true), key = keyOf($("sort").value);
  const rows = [];
  for (let row = 0; row < data.count; row++) if (test(row) && words.every((word) => texts[row].includes(word))) rows.push(row);
  if (key) sortedBy(rows, key);
  shown = descends() ? rows.reverse() : rows;
  active = 0;
  $("nothing").hidden = shown.length > 0;
  list.clear();
  list.part = 0;
  count();
  draw();
  root.dataset.shown = shown.length;
}

function count() {
  const chosen = blind ? `, ${counted(choices.size)} chosen` : "";
  $("count").textContent = (shown.length === data.count ? "" : `${counted(shown.length)} of `) + `${counted(data.count)} rows${chosen}`;
  $("download").disabled = choices.size === 0;
}

// -- the rows: only those in sight exist ---------------------------------------------------------------------------

const list = new SightList($("grid"), rowItem);
list.redraw = draw;

function draw() {
  const width = $("grid").clientWidth, fit = Math.floor((width - GAP * (runs.length - 1)) / runs.length);
  const side = Math.max(48, Math.min(Number($("size").value), fit));
  root.style.setProperty("--side", `${side}px`);
  list.shape(shown.length, 1, TITLE + side + CAPTION + GAP);
  list.draw(() => {});
  for (const [n, item] of list.items) for (const tile of item.querySelectorAll(".tile")) tile.tabIndex = n === active ? 0 : -1;
  if (!list.items.has(active)) list.items.values().next().value?.querySelector(".tile")?.setAttribute("tabindex", "0");
}

function stateOfRow(row) {
  if (equal(row)) return "equal images";
  if (!blind) return "";
  if (!askable(row)) return "not to be chosen: an image is missing";
  return choices.has(row) ? "chosen" : "";
}

function rowItem(position) {
  const row = shown[position], prompt = value("prompt", row) ?? "";
  const head = make("p", { className: "title" }, make("b", { textContent: title(row) }), make("span", { textContent: prompt, title: prompt, dir: "auto" }));
  const figures = order(row).map((run, place) => figure(row, run, place, position));
  if (askable(row)) head.append(make("span", { className: "state" }), choiceButton(row, NONE, "None is better", `${title(row)}: none is better`));
  else head.append(make("span", { className: "state" }));
  head.querySelector(".state").textContent = stateOfRow(row);
  const item = make("li", {}, head, make("div", { className: "pictures" }, ...figures));
  item.setAttribute("aria-setsize", shown.length);
  item.setAttribute("aria-posinset", position + 1);
  item.dataset.row = row;
  return item;
}

function figure(row, run, place, position) {
  const picture = make("span", { className: "picture" });
  if (has(run, row)) tileImage(picture, small(run, row));
  else missing(picture, (!blind && of(run, "errors", row)) || "no such image");
  const tile = make("button", { type: "button", className: has(run, row) ? "tile" : "tile failed" }, picture);
  tile.setAttribute("aria-label", `${title(row)}, ${nameOf(run, place)}`);
  tile.onclick = () => { active = position; open(position, run); };
  tile.onfocus = () => { active = position; };
  const caption = make("figcaption");
  if (askable(row)) caption.append(choiceButton(row, run, `${place + 1} is best`, `${title(row)}: ${place + 1} is best`));
  if (!blind && of(run, "psnr", row) !== null) caption.append(make("b", { textContent: decibels(of(run, "psnr", row)) }));
  if (!blind) for (const name of data.by_row) {
    const found = said(run, name, row);
    if (found !== null && name !== "prompt") caption.append(make("span", { textContent: `${name} ${plain(found)}`, dir: "auto" }));
  }
  return make("figure", {}, tile, caption);
}

function focusOn(position) {
  if (!shown.length) return;
  active = Math.min(Math.max(position, 0), shown.length - 1);
  list.show(active);
  draw();
  list.items.get(active)?.querySelector(".tile").focus({ preventScroll: true });
}

// -- one row -------------------------------------------------------------------------------------------------------

function open(position, run = null) { // with the run on the right, if it is not the one on the left
  if (position < 0 || position >= shown.length) return;
  opened = active = position;
  const row = shown[position], there = order(row);
  if (run !== null) {
    const place = there.indexOf(run), left = Number($("left").value);
    $("right").value = place !== left ? place : left ? 0 : 1;
  }
  $("view-title").textContent = title(row);
  $("prompt").textContent = value("prompt", row) ?? "";
  $("previous").disabled = position === 0;
  $("next").disabled = position === shown.length - 1;
  $("choose").hidden = !askable(row);
  $("choose").replaceChildren(...(askable(row) ? [...there.map((each, place) => choiceButton(row, each, `${place + 1} is best`, `${place + 1} is best`)),
    choiceButton(row, NONE, "None is better", "None is better")] : []));
  facts(row);
  stage(row);
  if (!$("view").open) $("view").showModal();
  remember();
}

function facts(row) {
  if (blind) return;
  const rows = [["", ...runs.map((run) => run.name)]];
  if (straight.some((run) => of(run, "psnr", row) !== null))
    rows.push([`PSNR to ${runs[0].name}`, ...straight.map((run) => decibels(of(run, "psnr", row)) ?? "")]);
  for (const name of data.by_row) {
    const values = straight.map((run) => said(run, name, row));
    if (values.some((item) => item !== null)) rows.push([name, ...values.map((item) => (item === null ? "" : plain(item)))]);
  }
  rows.push(...data.headings.map(([name, values]) => [name, ...values]));
  tabulate($("facts"), rows);
}

function tabulate(table, rows) { // the first row and the first column are headings
  table.replaceChildren(...rows.map((cells, n) => make("tr", {}, ...cells.map((text, k) => make(n && k ? "td" : "th", { textContent: text, dir: "auto" })))));
}

function stage(row) {
  const frame = make("div", { className: "frame" }), there = order(row);
  const sides = ["left", "right"].map((id) => ($(id).value === INPUT ? null : there[Number($(id).value)])); // null: the input
  const run = sides.find((each) => each !== null && has(each, row)) ?? there[0];
  if (of(run, "width", row) > 0 && of(run, "height", row) > 0) frame.style.setProperty("--ratio", of(run, "width", row) / of(run, "height", row));
  $("along").hidden = true;
  const images = sides.map((each) => (each === null ? before(row) : full(row, each)));
  const names = sides.map((each) => each === null ? (value("before", row) ? "the input" : "the input is not there")
    : nameOf(each, there.indexOf(each)) + (has(each, row) ? "" : ": no such image"));
  slider(frame, ...images, names, "Left and right: where the right image begins, in per cent of the width");
  $("stage").replaceChildren(frame);
}

function before(row) {
  const image = make("img", { alt: "before the edit", hidden: !value("before", row) });
  image.onerror = () => { image.hidden = true; };
  if (value("before", row)) image.src = value("before", row);
  return image;
}

function full(row, run) {
  const image = make("img", { alt: value("prompt", row) ?? "" });
  const address_ = address(run, row), copy = of(run, "thumbnails", row);
  image.onerror = () => {
    image.onerror = null;
    image.hidden = !copy;
    $("along").hidden = !copy;
    if (copy) image.src = copy;
  };
  if (address_ ?? copy) image.src = address_ ?? copy;
  else image.hidden = true;
  if (!address_ && copy) $("along").hidden = false;
  return image;
}

// -- the heads and the state in the address ------------------------------------------------------------------------

function heads() {
  const found = data.headings.map(([name, values]) => `${name} ${values.join(" | ")}`);
  const byRow = data.by_row.length ? [`${data.by_row.join(", ")} ${data.by_row.length > 1 ? "differ" : "differs"} from row to row`] : [];
  const all = [...found, ...byRow];
  $("differs").hidden = all.length === 0;
  $("differs").querySelector("summary").textContent = `What differs between the runs: ${counted(all.length)}`;
  tabulate($("settings"), [["", ...runs.map((run) => run.name)], ...data.headings.map(([name, values]) => [name, ...values]),
    ...data.by_row.map((name) => [name, "by row"])]);
  if (all.length) {
    $("named").textContent = $("title").textContent;
    $("title").textContent = all.slice(0, 2).join(", ") + (all.length > 2 ? ` and ${counted(all.length - 2)} more` : "");
    document.title = `${$("title").textContent} - ${document.title}`;
  }
  $("heads").replaceChildren(...runs.map((run, n) => make("div", {}, make("b", { textContent: run.name, dir: "auto" }),
    ...data.headings.slice(0, 2).map(([name, values]) => make("span", { textContent: `${name} ${values[n]}`, dir: "auto" })))));
}

function options(select, names) {
  for (const [key, text] of names) select.append(make("option", { value: key, textContent: text }));
}

const FIELDS = { query: "", only: "", sort: "index", left: "0", right: "1" };

// -- events --------------------------------------------------------------------------------------------------------

for (const name of ["query", "only", "sort"]) $(name).addEventListener("input", changed);
for (const name of ["left", "right"]) $(name).addEventListener("input", () => { stage(shown[opened]); remember(); });
$("reset").onclick = () => { $("query").value = $("only").value = ""; changed(); $("query").focus(); };
$("download").onclick = download;

const STEPS = { ArrowUp: () => -1, ArrowDown: () => 1, Home: () => -shown.length, End: () => shown.length };

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, summary");
  if ($("view").open) {
    if (!event.target.matches("select") && /^\d$/.test(event.key)) chosenByKey(shown[opened], event.key);
    else if (!typing && event.key === "ArrowLeft") open(opened - 1);
    else if (!typing && event.key === "ArrowRight") open(opened + 1);
  } else if (event.key === "Escape" && event.target === $("query")) {
    $("query").value = "";
    changed();
    focusOn(0);
  } else if (typing) return;
  else if (event.key === "/") {
    $("query").select();
    event.preventDefault();
  } else if (/^\d$/.test(event.key) && shown.length) {
    if (chosenByKey(shown[active], event.key)) focusOn(active + 1);
  } else if (STEPS[event.key]) {
    const within = $("grid").contains(event.target) && event.target !== $("grid");
    focusOn(within ? active + STEPS[event.key]() : active);
    event.preventDefault();
  }
});

for (const id of ["left", "right"]) options($(id), runs.map((_, run) => [String(run), nameOf(run, run)]));
if (Array.from({ length: data.count }, (_, row) => value("before", row)).some(Boolean)) options($("left"), [[INPUT, "the input"]]);
if (blind) {
  options($("only"), [["open", "what is not chosen yet"]]);
  options($("sort"), [["apart", "difference"]]);
} else options($("sort"), runs.slice(1).map((run, n) => [`psnr-${n + 1}`, runs.length > 2 ? `PSNR of ${run.name}` : "PSNR"]));
$("heads").hidden = blind;
$("download").hidden = $("choosing").hidden = !blind;
if (!blind) heads();
begin();
