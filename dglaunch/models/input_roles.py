"""Families with input images: which pipeline draws from an image, within a mask or after a control image.

The rules stand as `with_inputs=` and, of editing, as `edit.inpaint` in the rows of families.py; here are their type and the
arithmetic of strength and size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dglaunch.models.shape import Shape

Role = Literal["image", "mask", "control"]
"""What an input image is for: to begin from it, to say where it is painted anew, to steer a ControlNet."""
ROLES: tuple[Role, ...] = ("image", "mask", "control")
ARGUMENTS: Mapping[Role, str] = {"image": "image", "mask": "mask_image", "control": "control_image"}
FirstStep = Callable[[int, float], int]
"""The denoising step at which a pipeline begins, of so many, at a strength."""


@dataclass(frozen=True, slots=True)
class MaskPixels:
    """The pixels of a mask that a pipeline looks at: of each square of so many a side those at these places."""

    side: int = 8
    places: tuple[int, ...] = (0,)


def flow_first_step(steps: int, strength: float) -> int:
    """Return the first step as the flow-matching pipelines compute it: 4 steps at 0.8 begin with step 0."""
    return int(max(steps - min(steps * strength, steps), 0))


def sdxl_first_step(steps: int, strength: float) -> int:
    """Return the first step as Stable Diffusion XL computes it: 4 steps at 0.8 begin with step 1."""
    return max(steps - min(int(steps * strength), steps), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPipeline:
    """A pipeline of the same parts as a family's text-to-image one, for rows with certain input images."""

    roles: tuple[Role, ...]
    """What such a row has, in the order of ROLES."""
    pipeline: str
    """diffusers' class."""
    arguments: Mapping[Role, str] = field(default_factory=lambda: ARGUMENTS)
    """What its call names them."""
    controlnet: str = ""
    """diffusers' class of its ControlNet; "" where it has none."""
    strength: float | None = None
    """Its own, where nobody gives one; None: it has none."""
    control_scale: float | None = None
    """The same of the ControlNet's scale."""
    first_step: FirstStep = flow_first_step
    noise_alone: bool = True
    """Whether all of the image is gone where it begins with step 0 (unless a mask keeps the rest of it)."""
    mask_pixels: MaskPixels = MaskPixels()
    """What of a mask it looks at."""
    refused: str = ""
    """Why it is not used, where diffusers has it."""
    since: str = ""
    """The first diffusers that has it, where that is not the oldest one that dglaunch goes with."""

    def begins(self, steps: int, strength: float | None) -> int:
        """Return the step that is computed first."""
        return 0 if strength is None else self.first_step(steps, strength)

    def problem(self, steps: int, strength: float | None) -> str | None:
        """Return what is wrong with a strength for so many steps, as the end of a sentence about a row; None if nothing."""
        if strength is None:
            return None
        if steps * strength < 1:
            return (
                f"strength {strength:g} of {steps} steps is less than one step, so nothing would be drawn; give "
                f"{1 / steps:.3g} or more, or more steps"
            )
        if self.noise_alone and "mask" not in self.roles and self.begins(steps, strength) == 0:
            most = math.floor(1000 * (steps - 1) / steps) / 1000
            remedy = f"give at most {most:g}, or more steps" if most else "give more steps"
            return (
                f"strength {strength:g} of {steps} steps begins with the first step, from noise alone, and the image would not "
                f"be looked at; {remedy}, or leave the image out"
            )
        return None


def roles_text(roles: Sequence[Role]) -> str:
    """Return the input images of a row in words."""
    words = {"image": "an image", "mask": "a mask", "control": "a control image"}
    first, *others = (words[role] for role in roles)
    return " with ".join([first, *([" and ".join(others)] if others else [])])


# -- sizes --------------------------------------------------------------------------------------------------------


def output_shape(image: Shape, height: int | None, width: int | None, multiple: int) -> Shape:
    """Return the size of what is drawn from an image: what was asked for; of one side alone the other in the image's ratio;
    else the image's own, each side cut to a multiple."""
    if height is not None and width is not None:
        return Shape(height, width)
    if width is not None:
        return Shape(_near(width / image.ratio, multiple), width)
    if height is not None:
        return Shape(height, _near(height * image.ratio, multiple))
    return Shape(image.height // multiple * multiple, image.width // multiple * multiple)


def _near(side: float, multiple: int) -> int:
    return max(round(side / multiple), 1) * multiple
