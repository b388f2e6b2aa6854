"""What a pipeline returns as tensors, to images."""

import functools
from collections.abc import Sequence

import torch
from PIL import Image

from dglaunch.backends.base import Arriving, ItemError, Slot

NOT_A_NUMBER = "the image came out as NaN, which mostly means that float16 overflowed: use --torch_dtype bfloat16"


def to_images(pixels: torch.Tensor) -> Sequence[Slot]:
    """A pipeline's tensor [B, 3, H, W] of values in [0, 1] to images, as diffusers' own "pil" does but for three things:
    it is rounded where it is, so that a quarter of the bytes leave the GPU; they leave it behind the batch's kernels and
    before the next one's, without the host waiting; and an image that is not a number is an error, not a black image."""
    sound = torch.isfinite(pixels).flatten(1).all(dim=1)
    bytes_of = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if pixels.device.type != "cuda":
        return [_image(own, fine) for own, fine in zip(bytes_of, sound)]
    bytes_of, sound = _sent(bytes_of), _sent(sound)
    there = torch.cuda.Event()
    there.record()

    def wait(number: int) -> Image.Image | ItemError:
        there.synchronize()
        return _image(bytes_of[number], sound[number])

    return [Arriving(functools.partial(wait, number)) for number in range(len(bytes_of))]


def _sent(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in page-locked memory, which is there once the stream has come so far."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _image(pixels: torch.Tensor, sound: torch.Tensor) -> Image.Image | ItemError:
    return Image.fromarray(pixels.numpy()) if sound else ItemError(NOT_A_NUMBER)
