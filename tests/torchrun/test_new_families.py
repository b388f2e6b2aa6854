"""The newer text-to-image families: what dglaunch draws in batches is what their plain pipelines draw one by one.

One process. `make soak` tries all of them; always run are one whose pipeline would rewrite prompts at random, and refusals.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from dglaunch import BackendConfig
from dglaunch.models.checkpoint import resolve
from support.commands import Ended, dglaunch
from support.results import images, ledger, write_jsonl
from support.selection import rarely
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)

PROMPTS = ["a red cat", "two blue dogs on the moon, at night, in the rain", "x"]
TOLERANCE = 2
"""Of 255."""
NEGATIVE = ("--negative_prompt", "ugly")
GUIDED = ("--guidance_scale", "4", *NEGATIVE)


def nothing(_pipeline: Any) -> None:
    """Most pipelines need no help."""


def keep_area(pipeline: Any) -> None:
    pipeline.default_sample_size = 8 * (1 + 1e-9)


@dataclass(frozen=True)
class Case:
    """How a family is run, and what its plain pipeline is called with beside prompt, seed, size and steps."""

    words: tuple[str, ...] = ()
    plain: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    help: Callable[[Any], None] = nothing


SCALE = {"guidance_scale": 4.0, "negative_prompt": "ugly"}
CASES = {
    "qwenimage21": Case(GUIDED, {"true_cfg_scale": 4.0, "negative_prompt": "ugly"}),
    "krea2": Case(GUIDED, SCALE),
    "ideogram4": Case(
        ("--guidance_scale", "4", "--max_sequence_length", "96"),
        {"guidance_scale": 4.0, "guidance_schedule": None, "max_sequence_length": 96},
    ),
    "ernie_image": Case(GUIDED, SCALE | {"use_pe": False}),
    "chroma": Case((*GUIDED, "--max_sequence_length", "96"), SCALE | {"max_sequence_length": 96}),
    "sana": Case(GUIDED, SCALE | {"use_resolution_binning": False}),
    "hidream": Case(GUIDED, SCALE, help=keep_area),
    "hunyuan_image": Case(NEGATIVE, {"negative_prompt": "ugly"}),
    "hunyuan_image_distilled": Case(("--guidance_scale", "4"), {"distilled_guidance_scale": 4.0}),
    "nucleusmoe": Case(GUIDED, SCALE),
    "bria_fibo2": Case(GUIDED, SCALE),
    "flux2_klein_kv": Case(("--max_sequence_length", "64"), {"max_sequence_length": 64}),
    "longcat": Case(GUIDED, SCALE | {"enable_prompt_rewrite": False}),
    "sdxl": Case(GUIDED, SCALE),
    "hunyuan_dit": Case(GUIDED, SCALE | {"use_resolution_binning": False}),
    "prx": Case(GUIDED, SCALE | {"use_resolution_binning": False}),
}
OFTEN = ("ernie_image",)


def t2i(model: Path, folder: Path, *words: str, side: int = 64, steps: int = 2) -> Ended:
    table = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    size = ("--height", str(side), "--width", str(side), "--num_inference_steps", str(steps))
    command = ("t2i", "--model_name", model, "--prompts_file", table, "--batch_size", "3", *size, *words)
    return dglaunch(*command, "--cache_dir", folder / "cache", "--output_dir", folder / "out")


def one_by_one(model: Path, case: Case) -> list[np.ndarray]:
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    case.help(pipeline)
    made = []
    for seed, prompt in enumerate(PROMPTS):
        given = {name: [value] if name == "negative_prompt" else value for name, value in case.plain.items()}
        with torch.inference_mode():
            made += pipeline(
                prompt=[prompt], generator=torch.Generator().manual_seed(seed), num_inference_steps=2,
                height=case.side, width=case.side, output_type="np", **given,
            ).images.tolist()  # fmt: skip
    return [np.asarray(image) * 255 for image in made]


@pytest.mark.parametrize("family", rarely(CASES, set(CASES) - set(OFTEN)))
def test_a_batch_is_what_the_plain_pipeline_draws_one_by_one(families: Path, tmp_path: Path, family: str) -> None:
    case, model = CASES[family], build(family, families / family)
    ended = t2i(model, tmp_path, *case.words, side=case.side)
    assert ended.code == 0, ended.output
    assert "no row in dglaunch's table" not in ended.output
    found, expected = list(images(tmp_path / "out").values()), one_by_one(model, case)
    apart = [np.abs(a.astype(float) - b[..., :3]).max() for a, b in zip(found, expected)]  # QwenImage 2.1 draws RGBA
    assert len(found) == len(PROMPTS) and max(apart) <= TOLERANCE, apart
    assert np.abs(found[0].astype(int) - found[1]).max() > 10 * TOLERANCE, "else the comparison could not fail"
    batch = 3 if resolve(BackendConfig(model_name=str(model))).family.batch else 1
    assert {line["batch_size"] for line in ledger(tmp_path / "out")} == {batch}


REFUSED = [
    ("flux2_klein_kv", ("--guidance_scale", "4"), "the call of Flux2KleinKVPipeline has no parameter for it"),
    ("flux2_klein_kv", NEGATIVE, "Flux2KleinKVPipeline takes none"),
    ("qwenimage21", ("--guidance_scale", "4"), "guidance scale but no negative prompt"),
    ("qwenimage21", ("--height", "80"), "multiple"),
    ("ideogram4", (), "is a schedule of 48 steps"),
    ("ideogram4", NEGATIVE, "Ideogram4Pipeline takes none"),
    ("hunyuan_image", ("--guidance_scale", "4"), "does not look at it (guidance_embeds"),
    ("hunyuan_image_distilled", NEGATIVE, "takes none without a guider, and this checkpoint has none"),
]


@pytest.mark.parametrize(
    ("family", "words", "said"), rarely(REFUSED, [each for each in REFUSED if each[0] != "flux2_klein_kv"])
)
def test_what_would_do_nothing_is_refused(
    families: Path, tmp_path: Path, family: str, words: tuple[str, ...], said: str
) -> None:
    """QwenImage 2.1 and FLUX.2-klein-KV lose guidance without a word, as plain diffusers have them."""
    ended = t2i(build(family, families / family), tmp_path, *words)
    assert ended.code == 2 and said in " ".join(ended.output.split()), ended.output


def test_a_package_that_a_pipeline_needs_is_asked_for_before_it_is_loaded(
    families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRX's call ends with a NameError otherwise."""
    model = build("prx", families / "prx")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    ended = t2i(model, tmp_path)
    assert ended.code == 2 and "pip install 'dglaunch[prx]'" in ended.output, ended.output
