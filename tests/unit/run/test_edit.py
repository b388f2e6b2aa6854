"""`edit` as a user runs it, on one rank with the fake backend. Ranks are in torchrun/test_edit.py, real models in
torchrun/test_edit_models.py."""

import random
from pathlib import Path

from PIL import Image

from support.commands import dglaunch
from support.edit_images import ADOBE, MULTI, SINGLE, SIZES, picture, save_pictures, save_table
from support.results import difference, images, ledger, run_json, write_jsonl

FAKE = ["edit", "--backend", "fake"]


def test_when_no_row_can_be_made_no_model_is_loaded(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "nowhere.png", "instruction": "x"}])
    ended = dglaunch(*FAKE, "--input", path, "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "there is no file" in ended.output
    assert run_json(tmp_path / "out")["seconds"]["load"] == 0


def test_three_orders_give_the_same_image_for_each_row(tmp_path: Path) -> None:
    orders = [list(range(12)), list(range(12))[::-1], random.Random(1).sample(range(12), 12)]
    for number, order in enumerate(orders):
        path = save_table(tmp_path / f"t{number}.csv", MULTI, order)
        ended = dglaunch(
            *FAKE,
            "--model_type",
            "flux2",
            "--input",
            path,
            "--batch_size",
            "4",
            "--output_dir",
            tmp_path / f"o{number}",
        )
        assert ended.code == 0, ended.output
        assert difference(tmp_path / f"o{number}", tmp_path / "o0") == 0
        assert sorted(images(tmp_path / f"o{number}")) == [f"{n:06d}.png" for n in range(12)]


def test_a_changed_image_is_another_job_and_a_removed_one_is_not(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    arguments = [*FAKE, "--input", path, "--output_dir", tmp_path / "out"]
    assert dglaunch(*arguments).code == 0
    (tmp_path / "images" / "d.png").unlink()
    again = dglaunch(*arguments)
    assert again.code == 0 and run_json(tmp_path / "out")["num_skipped"] == 12, again.output
    picture(99, SIZES["d"]).save(tmp_path / "images" / "d.png")
    ended = dglaunch(*arguments)
    assert ended.code == 2 and "row 4, input_sha256: [" in ended.output, ended.output
    other = dglaunch(*arguments[:-1], tmp_path / "out", "--model_type", "qwen_singleimg")
    assert other.code == 2 and "editing_pipeline" in other.output


def test_no_batch_is_told_once_with_the_reason(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    ended = dglaunch(
        *FAKE, "--model_type", "longcat", "--input", path, "--batch_size", "4", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 0, ended.output
    assert ended.output.count("not the 4 asked for") == 1 and "refuses a second prompt" in ended.output
    assert run_json(tmp_path / "out")["choices"]["batch_size"].startswith("1: not the 4 asked for")
    assert {line["batch_size"] for line in ledger(tmp_path / "out")} == {1}


def test_a_failing_batch_is_run_one_by_one(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    rows = [{"input_images": "images/a.png", "instruction": f"{n}{' [raise]' * (n == 5)}"} for n in range(8)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    ended = dglaunch(*FAKE, "--input", path, "--batch_size", "8", "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "run one by one" in ended.output
    (failure,) = ledger(tmp_path / "out", "failures.jsonl")
    assert failure["index"] == 5 and len(images(tmp_path / "out")) == 7


def test_the_ledger_says_what_a_photograph_was_converted_from(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "plain.png")
    picture(2).save(tmp_path / "wide.png", icc_profile=ADOBE)
    sets = ["plain.png", ["plain.png", "wide.png"]]
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": names, "instruction": "x"} for names in sets])
    ended = dglaunch(*FAKE, "--model_type", "flux2", "--input", path, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    first, second = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert "input_converted" not in first
    assert second["input_converted"] == [None, "Adobe RGB (1998) to sRGB"]


def test_a_column_named_input_does_not_take_the_place_of_the_saved_inputs(tmp_path: Path) -> None:
    """datasets makes a column `input` of input_file_names."""
    picture(1).save(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x", "input": "mine"}])
    for flags, name in (([], "input"), (["--save_inputs"], "row_input")):
        out = tmp_path / name
        assert dglaunch(*FAKE, "--input", path, "--output_dir", out, *flags).code == 0
        (line,) = ledger(out)
        assert line[name] == "mine" and ("input" in line) == (name == "input")


def test_plan_says_what_the_images_cost(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", MULTI)
    ended = dglaunch("plan", *FAKE, "--model_type", "flux2", "--input", path, "--batch_size", "4")
    assert ended.code == 0, ended.output
    said = "12 images in 6 batches; 3 more than if all rows had one size and the same input images"
    assert said in ended.output


def test_wrong_uses(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    out = ["--output_dir", tmp_path / "out"]
    for arguments, said in (
        (["edit"], "Give --input TABLE"),
        ([*FAKE, "--input", tmp_path / "nowhere.csv"], "There is no file"),
        ([*FAKE, "--input", path, "--model_type", "flux3"], "is no editing family"),
        ([*FAKE, "--input", path, "--instruction_column", "text"], "no text (there are: "),
        ([*FAKE, "--input", path, "--model_type", "longcat", "--width", "64"], "--width cannot be set"),
    ):
        ended = dglaunch(*arguments, *out)
        assert ended.code == 2 and said in ended.output and "Traceback" not in ended.output, ended.output


def test_an_image_of_a_few_pixels_is_its_rows_error(tmp_path: Path) -> None:
    """It was a division by zero, in plan too."""
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "small.png", "instruction": "x"}])
    ended = dglaunch("edit", "--backend", "fake", "--input", table, "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "too small for" in ledger(tmp_path / "out", "failures.jsonl")[0]["error"], ended.output
