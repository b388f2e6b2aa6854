"""--store: results that are kept in shards. Loaders read them with no code of ours, all commands work on them, and whatever
dies when, each image is there once."""

import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dglaunch as package
from dglaunch.errors import UserError
from dglaunch.output import image_folders, segments, shard_writer, shards
from dglaunch.output.gallery import render
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import append_whole, read_lines
from dglaunch.output.serving import Page, Server
from dglaunch.output.sorted_lines import SortedLines
from support.commands import dglaunch
from support.kept import NUM, STORES, images_in, in_shards, indices, is_whole, make, opens, table, words
from support.killed import KILLED, killed_after
from support.results import ledger, run_json
from support.selection import rarely

BOTH = pytest.mark.parametrize("store", STORES)
EITHER = pytest.mark.parametrize("store", rarely(STORES, {"webdataset"}))
"""Where it is the same code: the other one with make soak."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_IMAGES", 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job with a file for each image."""
    return make(tmp_path_factory.mktemp("files"), "files")


# -- what is there ------------------------------------------------------------------------------------------------


@BOTH
def test_the_images_are_those_of_files(tmp_path: Path, store: str, files: Path) -> None:
    out = make(tmp_path, store)
    assert not list(out.glob("*.png")) and len(list((out / "shards").iterdir())) == 3
    for line, data in in_shards(out):
        assert data == (files / line["file_name"]).read_bytes(), "byte by byte"
    lines = ledger(out)
    assert [line["index"] for line in lines] == list(range(NUM)), "metadata.jsonl is whole and in order"
    assert {line["image_shard"] for line in lines} == {path.name for path in (out / "shards").iterdir()}
    said = {line["index"]: line for line, _ in in_shards(out)}
    assert all({**said[line["index"]], "image_shard": line["image_shard"]} == line for line in lines)
    is_whole(out)
    assert dglaunch("status", out).code == 0 and run_json(out)["settings"]["store"] == store
    assert "store" not in run_json(files)["settings"], "folders of before go on"


@BOTH
def test_an_image_is_read_from_its_place_in_the_shard(tmp_path: Path, store: str) -> None:
    """As the index has it: a range of bytes, which is all that an object store is asked for."""
    out = make(tmp_path, store)
    for line in ledger(out):
        index = (out / shards.HIDDEN / f"{line['image_shard']}.json").read_text().split("\n")[1]
        offset, size = json.loads(index)[line["file_name"]]
        data = (out / "shards" / line["image_shard"]).read_bytes()[offset : offset + size]
        assert hashlib.sha256(data).hexdigest() == line["sha256"] and size == line["bytes"]


@pytest.mark.parametrize(("store", "loader"), [("parquet", "parquet"), ("webdataset", "webdataset")])
def test_datasets_reads_them(tmp_path: Path, store: str, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = make(tmp_path, store)
    for given in ((str(out / "shards"),), (loader,)):
        named = {"data_files": str(out / "shards" / "*")} if given == (loader,) else {}
        found = datasets.load_dataset(*given, **named, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(found) == NUM
        for row in found:
            line = json.loads(row["ledger"]) if store == "parquet" else row["json"]
            image = row["image"] if store == "parquet" else row["png"]
            assert isinstance(image, Image.Image) and image.size == (line["width"], line["height"])
            assert (row["prompt"] if store == "parquet" else row["txt"]) == line["prompt"]
    streamed = datasets.load_dataset(str(out / "shards"), split="train", streaming=True)
    assert len(list(streamed)) == NUM


def test_webdataset_reads_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = make(tmp_path, "webdataset", "--num_images_per_prompt", "2")
    paths = [str(path) for path in sorted((out / "shards").iterdir())]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    lines = {f"{line['index']:06d}_{line['sample']:02d}": line for line in ledger(out)}
    assert sorted(sample["__key__"] for sample in samples) == sorted(lines)
    for sample in samples:
        line = lines[sample["__key__"]]
        assert sample["txt"] == line["prompt"] and sample["png"].shape == (line["height"], line["width"], 3)


@EITHER
def test_names_of_a_column_and_other_formats(tmp_path: Path, store: str) -> None:
    table(tmp_path)
    rows = [{"prompt": f"p{n}", "name": f"a.b {n}"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--output_name_column", "name", "--output_format", "webp", "--num_images_per_prompt", "2"]
    assert dglaunch(*words(tmp_path, store, *flags)).code == 0
    names = [f"a.b {n}_{sample:02d}.webp" for n in range(3) for sample in range(2)]
    assert [line["file_name"] for line in ledger(tmp_path / "out")] == names
    assert dglaunch("verify", tmp_path / "out").code == 0


def segments_of(lines: int, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(segments, "SEGMENT_LINES", lines)


@EITHER
def test_a_ledger_in_segments(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    segments_of(2, monkeypatch)
    monkeypatch.setattr(image_folders, "DEFAULT", 3)
    out = stopped(tmp_path, store, monkeypatch, sync_s=0)
    assert len(good_lines(out)) == NUM and (out / segments.FOLDER / "metadata.index").exists()
    assert f"{NUM} are there already" in dglaunch(*words(tmp_path, store)).output
    is_whole(out)
    assert [line["file_name"] for line in ledger(out)] == [f"{n:06d}.png" for n in range(NUM)], "shards need no folders"
    assert f"{NUM} of {NUM} images done" in dglaunch("status", out).output


@EITHER
def test_a_column_of_the_tables_own_named_as_ours(tmp_path: Path, store: str) -> None:
    out = make(tmp_path, store, image_shard="mine", shard="x")
    assert {(line["row_image_shard"], line["shard"]) for line in ledger(out)} == {("mine", "x")}


# -- commands -----------------------------------------------------------------------------------------------------


@BOTH
def test_every_command_works_on_them(tmp_path: Path, store: str, files: Path) -> None:
    out = make(tmp_path, store, "--gallery")
    page = (out / "gallery.html").read_text()
    assert page.count("data:image/webp;base64,") == NUM, "the page has copies: it cannot look into a shard"
    assert dglaunch("gallery", out, "--contact_sheet", tmp_path / "sheet.png").code == 0
    assert Image.open(tmp_path / "sheet.png").width > 400
    side_by_side = dglaunch("gallery", files, out, "--output", tmp_path / "compare.html")
    assert side_by_side.code == 0 and f"{NUM} images of 2 runs" in side_by_side.output
    assert '"psnr":{"all":"equal"}' in (tmp_path / "compare.html").read_text()
    replayed = dglaunch("replay", out / "000004.png", "--output", tmp_path / "again.png")
    assert replayed.code == 0 and "the same, pixel for pixel" in replayed.output
    assert "There is no file" in dglaunch("replay", out / "000099.png").output


@EITHER
def test_python_reads_them(tmp_path: Path, store: str) -> None:
    table(tmp_path)
    backend = package.BackendConfig(backend="fake")
    config = package.T2IConfig(
        backend=backend, prompts_file=tmp_path / "prompts.jsonl", output_dir=tmp_path / "out", store=store
    )
    result = package.t2i(config)
    shown = list(result.images())
    assert [image.size for image in shown] == [(64, 64)] * NUM and result._repr_png_()
    with pytest.raises(UserError, match=r"images\(\) reads them"):
        _ = result.paths


@EITHER
def test_served_pictures_come_out_of_their_shards(tmp_path: Path, store: str, files: Path) -> None:
    out = make(tmp_path, store)

    def pieces() -> Any:
        return render(out, out, 0, SortedLines(OutputFolder(out)), only_inside=True)

    with Server(Page([out], pieces), ("127.0.0.1", 0), socket.AF_INET, print) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)

        def ask(path: str) -> tuple[int, bytes]:
            connection.request("GET", f"/{server.token}/{path}")
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert ask("")[0] == 200
        assert ask("000002.png") == (200, (files / "000002.png").read_bytes())
        name = ledger(out)[0]["image_shard"]
        for hidden in (f"shards/{name}", f".dglaunch-shards/{name}.json", "000009.png"):
            assert ask(hidden)[0] == 404
            connection.close()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("store", "layout"),
    rarely(
        [("webdataset", "parquet"), ("parquet", "webdataset"), ("parquet", "genarena"), ("webdataset", "genarena")],
        {("webdataset", "parquet"), ("webdataset", "genarena")},
    ),
)
def test_views_are_made_of_them(tmp_path: Path, store: str, layout: str) -> None:
    """A view of shards has the same images as one of files: as files byte by byte, in shards with the same lines."""
    (tmp_path / "plain").mkdir()
    made, plain = make(tmp_path, store, "--layout", layout), make(tmp_path / "plain", "files", "--layout", layout)
    views = [{path.name: path for path in (folder / layout).iterdir()} for folder in (made, plain)]
    assert views[0].keys() == views[1].keys() and dglaunch("verify", made).code == 0
    if layout == "genarena":
        assert all(path.read_bytes() == views[1][name].read_bytes() for name, path in views[0].items())
        return
    of_view = [[data for path in found.values() for _, data in images_in(path)] for found in views]
    assert of_view[0] == of_view[1] and len(of_view[0]) == NUM


@BOTH
def test_a_redo_leaves_each_image_once(tmp_path: Path, store: str) -> None:
    out = make(tmp_path, store)
    before = {line["index"]: line["sha256"] for line in ledger(out)}
    said = dglaunch("redo", out, "--filter_rows", "1,3,4,5", "--seed_offset", "100")
    assert said.code == 0, said.output
    is_whole(out)
    lines = ledger(out)
    assert {line["index"] for line in lines if line["sha256"] != before[line["index"]]} == {1, 3, 4, 5}
    kept = ledger(out / "replaced")
    assert sorted((line["index"], line["sha256"]) for line in kept) == [(n, before[n]) for n in (1, 3, 4, 5)]
    assert all(
        "image_shard" not in line and opens((out / "replaced" / line["file_name"]).read_bytes()) for line in kept
    )
    again = dglaunch(*words(tmp_path, store))
    assert f"{NUM} are there already" in again.output and again.code == 0


@EITHER
def test_folders_are_merged_shard_by_shard(tmp_path: Path, store: str) -> None:
    table(tmp_path)
    parts = []
    for number, rows in enumerate(("0:4", "3:7")):  # 3 is in both
        parts.append(tmp_path / f"part{number}")
        given = words(tmp_path, store, "--filter_rows", rows)
        given[given.index("--output_dir") + 1] = str(parts[-1])
        assert dglaunch(*given).code == 0
    ended = dglaunch("merge", *parts, "--output_dir", tmp_path / "all")
    assert ended.code == 0, ended.output
    is_whole(tmp_path / "all")
    linked = [path for path in (tmp_path / "all" / "shards").iterdir() if path.stat().st_nlink > 1]
    assert linked, "whole shards cost no space"


def test_failures_stand_where_they_always_do(tmp_path: Path) -> None:
    table(tmp_path, 3)
    (tmp_path / "prompts.jsonl").open("a").write('{"prompt": "x [item error]"}\n')
    assert dglaunch(*words(tmp_path, "webdataset")).code == 3
    assert [line["index"] for line in ledger(tmp_path / "out", "failures.jsonl")] == [3]
    assert indices(tmp_path / "out") == [0, 1, 2]


# -- when something dies ------------------------------------------------------------------------------------------


@EITHER
def test_killed_at_random_nothing_is_lost_or_there_twice(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at_random(tmp_path, store, 60, 4, monkeypatch)


@pytest.mark.slow
@BOTH
def test_killed_a_hundred_times(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at_random(tmp_path, store, 1500, 100, monkeypatch)


def kill_at_random(folder: Path, store: str, num: int, kills: int, patched: pytest.MonkeyPatch) -> None:
    segments_of(7, patched)
    dice = random.Random(store)
    table(folder, num)
    given = words(folder, store, "--batch_size", "4", "--width", "32", "--height", "32")
    made: dict[int, str] = {}
    for _ in range(kills):
        if killed_after(dice.uniform(0.05, 0.6), *given) != KILLED:
            break
        lines = {line["index"]: line["sha256"] for line in good_lines(folder / "out")}
        assert made.items() <= lines.items(), "what has a line keeps it, and is never made again"
        made = lines
    assert dglaunch(*given).code == 0
    is_whole(folder / "out", num)


def good_lines(out: Path) -> list[dict[str, Any]]:
    return [record for ledger in OutputFolder(out).ledgers() for _, record in read_lines(*ledger)]


def stopped(folder: Path, store: str, monkeypatch: pytest.MonkeyPatch, sync_s: float = 3600.0) -> Path:
    """A job that died after its last image, before anything was closed; lines are written after so many seconds."""
    table(folder)
    with monkeypatch.context() as patched:
        patched.setattr(shard_writer, "SYNC_S", sync_s)
        patched.setattr(shard_writer, "SHARD_IMAGES", 100)
        patched.setattr(shard_writer.ShardWriter, "settle", shard_writer.ShardWriter.abandon)
        assert dglaunch(*words(folder, store)).code == 0
    return folder / "out"


def open_tar(out: Path) -> Path:
    return next((out / shards.HIDDEN).glob("*.open"))


@EITHER
def test_images_without_a_line_are_found_in_an_open_shard(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(tmp_path, store, monkeypatch)
    assert len(ledger(out)) < NUM and not list((out / "shards").iterdir())
    assert "was being filled when its process died" in dglaunch("verify", out).output
    assert f"{NUM} are there already" in dglaunch(*words(tmp_path, store)).output
    is_whole(out)
    assert not list((out / shards.HIDDEN).glob("*.open")), "the tar that it was filled as is no second form"


@BOTH
def test_an_open_shard_is_good_up_to_its_last_whole_image(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(tmp_path, store, monkeypatch)
    torn = open_tar(out)
    data = torn.read_bytes()
    torn.write_bytes(data[: len(data) - 700])
    assert f"{NUM - 1} are there already" in dglaunch(*words(tmp_path, store)).output
    is_whole(out)


@EITHER
def test_bytes_that_a_lost_node_did_not_write_are_no_image(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may have its length before its bytes; what has no line was not brought to the disk."""
    out = stopped(tmp_path, store, monkeypatch)
    torn = open_tar(out)
    last = list(shards.samples_of(out, torn.name.removesuffix(".open")))[-1]
    with torn.open("r+b") as file:
        file.seek(last.offset + 100)
        file.write(bytes(200))
    ended = dglaunch(*words(tmp_path, store))
    assert f"{NUM - 1} are there already" in ended.output and ended.code == 0, ended.output
    is_whole(out)


@EITHER
def test_killed_between_closing_and_tidying_up(tmp_path: Path, store: str) -> None:
    out = make(tmp_path, store)
    first = sorted((out / "shards").iterdir())[0]
    shutil.copy(first, out / shards.HIDDEN / f"{first.name}.open")
    assert f"{NUM} are there already" in dglaunch(*words(tmp_path, store)).output
    is_whole(out)
    assert not list((out / shards.HIDDEN).glob("*.open"))


@BOTH
def test_a_line_comes_after_the_disk_has_its_image(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each line that is written, all of its shard has been brought to the disk; paid images one by one."""
    synced: list[int] = []
    lines: list[int] = []
    sync, add = os.fdatasync, shard_writer._OpenShard.add
    added = [0]

    def added_one(self: Any, data: bytes) -> None:
        add(self, data)
        added[0] += 1

    monkeypatch.setattr(shard_writer._OpenShard, "add", added_one)
    monkeypatch.setattr(os, "fdatasync", lambda file: (sync(file), synced.append(added[0])))
    out = OutputFolder(tmp_path)
    kind = {"webdataset": "webdataset", "parquet": "parquet"}[store]
    for is_paid in (True, False):
        synced.clear(), lines.clear()
        added[0] = 0
        keeping = shard_writer.Keeping(kind, is_paid=is_paid)
        writer = shard_writer.ShardWriter(out, keeping, "", lambda record: lines.append(synced[-1]))
        record = {"index": 0, "sample": 0, "key": "0" * 16, "sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        for number in range(3):
            writer.add({"file_name": f"{number:06d}.png", **record, "index": number}, b"x")
            assert not is_paid or len(lines) == number + 1, "each at once"
        writer.settle()
        assert len(lines) == 3 and all(line > number for number, line in enumerate(lines))
        assert synced[:2] == ([1, 2] if is_paid else [1, 3])


def test_lines_come_within_a_second_though_no_other_image_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SYNC_S", 0.05)
    came = threading.Event()
    lines: list[Any] = []

    def add_line(record: Any) -> None:
        lines.append(record)
        if len(lines) == 2:
            came.set()

    writer = shard_writer.ShardWriter(OutputFolder(tmp_path), shard_writer.Keeping("webdataset"), "", add_line)
    record = {"sample": 0, "key": "0" * 16, "sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    for number in range(2):
        writer.add({"file_name": f"{number:06d}.png", **record, "index": number}, b"x")
    assert came.wait(10)
    writer.settle()


@EITHER
def test_a_full_disk_loses_nothing(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path)
    append, written = append_whole, [0]

    def full(stream: Any, data: bytes) -> None:
        written[0] += 1
        if written[0] == 5:
            raise OSError(28, "No space left on device")
        append(stream, data)

    with monkeypatch.context() as patched:
        patched.setattr(shard_writer, "append_whole", full)
        ended = dglaunch(*words(tmp_path, store, "--batch_size", "1"))
    assert ended.code == 1 and "No space left on device" in ended.output and "make room" in ended.output
    assert dglaunch(*words(tmp_path, store)).code == 0
    is_whole(tmp_path / "out")


# -- what else may have happened to a folder ----------------------------------------------------------------------


@EITHER
def test_a_copy_without_its_index(tmp_path: Path, store: str) -> None:
    """`cp -r out/* elsewhere` leaves what begins with a dot behind."""
    out = make(tmp_path, store)
    shutil.rmtree(out / shards.HIDDEN)
    is_whole(out)
    assert f"{NUM} are there already" in dglaunch(*words(tmp_path, store)).output
    assert len(list((out / shards.HIDDEN).glob("*.json"))) == 3, "the next start makes it again"


@BOTH
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_is_damaged_or_gone_is_made_again(tmp_path: Path, store: str, damage: str) -> None:
    out = make(tmp_path, store)
    victim = out / "shards" / ledger(out)[0]["image_shard"]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2]) if damage == "cut" else victim.unlink()
    assert dglaunch("verify", out).code == 1
    ended = dglaunch(*words(tmp_path, store))
    assert ended.code == 0 and "4 are there already" in ended.output, ended.output
    is_whole(out)
    if damage == "cut":
        assert (out / ".dglaunch-aside" / victim.name).read_bytes() == data[: len(data) // 2]


@BOTH
def test_verify_repairs_a_shard_with_one_bad_image(tmp_path: Path, store: str) -> None:
    out = make(tmp_path, store)
    line = ledger(out)[1]
    shard = out / "shards" / line["image_shard"]
    index = json.loads((out / shards.HIDDEN / f"{shard.name}.json").read_text().split("\n")[1])
    with shard.open("r+b") as file:
        file.seek(index[line["file_name"]][0] + 60)
        file.write(b"\0\1\2\3")
    told = dglaunch("verify", out)
    assert told.code == 1 and f"000001.png in shards/{shard.name} was changed" in told.output
    assert dglaunch("verify", out, "--repair").code == 1
    assert indices(out) == [0, 2, 3, 4, 5, 6] and (out / ".dglaunch-aside" / "000001.png").exists()
    assert "6 are there already" in dglaunch(*words(tmp_path, store)).output
    is_whole(out)


@EITHER
def test_images_that_no_line_names_are_told(tmp_path: Path, store: str) -> None:
    out = make(tmp_path, store)
    lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
    (out / "metadata.jsonl").write_text("".join(lines[1:]))
    told = dglaunch("verify", out)
    assert told.code == 1 and "has 1 images without a ledger line" in told.output
    dglaunch("verify", out, "--repair")
    dglaunch(*words(tmp_path, store))
    is_whole(out)


@EITHER
def test_overwrite_takes_its_own_away_and_nothing_else(tmp_path: Path, store: str, monkeypatch: Any) -> None:
    out = stopped(tmp_path, store, monkeypatch)
    assert dglaunch(*words(tmp_path, store)).code == 0
    other = STORES[1 - STORES.index(store)]
    (out / "mine.txt").write_text("mine")
    for given in (store, other, "files"):
        assert dglaunch(*words(tmp_path, given, "--overwrite", "--seed", "5")).code == 0
        assert dglaunch("verify", out).code == 0 and (out / "mine.txt").exists()
        if given != "files":
            is_whole(out)
    assert not list((out / "shards").iterdir()) and len(list(out.glob("*.png"))) == NUM


@pytest.mark.parametrize("name", ["../../secret.tar", "00000.tar/../x", "secret.png", "/etc/passwd", "00009.tar"])
def test_a_ledger_of_strangers_names_no_file_outside(tmp_path: Path, name: str) -> None:
    out = make(tmp_path, "webdataset")
    lines = ledger(out)
    lines[0]["image_shard"] = name
    (out / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = dglaunch("verify", out)
    assert told.code == 1 and "000000.png" in told.output
    assert dglaunch("gallery", out).code == 0


# -- refused, before a model is loaded ----------------------------------------------------------------------------


@pytest.mark.parametrize(("began", "now"), [("files", "webdataset"), ("webdataset", "parquet"), ("parquet", "files")])
def test_another_store_is_refused(tmp_path: Path, began: str, now: str) -> None:
    out = make(tmp_path, began)
    before = sorted(path.name for path in out.rglob("*"))
    ended = dglaunch(*words(tmp_path, now))
    assert ended.code == 2 and f"Go on with --store {began}" in ended.output
    assert sorted(path.name for path in out.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--store", "parquet", "--layout", "parquet"], "Drop --layout"),
        (["--store", "files", "--shard_size", "5"], "would do nothing with --store files"),
        (["--store", "webdataset", "--shard_size", "0"], "must be 1 or more"),
        (
            ["--store", "webdataset", "--files_per_folder", "100"],
            "--files_per_folder would do nothing with --store webdataset",
        ),
        (["--store", "zip"], "webdataset"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, flags: list[str], says: str) -> None:
    given = ["t2i", "--backend", "fake", "--prompts_file", table(tmp_path), "--output_dir", tmp_path / "out"]
    ended = dglaunch(*given, *flags)
    assert ended.code == 2 and says in ended.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["a file", "a link", "another file"])
def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, what: str) -> None:
    table(tmp_path)
    place = tmp_path / "out" / "shards"
    place.parent.mkdir()
    if what == "a file":
        place.write_text("mine")
    elif what == "a link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        (place / "train.tar").write_text("mine")
    ended = dglaunch(*words(tmp_path, "webdataset"))
    assert ended.code == 2 and "is where --store keeps shards" in ended.output
    assert dglaunch(*words(tmp_path, "files")).code == 0, "which are nobody's business without a store"


def test_pixels_of_a_shard(tmp_path: Path, files: Path) -> None:
    """Whatever reads images goes through one place, so one look at pixels is enough."""
    from dglaunch.output.differences import compare, pixels_of
    from dglaunch.output.images import bytes_of, image_of

    out = make(tmp_path, "parquet")
    assert compare(out, files).greatest == 0
    for line in ledger(out):
        image = image_of(out, line)
        assert image is not None and image.read() == bytes_of(out / line["file_name"])
        assert np.array_equal(pixels_of(image.read()), pixels_of((files / line["file_name"]).read_bytes()))
