"""Families that xfuser does not run: dglaunch's images are plain diffusers', alone and in a batch, prompts ahead and inline."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dglaunch.config import BackendConfig
from dglaunch.models.checkpoint import resolve
from support.commands import dglaunch
from support.family_runs import DIFFERENT_LENGTHS, GUIDED, SIZE, UNSPLIT
from support.results import difference, images, write_jsonl
from support.tiny_models import build

TOLERANCE = 2
"""Of 255."""


@pytest.mark.parametrize("family", UNSPLIT)
def test_the_images_are_plain_diffusers(tmp_path: Path, families: Path, family: str) -> None:
    model, words = build(family, families / family), [*SIZE, *GUIDED.get(family, [])]
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in DIFFERENT_LENGTHS])
    ways = {"alone": ["--batch_size", "1", "--encode", "inline"], "batch": ["--batch_size", "4", "--encode", "inline"]}
    if resolve(BackendConfig(model_name=str(model))).family.text_outputs:
        ways["ahead"] = ["--batch_size", "4", "--encode", "ahead"]
    for name, way in ways.items():
        command = ["t2i", "--model_name", model, *words, *way, "--prompts_file", table]
        ended = dglaunch(*command, "--output_dir", tmp_path / name)
        assert ended.code == 0, ended.output
        assert difference(tmp_path / name, tmp_path / "alone") <= TOLERANCE, name
    drawn = list(images(tmp_path / "alone").values())
    for seed, (image, expected) in enumerate(zip(drawn, _by_diffusers(model, words), strict=True)):
        assert np.abs(image.astype(int) - expected.astype(int)).max() <= TOLERANCE, f"image {seed}"
    assert min(np.abs(a.astype(int) - b.astype(int)).max() for a, b in pairwise(drawn)) > 10 * TOLERANCE, (
        "other prompts and seeds must give other images, or the comparisons of this test could not fail"
    )


def _by_diffusers(model: Path, words: list[str]) -> list[np.ndarray]:
    """The same by diffusers alone, one prompt a call."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}
    arguments = {name: value if name == "negative_prompt" else json.loads(value) for name, value in given.items()}
    made = []
    for seed, prompt in enumerate(DIFFERENT_LENGTHS):
        generator = torch.Generator("cpu").manual_seed(seed)
        made.append(np.asarray(pipeline(prompt, generator=generator, **arguments).images[0]))
    return made
