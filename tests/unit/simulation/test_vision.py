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
    processor_class = (
        getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    )  # of 4.57
    processor = processor_class(min_pixels=least, max_pixels=most)
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

    for config in (transformers.CLIPConfig(), transformers.Mistral3Config(), transformers.Qwen3VLConfig()):
        assert Vision.of(config) is None


@pytest.mark.parametrize(
    ("pipeline", "size"),
    [
        ("QwenImageEditPipeline", (1024, 1024)),
        ("QwenImageEditPlusPipeline", (384, 384)),
        ("LongCatImageEditPipeline", (512, 512)),
    ],
)
def test_plan_counts_as_many_tokens_of_an_image_as_the_trace(pipeline: str, size: tuple[int, int]) -> None:
    """Of the size at which each pipeline shows it to its text encoder."""
    import transformers

    from dglaunch.models.families import FAMILIES
    from dglaunch.simulation.vision import Vision

    vision, rules = Vision.of(transformers.Qwen2_5_VLConfig()), FAMILIES[pipeline].edit
    assert vision is not None and rules is not None
    assert vision.num_tokens(vision.grids(Image.new("RGB", size))) == rules.seen_tokens
