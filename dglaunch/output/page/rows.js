// Where the rows are: in the page's own data, or, of a large job, in script files beside the page (data.rows), of which those
// that were needed last are held. A row's number is its place in the order of index.
"use strict";
const AT_ONCE = 4, MOST_HELD = 48; // files
const NO_ROWS = { first: 0, columns: {}, files: [], thumbnails: null };
const held = new Map(); // number of a file -> its rows; the one that was used last comes last
const coming = new Map(); // number -> promise of its rows
const arrived = new Map(); // number -> what its script said
const lost = new Set(); // numbers of files that are not along
let looked = null; // rows of a file that a search looks at and does not keep
let pinned = null; // number of the file of the image that is open
let wanted = []; // numbers of files that are in sight
const bringing = new Set(); // those of them that are on their way
data.first = 0;
// The policy of the page takes addresses of scripts from here alone, and no text as a script.
const trusted = data.rows && self.trustedTypes?.createPolicy("rows", { createScriptURL: (address) => address });

const fileOf = (row) => Math.floor(row / data.rows.size);
const isHere = (row) => !data.rows || held.has(fileOf(row)) || lost.has(fileOf(row));

function partOf(row) { // the rows that a row is among
  if (!data.rows) return data;
  return looked?.number === fileOf(row) ? looked : held.get(fileOf(row)) ?? NO_ROWS;
}

const value = (name, row) => { const part = partOf(row); return column(part.columns[name], row - part.first); };
const besides = (name, row) => { const part = partOf(row); return column(part[name], row - part.first); }; // files, inputs, ...

function galleryRows(number, text) { arrived.set(number, text); } // each file calls it

const isLost = (row) => Boolean(data.rows) && lost.has(fileOf(row));
const addressOf = (number) => `${data.rows.folder}${String(number).padStart(4, "0")}.js`;

function read(number) { // a promise of the rows of a file
  if (held.has(number)) return Promise.resolve(held.get(number));
  if (!coming.has(number)) coming.set(number, new Promise((resolve, reject) => {
    const script = make("script", { src: trusted ? trusted.createScriptURL(addressOf(number)) : addressOf(number) });
    script.onload = script.onerror = () => {
      script.remove();
      coming.delete(number);
      const text = arrived.get(number);
      arrived.delete(number);
      try {
        resolve({ number, first: number * data.rows.size, ...JSON.parse(text) });
      } catch { // it is not there, or not whole
        reject(new Error(addressOf(number)));
      }
    };
    document.head.append(script);
  }));
  return coming.get(number);
}

function hold(rows) {
  held.delete(rows.number);
  held.set(rows.number, rows);
  for (const number of held.keys()) {
    if (held.size <= MOST_HELD) return;
    if (number !== pinned) held.delete(number);
  }
}

function bring(numbers) { // what is in sight, the first ones first; what has left it since the last call is not brought
  wanted = numbers;
  for (const number of numbers) {
    if (bringing.size >= AT_ONCE) return;
    if (!bringing.has(number)) bringOne(number);
  }
}

async function bringOne(number) {
  bringing.add(number);
  await read(number).then(hold, () => lost.add(number));
  bringing.delete(number);
  fillWaiting();
  bring(wanted.filter((one) => one !== number));
}

let lastAsked = null;
function whenHere(row, then) { // unless something else is asked for before
  const asked = lastAsked = {};
  pinned = fileOf(row);
  read(pinned).then(hold, () => lost.add(fileOf(row))).then(() => { if (asked === lastAsked) then(); });
}
