"""What an editing family does with its input images: at what sizes it works, and which rows share a call.

The rules stand as `edit=` in the rows of families.py; here are their type and the arithmetic of sizes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dglaunch.models.input_roles import InputPipeline
from dglaunch.models.shape import Shape

Rule = Callable[[Shape, Mapping[str, object]], Shape]
"""A shape from that of an input image and the checkpoint's own defaults."""
Image = TypeVar("Image")

MEGAPIXEL = 1024 * 1024
KONTEXT_SHAPES = tuple(
    Shape(height, width)
    for width, height in (
        (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
        (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688),
        (1568, 672),
    )
)  # fmt: skip
"""What FLUX.1 Kontext was trained on (diffusers' PREFERRED_KONTEXT_RESOLUTIONS)."""


# -- shapes -------------------------------------------------------------------------------------------------------


def down_to(multiple: int) -> Rule:
    """Return the rule that cuts both sides to a multiple of so many pixels."""
    return lambda shape, _defaults: _cut(multiple, shape.height, shape.width)


def _cut(multiple: int, height: int, width: int) -> Shape:
    return Shape(height // multiple * multiple, width // multiple * multiple)


def kontext_input(shape: Shape, defaults: Mapping[str, object]) -> Shape:
    """Return the trained shape nearest in ratio; the image's own where the checkpoint says `_auto_resize: false`."""
    if not defaults.get("_auto_resize", True):
        return _cut(16, shape.height, shape.width)
    return min(KONTEXT_SHAPES, key=lambda trained: (abs(shape.ratio - trained.ratio), trained.width, trained.height))


def kontext_output(shape: Shape, defaults: Mapping[str, object]) -> Shape:
    """Return the shape that the input becomes, or one of the checkpoint's `max_area` in its ratio. (The pipeline's own
    default is a square, whatever the input.)"""
    resized = kontext_input(shape, defaults)
    area = defaults.get("max_area")
    if not isinstance(area, int):
        area = resized.height * resized.width
    if not resized.height or not resized.width:
        return resized  # less than one step a side: too small, as the caller says
    return _cut(16, round((area / resized.ratio) ** 0.5), round((area * resized.ratio) ** 0.5))


def at_most_a_megapixel(shape: Shape, _defaults: Mapping[str, object]) -> Shape:
    """Return the image's own shape, scaled down where it has more than 1 Mpx."""
    height, width = shape.height, shape.width
    if width * height > MEGAPIXEL:
        scale = math.sqrt(MEGAPIXEL / (width * height))
        height, width = int(height * scale), int(width * scale)
    return _cut(16, height, width)


def a_megapixel(shape: Shape, _defaults: Mapping[str, object]) -> Shape:
    """Return a shape of 1 Mpx in the image's ratio."""
    width = math.sqrt(MEGAPIXEL * shape.ratio)
    return Shape(round(width / shape.ratio / 32) * 32, round(width / 32) * 32)


# -- the rules of a family ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRules:
    """What one editing family computes right together, and what shapes it works at."""

    name: str
    """For --model_type."""
    batch_disabled: bool = False
    """One row a call."""
    shared_image_batch: bool = False
    """Rows with the same input images share a call."""
    equal_size_batch: bool = False
    """Rows whose input images come to the same size share a call."""
    multi_image: bool = False
    """Takes several images a row; else exactly one."""
    max_images: int | None = None
    """Of several, the most."""
    takes_mask: bool = False
    """Of an API: whether a row's column `mask` is an image that is sent as it is, transparent where it is edited."""
    inpaint: InputPipeline | None = None
    """diffusers' pipeline for rows with a mask from --mask_column, white where it is painted anew; None: there is none."""
    reason: str
    """Why it is batched so."""
    input_shape: Rule
    """The shape at which the pipeline encodes an input image."""
    input_text: str
    seen_tokens: int = 0
    """About how many tokens of the text each input image is, where the text encoder sees it."""
    output_shape: Rule | None = None
    """Output shape from the first input image, where the row and the flags name none. None: the pipeline chooses."""
    output_text: str
    sets_size: bool = True
    """Whether width and height can be asked for at all."""
    min_side: int = 1
    max_aspect: float = math.inf
    """What input images the pipeline refuses: checked before it is loaded."""
    loads_from: str | None = None
    """Class of text-to-image checkpoints that have the same parts."""
    known_trouble: str = ""
    """What fails in the library versions that this was written with; put before an item's error."""

    def input_shapes(self, shapes: Sequence[Shape], defaults: Mapping[str, object]) -> tuple[Shape, ...]:
        """Return the shapes at which the pipeline encodes images of these shapes."""
        return tuple(self.input_shape(shape, defaults) for shape in shapes)

    def images_argument(self, images: Sequence[Sequence[Image]]) -> Image | list[Image]:
        """Return what `image=` must be for the images of each task of a batch: the pipelines differ in what a list means."""
        if self.equal_size_batch:
            return [images_of_task[0] for images_of_task in images]
        return list(images[0]) if self.multi_image else images[0][0]

    @property
    def batch_text(self) -> str:
        """Say in words which rows share a call."""
        rows = []
        if self.shared_image_batch:
            rows.append("rows that share their images")
        if self.equal_size_batch:
            rows.append("images of one size")
        return " and ".join(rows) or "no"
