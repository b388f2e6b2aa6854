// Search, filter and order where the rows lie in files: these are gone through one after the other, a few ahead, and what was
// found so far is shown. Files that can hold nothing that fits are not read.
"use strict";
const MOST_SORTED = 100_000; // rows that are kept in an order of their own: the first ones of all
const SAY_EVERY_MS = 250;
let going = null; // the search that goes on

class FirstOnes { // the first rows in an order, whatever their number
  constructor(key, sign) { Object.assign(this, { key, sign, kept: [], count: 0, last: null }); }

  compare(one, other) { return this.sign * (compareKeys(one.key, other.key) || one.row - other.row); }

  add(row) {
    this.count++;
    const item = { key: this.key(row), row };
    if (this.last && this.compare(item, this.last) > 0) return;
    if (this.kept.push(item) >= 2 * MOST_SORTED) this.cut();
  }

  cut() {
    this.kept.sort((one, other) => this.compare(one, other));
    if (this.kept.length <= MOST_SORTED) return;
    this.kept.length = MOST_SORTED;
    this.last = this.kept.at(-1);
  }

  get rows() { this.cut(); return this.kept.map((item) => item.row); }
}

function everyRow(descending) {
  const rows = new Uint32Array(data.count);
  for (let n = 0; n < rows.length; n++) rows[n] = descending ? rows.length - 1 - n : n;
  return rows;
}

const sizeOf = (number) => Math.min(data.rows.size, data.count - number * data.rows.size);

function mayFit(number) { // whether a file can have rows that fit
  const failures = data.rows.failed[number], status = $("status").value, ranges = seedRanges($("seed").value);
  if (status && !(status === "failed" ? failures : sizeOf(number) - failures)) return false;
  if ($("rank").value && !(data.rows.ranks[number]?.map(String).includes($("rank").value) ?? true)) return false;
  if (!ranges?.length) return true;
  const [least, most] = data.rows.seeds[number]?.map(BigInt) ?? [];
  return least !== undefined && ranges.some(([low, high]) => low <= most && least <= high);
}

function say(text) { $("count").textContent = text; }

function showFound(rows) {
  shown = rows;
  $("nothing").hidden = shown.length > 0 || going !== null;
  root.dataset.shown = shown.length;
  draw();
}

async function seek() {
  const mine = going = { goesOn: true }, start = performance.now();
  const conditions = tests(), key = ORDER[$("sort").value], descending = descends();
  active = 0;
  list.clear();
  list.part = 0;
  say(`${counted(data.count)} images` + (data.rows.num_failed ? `, ${counted(data.rows.num_failed)} failed` : ""));
  $("searching").hidden = !conditions.length && !key;
  if (!conditions.length && !key) {
    going = null;
    return showFound(everyRow(descending));
  }
  showFound([]);
  const found = await goThrough(mine, conditions, key, descending);
  if (going !== mine) return;
  going = null;
  $("searching").hidden = true;
  say(summed(found, mine));
  showFound(found.order ? found.order.rows : found.rows);
  root.dataset.filterMs = (performance.now() - start).toFixed(1);
}

async function goThrough(mine, conditions, key, descending) {
  const all = data.rows.failed.map((_, number) => number), order = key ? new FirstOnes(key, descending ? -1 : 1) : null;
  if (descending && !key) all.reverse();
  const found = { rows: [], order, failures: 0, num: 0, looked: 0, missing: 0, isDown: descending && !key };
  const files = all.filter((number) => mayFit(number) || !(found.looked += sizeOf(number))), ahead = [];
  let next = 0, said = 0;
  for (let n = 0; n < files.length && mine.goesOn; n++) {
    while (ahead.length < AT_ONCE && next < files.length) ahead.push(read(files[next++]).catch(() => null));
    const part = await ahead.shift();
    if (going !== mine) break;
    if (part) look(part, conditions, found);
    else found.missing++;
    found.looked += sizeOf(files[n]);
    if (performance.now() - said > SAY_EVERY_MS) {
      said = performance.now();
      $("searched").value = found.looked / data.count;
      $("searched-text").textContent = `${counted(found.num)} found in ${counted(found.looked)} of ${counted(data.count)} rows`;
      if (!order && list.total !== found.num) showFound(found.rows);
    }
  }
  return found;
}

function look(part, conditions, found) {
  looked = part;
  const rows = Array.from({ length: sizeOf(part.number) }, (_, n) => part.first + n);
  for (const row of found.isDown ? rows.reverse() : rows) if (conditions.every((test) => test(row))) {
    found.num++;
    if (failed(row)) found.failures++;
    if (found.order) found.order.add(row);
    else found.rows.push(row);
  }
  looked = null;
}

function summed(found, mine) { // what was found, and in how many rows it was looked for
  const of = mine.goesOn ? `of ${counted(data.count)} images` : `of the ${found.isDown ? "last" : "first"} ${counted(found.looked)} of ${counted(data.count)} images (stopped)`;
  return `${counted(found.num)} ${of}` + (found.failures ? `, ${counted(found.failures)} failed` : "") +
    (found.order && found.num > MOST_SORTED ? `; the first ${counted(MOST_SORTED)} in this order are shown` : "") +
    (found.missing ? `; ${counted(found.missing)} files of rows are not along with this page and were not searched` : "");
}

function goTo(text) { // the first image of this index or a greater one
  if (!/^\d+$/.test(text.trim())) return;
  const index = BigInt(text.trim()), firsts = data.rows.first;
  let number = firsts.findIndex((first) => first !== null && BigInt(first) > index);
  number = Math.max(0, (number < 0 ? firsts.length : number) - 1);
  whenHere(number * data.rows.size, () => {
    const last = number * data.rows.size + sizeOf(number) - 1;
    let row = number * data.rows.size;
    while (row < last && BigInt(value("index", row) ?? -1) < index) row++;
    if (BigInt(value("index", row) ?? -1) < index) row = Math.min(row + 1, data.count - 1);
    const isSorted = ORDER[$("sort").value], isThere = (one) => (isSorted ? one === row : descends() ? one <= row : one >= row);
    const position = shown.findIndex(isThere);
    if (position >= 0) focusOn(position);
  });
}

if (data.rows) {
  data.rows.num_failed = data.rows.failed.reduce((sum, failures) => sum + failures, 0);
  $("stop").onclick = () => { if (going) going.goesOn = false; };
  $("goto").onchange = () => goTo($("goto").value);
}
