"""Masks: white is painted anew, black stays. What a mask says is known from its pixels, so they are looked at before the run.

Looking(max_pixels).problems_of(tasks, label_of)        # what is wrong with the masks of rows
look_at({mask: [Shape(1024, 768)]}, max_pixels)         # by mask and size: a MaskFacts, or why it cannot be used
as_mask(image, Shape(1024, 768))                        # what t2i's pipelines get: black and white, of the output's size
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dglaunch.config import MAX_PIXELS
from dglaunch.data.images import BadImage, InputImage, damage_is_a_bad_image, decode, fitted, open_image
from dglaunch.data.task import Task
from dglaunch.models.input_roles import MaskPixels
from dglaunch.models.shape import Shape

if TYPE_CHECKING:
    from PIL.Image import Image

    Fit = Callable[[Image, Shape], Image]
    """Brings a mask to the size of what is drawn, in black and white."""

WHITE = 128
"""From this grey on a pixel is white: where diffusers' pipelines cut, too (127 is black)."""


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What a mask says at the size at which it is used."""

    has_hole: bool
    """Whether anything of it is painted anew: a pipeline looks at some of its pixels only."""
    is_grey: bool
    """Whether it has values between black and white."""


def as_mask(image: "Image", shape: Shape) -> "Image":
    """Return a mask in black and white, of the size of what is drawn."""
    from PIL import Image

    mask = black_and_white(image)
    if mask.size == (shape.width, shape.height):
        return mask
    return black_and_white(fitted(mask, shape, Image.Resampling.BILINEAR))


def stretched(image: "Image", shape: Shape) -> "Image":
    """Return a mask as the pipelines that edit bring it to their size, in the way in which they do it with its image."""
    from PIL import Image

    return black_and_white(black_and_white(image).resize((shape.width, shape.height), Image.Resampling.LANCZOS))


def black_and_white(image: "Image") -> "Image":
    """Return a mask in black and white, at its own size."""
    return image.convert("L").point([0] * WHITE + [255] * (256 - WHITE))


@dataclass(frozen=True, slots=True)
class Reading:
    """How a pipeline reads a mask: how it comes to the size of what is drawn, and at which of its pixels the pipeline looks."""

    fit: "Fit"
    pixels: MaskPixels


OF_PROMPTS = Reading(as_mask, MaskPixels())
"""In text to image."""


def facts_of(image: "Image", shape: Shape, reading: Reading = OF_PROMPTS) -> MaskFacts:
    """Return what a decoded mask says at a size."""
    import numpy as np

    levels = image.convert("L").histogram()
    mask, pixels = np.asarray(reading.fit(image, shape)), reading.pixels
    rows, columns = (
        [at for at in range(length) if at % pixels.side in pixels.places] for length in (shape.height, shape.width)
    )
    return MaskFacts(has_hole=bool(mask[np.ix_(rows, columns)].any()), is_grey=sum(levels[1:255]) > 0)


class Looking:
    """The masks of a table's rows, each looked at once at each size at which it is used."""

    def __init__(self, max_pixels: int, reading: Reading = OF_PROMPTS) -> None:
        self.max_pixels = max_pixels
        self.reading = reading
        self.grey: dict[str, None] = {}
        """The names of those that have greys."""
        self._facts: dict[tuple[InputImage, Shape], MaskFacts | BadImage] = {}

    def problems_of(self, tasks: Iterable[Task], label_of: Callable[[Task], str]) -> Iterator[str]:
        """Decode the masks of tasks and yield what is wrong with them; one that cannot be used is its task's error."""
        wanted: dict[InputImage, dict[Shape, None]] = {}
        used: list[tuple[Task, InputImage, Shape]] = []
        for task in tasks:
            if task.mask is not None and task.height and task.width:
                shape = Shape(task.height, task.width)
                if (task.mask, shape) not in self._facts:
                    wanted.setdefault(task.mask, {})[shape] = None
                used.append((task, task.mask, shape))
        self._facts |= look_at(wanted, self.max_pixels, self.reading)
        side = self.reading.pixels.side
        for task, mask, shape in used:
            found = self._facts[mask, shape]
            if isinstance(found, BadImage):
                task.error = f"{task.row}: mask {mask.name} {found}"
            elif not found.has_hole:
                yield (
                    f"{label_of(task)}: the mask {mask.name} has no hole: nothing of it is white (of grey {WHITE} or more, at "
                    f"least {side}x{side} pixels), so nothing would be painted anew"
                )
            elif found.is_grey:
                self.grey[mask.name] = None


def told_of_grey(names: Iterable[str]) -> str:
    """Say how masks with greys are taken."""
    return f"grey values of {some(names)} taken as white from {WHITE} on, else as black"


def some(names: Iterable[str]) -> str:
    """Return the first of some names and the number of the others, as the beginning of a sentence about them."""
    first, *others = names
    return f"{first} and {len(others):,} more are" if others else f"{first} is"


def look_at(
    masks: Mapping[InputImage, Iterable[Shape]], max_pixels: int = MAX_PIXELS, reading: Reading = OF_PROMPTS
) -> dict[tuple[InputImage, Shape], MaskFacts | BadImage]:
    """Decode each mask once, several at a time, and say what it is at the sizes at which it is used."""

    def one(mask: InputImage) -> dict[tuple[InputImage, Shape], MaskFacts | BadImage]:
        try:
            image = _opaque(mask.read(), max_pixels)
        except BadImage as error:
            return {(mask, shape): error for shape in masks[mask]}
        return {(mask, shape): facts_of(image, shape, reading) for shape in masks[mask]}

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
