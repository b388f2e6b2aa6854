"""How the newer text-to-image families are run, and what their plain pipelines are called with: nothing of dglaunch is in these calls.

case, model = CASES["sana"], build("sana", families / "sana")
t2i(model, tmp_path, *case.words)                 # three prompts in one batch
plain(model, case)                                # the same by diffusers, one by one
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from support.commands import Ended, dglaunch
from support.results import write_jsonl

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
    "pixart_alpha": Case(GUIDED, SCALE | {"use_resolution_binning": False}),
    "cogview4": Case(GUIDED, SCALE),
}
OF_TABLE = {
    "qwenimage21": "QwenImage21", "krea2": "Krea2", "ideogram4": "Ideogram4", "ernie_image": "ErnieImage",
    "chroma": "Chroma", "sana": "Sana", "hidream": "HiDream", "hunyuan_image": "HunyuanImage",
    "nucleusmoe": "NucleusMoE", "bria_fibo2": "BriaFibo2", "flux2_klein_kv": "Flux2KleinKV", "longcat": "LongCatImage",
    "hunyuan_dit": "HunyuanDiT", "prx": "PRX", "pixart_alpha": "PixArtAlpha", "cogview4": "CogView4",
}  # fmt: skip
"""A tiny checkpoint -> what the table of families calls it."""


def t2i(
    model: Path, folder: Path, *words: str | Path, side: int = 64, steps: int = 2, batch: int = 3,
    rows: Sequence[dict[str, Any]] = (),
) -> Ended:  # fmt: skip
    """Make an image of each prompt, or of each of these rows, in `folder / "out"`."""
    table = write_jsonl(folder / "p.jsonl", list(rows) or [{"prompt": prompt} for prompt in PROMPTS])
    size = ("--height", str(side), "--width", str(side), "--num_inference_steps", str(steps))
    command = ("t2i", "--model_name", model, "--prompts_file", table, "--batch_size", str(batch), *size, *words)
    return dglaunch(*command, "--cache_dir", folder / "cache", "--output_dir", folder / "out")


def plain(
    model: Path, case: Case, change: Callable[[Any], None] = nothing, *, rows: Sequence[dict[str, Any]] = (), steps: int = 2,
    before: Callable[[Any, int], None] = lambda _pipeline, _row: None,
) -> list[np.ndarray]:  # fmt: skip
    """Return the same images by diffusers alone, one prompt a call.

    Args:
        change: is called with the loaded pipeline.
        before: is called with it before each row, and the row's number.
    """
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    case.help(pipeline)
    change(pipeline)
    made = []
    for number, row in enumerate(rows or [{"prompt": prompt} for prompt in PROMPTS]):
        before(pipeline, number)
        given = {name: [value] if name == "negative_prompt" else value for name, value in case.plain.items()}
        generator = torch.Generator().manual_seed(row.get("seed", number))
        with torch.inference_mode():
            made += pipeline(
                prompt=[row["prompt"]], generator=generator, num_inference_steps=steps, height=case.side, width=case.side,
                output_type="np", **given,
            ).images.tolist()  # fmt: skip
    return [np.asarray(image)[..., :3] * 255 for image in made]  # QwenImage 2.1 draws RGBA
