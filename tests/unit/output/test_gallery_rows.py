"""The gallery of a large job: its rows lie in script files beside the page. How it works: system/test_gallery_browser.py."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dglaunch.cli.main import main
from dglaunch.output import gallery, gallery_rows
from dglaunch.output.gallery_columns import RowColumns
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.sorted_lines import SortedLines
from support.commands import dglaunch
from support.gallery_folder import BIG_SEED, EVIL, data_of, failure, fill, line
from support.gallery_rows import column, row_files, rows_in
from support.results import write_jsonl


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_rows, "MOST_IN_PAGE", 3)
    monkeypatch.setattr(gallery_rows, "ROWS_OF_FILE", 3)
    monkeypatch.setattr(gallery_rows, "WITH_PICTURES", 3)


def together(page: Path) -> dict[str, list[Any]]:
    """All columns of the files that a page names."""
    parts = [rows_in(path) for path in row_files(page)]
    counts = [len(part["files"]) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part["columns"])
    found = {
        name: [
            value
            for part, count in zip(parts, counts)
            for value in column(part["columns"].get(name, {"all": None}), count)
        ]
        for name in names
    }
    return found | {"files": [name for part in parts for name in part["files"]]}


def test_the_files_say_what_the_page_of_a_small_job_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fill(tmp_path / "odd place #1 'quoted' & ünï" / "out")
    page = out / "gallery.html"
    large = together(page)
    assert [len(rows_in(path)["files"]) for path in row_files(page)] == [3, 1]
    monkeypatch.setattr(gallery_rows, "MOST_IN_PAGE", 100)
    gallery.write_page(out)
    small = data_of(page)
    assert large.pop("files") == small["files"]
    assert large == {name: column(values, 4) for name, values in small["columns"].items()}
    assert not (out / "gallery-rows").exists(), "the files of a page that is not there any more"


def test_no_ledger_is_read_to_know_whether_a_page_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read twice for that, half of the minutes of a page of millions that was there already."""
    page = fill(tmp_path / "out") / "gallery.html"
    monkeypatch.setattr(OutputFolder, "records", lambda _: pytest.fail("all lines are read"))
    gallery.write_page(page.parent)
    assert row_files(page)


def test_nothing_of_a_ledger_ends_a_text_of_a_script(tmp_path: Path) -> None:
    names = {"__proto__": {"a": 1}, "it's \\' \\": "'); window.hacked = 1; ('", EVIL: EVIL}
    write_jsonl(tmp_path / "metadata.jsonl", [line(n, prompt=EVIL, seed=BIG_SEED, **names) for n in range(4)])
    page = gallery.write_page(tmp_path)
    for path in row_files(page):
        text = path.read_text(encoding="utf-8")
        assert "<" not in text and "\u2028" not in text and text.count("\n") == 1
        found = rows_in(path)["columns"]
        assert {name: column(found[name], 3)[0] for name in names} == names
        assert column(found["seed"], 3)[0] == str(BIG_SEED)


def test_a_page_says_which_files_a_search_need_not_read(tmp_path: Path) -> None:
    rows = [line(10 + n, seed=[7, 2**62, None, 5, 5.0, "9", True][n], rank=n // 3) for n in range(7)]
    rows += [line(20, seed=None, rank="odd")]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    write_jsonl(tmp_path / "failures.jsonl", [failure(30, seed=1), failure(40, seed=3), failure(11)])
    said = data_of(gallery.write_page(tmp_path))["rows"]
    assert said["first"] == [10, 13, 16, 40]
    assert said["failed"] == [0, 0, 1, 1]
    assert said["seeds"] == [[7, str(2**62)], [5, 9], [1, 1], [3, 3]]
    assert said["ranks"] == [[0], [1], None, [0]]


def test_several_processes_write_the_same(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", [line(n) for n in range(11)])
    alone = [path.read_bytes() for path in row_files(gallery.write_page(tmp_path))]
    told: list[int] = []
    page = gallery.write_page(tmp_path, processes=2, advance=told.append)
    assert [path.read_bytes() for path in row_files(page)] == alone and len(alone) == len(told) == 4
    assert dglaunch("gallery", tmp_path).code == 0 and [p.read_bytes() for p in row_files(page)] == alone


def test_a_page_and_its_rows_are_there_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", [line(n) for n in range(8)])
    page = gallery.write_page(tmp_path)
    before, files = page.read_bytes(), row_files(page)
    write = RowColumns.pieces
    calls: list[int] = []

    def fails(self: RowColumns) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(self)

    monkeypatch.setattr(RowColumns, "pieces", fails)
    ended = dglaunch("gallery", tmp_path)
    monkeypatch.undo()
    assert ended.code != 0 and "No space left" in ended.output
    assert page.read_bytes() == before and row_files(page) == files
    assert os.listdir(tmp_path / "gallery-rows") == [data_of(page)["rows"]["folder"].split("/")[1]]


def test_only_files_that_no_page_names_go(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", [line(n) for n in range(5)])
    there = tmp_path / "gallery-rows"
    for token, name, text in (
        ("0" * 16, "0000.js", "galleryRows(0,'{}')"),  # of a command that was killed
        ("1" * 16, "0000.js", "mine"),
        ("2" * 16, "notes.txt", "mine"),
        ("3" * 16, "0000.js", "galleryRows(0,'{}')"),  # of a command that is at work
        ("scripts", "0000.js", "galleryRows(0,'{}')"),
    ):
        (there / token).mkdir(parents=True)
        (there / token / name).write_text(text)
    (there / ("4" * 16)).symlink_to(there / "scripts")
    lock = os.open(there / ("3" * 16), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    page = gallery.write_page(tmp_path)
    os.close(lock)
    named = data_of(page)["rows"]["folder"].split("/")[1]
    assert set(os.listdir(there)) == {"1" * 16, "2" * 16, "3" * 16, "4" * 16, "scripts", named}
    assert (there / "scripts" / "0000.js").exists()
    gallery.write_page(tmp_path)
    assert set(os.listdir(there)) >= {"1" * 16, "2" * 16, "scripts"} and not (there / named).exists()


def test_lines_that_a_run_has_replaced_keep_their_places(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", [line(n) for n in range(7)])
    rows = SortedLines(OutputFolder(tmp_path))
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"index": 1', '"index": 9')
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    page = gallery.write_page(tmp_path, rows=rows)
    assert [len(rows_in(path)["files"]) for path in row_files(page)] == [3, 3, 1]
    assert rows_in(row_files(page)[1])["files"][0] == "000003.png"


def test_folders_shards_grids_and_another_place_for_the_page(tmp_path: Path) -> None:
    words = ["t2i", "--backend", "fake", "--prompt", "a cat", "--num_images_per_prompt", "5", "--output_dir"]
    assert main([*words, str(tmp_path / "a"), "--files_per_folder", "2", "--gallery"]) == 0
    names = together(tmp_path / "a" / "gallery.html")["files"]
    assert len(names) == 5 and all((tmp_path / "a" / name).exists() and "/" in name for name in names)
    assert main([*words, str(tmp_path / "b"), "--store", "webdataset"]) == 0
    page = tmp_path / "look.html"
    assert main(["gallery", str(tmp_path / "b"), "--output", str(page)]) == 0
    assert data_of(page)["rows"]["folder"].startswith("look-rows/")
    copies = [text for path in row_files(page) for text in rows_in(path)["thumbnails"]]
    assert [text[:22] for text in copies] == ["data:image/webp;base64"] * 5
    table = json.dumps({"prompt": "a cat", "num_images_per_prompt": 1})
    (tmp_path / "p.jsonl").write_text(table)
    grid = ["t2i", "--backend", "fake", "--prompts_file", str(tmp_path / "p.jsonl"), "--grid", "seed=1,2,3,4"]
    assert main([*grid, "--output_dir", str(tmp_path / "c"), "--gallery"]) == 0
    text = (tmp_path / "c" / "gallery.html").read_text()
    assert (
        data_of(tmp_path / "c" / "gallery.html")["grid"] is None and "The grids of this job are shown by pages" in text
    )
