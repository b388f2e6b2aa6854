"""Tiny random ControlNets, one for each checkpoint of `tiny_models` that takes one, saved as diffusers folders.

    build_controlnet("flux", folder)       # FluxControlNetModel: config.json and safetensors

Real ones begin as zeros and then learn; these have random weights everywhere, so that they change the image.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import nn

from support.tiny_models import HEAD_DIM, HEADS, NARROW_ROPE, ROPE, TRANSFORMER, WIDTH, narrow, randomise, sdxl


def _flux() -> nn.Module:
    return diffusers.FluxControlNetModel(
        **TRANSFORMER,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=ROPE,
    )


def _qwenimage() -> nn.Module:
    return diffusers.QwenImageControlNetModel(
        **narrow(24) | {"num_layers": 1}, joint_attention_dim=WIDTH, axes_dims_rope=NARROW_ROPE
    )


def _zimage() -> nn.Module:
    return diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=16,
        dim=30 * sum(NARROW_ROPE),
        n_refiner_layers=1,
        n_heads=30,
        n_kv_heads=30,
    )


def _sdxl() -> nn.Module:
    return diffusers.ControlNetModel.from_unet(sdxl().unet, conditioning_embedding_out_channels=(4, 8, 8, 8))


def _sd3() -> nn.Module:
    return diffusers.SD3ControlNetModel(
        **narrow(38, head_dim=4) | {"num_layers": 1},
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=38 * 4,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )


def _sana() -> nn.Module:
    return diffusers.SanaControlNetModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=1,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=HEADS * HEAD_DIM,
        caption_channels=WIDTH,
        sample_size=8,
    )


CONTROLNETS: dict[str, Callable[[], nn.Module]] = {
    "flux": _flux, "qwenimage": _qwenimage, "zimage": _zimage, "sdxl": _sdxl, "sd3": _sd3, "sana": _sana,
}  # fmt: skip
"""By the checkpoint of `tiny_models`."""


def build_controlnet(family: str, folder: Path) -> Path:
    """Write the ControlNet for a family's checkpoint to `folder`, unless it is there already."""
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            with torch.random.fork_rng():
                torch.manual_seed(1)
                controlnet = CONTROLNETS[family]()
                randomise(controlnet)
                controlnet.save_pretrained(temporary)
            os.replace(temporary, folder)
    return folder
