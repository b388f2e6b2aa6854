"""The embedded checkpoint. Cheapest first: words and specs, drawings and their checker, the folder. What it draws is in
torchrun/test_tiny.py."""

import json
import random
from dataclasses import replace

import pytest
from PIL import Image

from dglaunch.tiny import folder as tiny
from dglaunch.tiny.training import checker, draw, spec
from dglaunch.tiny.training.edits import sample_edit
from support.commands import run_module

MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("cache"))


def test_import_is_cheap():
    ended = run_module("support.imported", "torch,diffusers,numpy", "import", "dglaunch.tiny")
    assert ended.code == 0, ended.output


@pytest.mark.parametrize("kind", ["one", "two", "scene"])
def test_split_is_disjoint_and_stable(kind):
    rng = random.Random(1)
    seen = {spec.split_key(spec.sample(rng, kind)).__repr__() for _ in range(500)}
    unseen = {spec.split_key(spec.sample(rng, kind, is_held_out=True)).__repr__() for _ in range(200)}
    assert not seen & unseen


def test_edits_stay_on_their_side_of_the_split():
    rng = random.Random(2)
    assert not any(spec.held_out(sample_edit(rng)) for _ in range(200))
    assert all(spec.held_out(sample_edit(rng, is_held_out=True)) for _ in range(50))


def test_a_seed_names_a_picture():
    one, other = (spec.sample(random.Random("x"), "scene") for _ in range(2))
    assert one == other
    assert draw.picture(one, 64).tobytes() == draw.picture(other, 64).tobytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"color": "pink"}, "color"),
        ({"shape": "cross"}, "shape"),
        ({"size": "small"}, "size"),
        ({"row": 2}, "position"),
    ],
)
def test_the_checker_names_what_is_wrong(change, what):
    thing = spec.Object("circle", "red", "large", 0, 0)
    wanted = spec.Objects("blue", (thing,))
    picture = draw.picture(spec.Objects("blue", (replace(thing, **change),)), 64)
    result = checker.objects(picture, wanted)
    assert [name for name, right in result.items() if not right] == [what, "all"]


def test_the_checker_sees_a_missing_object_and_another_background():
    thing, other = spec.Object("star", "red", "large", 0, 0), spec.Object("heart", "white", "small", 2, 2)
    wanted = spec.Objects("blue", (thing, other))
    assert not checker.objects(draw.picture(spec.Objects("blue", (thing,)), 64), wanted)["number"]
    assert not checker.objects(draw.picture(spec.Objects("green", (thing, other)), 64), wanted)["background"]
    assert not checker.objects(Image.new("RGB", (64, 64), "blue"), wanted)["all"]


def test_folder_is_small_and_safetensors_only(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {"height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"} <= set(
        json.loads((folder / "dglaunch.json").read_text())
    )
