"""Which families draw from images: the others are refused by name, and the figures are noted for the matrix of docs/models.md."""

from pathlib import Path

import pytest

from dglaunch.models.families import FAMILIES, Family
from dglaunch.models.input_roles import InputPipeline, flow_first_step, output_shape, sdxl_first_step
from dglaunch.models.shape import Shape
from support.checkpoint_folders import checkpoint_folder, write_json
from support.commands import dglaunch
from support.input_tables import table
from support.matrix import refused

NONE = [name for name, family in FAMILIES.items() if not family.with_inputs and not family.only_edits]
COLUMNS = {"img2img": "image", "mask": "mask", "control": "control"}
ONLY_CONTROL = ["SanaPipeline", "HunyuanDiTPipeline"]
"""Of which diffusers has a ControlNet's pipeline and none for images."""


@pytest.mark.parametrize("pipeline", NONE)
def test_a_family_without_one_is_refused_by_name(tmp_path: Path, pipeline: str) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name=pipeline)
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png", "control": "c0.png"}])
    plan = ["plan", "t2i", "--model_name", model, "--prompts_file", path]
    ended = dglaunch(*plan, "--image_column", "image")
    assert ended.code == 2 and f"{pipeline} takes no image with t2i: " in ended.output, ended.output
    ended = dglaunch(*plan, "--control_column", "control", "--controlnet", tmp_path)
    assert ended.code == 2 and f"{pipeline} takes no control image with t2i: " in ended.output, ended.output
    family = FAMILIES[pipeline]
    for column in COLUMNS.keys() - ({"mask"} if family.edit is not None else set()):
        refused(family.name, column, "references: `edit`" if family.edit is not None else "no pipeline")


@pytest.mark.parametrize("pipeline", ONLY_CONTROL)
def test_a_family_with_a_controlnet_alone_is_refused_with_an_image(tmp_path: Path, pipeline: str) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name=pipeline)
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png"}])
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, "--image_column", "image")
    assert ended.code == 2 and f"{pipeline} takes no image with t2i: " in ended.output, ended.output
    refused(FAMILIES[pipeline].name, "img2img", "no pipeline")
    refused(FAMILIES[pipeline].name, "mask", "no pipeline")


@pytest.mark.parametrize("pipeline", [name for name, family in FAMILIES.items() if family.only_edits])
def test_a_family_that_edits_is_named_with_its_command(tmp_path: Path, pipeline: str) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name=pipeline)
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png"}])
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, "--image_column", "image")
    assert ended.code == 2 and "dglaunch edit" in " ".join(ended.output.split()), ended.output
    refused(FAMILIES[pipeline].name, "img2img", "its images: `edit`")
    refused(FAMILIES[pipeline].name, "control", "`edit` takes none")


@pytest.mark.parametrize(
    "pipeline", [name for name, family in FAMILIES.items() if family.edit is not None and family.edit.inpaint is None]
)
def test_a_family_that_edits_without_masks_names_those_that_paint_within_one(tmp_path: Path, pipeline: str) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name=pipeline)
    path = table(tmp_path, [{"instruction": "x", "input_images": "i0.png", "mask": "m0.png"}])
    ended = dglaunch("plan", "edit", "--model_name", model, "--input", path, "--mask_column", "mask")
    said = (
        f"{pipeline} edits whole images, as diffusers has no pipeline of it that paints within a mask; it has them of "
    )
    assert ended.code == 2 and said + "flux1_kontext, flux2_klein, qwen_singleimg" in " ".join(ended.output.split())
    refused(FAMILIES[pipeline].name, "mask", "no pipeline")


def test_what_a_row_combines_that_no_pipeline_draws_is_told(tmp_path: Path) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name="StableDiffusion3Pipeline")
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png", "control": "c0.png"}])
    words = ["--control_column", "control", "--controlnet", tmp_path]
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, *words)
    assert ended.code == 2 and "from the global random state, so that no seed makes an image again" in ended.output
    refused("SD3", "control", "global random state")
    write_json(model / "model_index.json", {"_class_name": "HunyuanDiTPipeline", "transformer": ["diffusers", "X"]})
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, *words)
    assert ended.code == 2 and "from the global random state, so that no seed makes an image again" in ended.output
    refused("HunyuanDiT", "control", "global random state")
    write_json(model / "model_index.json", {"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "X"]})
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, "--image_column", "image", *words)
    assert ended.code == 2, ended.output
    assert "QwenImagePipeline does not draw from an image with a control image" in ended.output


def test_a_pipeline_that_fails_in_diffusers_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = checkpoint_folder(tmp_path / "model", _class_name="ChromaPipeline")
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png", "mask": "m0.png"}])
    columns = ["--image_column", "image", "--mask_column", "mask"]
    ended = dglaunch("plan", "t2i", "--model_name", model, "--prompts_file", path, *columns)
    assert ended.code == 2 and "asks the transformer for guidance embeddings" in ended.output, ended.output
    refused("Chroma", "mask", "diffusers' pipeline fails")
    refused("Chroma", "control", "no pipeline")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"_class_name": "ControlNetModel"},
            "is a ControlNetModel, and FluxPipeline is steered by a FluxControlNetModel",
        ),
        ({"_class_name": "FluxControlNetModel", "num_mode": 10}, "a union of 10 ControlNets"),
        (
            {"_class_name": "FluxControlNetModel", "num_attention_heads": 4},
            "num_attention_heads is 4 there and 24 here",
        ),
        ({}, "has no config.json that names its class"),
        (None, "has no config.json that names its class"),
    ],
)
def test_a_controlnet_of_another_model_is_refused(tmp_path: Path, content: dict[str, object] | None, said: str) -> None:
    path = table(tmp_path, [{"prompt": "x", "control": "c0.png"}])
    (tmp_path / "net").mkdir()
    if content is not None:
        write_json(tmp_path / "net" / "config.json", content)
    words = ["--control_column", "control", "--controlnet", tmp_path / "net"]
    ended = dglaunch("plan", "t2i", "--model_name", checkpoint_folder(tmp_path / "m"), "--prompts_file", path, *words)
    assert ended.code == 2 and said in ended.output, ended.output


def test_a_controlnet_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, [{"prompt": "x", "control": "c0.png"}])
    words = ["--control_column", "control", "--controlnet", "./nowhere"]
    ended = dglaunch("plan", "t2i", "--model_name", checkpoint_folder(tmp_path / "m"), "--prompts_file", path, *words)
    assert ended.code == 2 and "./nowhere is no folder here and no hub id" in ended.output


def test_a_cache_is_refused_with_input_images(tmp_path: Path) -> None:
    path = table(tmp_path, [{"prompt": "x", "image": "i0.png"}])
    plan = ["plan", "t2i", "--model_name", checkpoint_folder(tmp_path / "m"), "--prompts_file", path]
    ended = dglaunch(*plan, "--image_column", "image", "--cache_type", "first_block_cache")
    assert ended.code == 2 and "--cache_type first_block_cache was not measured with input images" in ended.output


def test_first_steps_are_the_pipelines_own() -> None:
    """4 steps at 0.8 begin at the first in diffusers' flow pipelines, and at the second in Stable Diffusion XL's."""
    assert [flow_first_step(4, strength) for strength in (0.2, 0.25, 0.5, 0.75, 0.8, 1.0)] == [3, 3, 2, 1, 0, 0]
    assert [sdxl_first_step(4, strength) for strength in (0.2, 0.25, 0.5, 0.75, 0.8, 1.0)] == [4, 3, 2, 1, 1, 0]


def test_the_remedy_of_a_strength_is_one() -> None:
    each = InputPipeline(roles=("image",), pipeline="x", strength=0.6)
    for steps in (2, 3, 4, 7, 28, 50):
        said = each.problem(steps, 1.0)
        assert said is not None
        most = float(said.split("give at most ")[1].split(",")[0])
        assert each.problem(steps, most) is None, steps


@pytest.mark.parametrize(
    ("image", "asked", "multiple", "drawn"),
    [
        (Shape(70, 100), (None, None), 16, Shape(64, 96)),
        (Shape(70, 100), (None, 64), 16, Shape(48, 64)),
        (Shape(70, 100), (64, None), 16, Shape(64, 96)),
        (Shape(70, 100), (32, 160), 16, Shape(32, 160)),
        (Shape(10, 10), (None, None), 16, Shape(0, 0)),
    ],
)
def test_sizes(image: Shape, asked: tuple[int | None, int | None], multiple: int, drawn: Shape) -> None:
    assert output_shape(image, *asked, multiple) == drawn


def test_a_row_of_the_families_names_a_pipeline_once() -> None:
    def roles(family: Family) -> list[tuple[str, ...]]:
        return [each.roles for each in family.with_inputs]

    assert all(len(roles(family)) == len(set(roles(family))) for family in FAMILIES.values())
