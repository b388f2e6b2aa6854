"""A pipeline's tensor to images: what diffusers itself makes of it, and no black image for one that is not a number."""

import numpy as np
import pytest
import torch

from dglaunch.backends.base import ItemError
from dglaunch.backends.diffusers.pixels import to_images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_are_those_of_diffusers(dtype: torch.dtype) -> None:
    from diffusers.image_processor import VaeImageProcessor  # seconds, in each process that collects the tests

    decoded = (torch.rand(3, 3, 16, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1.5).to(dtype)
    processor = VaeImageProcessor()
    wanted = processor.postprocess(decoded, output_type="pil")
    made = to_images(processor.postprocess(decoded, output_type="pt"))
    assert [image.size for image in made] == [(8, 16)] * 3
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(made, wanted))


def test_an_image_of_nan_is_an_error_and_the_others_are_not() -> None:
    pixels = torch.full((3, 3, 8, 8), 0.5, dtype=torch.float16)
    pixels[1, 2, 3, 4] = float("nan")
    first, second, third = to_images(pixels)
    assert isinstance(second, ItemError) and "float16 overflowed" in second.message
    assert first.getpixel((4, 3)) == third.getpixel((4, 3)) == (128, 128, 128)
