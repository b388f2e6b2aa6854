"""LoRAs by row through a whole run, with the fake backend: what is recorded, what makes another job, what comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ended, dglaunch
from support.lora_files import write_lora
from support.results import images, ledger, write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": "a"},
    {"prompt": "b", "lora": ""},
    {"prompt": "c", "lora": "style"},
    {"prompt": "d", "lora": "detail:0.5,style:0.8"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("style", "detail")):
        write_lora(tmp_path / f"{name}.safetensors", seed=seed)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def run(folder: Path, *words: str, table: str = "rows.jsonl", out: str = "out") -> Ended:
    return dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", out, *words, cwd=folder)


def test_rows_say_which_they_use(folder: Path) -> None:
    ended = run(folder, "--lora", "style.safetensors:0.7", "detail.safetensors")
    assert ended.code == 0, ended.output
    lines = ledger(folder / "out")
    assert [line["lora"] for line in lines] == ["style:0.7,detail:1", "", "style:0.7", "style:0.8,detail:0.5"]
    assert [len(line.get("lora_sha256", [])) for line in lines] == [2, 0, 1, 2]
    assert lines[3]["lora_files"] == ["style.safetensors", "detail.safetensors"]
    assert "lora style style.safetensors: rank 4, " in " ".join(ended.output.split())


def test_a_moved_or_renamed_file_is_the_same_job_and_another_file_is_not(folder: Path) -> None:
    assert run(folder, "--lora", "style.safetensors", "detail.safetensors").code == 0
    (folder / "elsewhere").mkdir()
    (folder / "style.safetensors").rename(folder / "elsewhere" / "oil.safetensors")
    again = run(folder, "--lora", "style=elsewhere/oil.safetensors", "detail.safetensors")
    assert again.code == 0 and "4 there before" in again.output, again.output
    write_lora(folder / "style.safetensors", seed=7)
    other = run(folder, "--lora", "style.safetensors", "detail.safetensors")
    assert other.code == 2 and "another job" in other.output and "row 0, lora_sha256" in other.output, other.output
    weight = run(folder, "--lora", "style=elsewhere/oil.safetensors:0.9", "detail.safetensors")
    assert weight.code == 2 and "'style:1,detail:1' -> 'style:0.9,detail:1'" in weight.output, weight.output


def test_a_job_without_loras_is_the_one_that_it_was(folder: Path) -> None:
    """Rows that use none have the key that they had before there were LoRAs; rows with one do not."""
    plain = write_jsonl(folder / "plain.jsonl", [{"prompt": "b"}, {"prompt": "c"}])
    assert run(folder, table="plain.jsonl").code == 0
    none = run(folder, "--lora", "style.safetensors", "--grid", "lora=none", table="plain.jsonl")
    assert none.code == 0 and "2 there before" in none.output, none.output
    write_jsonl(plain, [{"prompt": "b", "lora": ""}, {"prompt": "c", "lora": ""}, {"prompt": "d"}])
    assert run(folder, "--lora", "style.safetensors", table="plain.jsonl").code == 0
    assert [line.get("lora") for line in ledger(folder / "out")] == [None, None, "style:1"]


def test_all_bad_rows_are_told_at_once(folder: Path) -> None:
    cells = ["stile", "style:x", "style,style", "", 3, "detail:nan"]
    write_jsonl(folder / "bad.jsonl", [{"prompt": "x", "lora": cell} for cell in cells])
    ended = run(folder, "--lora", "style.safetensors", "detail.safetensors", table="bad.jsonl")
    assert ended.code == 2 and "has 5 bad rows; nothing was run" in ended.output
    for told in ("names 'stile'", "the weight 'x'", "twice", "is 3, not a text", "the weight 'nan'"):
        assert told in ended.output, ended.output


def test_a_column_that_is_no_setting(folder: Path) -> None:
    ended = run(folder)
    assert ended.code == 2 and "no --lora is given; give it, or" in ended.output
    assert run(folder, "--ignore_columns", "lora").code == 0
    assert [line.get("row_lora") for line in ledger(folder / "out")] == [None, "", "style", "detail:0.5,style:0.8"]


def test_a_folder_that_was_begun_when_the_column_was_carried_along_goes_on(folder: Path) -> None:
    assert run(folder, "--ignore_columns", "lora", "--limit", "2").code == 0
    ended = run(folder)
    assert ended.code == 0 and len(ledger(folder / "out")) == 4, ended.output


def test_one_that_no_row_uses_does_nothing(folder: Path) -> None:
    write_jsonl(folder / "one.jsonl", [{"prompt": "x", "lora": "style"}])
    ended = run(folder, "--lora", "style.safetensors", "detail.safetensors", table="one.jsonl")
    assert ended.code == 2 and "lora would do nothing (detail)" in " ".join(ended.output.split()), ended.output


def test_rows_are_filtered_by_what_they_use(folder: Path) -> None:
    words = ["--lora", "style.safetensors", "detail.safetensors", "--filter_rows", 'lora == "style:1,detail:1"']
    assert run(folder, *words).code == 0
    assert [line["index"] for line in ledger(folder / "out")] == [0]


def test_a_replay_finds_the_file_by_its_name_and_checks_it(folder: Path) -> None:
    assert run(folder, "--lora", "style.safetensors:0.7", "detail.safetensors").code == 0
    again = dglaunch("replay", "out/000003.png", "--output", "again.png", cwd=folder)
    assert again.code == 0 and "the same, pixel for pixel" in again.output, again.output
    weaker = dglaunch("replay", "out/000003.png", "--set", "lora=style:0.1", "--output", "weaker.png", cwd=folder)
    assert weaker.code == 0 and "a variation" in weaker.output, weaker.output
    write_lora(folder / "style.safetensors", seed=9)
    other = dglaunch("replay", "out/000003.png", "--output", "other.png", cwd=folder)
    assert other.code == 2 and "style, style.safetensors is not the one it was (another sha256" in other.output
    shutil.move(folder / "detail.safetensors", folder / "away.safetensors")
    gone = dglaunch("replay", "out/000003.png", "--output", "other.png", cwd=folder)
    assert gone.code == 2 and "detail, detail.safetensors was not found" in gone.output, gone.output
    assert dglaunch("replay", "out/000001.png", "--output", "none.png", cwd=folder).code == 0


def test_a_redo_gives_an_image_another_weight(folder: Path) -> None:
    assert run(folder, "--lora", "style.safetensors", "detail.safetensors").code == 0
    before = images(folder / "out")
    ended = dglaunch("redo", "out", "--filter_rows", "2", "--set", "lora=detail:0.3", cwd=folder)
    assert ended.code == 0, ended.output
    (line,) = [line for line in ledger(folder / "out") if line["index"] == 2]
    assert line["lora"] == "detail:0.3" and line["lora_files"] == ["detail.safetensors"]
    assert (images(folder / "out")["000002.png"] != before["000002.png"]).any()
    assert dglaunch("redo", "out", "--filter_rows", "2", "--set", "lora=stile", cwd=folder).code == 2


def test_settings_for_other_viewers_name_them(folder: Path) -> None:
    assert run(folder, "--lora", "style.safetensors", "detail.safetensors", "--png_parameters").code == 0
    from PIL import Image

    with Image.open(folder / "out" / "000003.png") as image:
        assert 'Lora: "style:0.8,detail:0.5"' in image.text["parameters"]  # type: ignore[attr-defined]


def test_an_api_takes_none(folder: Path) -> None:
    ended = dglaunch(
        "t2i", "--backend", "openai", "--model_name", "gpt-image-2", "--prompt", "x", "--lora", "style.safetensors",
        cwd=folder,
    )  # fmt: skip
    assert ended.code == 2 and "an API runs the model, so --lora would do nothing" in ended.output


def test_plan_tells_of_each_and_adds_its_memory(folder: Path) -> None:
    big = write_lora(folder / "big.safetensors", rank=1024, width=16384)
    words = ["plan", "t2i", "--prompt", "x", "--gpu", "H100"]
    told = [dglaunch(*words, *more, cwd=folder).output for more in ([], ["--lora", big.name])]
    assert "lora big big.safetensors: rank 1024, 256.0 MiB, 4 tensors for the transformer, scale 1, sha256" in told[1]
    assert "rows with different LoRAs share a batch, if none of them has several" in " ".join(told[1].split())
    assert json.dumps(told[0]) != json.dumps(told[1]) and "0.26 of it weights" in told[1], told[1]
