"""In the place of the image processor of Qwen2-VL and Qwen2.5-VL, when none is on this machine: it makes the right number of patches
and tokens, and no pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IMAGE_MARK = "<|image_pad|>"
"""Where an image stands in a text."""
PIXELS = (3136, 12_845_056)
"""The least and most that an image keeps (preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct)."""
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
"""As transformers calls the models that see so."""
Grid = tuple[int, int, int]
"""Patches of an image: in time, from top to bottom, from left to right."""


@dataclass(frozen=True, slots=True)
class Vision:
    """How a text encoder sees images: cut into patches, of which each square of merged ones is a token of the text."""

    image_token: int
    """Its id."""
    channels: int
    patch_size: int
    """Pixels."""
    merge_size: int
    """Patches on a side of a square."""
    frames: int
    """How often an image is repeated, as if it were a video."""

    @classmethod
    def of(cls, config: Any) -> "Vision | None":
        """How the encoder with a configuration of transformers sees; None: it does not, or in another way."""
        if config.model_type not in MODEL_TYPES:
            return None
        vision = config.vision_config
        sizes = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        return cls(config.image_token_id, vision.in_channels, *sizes)

    def __call__(self, images: Any, **_: object) -> dict[str, torch.Tensor]:
        """What the processor makes of images of PIL: the patches of all of them, each a row of values, and their grids."""
        grids = self.grids(images)
        patches = sum(rows * columns for _, rows, columns in grids)
        values = self.channels * self.frames * self.patch_size**2
        return {"pixel_values": torch.zeros(patches, values), "image_grid_thw": torch.tensor(grids)}

    def grids(self, images: Any) -> list[Grid]:
        """The image is scaled to whole squares, its pixels within PIXELS."""
        found = []
        for image in images if isinstance(images, list | tuple) else [images]:
            square, least, most = self.patch_size * self.merge_size, *PIXELS
            rows, columns = round(image.height / square), round(image.width / square)
            if not least <= rows * columns * square**2 <= most:
                into, whole = (least, math.ceil) if rows * columns * square**2 < least else (most, math.floor)
                scale = math.sqrt(into / (image.height * image.width)) / square
                rows, columns = max(1, whole(image.height * scale)), max(1, whole(image.width * scale))
            found.append((1, rows * self.merge_size, columns * self.merge_size))
        return found

    def num_tokens(self, grids: Sequence[Grid]) -> int:
        return sum(rows * columns for _, rows, columns in grids) // self.merge_size**2
