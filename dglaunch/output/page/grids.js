// A job with --grid: for each row of its table one table of pictures, with an axis across and the others down. A cell's
// number counts through the axes, the first slowest; data.cells and data.lines say where each image stands.
"use strict";
const axes = data.grid ?? []; // [name, values] of each
const gridded = () => axes.length > 0 && $("layout").value === "grid";
const TITLE = 46, HEAD = 34, FOOT = 18; // pixels of a grid around its pictures
let blocks = []; // the grids that are shown: positions in `shown` by cell
let blockOf = []; // position in `shown` -> position in `blocks`

const strides = axes.map((_, n) => axes.slice(n + 1).reduce((product, [, values]) => product * values.length, 1));
const acrossAxis = () => Math.max(0, axes.findIndex(([name]) => name === $("across").value));

function lines() { // the cells as they stand: lines of them, each with what the axes that go down are there
  const across = acrossAxis();
  let found = [{ labels: [], cell: 0 }];
  axes.forEach(([name, values], n) => {
    if (n !== across) found = found.flatMap(({ labels, cell }) =>
      values.map((item, k) => ({ labels: [...labels, `${name} ${plain(item)}`], cell: cell + k * strides[n] })));
  });
  return found.map(({ labels, cell }) => ({ labels, cells: axes[across][1].map((_, k) => cell + k * strides[across]) }));
}

function gridKey(row) {
  const line = column(data.lines, row);
  return line === null ? null : `${line} ${value("sample", row)}`;
}

function grouped(rows) { // all images of the grids that these rows are in, as they stand there; it also sets the blocks
  const found = new Map();
  for (const row of rows) {
    const key = gridKey(row);
    if (key !== null && !found.has(key)) found.set(key, new Map());
  }
  for (let row = 0; row < data.count; row++) found.get(gridKey(row))?.set(column(data.cells, row), row);
  const order = lines().flatMap(({ cells }) => cells), ordered = [];
  blockOf = [];
  blocks = [...found.values()].map((rows, n) => new Map(order.filter((cell) => rows.has(cell)).map((cell) => {
    blockOf.push(n);
    return [cell, ordered.push(rows.get(cell)) - 1];
  })));
  return ordered;
}

const blockHeight = (side) => TITLE + HEAD + lines().length * (side + GAP) + FOOT;

function block(n) {
  const positions = blocks[n], [start] = positions.values(), first = shown[start], [across, values] = axes[acrossAxis()];
  const sample = value("sample", first), name = `row ${column(data.lines, first)}` + (sample ? `, sample ${sample}` : "");
  const title = make("p", { className: "title" }, make("b", { textContent: name }), " ",
    make("span", { textContent: value("prompt", first) ?? "", title: value("prompt", first) ?? "", dir: "auto" }));
  const heads = values.map((item) => make("th", { scope: "col", textContent: `${across} ${plain(item)}` }));
  const body = lines().map(({ labels, cells }) => make("tr", {},
    make("th", { scope: "row" }, ...labels.map((text) => make("span", { textContent: text, dir: "auto" }))),
    ...cells.map((cell) => (positions.has(cell) ? make("td", {}, button(positions.get(cell))) : make("td", { className: "absent", textContent: "not made" })))));
  const table = make("table", { className: "cells" }, make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...body));
  table.setAttribute("aria-label", name);
  return make("li", { className: "block" }, title, make("div", { className: "pan" }, table));
}

for (const [name] of axes) $("across").append(make("option", { value: name, textContent: name }));
for (const name of ["layout", "across"]) $(name).parentElement.hidden = axes.length < (name === "layout" ? 1 : 2);
