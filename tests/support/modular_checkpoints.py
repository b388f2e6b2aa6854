"""Tiny checkpoints of diffusers' modular pipelines, and the images that diffusers alone draws with them, one by one.

folder = modular(families, "flux")
drawn = by_diffusers(folder, [{"prompt": "a red cat"}], scales=[4.0])
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny_models import build, once

INDEX = "modular_model_index.json"


def modular(families: Path, family: str) -> Path:
    """Return the modular checkpoint with the networks of a family's ordinary one; its parts lie in its folder."""
    ordinary = build(family, families / family)
    return once(families / f"{family}_modular", lambda empty: _save(ordinary, empty))


def _save(ordinary: Path, folder: Path) -> None:
    import torch
    from diffusers import ModularPipeline

    pipeline = ModularPipeline.from_pretrained(str(ordinary))
    pipeline.load_components(torch_dtype=torch.float32)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)


def index_of(folder: Path) -> dict[str, Any]:
    """Return its modular_model_index.json."""
    found: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return found


def write_index(folder: Path, index: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps(index))


def by_diffusers(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    scales: Sequence[float | None] = (),
    tiled: bool = False,
    **arguments: Any,
) -> list[np.ndarray]:
    """Return what diffusers' own call draws of each row, one a call, with the seeds that dglaunch gives.

    Args:
        scales: the guider's, of each row; None: its own.
        tiled: whether the VAE decodes in tiles.
        arguments: of each call.
    """
    import torch
    from diffusers import ModularPipeline

    pipeline = ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components(torch_dtype=torch.float32)
    if tiled:
        pipeline.vae.enable_tiling()
    own, made = getattr(pipeline, "guider", None), []
    for number, (row, scale) in enumerate(zip(rows, scales or [None] * len(rows), strict=True)):
        given = {name: [value] if isinstance(value, str) else value for name, value in (row | arguments).items()}
        if scale is not None:
            pipeline.update_components(guider=own.new(guidance_scale=scale))
        generator = [torch.Generator().manual_seed(given.pop("seed", number))]
        made.append(np.asarray(pipeline(generator=generator, output="images", **given)[0].convert("RGB")))
    return made
