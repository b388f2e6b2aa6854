"""Rows of prompts with images, masks and control images: what they become, and what is refused before a model is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Ended, dglaunch
from support.edit_images import picture
from support.input_tables import COLUMNS, CONTROL, mask, table
from support.results import ledger, run_json

STEPS = ("--num_inference_steps", "4")


def make(folder: Path, rows: list[dict[str, Any]], *words: str, out: str = "out") -> Ended:
    """A run of the fake backend, whose pipelines are said to be FLUX's."""
    path = table(folder, rows)
    named = {key for row in rows for key in row}
    every = list(words) or [word for key in ("image", "mask") if key in named for word in (f"--{key}_column", key)]
    if not words and "control" in named:
        every += [*CONTROL, "--controlnet", "any/net"]
    return dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", path, *STEPS, *every, "--output_dir", folder / out
    )  # fmt: skip


def refused(folder: Path, *rows: dict[str, Any], words: tuple[str, ...] = ()) -> str:
    ended = make(folder, list(rows), *words)
    assert ended.code == 2, ended.output
    assert not (folder / "out" / "metadata.jsonl").exists()
    return ended.output


def test_a_column_that_happens_to_be_called_image_is_carried_along(tmp_path: Path) -> None:
    rows = [{"prompt": "a fox", "image": "i0.png", "mask": "m0.png", "strength": 0.2, "control_image": "nothing"}]
    assert make(tmp_path, rows, "--seed", "3").code == 0
    (line,) = ledger(tmp_path / "out")
    # `image` is renamed, as the library `datasets` gives it another meaning.
    assert (line["row_image"], line["mask"], line["strength"]) == ("i0.png", "m0.png", 0.2)
    assert "input_sha256" not in line


def test_the_ledger_names_inputs_by_hash_and_says_what_was_used(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "image": "i0.png"},
        {"prompt": "b", "image": "i0.png", "mask": "m0.png", "strength": 0.75, "control": "c0.png", "control_scale": 0.5},
        {"prompt": "c"},
    ]  # fmt: skip
    ended = make(tmp_path, rows)
    assert ended.code == 0, ended.output
    first, second, third = ledger(tmp_path / "out")
    assert (first["input_images"], first["strength"], first["width"]) == (["i0.png"], 0.6, 64)
    assert first["input_sha256"] == second["input_sha256"] and len(second["mask_sha256"]) == 64
    assert (second["mask"], second["control_image"], second["control_scale"]) == ("m0.png", "c0.png", 0.5)
    assert "instruction" not in first and "control_scale" not in first
    assert not {"strength", "input_images", "mask"} & third.keys()
    assert "2 of 3 images are drawn with input images" in run_json(tmp_path / "out")["choices"]["inputs"]


def test_another_content_under_the_same_name_is_another_job(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "image": "i0.png", "mask": "m0.png", "control": "c0.png"}]
    assert make(tmp_path, rows).code == 0
    for name in ("i0", "m0", "c0"):
        kept = (tmp_path / f"{name}.png").read_bytes()
        (mask(2) if name == "m0" else picture(99)).save(tmp_path / f"{name}.png")
        command = ["t2i", "--backend", "fake", "--prompts_file", tmp_path / "t.jsonl", *STEPS, *COLUMNS, *CONTROL]
        ended = dglaunch(*command, "--controlnet", "any/net", "--output_dir", tmp_path / "out")
        assert ended.code == 2 and "_sha256" in ended.output, ended.output
        (tmp_path / f"{name}.png").write_bytes(kept)
    assert make(tmp_path, rows).code == 0, "the same again goes on"


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    table(tmp_path, [])
    picture(3, (100, 70)).save(tmp_path / "odd.png")
    Image.new("L", (64, 64)).save(tmp_path / "none.png")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"image": "i0.png", "mask": "none.png"}, "the mask none.png has no hole"),
        ({"image": "odd.png", "mask": "m0.png"}, "the mask m0.png is 64x64, and odd.png is 100x70"),
        ({"image": "i0.png", "control": "odd.png"}, "the control image odd.png is 100x70, and i0.png is 64x64"),
        ({"control": "odd.png", "width": 64, "height": 64}, "the control image odd.png is 100x70, and 64x64 is drawn"),
        ({"strength": 0.3}, "strength does nothing, as the row has no image"),
        ({"control_scale": 0.3}, "control_scale does nothing, as the row has no control"),
        ({"mask": "m0.png"}, "mask is given, and no image"),
        ({"image": "i0.png", "strength": 0}, "strength is 0, not a number above 0 and up to 1"),
        (
            {"image": "i0.png", "strength": 1},
            "from noise alone, and the image would not be looked at; give at most 0.75",
        ),
        ({"image": "i0.png", "strength": 0.2}, "less than one step, so nothing would be drawn; give 0.25 or more"),
        ({"control": "c0.png", "control_scale": 0}, "control_scale is 0, not a number above 0"),
        ({"image": ["i0.png", "i1.png"]}, "where a path is needed"),
    ]
    for some in (bad[:7], bad[7:]):
        said = refused(tmp_path, *({"prompt": "x", **row} for row, _ in some))
        assert f"has {len(some)} bad rows" in said
        for number, (_, words) in enumerate(some, 1):
            assert any(f"line {number}:" in line and words in line for line in said.splitlines()), (words, said)


def test_a_strength_that_rounds_to_all_steps_is_refused_too(tmp_path: Path) -> None:
    """Flux, Qwen, SD3 and Z-Image begin 4 steps at 0.8 with step 0, as at 1."""
    assert "give at most 0.75" in refused(tmp_path, {"prompt": "x", "image": "i0.png", "strength": 0.8})
    assert make(tmp_path, [{"prompt": "x", "image": "i0.png", "strength": 0.75}]).code == 0


def test_one_begins_with_all_of_its_steps_where_a_mask_keeps_the_rest(tmp_path: Path) -> None:
    assert make(tmp_path, [{"prompt": "x", "image": "i0.png", "mask": "m0.png", "strength": 1}]).code == 0


def test_a_broken_image_is_its_rows_failure(tmp_path: Path) -> None:
    table(tmp_path, [])
    (tmp_path / "torn.png").write_bytes((tmp_path / "i0.png").read_bytes()[:300])
    transparent = picture(1).convert("RGBA")
    transparent.putalpha(mask(0))
    transparent.save(tmp_path / "alpha.png")
    rows = [
        {"prompt": "a", "image": "gone.png"},
        {"prompt": "b", "image": "torn.png"},
        {"prompt": "c", "image": "i0.png", "mask": "alpha.png"},
        {"prompt": "d", "image": "i0.png"},
    ]
    assert make(tmp_path, rows).code == 3
    errors = {line["index"]: line["error"] for line in ledger(tmp_path / "out", "failures.jsonl")}
    assert "there is no file" in errors[0] and "torn" in errors[1] and "transparent in places" in errors[2]
    assert [line["index"] for line in ledger(tmp_path / "out")] == [3]


@pytest.mark.parametrize(
    ("sides", "drawn"),
    [({}, (100, 70)), ({"width": 40}, (40, 28)), ({"height": 35}, (50, 35)), ({"width": 64, "height": 32}, (64, 32))],
)
def test_the_size_that_is_drawn_follows_the_image_unless_the_row_says_it(
    tmp_path: Path, sides: dict[str, int], drawn: tuple[int, int]
) -> None:
    table(tmp_path, [])
    picture(3, (100, 70)).save(tmp_path / "odd.png")
    ended = make(tmp_path, [{"prompt": "x", "image": "odd.png", **sides}])
    assert ended.code == 0, ended.output
    (line,) = ledger(tmp_path / "out")
    assert (line["width"], line["height"]) == drawn
    assert ("odd.png is scaled to cover" in ended.output) == (drawn != (100, 70))


def test_grey_values_of_a_mask_are_told(tmp_path: Path) -> None:
    table(tmp_path, [])
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / "grey.png")
    ended = make(tmp_path, [{"prompt": "x", "image": "i0.png", "mask": "grey.png"}])
    assert ended.code == 0 and "grey values of grey.png is taken as white from 128 on" in ended.output
    Image.fromarray(np.full((64, 64), 127, np.uint8)).save(tmp_path / "dark.png")
    assert "no hole" in refused(tmp_path / "dark", {"prompt": "x", "image": "i0.png", "mask": "../dark.png"})


def test_a_hole_that_the_pipeline_would_not_see_is_none(tmp_path: Path) -> None:
    """It looks at one pixel of 8 x 8."""
    table(tmp_path, [])
    pixels = np.zeros((64, 64), np.uint8)
    pixels[9:15, 9:15] = 255
    Image.fromarray(pixels).save(tmp_path / "tiny.png")
    assert "at least 8x8 pixels" in refused(tmp_path, {"prompt": "x", "image": "i0.png", "mask": "tiny.png"})


def test_turned_photographs_have_the_size_that_one_sees(tmp_path: Path) -> None:
    table(tmp_path, [])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3, (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    assert make(tmp_path, [{"prompt": "x", "image": "turned.jpg"}]).code == 0
    (line,) = ledger(tmp_path / "out")
    assert (line["width"], line["height"]) == (32, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strength", "0.5"), "--strength would do nothing without --image_column"),
        (("--mask_column", "mask"), "--mask_column would do nothing without --image_column"),
        (("--control_column", "control"), "--control_column and --controlnet belong together"),
        (("--controlnet", "a/b"), "--control_column and --controlnet belong together"),
        (("--control_scale", "0.5"), "--control_scale would do nothing without --control_column"),
        (("--save_inputs",), "--save_inputs would do nothing without --image_column or --control_column"),
        (("--image_column", "image", "--strength", "0"), "--strength is 0; it must be above 0 and at most 1"),
        (("--image_column", "picture"), "has no such column"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, {"prompt": "x", "image": "i0.png", "mask": "m0.png"}, words=words)


def test_a_flag_is_for_rows_with_an_image_and_a_row_wins(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "image": "i0.png"}, {"prompt": "b", "image": "i1.png", "strength": "0.3"}, {"prompt": "c"}]
    ended = make(tmp_path, rows, "--image_column", "image", "--strength", "0.5")
    assert ended.code == 0, ended.output
    assert [line.get("strength") for line in ledger(tmp_path / "out")] == [0.5, 0.3, None]


def test_a_grid_varies_the_strength(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "image": "i0.png"}]
    ended = make(tmp_path, rows, "--image_column", "image", "--grid", "strength=0.3,0.6")
    assert ended.code == 0, ended.output
    assert [line["strength"] for line in ledger(tmp_path / "out")] == [0.3, 0.6]


def test_copies_of_the_inputs_are_kept_and_the_gallery_shows_them(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "image": "i0.png", "mask": "m0.png"}, {"prompt": "b"}]
    ended = make(tmp_path, rows, *COLUMNS, "--save_inputs", "--gallery")
    assert ended.code == 0, ended.output
    out = tmp_path / "out"
    assert (out / "inputs" / "000000_0.png").read_bytes() == (tmp_path / "i0.png").read_bytes()
    assert (out / "inputs" / "000000_1.png").read_bytes() == (tmp_path / "m0.png").read_bytes()
    assert "inputs/000000_0.png" in (out / "gallery.html").read_text()
    shutil.rmtree(out / "inputs")
    assert dglaunch("verify", out).code == 0


def test_rows_from_python_may_have_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch import BackendConfig, T2IConfig, t2i

    table(tmp_path, [])
    monkeypatch.chdir(tmp_path)
    config = T2IConfig(
        backend=BackendConfig(backend="fake"), prompts=[{"prompt": "a", "picture": "i0.png"}], image_column="picture",
        num_inference_steps=4, output_dir=tmp_path / "out",
    )  # fmt: skip
    assert t2i(config).exit_code == 0
    assert ledger(tmp_path / "out")[0]["input_images"] == ["i0.png"]


def test_an_api_says_that_it_draws_from_text_alone(tmp_path: Path) -> None:
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png"}])
    words = ["t2i", "--backend", "openai", "--model_name", "gpt-image-2", "--prompts_file", path]
    ended = dglaunch(*words, "--image_column", "image", "--output_dir", tmp_path / "out", OPENAI_API_KEY="sk-none")
    assert ended.code == 2 and "draws from text alone here; dglaunch edit sends it images" in ended.output, ended.output


def test_what_is_carried_stays_json(tmp_path: Path) -> None:
    assert make(tmp_path, [{"prompt": "x", "image": "i0.png", "tag": {"a": [1]}}]).code == 0
    assert json.dumps(ledger(tmp_path / "out")[0]["tag"]) == '{"a": [1]}'
