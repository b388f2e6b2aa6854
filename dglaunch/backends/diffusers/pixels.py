"""What a pipeline returns, to images."""

import functools
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from dglaunch.backends.base import Arriving, ItemError, Slot
from dglaunch.backends.diffusers.protocols import PipelineOutput

NOT_A_NUMBER = "the image came out as NaN, which mostly means that float16 overflowed: use --torch_dtype bfloat16"


ImageOf = Callable[[torch.Tensor, torch.Tensor], Image.Image | ItemError]
"""Makes an image of its pixels [H, W, 3] in the host's memory, and of whether all of them are numbers."""


def image_of(pixels: torch.Tensor, is_finite: torch.Tensor) -> Image.Image | ItemError:
    """Make an image of its pixels, or the error that it has none."""
    return Image.fromarray(pixels.numpy()) if is_finite else ItemError(NOT_A_NUMBER)


def to_slots(output: PipelineOutput, image_of: ImageOf = image_of) -> list[Slot]:
    """Turn what a pipeline returns into one slot for each image; a blocked image is an error."""
    images = to_images(output.images, image_of) if isinstance(output.images, torch.Tensor) else list(output.images)
    flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
    blocked = ItemError("blocked by the checkpoint's safety checker")
    return [blocked if bad else image for image, bad in zip(images, flagged)]


def to_images(pixels: torch.Tensor, image_of: ImageOf = image_of) -> Sequence[Slot]:
    """Turn a pipeline's tensor [B, 3, H, W] of values in [0, 1] into images.

    As diffusers' own "pil" does but for three things: it is rounded where it is, so that a quarter of the bytes leave the
    GPU; they leave it behind the batch's kernels and before the next one's, without the host waiting; and an image that
    is not a number is an error, not a black image.
    """
    finite = torch.isfinite(pixels).flatten(1).all(dim=1)
    rounded = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if pixels.device.type != "cuda":
        return [image_of(image, is_finite) for image, is_finite in zip(rounded, finite)]
    rounded, finite = _sent(rounded), _sent(finite)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
    copied.record()

    def wait(number: int) -> Image.Image | ItemError:
        copied.synchronize()
        return image_of(rounded[number], finite[number])

    return [Arriving(functools.partial(wait, number)) for number in range(len(rounded))]


def _sent(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in page-locked memory, which is there once the stream has come so far."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
