"""What stands in the place of an image processor makes as many patches and tokens as the real one."""

import pytest
from PIL import Image

SIZES = [(1024, 1024), (384, 384), (448, 320), (1184, 896), (30, 30), (20, 900), (5000, 6000), (3, 400), (63, 49)]
"""Width and height; of some a processor makes more pixels, and of one fewer."""


@pytest.mark.parametrize("size", SIZES)
def test_an_image_has_as_many_patches_as_transformers_makes_of_it(size: tuple[int, int]) -> None:
    import transformers

    from dglaunch.simulation.vision import PIXELS, Vision

    least, most = PIXELS
    processor = transformers.Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most)
    image = Image.new("RGB", size)
    real = processor(images=[image], return_tensors="pt")
    vision = Vision.of(transformers.Qwen2_5_VLConfig())
    assert vision is not None
    found = vision([image])
    assert found["image_grid_thw"].tolist() == real["image_grid_thw"].tolist()
    assert found["pixel_values"].shape == real["pixel_values"].shape


def test_an_encoder_that_sees_otherwise_is_none_of_these() -> None:
    import transformers

    from dglaunch.simulation.vision import Vision

    for config in (transformers.CLIPConfig(), transformers.Mistral3Config(), transformers.T5Config()):
        assert Vision.of(config) is None
