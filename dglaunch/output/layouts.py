"""A finished folder as an evaluation or a data loader wants it: `t2i --layout NAME` writes OUT/NAME at the end of a run.

    geneval         00017/metadata.jsonl, 00017/samples/00000.png ... 00003.png
    dpg             PROMPT_FILE.png: the 2x2 grid of a prompt's four images (or its only one)
    t2i_compbench   samples/PROMPT_000170.png
    genarena        000017.png
    webdataset      00000.tar: 000017.png, .txt (the prompt) and .json (the ledger line)
    parquet         00000.parquet: a column `image` that datasets and the Hugging Face viewer decode

A layout is a view, made from the ledger alone: the folder itself stays what it is, so that resume, verify, the gallery
and replay know one form. Its images are hard links (copies where there are none), so it costs no space. Each of its files
is replaced in one step and the whole can be made again at any time: after a kill the same command completes it.
"""

import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dglaunch.atomic import replacing
from dglaunch.data.tables import PROMPT_FILE
from dglaunch.data.task import Task, file_name
from dglaunch.data.values import MAX_NAME_BYTES
from dglaunch.errors import OutputError, UserError
from dglaunch.output.ledger import TEMPORARY, id_of, read_lines

Line = dict[str, Any]
Make = Callable[[Path], None]
"""Writes one file to the path that it is given."""


class Picture(NamedTuple):
    """One finished image of a job."""

    number: int
    """Its place among all images of the job, those that failed counted too."""
    samples: int
    """How many images its row was to have."""
    file: Path
    line: Line


View = Callable[[list[Picture]], dict[str, Make]]

SHARD_IMAGES = 10_000
SHARD_BYTES = 1_000_000_000
ROW_GROUP = 100
"""Images; a reader of Parquet holds at least as many."""
GENEVAL_FIELDS = ("tag", "include", "exclude", "prompt")
OWN_SUFFIXES = (".png", ".jpg", ".webp", ".tar", ".parquet")


def write(layout: str, folder: Path, tasks: Sequence[Task]) -> tuple[Path, int]:
    """Write or complete the view OUT/NAME of a job's images.

    Returns:
        The view's folder, and how many images stand in it.

    Raises:
        UserError: it holds other images than those of this job.
        OutputError: it cannot be written.
    """
    pictures = finished(folder, tasks)
    files = LAYOUTS[layout](pictures)
    view = folder / layout
    _refuse_others(view, files)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            list(pool.map(lambda name: _place(folder, view, name, files[name]), files))
        except OSError as error:
            raise OutputError(
                f"The layout {view} cannot be written: {error}. The images are safe in {folder}; start "
                "the same command again to write the layout."
            ) from None
    return view, len(pictures)


def check(layout: str, folder: Path, tasks: Sequence[Task], output_format: str) -> None:
    """Before the run: would its view stand among another job's files?

    Raises:
        UserError: it would.
    """
    if layout == "indexed" or not (folder / layout).exists():
        return
    samples = Counter(task.index for task in tasks)
    expected = [
        Picture(number, samples[task.index], folder / file_name(task, output_format), _as_line(task))
        for number, task in enumerate(tasks)
    ]
    _refuse_others(folder / layout, LAYOUTS[layout](expected))


def _as_line(task: Task) -> Line:
    """What the names of a view are made of; how many shards there will be is not known yet, so each image has its own."""
    return {
        **(task.extra or {}),
        "index": task.index,
        "sample": task.sample,
        "prompt": task.prompt,
        "bytes": SHARD_BYTES,
    }


def finished(folder: Path, tasks: Sequence[Task]) -> list[Picture]:
    """The images that are there, in the order of the job."""
    lines = {id_of(line): line for path in sorted(folder.glob("metadata*.jsonl")) for _, line in read_lines(path)}
    samples = Counter(task.index for task in tasks)
    return [
        Picture(number, samples[task.index], folder / line["file_name"], line)
        for number, task in enumerate(tasks)
        if (line := lines.get(task.id)) is not None
    ]


def _refuse_others(view: Path, files: Mapping[str, Make]) -> None:
    """An evaluation takes all that it finds, so no image of an earlier job may stand there. (What an evaluation wrote
    there itself is nobody's business.)"""
    found = (path.relative_to(view).as_posix() for path in sorted(view.rglob("*")) if path.suffix in OWN_SUFFIXES)
    others = [name for name in found if name not in files]
    if others:
        raise UserError(
            f"{view} holds files of another job ({', '.join(others[:5])}), which would be evaluated with this one's. Remove "
            "that folder and start the same command again; images that are done lie beside it."
        )


def _place(folder: Path, view: Path, name: str, make: Make) -> None:
    """Make a file beside the images (the same file system, and never in an evaluation's sight), then move it."""
    path = PurePosixPath(name)
    assert not path.is_absolute() and ".." not in path.parts, name
    target, temporary = view / path, folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, temporary):
        make(temporary)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _text(text: str, target: Path) -> None:
    target.write_text(text, encoding="utf-8")


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False)


def _by_row(pictures: Iterable[Picture]) -> list[list[Picture]]:
    rows: dict[int, list[Picture]] = {}
    for picture in pictures:
        rows.setdefault(picture.line["index"], []).append(picture)
    return list(rows.values())


# -- evaluations --------------------------------------------------------------------------------------------------


def _geneval(pictures: list[Picture]) -> dict[str, Make]:
    files: dict[str, Make] = {}
    for row in _by_row(pictures):
        line = row[0].line
        about = {name: line[name] for name in GENEVAL_FIELDS if name in line}
        files[f"{line['index']:05d}/metadata.jsonl"] = partial(_text, _json(about))
        for picture in row:
            files[f"{line['index']:05d}/samples/{picture.line['sample']:05d}.png"] = partial(_link, picture.file)
    return files


def _dpg(pictures: list[Picture]) -> dict[str, Make]:
    """A prompt of which an image is missing is left out: its grid would have a hole that counts as a wrong answer."""
    files: dict[str, Make] = {}
    for row in _by_row(pictures):
        first = row[0]
        make = partial(_link, first.file) if first.samples == 1 else partial(_grid, row)
        if len(row) == first.samples:
            files[f"{first.line[PROMPT_FILE]}{first.file.suffix}"] = make
    return files


def _grid(row: list[Picture], target: Path) -> None:
    """Four images of one size as one, two in a row."""
    from PIL import Image

    from dglaunch.output.encode import encode

    line = row[0].line
    width, height = line["width"], line["height"]
    grid = Image.new("RGB", (2 * width, 2 * height))
    for n, picture in enumerate(row):
        with Image.open(picture.file) as image:
            grid.paste(image.convert("RGB"), (n % 2 * width, n // 2 * height))
    about = {"prompt": line["prompt"], "grid_of": [picture.file.name for picture in row]}
    target.write_bytes(encode(grid, row[0].file.suffix[1:], about))


def _t2i_compbench(pictures: list[Picture]) -> dict[str, Make]:
    """Its scripts read the prompt up to the first `_` and the number after the last one."""
    return {
        f"samples/{name_of(picture.line['prompt'])}_{picture.number:06d}{picture.file.suffix}": partial(
            _link, picture.file
        )
        for picture in pictures
    }


def name_of(prompt: str) -> str:
    """A prompt as the beginning of a file name: it stays in the folder and within what file systems take."""
    name = " ".join(re.sub(r"[/\\_\x00-\x1f\x7f]", " ", prompt).split())
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip()


def _genarena(pictures: list[Picture]) -> dict[str, Make]:
    return {f"{picture.line['index']:06d}{picture.file.suffix}": partial(_link, picture.file) for picture in pictures}


# -- shards -------------------------------------------------------------------------------------------------------


def shards(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """The images in parts that are neither too many nor too large."""
    shard: list[Picture] = []
    size = 0
    for picture in pictures:
        if shard and (len(shard) == SHARD_IMAGES or size + picture.line["bytes"] > SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(picture)
        size += picture.line["bytes"]
    if shard:
        yield shard


def _webdataset(pictures: list[Picture]) -> dict[str, Make]:
    return {f"{n:05d}.tar": partial(_tar, shard) for n, shard in enumerate(shards(pictures))}


def _tar(pictures: list[Picture], target: Path) -> None:
    """Files with the same key stand together. The key has no dot: what follows the first one is the kind of a file."""
    with tarfile.open(target, "w") as tar:
        for _, samples, file, line in pictures:
            key = f"{line['index']:06d}" if samples == 1 else f"{line['index']:06d}_{line['sample']:02d}"
            texts = {".txt": str(line["prompt"]).encode(), ".json": _json(line).encode()}
            for suffix, data in {file.suffix: file.read_bytes(), **texts}.items():
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _parquet(pictures: list[Picture]) -> dict[str, Make]:
    return {f"{n:05d}.parquet": partial(_table, shard) for n, shard in enumerate(shards(pictures))}


def _table(pictures: list[Picture], target: Path) -> None:
    """Typed columns for what every line has, and the whole line as JSON: rows may carry columns of any type."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {"index": pa.int64(), "sample": pa.int64(), "prompt": pa.string(), "seed": pa.int64()}
    kinds |= {"width": pa.int64(), "height": pa.int64(), "file_name": pa.string()}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pa.schema({"image": image, **kinds, "ledger": pa.string()}, metadata={"huggingface": json.dumps(features)})
    with ParquetWriter(target, schema, compression="none") as out:  # images are compressed already
        for start in range(0, len(pictures), ROW_GROUP):
            rows = [
                {"image": {"bytes": file.read_bytes(), "path": file.name}}
                | {name: line.get(name) for name in kinds}
                | {"ledger": _json(line)}
                for _, _, file, line in pictures[start : start + ROW_GROUP]
            ]
            out.write_table(pa.Table.from_pylist(rows, schema=schema))


LAYOUTS: dict[str, View] = {
    "geneval": _geneval,
    "dpg": _dpg,
    "t2i_compbench": _t2i_compbench,
    "genarena": _genarena,
    "webdataset": _webdataset,
    "parquet": _parquet,
}
"""A job's finished images to the files of a view, by their names in it."""
