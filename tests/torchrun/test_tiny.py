"""The embedded checkpoint in the real FluxPipeline and FluxKontextPipeline: sizes, a quick evaluation, a training rehearsal."""

import json
import random

import pytest

from dglaunch.tiny import folder as tiny
from dglaunch.tiny.training import spec
from dglaunch.tiny.training.prompts import prompt

QUICK = 12


FLOORS = {"one": 0.85, "two": 0.85, "scene": 0.9, "object edit": 0.7, "scene edit": 0.85}
"""Below the measured shares by more than the spread of so few prompts."""


needs_weights = pytest.mark.skipif(not tiny.is_complete(tiny.WEIGHTS), reason="no trained weights in the package")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("cache"))


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # bfloat16 beside float32 norms, on a CPU only
def test_training_runs_stops_and_goes_on(tmp_path, monkeypatch):
    from dglaunch.tiny.training import train, train_data
    from dglaunch.tiny.training.team import Team

    monkeypatch.setattr(train_data, "SCALE_PICTURES", 32)
    settings = train.Settings(folder=tmp_path)
    settings.vae.steps, settings.vae.batch = 2, 2
    settings.data.pictures, settings.data.edits = 16, 16
    settings.flow.pictures, settings.flow.edits = 4, 4
    for settings.flow.steps in (2, 4):
        train.train(settings, Team())
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["first"] for event in events if event["event"] == "flow"] == [0, 2]
    assert tiny.is_complete(tmp_path / "weights")


def test_tokens(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    words = tokenizer.tokenize("A serene MOUNTAIN landscape at dusk, with a tiny grey ball in the upper-left corner!")
    assert words == ["mountain", "sunset", "small", "gray", "circle", "top", "left"]
    rng = random.Random(4)
    prompts = [prompt(rng, spec.sample(rng, kind)) for kind in ("one", "two", "scene") for _ in range(200)]
    assert max(len(ids) for ids in tokenizer(prompts).input_ids) <= tokenizer.model_max_length


def test_untrained_folder_is_built_once(tmp_path):
    from dglaunch.tiny import model

    first = model.build_untrained(tmp_path)
    stamp = (first / "model_index.json").stat().st_mtime_ns
    assert model.build_untrained(tmp_path) == first
    assert (first / "model_index.json").stat().st_mtime_ns == stamp
    assert tiny.is_complete(first)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
