"""`replay` and `redo` of images that t2i drew with input images, or edit within a mask: from the same ones, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from support.commands import dglaunch
from support.edit_images import picture
from support.input_tables import table
from support.results import ledger

ROWS: list[dict[str, Any]] = [
    {"prompt": "begun", "image": "i0.png", "strength": 0.5},
    {"prompt": "painted", "image": "i1.png", "mask": "m1.png"},
    {"prompt": "steered", "control": "c2.png", "control_scale": 0.5},
    {"prompt": "from text"},
]
COLUMNS = ["--image_column", "image", "--mask_column", "mask", "--control_column", "control", "--controlnet", "any/net"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = table(tmp_path, ROWS)
    run = [
        "t2i",
        "--backend",
        "fake",
        "--prompts_file",
        path,
        "--num_inference_steps",
        "4",
        "--output_dir",
        tmp_path / "out",
    ]
    assert dglaunch(*run, *COLUMNS).code == 0
    return tmp_path / "out"


@pytest.mark.parametrize("number", range(4))
def test_an_image_is_made_again_from_its_inputs(out: Path, tmp_path: Path, number: int) -> None:
    ended = dglaunch("replay", out / f"{number:06d}.png", "--output", tmp_path / "again.png")
    assert ended.code == 0 and "the same, pixel for pixel" in ended.output, ended.output


@pytest.mark.parametrize(("number", "name"), [(0, "i0.png"), (1, "m1.png"), (2, "c2.png")])
def test_other_inputs_than_it_was_made_from_are_refused(out: Path, tmp_path: Path, number: int, name: str) -> None:
    picture(99).save(tmp_path / name)
    ended = dglaunch("replay", out / f"{number:06d}.png", "--output", tmp_path / "again.png")
    assert ended.code == 2 and f"{name} is not the one it was" in ended.output, ended.output


def test_an_edit_is_painted_again_within_its_mask(tmp_path: Path) -> None:
    path = table(tmp_path, [{"instruction": "x", "input_images": "i0.png", "mask": "m0.png", "strength": 0.5}])
    run = ["edit", "--backend", "fake", "--input", path, "--mask_column", "mask", "--num_inference_steps", "4"]
    assert dglaunch(*run, "--output_dir", tmp_path / "out").code == 0
    again = ["replay", tmp_path / "out" / "000000.png", "--output", tmp_path / "again.png"]
    ended = dglaunch(*again)
    assert ended.code == 0 and "the same, pixel for pixel" in ended.output, ended.output
    picture(99).save(tmp_path / "m0.png")
    ended = dglaunch(*again)
    assert ended.code == 2 and "m0.png is not the one it was" in ended.output, ended.output


def test_a_variation_has_another_strength(out: Path, tmp_path: Path) -> None:
    ended = dglaunch("replay", out / "000000.png", "--set", "strength=0.25", "--output", tmp_path / "again.png")
    assert ended.code == 0 and "a variation" in ended.output, ended.output
    ended = dglaunch("replay", out / "000003.png", "--set", "strength=0.25", "--output", tmp_path / "again.png")
    assert ended.code == 2 and "made from text alone" in ended.output, ended.output


def test_redo_takes_another_strength(out: Path) -> None:
    ended = dglaunch("redo", out, "--filter_rows", "0", "--set", "strength=0.25")
    assert ended.code == 0, ended.output
    assert {line["index"]: line.get("strength") for line in ledger(out) if "redo_of" in line} == {0: 0.25}
    ended = dglaunch("redo", out, "--filter_rows", "0", "--set", "strength=0")
    assert ended.code == 2 and "strength is 0, not a number above 0 and up to 1" in ended.output, ended.output


@pytest.mark.parametrize(
    ("number", "change", "missing"),
    [(0, "control_scale=0.5", "a control image"), (2, "strength=0.5", "an image")],
)
def test_what_goes_with_an_image_that_there_is_not_is_refused(
    out: Path, tmp_path: Path, number: int, change: str, missing: str
) -> None:
    ended = dglaunch("replay", out / f"{number:06d}.png", "--set", change, "--output", tmp_path / "again.png")
    assert ended.code == 2 and f"it does nothing, as the image was made without {missing}" in ended.output


def test_an_edit_without_a_mask_has_no_strength(tmp_path: Path) -> None:
    """It was called a variation, and was the same image."""
    path = table(tmp_path, [{"instruction": "x", "input_images": "i0.png"}])
    assert dglaunch("edit", "--backend", "fake", "--input", path, "--output_dir", tmp_path / "out").code == 0
    words = ["replay", tmp_path / "out" / "000000.png", "--output", tmp_path / "again.png"]
    for change, missing in (("strength=0.5", "a mask"), ("control_scale=0.5", "a control image")):
        ended = dglaunch(*words, "--set", change)
        assert ended.code == 2 and f"as the image was made without {missing}" in ended.output, ended.output
    assert not (tmp_path / "again.png").exists()


def test_redo_refuses_what_goes_with_an_image_that_a_row_does_not_have(out: Path, tmp_path: Path) -> None:
    ended = dglaunch("redo", out, "--filter_rows", "0,1,2,3", "--set", "strength=0.25")
    assert (
        ended.code == 2 and "--set strength: it does nothing for row 2, which is made without an image" in ended.output
    )
    assert "Leave such rows out with --filter_rows (2 of 4)" in ended.output
    assert dglaunch("redo", out, "--filter_rows", "0,1,2,3", "--set", "strength=").code == 0, (
        "what is taken away is idle nowhere"
    )
    path = table(tmp_path, [{"instruction": "x", "input_images": "i0.png"}], "edits.jsonl")
    assert dglaunch("edit", "--backend", "fake", "--input", path, "--output_dir", tmp_path / "edited").code == 0
    for name, missing in (("strength", "a mask"), ("control_scale", "a control image")):
        ended = dglaunch("redo", tmp_path / "edited", "--filter_rows", "0", "--set", f"{name}=0.25")
        assert (
            ended.code == 2
            and f"--set {name}: it does nothing for row 0, which is made without {missing}." in ended.output
        )
        assert "--filter_rows" not in ended.output
