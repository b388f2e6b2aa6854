"""The embedded checkpoint. Cheapest first: words and specs, drawings and their checker, the folder, the pipelines, a
quick evaluation of the shipped weights through the real FluxPipeline and FluxKontextPipeline, a training rehearsal."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dglaunch.tiny import folder as tiny
from dglaunch.tiny.training import checker, draw, spec
from dglaunch.tiny.training.edits import sample_edit
from dglaunch.tiny.training.prompts import prompt

MAX_BYTES = 8_000_000
QUICK = 24
FLOORS = {"one": 0.85, "two": 0.85, "scene": 0.9, "object edit": 0.7, "scene edit": 0.85}
"""Below the measured shares by more than the spread of so few prompts."""

needs_weights = pytest.mark.skipif(not tiny.is_complete(tiny.WEIGHTS), reason="no trained weights in the package")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("cache"))


def test_import_is_cheap():
    code = "import sys, dglaunch.tiny; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 128)])
def test_drawn_objects_pass_the_checker_at_any_size(size):
    rng = random.Random(3)
    items = [spec.sample(rng, kind) for kind in ("one", "two") for _ in range(30)]
    assert np.mean([checker.objects(draw.picture(item, *size), item)["all"] for item in items]) >= 0.95


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


def test_the_checker_against_the_drawing_code():
    scores = checker.self_test(count=60)
    for name, share in scores.items():
        assert share >= 0.97 if name.endswith("right") else share <= 0.1, scores


def test_tokens(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    words = tokenizer.tokenize("A serene MOUNTAIN landscape at dusk, with a tiny grey ball in the upper-left corner!")
    assert words == ["mountain", "sunset", "small", "gray", "circle", "top", "left"]
    rng = random.Random(4)
    prompts = [prompt(rng, spec.sample(rng, kind)) for kind in ("one", "two", "scene") for _ in range(200)]
    assert max(len(ids) for ids in tokenizer(prompts).input_ids) <= tokenizer.model_max_length


def test_folder_is_small_and_safetensors_only(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {"height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"} <= set(
        json.loads((folder / "dglaunch.json").read_text())
    )


def test_untrained_folder_is_built_once(tmp_path):
    from dglaunch.tiny import model

    first = model.build_untrained(tmp_path)
    stamp = (first / "model_index.json").stat().st_mtime_ns
    assert model.build_untrained(tmp_path) == first
    assert (first / "model_index.json").stat().st_mtime_ns == stamp
    assert tiny.is_complete(first)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize("size", [(64, 64), (80, 48)])
def test_both_pipelines_draw_at_multiples_of_16(folder, size):
    import torch

    from dglaunch.tiny.training.evaluate import Evaluation

    evaluation = Evaluation(folder, steps=2)
    width, height = size
    shape = {"width": width, "height": height, "max_sequence_length": 32, "num_inference_steps": 2}
    seeded = {"generator": torch.Generator().manual_seed(0)}
    image = evaluation.pipeline("a red circle", **shape, **seeded).images[0]
    assert image.size == size
    edited = evaluation.kontext(
        image=image, prompt="make the circle green", _auto_resize=False, max_area=width * height, **shape, **seeded
    )
    assert edited.images[0].size == size


@needs_weights
def test_quick_evaluation_reaches_a_floor(folder):
    from dglaunch.tiny.training.evaluate import Evaluation

    scores, _ = Evaluation(folder).run(QUICK)
    assert {kind: score.share() for kind, score in scores.items() if score.share() < FLOORS[kind]} == {}


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # bfloat16 beside float32 norms, on a CPU only
def test_training_runs_stops_and_goes_on(tmp_path):
    from dglaunch.tiny.training import train
    from dglaunch.tiny.training.team import Team

    settings = train.Settings(folder=tmp_path)
    settings.vae.steps, settings.vae.batch = 2, 2
    settings.data.pictures, settings.data.edits = 64, 64
    settings.flow.pictures, settings.flow.edits = 4, 4
    for settings.flow.steps in (2, 4):
        train.train(settings, Team())
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["first"] for event in events if event["event"] == "flow"] == [0, 2]
    assert tiny.is_complete(tmp_path / "weights")
