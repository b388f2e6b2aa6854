"""Runs side by side: what differs between them, what is measured, what a blind page keeps to itself, and what choices add up to.
The page in a browser: system/test_compare_browser.py."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.output import comparison
from dglaunch.output.choices import Choice, Tally, read_choices, tally
from dglaunch.output.run_differences import RowDifferences, headings
from support.commands import dglaunch
from support.gallery_folder import EVIL, data_of, failure, line, paint
from support.grid_folder import fill_run
from support.results import write_jsonl


def compared(*folders: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    page = folders[0].parent / "compare.html"
    ended = dglaunch("gallery", *folders, "--output", page, *words)
    assert ended.code == 0, ended.output
    return data_of(page)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = fill_run(tmp_path / "one", ["red", "green", "blue"], {"guidance_scale": 1.0}, guidance_scale=1.0)
    other = fill_run(tmp_path / "other", ["red", "lime", None, "blue"], {"guidance_scale": 4.0}, guidance_scale=4.0)
    return one, other


# -- what differs -------------------------------------------------------------------------------------------------


def run_of(**flags: Any) -> dict[str, Any]:
    return {"config": {name: {"value": value, "from": "flag"} for name, value in flags.items()}}


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (run_of(guidance_scale=1.0), run_of(guidance_scale=4.0), ["guidance_scale 1 | 4"]),
        (run_of(guidance_scale=None) | {"defaults": {"guidance_scale": 3.5}}, run_of(guidance_scale=3.5), []),
        (run_of(cache_type=None), run_of(cache_type="taylor_seer"), ["cache_type none | taylor_seer"]),
        (run_of(output_dir="a", prompts_file="x"), run_of(output_dir="b", prompts_file="y"), []),
        (run_of(seed=1), {}, []),
        ({"device": "CPU", "versions": {"torch": "2.5", "host": "a"}}, {"device": "H100", "versions": {"torch": "2.6", "host": "b"}},
         ["device CPU | H100", "version of torch 2.5 | 2.6"]),
        ({"topology": {"world_size": 1, "degrees": {"ulysses_degree": 1}}}, {"topology": {"world_size": 4, "degrees": {"ulysses_degree": 4}}},
         ["world_size 1 | 4", "ulysses_degree 1 | 4"]),
        ({"config": [], "settings": 7, "topology": None}, {"config": {"seed": 3}, "versions": {"torch": {}}}, []),
    ],
)  # fmt: skip
def test_headings_of_settings(one: dict[str, Any], other: dict[str, Any], said: list[str]) -> None:
    assert [str(heading) for heading in headings([one, other])] == said


def test_what_differs_in_every_line_is_the_runs_and_the_rest_is_the_rows() -> None:
    found = RowDifferences(2)
    assert found.add([line(0, guidance_scale=1.0, rank=0), line(0, guidance_scale=4.0, rank=3, seconds=9)]) == {
        "guidance_scale": [1.0, 4.0]
    }
    found.add([line(1, guidance_scale=1.0, seed=5), line(1, guidance_scale=4.0, seed=6)])
    found.add([line(2, guidance_scale=1.0), None])
    found.add([line(3, guidance_scale=1.0, negative_prompt="no"), {"index": 3, "sample": 0, "error": "it broke"}])
    assert [str(heading) for heading in found.constant()] == ["guidance_scale 1 | 4"]
    assert found.by_row() == ["seed"]


def test_that_an_image_was_made_anew_is_no_setting() -> None:
    """`redo_of` is a key of a row, as `key` is, and `redo` says which command it was."""
    found = RowDifferences(2)
    one, other = ({"redo": f"{name:016x}", "redo_of": f"{name:016x}"} for name in (1, 2))
    assert found.add([line(0, seed=5, **one), line(0, seed=6, **other)]) == {"seed": [5, 6]}


# -- the page -----------------------------------------------------------------------------------------------------


def test_images_stand_side_by_side_by_index_with_their_psnr(two: tuple[Path, Path]) -> None:
    data = compared(*two)
    assert data["headings"] == [["guidance_scale", ["1", "4"]]] and data["by_row"] == []
    assert data["columns"]["index"] == [0, 1, 2, 3]
    one, other = data["runs"]
    assert [one["name"], one["base"], other["name"]] == ["one", "one/", "other"]
    assert one["files"] == ["000000.png", "000001.png", "000002.png", None]
    assert other["files"] == ["000000.png", "000001.png", None, "000003.png"]
    assert other["psnr"] == ["equal", 10.83, None, None], "10 log10(255^2 / (127^2 / 3))"
    assert data["columns"]["apart"] == ["equal", 10.83, None, None]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    folders = [fill_run(tmp_path / name, ["red"] * 4) for name in ("a", "b")]
    Image.new("RGB", (32, 32)).save(folders[1] / "000000.png")
    (folders[1] / "000001.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (folders[1] / "000002.png").unlink()
    (folders[1] / "000002.png").symlink_to(folders[0] / "000002.png")
    (folders[0] / "000003.png").unlink()
    assert compared(*folders)["runs"][1]["psnr"] == [
        "the sizes differ: 64x48 and 32x32", "damaged", "the file is not there", "the first is not there, or damaged",
    ]  # fmt: skip


def test_failures_samples_thumbnails_and_nothing_of_the_ledger_is_markup(tmp_path: Path) -> None:
    one, other = (fill_run(tmp_path / name, ["red", "green"], {"negative_prompt": name + EVIL}) for name in ("a", "b"))
    write_jsonl(one / "failures.jsonl", [failure(1, prompt=EVIL, sample=3)])
    data = compared(one, other, words=("--thumbnails", "16"))
    assert data["columns"]["sample"] == [0, 0, 3]
    assert data["runs"][0]["errors"] == [None, None, "RuntimeError: it broke"]
    assert [text and text[:15] for text in data["runs"][0]["thumbnails"]] == ["data:image/webp"] * 2 + [None]
    assert data["headings"] == [["negative_prompt", [f"a{EVIL}", f"b{EVIL}"]]]
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "<script>window" not in text and "<img" not in text and text.count("<script") == 2
    assert "http:" not in text and "https:" not in text


def test_the_inputs_of_edits_are_found_beside_the_table_or_in_a_folder(tmp_path: Path) -> None:
    folders = [fill_run(tmp_path / name, ["red", "green"]) for name in ("a", "b")]
    paint(tmp_path / "table" / "cat 1.png", "yellow")
    paint(folders[1] / "inputs" / "000001_0.png", "yellow")
    config = {"input": {"value": str(tmp_path / "table" / "edits.jsonl"), "from": "flag"}}
    (folders[0] / "run.json").write_text(json.dumps({"outcome": "done", "num_tasks": 2, "config": config}))
    write_jsonl(folders[0] / "metadata.jsonl", [line(0, input_images=["cat 1.png"]), line(1)])
    copy = {"input_images": ["gone.png"], "input_file_names": ["inputs/000001_0.png"]}
    write_jsonl(folders[1] / "metadata.jsonl", [line(0), line(1, **copy)])
    assert compared(*folders)["columns"]["before"] == ["table/cat%201.png", "b/inputs/000001_0.png"]
    found = comparison.Comparison.of(folders).render(tmp_path, lambda _: None, {folders[0]: "0/", folders[1]: "1/"})
    text = "".join(found)
    assert '"1/inputs/000001_0.png"' in text and "cat%201" not in text, "what is served is inside of the folders"


def test_folders_of_one_name_get_those_above_them(tmp_path: Path) -> None:
    folders = [fill_run(tmp_path / above / "out", ["red"]) for above in ("x", "y")]
    assert [run["name"] for run in compared(*folders)["runs"]] == ["x/out", "y/out"]


def test_a_blind_page_does_not_say_which_is_which(two: tuple[Path, Path]) -> None:
    data = compared(*two, words=("--blind", "--thumbnails", "16"))
    text = (two[0].parent / "compare.html").read_text(encoding="utf-8")
    assert len(data["blind"]) == 16 and data["headings"] == data["by_row"] == []
    assert (
        '"one' not in text and '"other' not in text and '"guidance_scale"' not in text and "psnr" not in data["runs"][1]
    )
    assert "<title>Blind comparison of 2 runs - dglaunch gallery</title>" in text
    assert {"files", "name", "folder"} & data["runs"][0].keys() == set(), "the pictures are in the page itself"


@pytest.mark.slow
def test_many_rows_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million rows must not need gigabytes: a line of a ledger is 2,000 bytes in memory."""
    monkeypatch.setattr(comparison, "ROWS_AT_A_TIME", 64)
    count, folders = 1200, [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        lines = [line(n, prompt=f"hill number {n}", guidance_scale=ord(folder.name)) for n in range(count)]
        write_jsonl(folder / "metadata.jsonl", lines)
    list(
        comparison.Comparison.of([fill_run(tmp_path / name, ["red"]) for name in "xy"]).render(tmp_path, lambda _: None)
    )
    found = comparison.Comparison.of(folders)
    tracemalloc.start()
    try:
        length = sum(map(len, found.render(tmp_path, lambda _: None)))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < count * 400 + 1_200_000 and length > count * 50, f"{most / count:.0f} bytes a row"


# -- choices ------------------------------------------------------------------------------------------------------


def hashes(folder: Path) -> list[str]:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return [json.loads(text)["sha256"][:16] for text in lines]


def chosen(path: Path, choices: list[tuple[int, list[str], str | None]]) -> Path:
    listed = [{"index": index, "sample": 0, "among": among, "chosen": best} for index, among, best in choices]
    path.write_text(json.dumps({"dglaunch": "choices", "page": "00", "choices": listed}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder, letter in ((one, "a"), (other, "b")):
        folder.mkdir()
        lines = [line(n, sha256=f"{n:015x}{letter}" + "0" * 48) for n in range(4)]
        write_jsonl(folder / "metadata.jsonl", lines)
    return one, other


def test_choices_are_summed_up_by_run_whatever_the_order(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(hashes, runs)
    first = chosen(tmp_path / "1.json", [(0, [a[0], b[0]], a[0]), (1, [b[1], a[1]], a[1]), (2, [a[2], b[2]], None)])
    second = chosen(tmp_path / "2.json", [(0, [b[0], a[0]], b[0]), (3, ["f" * 16, a[3]], a[3])])
    for folders, wins in ((runs, [2, 1]), (runs[::-1], [1, 2])):
        found = tally(folders, [*read_choices(first), *read_choices(second)])
        assert (found.wins, found.ties, len(found.rows), found.num_left_out) == (wins, 1, 3, 1)
    ended = dglaunch("gallery", *runs, "--choices", first, second)
    assert ended.code == 0 and "4 choices in 3 rows, 1 of them for none" in ended.output
    assert re.search(r"one\W+2\W+50%", ended.output) and re.search(r"other\W+1\W+25%", ended.output)
    assert "1 choices are left out" in ended.output


def test_equal_images_are_no_choice_of_one(runs: tuple[Path, Path]) -> None:
    a, _ = map(hashes, runs)
    other = runs[1] / "metadata.jsonl"
    other.write_text(runs[0].joinpath("metadata.jsonl").read_text())
    found = tally(runs, [Choice((0, 0), (a[0], a[0]), a[0])])
    assert (found.wins, found.ties) == ([0, 0], 1)


def test_what_chance_would_do() -> None:
    """Of 20 throws of a coin, 15 or more alike: 4.1 %; Wilson's interval of 15 of 20 is 53 to 89 %."""
    found = Tally([15, 5])
    assert found.chance == pytest.approx(0.0414, abs=1e-4)
    assert found.interval(0) == pytest.approx((0.5313, 0.8881), abs=1e-3)
    assert Tally([1, 1]).chance == 1 and Tally([300_000, 0]).chance == 0


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"dglaunch": "choices"}', '{"dglaunch": "choices", "choices": [7]}', '{"dglaunch": "plan", "choices": []}',
     '{"dglaunch": "choices", "choices": [{"index": 0, "sample": 0, "among": ["a", "b"], "chosen": "c"}]}',
     '{"dglaunch": "choices", "choices": [{"index": "x", "sample": 0, "among": ["a", "b"], "chosen": "a"}]}'],
)  # fmt: skip
def test_what_is_no_file_of_choices(runs: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    ended = dglaunch("gallery", *runs, "--choices", tmp_path / "choices.json")
    assert ended.code == 2 and "is no file of choices. Open a page of dglaunch gallery A B --blind" in ended.output


# -- wrong uses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "gallery needs FOLDERS"),
        (["one", "one/../one"], "are one folder"),
        (["one", "nowhere"], "There is no folder nowhere"),
        (["one", "far"], "have no index in common"),
        (["one", "--blind"], "name at least two folders: dglaunch gallery OUT1 OUT2 --blind"),
        (["one", "--choices", "c.json"], "name at least two folders"),
        (["one", "other", "--choices", "c.json"], "--choices c.json cannot be read"),
        (["one", "other", "--choices", "c.json", "--blind"], "--blind does nothing here: --choices only sums up"),
        (["one", "other", "--contact_sheet", "s.png"], "--contact_sheet is for one folder"),
        (["one", "--port", "7"], "--port does nothing here: without --serve"),
        (["one", "--host", "0.0.0.0"], "--host does nothing here: without --serve"),
        (["one", "--serve", "--output", "p.html"], "--output does nothing here: --serve writes nothing"),
        (["one", "other", "--output", "one/000000.png"], "is there, and it is not one of its kind"),
        (["one", *(f"far{n}" for n in range(8))], "9 folders are too many"),
    ],
)
def test_wrong_uses(two: tuple[Path, Path], tmp_path: Path, words: list[str], says: str) -> None:
    fill_run(tmp_path / "far", [None] * 9 + ["red"])
    ended = dglaunch("gallery", *words, cwd=tmp_path)
    assert ended.code == 2 and says in ended.output, ended.output
    assert not (tmp_path / "compare.html").exists()
