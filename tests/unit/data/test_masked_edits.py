"""Rows of edits with a mask: what they become, and what is refused before a model is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch import EditingConfig
from dglaunch.backends.diffusers.checks import check_inputs
from dglaunch.data.edits import read_edits
from dglaunch.data.masks import Reading, facts_of, stretched
from dglaunch.data.task import Task
from dglaunch.errors import InputError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from dglaunch.models.input_roles import MaskPixels
from dglaunch.models.shape import Shape
from support.commands import Ended, dglaunch
from support.edit_images import picture
from support.input_tables import mask, save_images
from support.results import ledger, run_json, write_jsonl

STEPS = ("--num_inference_steps", "4")
MASKS = ("--mask_column", "mask")


def make(folder: Path, rows: list[dict[str, Any]], *words: str) -> Ended:
    """A run of the fake backend, which batches as FLUX.1 Kontext does."""
    save_images(folder)
    path = write_jsonl(folder / "t.jsonl", [{"instruction": "x", "input_images": "i0.png", **row} for row in rows])
    return dglaunch(
        "edit", "--backend", "fake", "--input", path, *STEPS, *(words or MASKS), "--output_dir", folder / "out"
    )


def refused(folder: Path, *rows: dict[str, Any], words: tuple[str, ...] = ()) -> str:
    ended = make(folder, list(rows), *words)
    assert ended.code == 2, ended.output
    assert not (folder / "out" / "metadata.jsonl").exists()
    return ended.output


def read(path: Path, family: str, **flags: Any) -> Sequence[Task]:
    checkpoint = as_editor(Checkpoint("fake", "fake", OTHER, {}, {}, False), family)
    return read_edits(EditingConfig(input=path, mask_column="mask", **flags), checkpoint)


def test_rows_with_a_mask_and_without_stand_in_one_table(tmp_path: Path) -> None:
    rows = [{"mask": "m0.png"}, {}, {"mask": "m1.png", "strength": 0.5}, {"mask": ""}]
    ended = make(tmp_path, rows)
    assert ended.code == 0, ended.output
    lines = ledger(tmp_path / "out")
    assert [line.get("mask") for line in lines] == ["m0.png", None, "m1.png", None]
    assert [line.get("strength") for line in lines] == [1.0, None, 0.5, None]
    assert [len(line.get("mask_sha256", "")) for line in lines] == [64, 0, 64, 0]
    assert [line["batch_size"] for line in lines] == [1, 2, 1, 2], "rows with a mask have a call of their own"
    assert "2 of 4 images are painted anew within a mask" in run_json(tmp_path / "out")["choices"]["inputs"]


def test_a_column_that_happens_to_be_called_mask_is_carried_along(tmp_path: Path) -> None:
    assert make(tmp_path, [{"mask": "nothing", "strength": 0.2}], "--seed", "3").code == 0
    (line,) = ledger(tmp_path / "out")
    assert (line["mask"], line["strength"]) == ("nothing", 0.2) and "mask_sha256" not in line


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    save_images(tmp_path)
    Image.new("L", (64, 64)).save(tmp_path / "none.png")
    picture(3, (96, 64)).save(tmp_path / "wide.png")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"mask": "none.png"}, "the mask none.png has no hole"),
        ({"mask": "m0.png", "input_images": "wide.png"}, "the mask m0.png is 64x64, and wide.png is 96x64"),
        ({"mask": "m0.png", "width": 128}, "128x64 is asked for, and FluxKontextInpaintPipeline draws i0.png at 64x64"),
        ({"strength": 0.5}, "strength does nothing, as the row has no mask"),
        ({"mask": "m0.png", "strength": 0}, "strength is 0, not a number above 0 and up to 1"),
        ({"mask": "m0.png", "strength": 0.2}, "less than one step, so nothing would be drawn; give 0.25 or more"),
        ({"mask": ["m0.png"]}, "where a path is needed"),
        ({"input_images": None, "mask": "m0.png"}, "input_images is empty"),
        ({"input_images": 3, "mask": "m0.png"}, "input_images has 3 where a path is needed"),
    ]
    said = refused(tmp_path, *(row for row, _ in bad))
    assert f"has {len(bad)} bad rows" in said
    for number, (_, words) in enumerate(bad, 1):
        assert any(f"line {number}:" in line and words in line for line in said.splitlines()), (words, said)


def test_a_mask_that_cannot_be_used_is_its_rows_failure(tmp_path: Path) -> None:
    save_images(tmp_path)
    transparent = picture(1).convert("RGBA")
    transparent.putalpha(mask(0))
    transparent.save(tmp_path / "alpha.png")
    assert make(tmp_path, [{"mask": "gone.png"}, {"mask": "alpha.png"}, {"mask": "m0.png"}]).code == 3
    errors = {line["index"]: line["error"] for line in ledger(tmp_path / "out", "failures.jsonl")}
    assert "gone.png" in errors[0] and "transparent in places" in errors[1]
    assert [line["index"] for line in ledger(tmp_path / "out")] == [2]


def test_a_strength_without_a_mask_column_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, {}, words=("--strength", "0.5"))
    assert "--strength would do nothing without --mask_column" in said


@pytest.mark.parametrize(
    ("family", "size", "drawn"),
    [
        ("flux1_kontext", (640, 480), (1184, 880)),
        ("flux2_klein", (2000, 1000), (1440, 720)),
        ("qwen_singleimg", (640, 480), (1184, 896)),
    ],
)
def test_what_is_drawn_has_the_size_at_which_the_image_is_encoded(
    tmp_path: Path, family: str, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    picture(1, size).save(tmp_path / "a.png")
    Image.new("L", size, "white").save(tmp_path / "m.png")
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x", "mask": "m.png"}])
    (task,) = read(path, family)
    assert (task.width, task.height, task.roles) == (*drawn, ("image", "mask"))
    (task,) = read(path, family, width=drawn[0], height=drawn[1])
    assert task.error is None, "as a replay says it"


def test_several_images_and_a_mask_are_refused(tmp_path: Path) -> None:
    save_images(tmp_path)
    row = {"input_images": ["i0.png", "i1.png"], "instruction": "x", "mask": "m0.png"}
    with pytest.raises(Exception, match="has 1 bad row") as caught:
        read(write_jsonl(tmp_path / "t.jsonl", [row]), "flux2_klein")
    assert "2 input images and a mask, and Flux2KleinInpaintPipeline takes one" in str(caught.value)


@pytest.mark.parametrize(
    ("white", "seen"),
    [((9, 16), (False, False)), ((0, 1), (True, False)), ((0, 8), (True, True)), ((7, 8), (False, True))],
)
def test_a_hole_counts_where_the_pipeline_looks(white: tuple[int, int], seen: tuple[bool, bool]) -> None:
    """Of 8x8 pixels the first; FLUX.2-klein's takes the mean of the four in the middle of 16x16."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[slice(*white), slice(*white)] = 255
    found = [
        facts_of(Image.fromarray(pixels), Shape(64, 64), Reading(stretched, looks_at)).has_hole
        for looks_at in (MaskPixels(), MaskPixels(16, (7, 8)))
    ]
    assert found == list(seen)


def test_masks_are_stretched_as_their_images_are() -> None:
    """Not cut off at the sides, as in text to image: the pipeline does it with both."""
    pixels = np.zeros((64, 128), np.uint8)
    pixels[:, :16] = 255
    made = np.asarray(stretched(Image.fromarray(pixels), Shape(64, 64)))
    assert made[:, :8].all() and not made[:, 8:].any()


def test_another_size_is_refused_where_it_is_set_later(tmp_path: Path) -> None:
    """As `redo --set width=...` does."""
    save_images(tmp_path)
    rows = [
        {"input_images": "i0.png", "instruction": "x", "mask": "m0.png"},
        {"input_images": "i0.png", "instruction": "x"},
    ]
    masked, whole = read(write_jsonl(tmp_path / "t.jsonl", rows), "flux2_klein")
    checkpoint = as_editor(Checkpoint("fake", "fake", OTHER, {}, {}, False), "flux2_klein")
    config = EditingConfig(input=tmp_path / "t.jsonl", mask_column="mask")
    check_inputs(checkpoint, config, [masked, replace(whole, width=128)])
    with pytest.raises(InputError, match="has 1 bad row") as caught:
        check_inputs(checkpoint, config, [replace(masked, width=128)])
    assert "128x64 is asked for, and Flux2KleinInpaintPipeline draws i0.png at 64x64" in str(caught.value)
