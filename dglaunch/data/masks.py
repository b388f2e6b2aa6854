"""Masks: white is painted anew, black stays. What a mask says is known from its pixels, so they are looked at before the run.

look_at([(mask, {Shape(1024, 768)})], max_pixels)      # by mask and size: a MaskFacts, or why it cannot be used
as_mask(image, Shape(1024, 768))                        # what the pipeline gets: black and white, of the output's size
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dglaunch.config import MAX_PIXELS
from dglaunch.data.images import BadImage, InputImage, damage_is_a_bad_image, decode, fitted, open_image
from dglaunch.models.input_roles import LATENT
from dglaunch.models.shape import Shape

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = 128
"""From this grey on a pixel is white: where diffusers' pipelines cut, too (127 is black)."""


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What a mask says at the size at which it is used."""

    has_hole: bool
    """Whether anything of it is painted anew: a pipeline looks at one pixel of 8x8."""
    is_grey: bool
    """Whether it has values between black and white."""


def as_mask(image: "Image", shape: Shape) -> "Image":
    """Return a mask in black and white, of the size of what is drawn."""
    from PIL import Image

    black_and_white = _cut(image.convert("L"))
    if black_and_white.size == (shape.width, shape.height):
        return black_and_white
    return _cut(fitted(black_and_white, shape, Image.Resampling.BILINEAR))


def _cut(grey: "Image") -> "Image":
    return grey.point([0] * WHITE + [255] * (256 - WHITE))


def facts_of(image: "Image", shape: Shape) -> MaskFacts:
    """Return what a decoded mask says at a size."""
    import numpy as np

    levels = image.convert("L").histogram()
    mask = as_mask(image, shape)
    seen = np.asarray(mask)[::LATENT, ::LATENT]
    return MaskFacts(has_hole=bool(seen.any()), is_grey=sum(levels[1:255]) > 0)


def look_at(
    masks: Mapping[InputImage, Iterable[Shape]], max_pixels: int = MAX_PIXELS
) -> dict[tuple[InputImage, Shape], MaskFacts | BadImage]:
    """Decode each mask once, several at a time, and say what it is at the sizes at which it is used."""

    def one(mask: InputImage) -> dict[tuple[InputImage, Shape], MaskFacts | BadImage]:
        try:
            image = _opaque(mask.read(), max_pixels)
        except BadImage as error:
            return {(mask, shape): error for shape in masks[mask]}
        return {(mask, shape): facts_of(image, shape) for shape in masks[mask]}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {key: facts for found in pool.map(one, masks) for key, facts in found.items()}


def _opaque(data: bytes, max_pixels: int) -> "Image":
    with damage_is_a_bad_image():
        image = open_image(data, max_pixels)
        if image.has_transparency_data and any(image.convert("RGBA").getchannel("A").histogram()[:255]):
            raise BadImage(
                "is transparent in places, which no pipeline here looks at; save it without transparency, white where the "
                "image is to be painted anew"
            )
    return decode(data, max_pixels)
