"""The gallery: what the page holds. How it works in a browser: system/test_gallery_browser.py."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.cli.main import main
from dglaunch.errors import OutputError
from dglaunch.errors import UserError as Wrong
from dglaunch.output import gallery
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.sorted_lines import SortedLines
from support.commands import run_module
from support.gallery_folder import BIG_SEED, EVIL, data_of, failure, fill, line, paint
from support.results import write_jsonl


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("odd place #1 'quoted' & ünï") / "out")


# -- what the page holds ------------------------------------------------------------------------------------------


def test_rows_are_in_order_and_a_failure_made_good_is_none(out: Path) -> None:
    rows = SortedLines(OutputFolder(out))
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert ["file_name" in row for row in rows] == [True, True, True, False]
    assert (len(rows), rows.num_failed) == (4, 1)


def test_of_several_lines_about_an_image_the_last_counts_and_lines_of_others_none(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata-node0of2.jsonl", [line(2**62), line(7, prompt="old"), {"mine": 1}, line(3)])
    write_jsonl(tmp_path / "metadata-node1of2.jsonl", [line(7, sample=1), line(7, prompt="new"), line(1)])
    write_jsonl(tmp_path / "failures.jsonl", [failure(7), failure(5), failure(5, prompt="again")])
    rows = list(SortedLines(OutputFolder(tmp_path)))
    assert [(row["index"], row["sample"]) for row in rows] == [(1, 0), (3, 0), (5, 0), (7, 0), (7, 1), (2**62, 0)]
    assert [row["prompt"] for row in rows[2:4]] == ["again", "new"]


def page_data(*arguments: Any) -> dict[str, Any]:
    found = json.loads("".join(gallery.page_data(*arguments)))
    assert isinstance(found, dict)
    return found


def test_columns_of_few_rows_have_gaps_and_types_stay_apart(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [{}, {"a": 1}, {"a": True}, {"a": 1.0, "b": "\U0001f43b"}, {"b": "\U0001f43b"}]
    columns = page_data(tmp_path, tmp_path, 0, [line(n, **each) for n, each in enumerate(values)])["columns"]
    assert list(map(repr, columns["a"])) == ["None", "1", "True", "1.0", "None"]
    assert columns["b"] == [None, None, None, "\U0001f43b", "\U0001f43b"]


def test_a_page_of_many_rows_takes_little_memory(tmp_path: Path) -> None:
    """500,000 rows took 1.4 GB: 2,600 bytes a row."""
    rows = (line(n, prompt=f"a red fox on hill number {n}", tag=["x", n % 7]) for n in range(4_000))
    write_jsonl(tmp_path / "metadata.jsonl", list(rows))
    list(
        gallery.render(tmp_path, tmp_path, 0, SortedLines(OutputFolder(tmp_path)))
    )  # what is imported late does not count
    tracemalloc.start()
    try:
        page = gallery.write_page(tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data_of(page)["columns"]["tag"][3_999] == ["x", 2]
    assert most < 4_000 * 300 + 4_000_000, f"{most / 4_000:.0f} bytes a row"


def test_the_data_survive_and_nothing_of_them_is_markup(out: Path) -> None:
    text = (out / "gallery.html").read_text(encoding="utf-8")
    data = data_of(out / "gallery.html")
    assert data["columns"]["prompt"][1] == EVIL
    assert data["columns"]["seed"][0] == str(BIG_SEED), "a double would round it"
    assert data["columns"]["column"][1] == {"nan": "nan"}, "NaN is no JSON"
    assert data["files"] == ["000000.png", "000001.png", "000002.png", None]
    assert data["inputs"] == [[], [], ["inputs/000002_0.png"], []]
    assert "<script>window" not in text and "<img" not in text and text.count("<script") == 2
    assert "{{ 7*7 }}" in text, "the template is filled once"


def test_the_page_names_no_other_place(out: Path) -> None:
    text = (out / "gallery.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text
    assert "default-src &#39;none&#39;" in text


def test_equal_values_are_stored_once_and_files_that_leave_the_folder_not_at_all(tmp_path: Path) -> None:
    rows = [line(0), line(1), line(2, file_name="../../etc/passwd"), line(3, file_name="/etc/passwd")]
    data = page_data(tmp_path, tmp_path, 0, rows)
    assert data["columns"]["width"] == {"all": 64}
    assert data["files"] == ["000000.png", "000001.png", None, None]


def test_another_place_for_the_page_and_thumbnails_inside(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    assert main(["gallery", str(out), "--output", str(page), "--thumbnails", "32"]) == 0
    data = data_of(page)
    assert "%23" in data["base"] and data["base"].endswith("/out/")
    assert [text and text[:22] for text in data["thumbnails"]] == ["data:image/webp;base64"] * 3 + [None]


def test_inputs_that_were_not_copied_are_found_beside_the_table(tmp_path: Path) -> None:
    paint(tmp_path / "cats" / "a.png", "black")
    write_jsonl(tmp_path / "out" / "metadata.jsonl", []) if (tmp_path / "out").mkdir() else None
    table = str(tmp_path / "edits.jsonl")
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({"outcome": "done", "num_tasks": 1, "config": {"input": {"value": table, "from": "flag"}}})
    )
    rows = [line(0, input_images=["cats/a.png", "gone.png"])]
    assert page_data(tmp_path / "out", tmp_path / "out", 0, rows)["inputs"] == [["../cats/a.png"]]


def test_the_contact_sheet(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    page = out / "gallery.html"
    before = page.stat().st_mtime_ns
    assert main(["gallery", str(out), "--contact_sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "3 images are on" in said and str(page) not in said and page.stat().st_mtime_ns == before, (
        "no page was asked for"
    )
    with Image.open(sheet) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= colours


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "There is no folder"),
        (["."], "holds no results"),
        ([".", "--thumbnails", "4000"], "0 (none) to 512"),
        (["OUT", "--contact_sheet", "sheet.pdf"], "name a .png"),
        (["OUT", "--output", "nowhere/page.html"], "cannot be written"),
    ],
)
def test_wrong_uses(out: Path, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Wrong, OutputError), match=re.escape(says)):
        gallery_of([str(out) if word == "OUT" else word for word in words])


def gallery_of(words: list[str]) -> None:
    from dglaunch.cli.flags import call
    from dglaunch.cli.gallery import gallery as command

    call(command, words, "gallery")()


def test_t2i_writes_it_and_a_failing_one_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["t2i", "--backend", "fake", "--prompt", "a cat", "--output_dir", str(tmp_path / "out"), "--gallery"]
    assert main(words) == 0
    assert data_of(tmp_path / "out" / "gallery.html")["columns"]["prompt"] == ["a cat"]
    (tmp_path / "out" / "gallery.html").unlink()
    monkeypatch.setattr(gallery, "render", lambda *_: 1 / 0)
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["outcome"] == "done"
    assert not (tmp_path / "out" / "gallery.html").exists()


def test_it_needs_no_torch(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = run_module("support.imported", "torch", "gallery", out, "--output", page, "--thumbnails", "16")
    assert ended.code == 0, ended.output
    assert page.exists()
