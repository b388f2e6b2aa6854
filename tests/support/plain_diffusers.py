"""Images by diffusers itself, one by one, to compare a run of dglaunch with: nothing of dglaunch is in these calls.

plain = plain_images("flux", families / "flux", change=lambda pipeline: ...)
made = made_images("flux", families / "flux", tmp_path / "out", "--scheduler", "UniPC")
measured("Flux", "scheduler", apart(plain, made))
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.commands import dglaunch
from support.edit_images import picture
from support.results import images, write_jsonl

PROMPTS = ["a red cat", "two blue dogs on the moon"]
SIDE = 64
STEPS = 4
GUIDED: dict[str, dict[str, Any]] = {
    "sd3": {"guidance_scale": 4.0},
    "pixart_sigma": {"guidance_scale": 4.0},
    "zimage": {"guidance_scale": 4.0},
    "sdxl": {"guidance_scale": 4.0},
    "lumina2": {"guidance_scale": 4.0, "negative_prompt": "ugly"},
    "qwenimage": {"guidance_scale": 4.0, "negative_prompt": "ugly"},
}
EDITS = {
    "flux_kontext": {"_auto_resize": False, "max_area": SIDE * SIDE},
    "qwenimage_edit": {},
    "qwenimage_edit_plus": {},
    "longcat_edit": {},
}
"""Families that need an input image, and what else their call gets."""
OF_TABLE = {
    "flux": "Flux", "flux2": "Flux2", "flux2_klein": "Flux2Klein", "qwenimage": "QwenImage", "zimage": "ZImage",
    "sd3": "SD3", "pixart_sigma": "PixArtSigma", "lumina2": "Lumina2", "glm_image": "GlmImage", "sdxl": "SDXL",
    "flux_kontext": "FluxKontext", "qwenimage_edit": "QwenImageEdit", "qwenimage_edit_plus": "QwenImageEditPlus",
    "longcat_edit": "LongCatImageEdit",
}  # fmt: skip
"""A tiny checkpoint -> what the table of families calls it."""


def plain_images(family: str, folder: Path, change: Callable[[Any], None], steps: int = STEPS) -> list[np.ndarray]:
    """Return the image of each prompt.

    Args:
        change: is called with the loaded pipeline.
    """
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    change(pipeline)
    call: dict[str, Any] = dict(GUIDED.get(family, {}))
    if family == "qwenimage":
        call["true_cfg_scale"] = call.pop("guidance_scale")
    if family == "pixart_sigma":
        call["use_resolution_binning"] = False
    if family != "longcat_edit":
        call |= {"height": SIDE, "width": SIDE}
    if family in EDITS:
        call |= EDITS[family] | {"image": picture(1, (SIDE, SIDE))}
    made = []
    for seed, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(seed)
        output = pipeline(prompt=prompt, num_inference_steps=steps, generator=generator, **call)
        made.append(np.asarray(output.images[0].convert("RGB")))
    return made


def words_for(family: str, model: Path | str, folder: Path, steps: int = STEPS) -> list[str | Path]:
    """Return the command that makes the same images; its table and input images are written beside `folder`."""
    guided = [word for name, value in GUIDED.get(family, {}).items() for word in (f"--{name}", str(value))]
    words = ["--model_name", model, "--num_inference_steps", str(steps), *guided, "--output_dir", folder]
    if family != "longcat_edit":
        words += ["--height", str(SIDE), "--width", str(SIDE)]
    table = folder.with_suffix(".jsonl")
    if family not in EDITS:
        return ["t2i", "--prompts_file", write_jsonl(table, [{"prompt": prompt} for prompt in PROMPTS]), *words]
    picture(1, (SIDE, SIDE)).save(folder.with_suffix(".png"))
    rows = [{"instruction": prompt, "input_images": f"{folder.name}.png"} for prompt in PROMPTS]
    return ["edit", "--input", write_jsonl(table, rows), *words]


def made_images(
    family: str, model: Path | str, folder: Path, *words: str | Path, steps: int = STEPS
) -> list[np.ndarray]:
    """Return the images of a run in this process that has to succeed."""
    ended = dglaunch(*words_for(family, model, folder, steps), *words)
    assert ended.code == 0, ended.output
    return list(images(folder).values())


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Return the greatest difference of a pixel, in [0, 1]."""
    assert len(one) == len(other) and one
    return max(float(abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(one, other, strict=True)) / 255
