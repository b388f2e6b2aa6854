"""t2i from images, within masks and after control images, against plain diffusers' own pipelines one row at a time.

The plain calls are written out here, so that they share nothing with the code under test but the rows of the families: what
these say of a pipeline (its own strength, its scale, its steps) is compared with its signature.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dglaunch.models.families import FAMILIES
from dglaunch.models.input_roles import InputPipeline
from support.edit_images import picture
from support.input_tables import COLUMNS, CONTROL, SIDE, mask, save_images
from support.matrix import measured
from support.ranks import Case, launch
from support.results import images, ledger, write_jsonl
from support.selection import rarely, selected
from support.tiny_controlnets import build_controlnet
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the runs of all

TOLERANCE = 2
"""Of 255."""
STEPS = 4
PIPELINES = {
    "flux": "FluxPipeline", "qwenimage": "QwenImagePipeline", "zimage": "ZImagePipeline", "sd3": "StableDiffusion3Pipeline",
    "sdxl": "StableDiffusionXLPipeline", "chroma": "ChromaPipeline", "sana": "SanaPipeline",
}  # fmt: skip
RARE = {"qwenimage", "zimage", "sd3", "sdxl", "chroma", "sana"}
SPLIT = ("flux", "qwenimage", "zimage")
ULYSSES = {"DG_XDIT_ULYSSES_DEGREE": "2"}
TEXT_LENGTH = 96
"""Of Chroma, whose pipelines have different ones of their own."""
PROMPTS = ["a red cat", "two blue dogs on the moon", "x", "a green house by the sea"]
MATRIX_COLUMN = {("image",): "img2img", ("image", "mask"): "mask", ("control",): "control"}


@dataclass(frozen=True)
class Row:
    """A row of the table: which picture it has of each role, by number."""

    prompt: str
    image: int | None = None
    mask: int | None = None
    control: int | None = None
    strength: float | None = None
    control_scale: float | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role in ("image", "mask", "control") if getattr(self, role) is not None)

    def as_json(self) -> dict[str, Any]:
        named = {role: f"{role[0]}{getattr(self, role)}.png" for role in self.roles}
        set_here = {name: getattr(self, name) for name in ("strength", "control_scale") if getattr(self, name)}
        return {"prompt": self.prompt, "height": SIDE, "width": SIDE} | named | set_here


ROWS = [
    *(Row(prompt, image=n, strength=0.5) for n, prompt in enumerate(PROMPTS)),
    Row("of another strength", image=0, strength=0.75),
    *(Row(prompt, image=n, mask=n, strength=0.75) for n, prompt in enumerate(PROMPTS[:3])),
    Row("from text alone"),
]
WITH_CONTROL = [
    *(Row(prompt, control=n) for n, prompt in enumerate(PROMPTS[:3])),
    Row("steered less", control=0, control_scale=0.4),
]
WITH_ALL = [
    *(Row(prompt, image=n, control=n + 1, strength=0.5) for n, prompt in enumerate(PROMPTS[:2])),
    *(Row(prompt, image=n, mask=n, control=n + 1, strength=0.75) for n, prompt in enumerate(PROMPTS[:2])),
]


def rows_of(family: str) -> list[Row]:
    """Those for which the family has a pipeline."""
    able = {each.roles for each in FAMILIES[PIPELINES[family]].with_inputs if not each.refused} | {()}
    return [row for row in ROWS + WITH_CONTROL + WITH_ALL if row.roles in able]


def plain_call(family: str, row: Row) -> dict[str, Any]:
    """What diffusers' documentation says of such a row."""
    found: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "np", "height": SIDE, "width": SIDE}
    if row.image is not None:
        found |= {"image": picture(10 + row.image), "strength": row.strength}
        if family == "sdxl" and row.mask is None and row.control is None:
            del found["height"], found["width"]
    if row.mask is not None:
        found["mask_image"] = mask(row.mask)
    if row.control is not None:
        found["image" if family == "sdxl" and row.image is None else "control_image"] = picture(20 + row.control)
        found["controlnet_conditioning_scale"] = row.control_scale or {"zimage": 0.75}.get(family, 1.0)
        if family == "sdxl" and row.roles == ("image", "control"):
            found["controlnet_conditioning_scale"] = 0.8
    guidance = {"flux": 3.5, "sd3": 7.0, "sana": 4.5}.get(family, 5.0)  # those of the pipelines from text alone
    if family == "chroma":
        found["max_sequence_length"] = TEXT_LENGTH
    if family == "sana":
        found["use_resolution_binning"] = False
    if family == "qwenimage":
        return found | {"true_cfg_scale": 4.0, "negative_prompt": "ugly"}
    return found | {"guidance_scale": guidance}


def plain(family: str, models: Path) -> list[np.ndarray]:
    """Every row with plain diffusers, one at a time, by the class that is made for it."""
    import diffusers
    import torch

    rows = {each.roles: each for each in FAMILIES[PIPELINES[family]].with_inputs}
    made = []
    for n, row in enumerate(rows_of(family)):
        own: InputPipeline | None = rows.get(row.roles)  # type: ignore[call-overload]
        name, parts = PIPELINES[family] if own is None else own.pipeline, {}
        if own is not None and own.controlnet:
            controlnet = getattr(diffusers, own.controlnet).from_pretrained(models / f"{family}-controlnet")
            parts = {"controlnet": controlnet}
        pipeline = getattr(diffusers, name).from_pretrained(models / family, **parts)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(n)
        made.append(pipeline(prompt=row.prompt, generator=generator, **plain_call(family, row)).images[0])
    return made


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> Iterator[dict[str, tuple[Path, Case]]]:
    """A run of every row for each family that the chosen tests look at, by its name."""
    folder = tmp_path_factory.mktemp("inputs")
    chosen = [family for (family,) in selected(request, "family")]
    save_images(folder)
    splits = [family for (family,) in selected(request, "split_family")]
    names = list(dict.fromkeys([*chosen, *splits]))
    commands, split_commands = [], []
    for family in names:
        rows = rows_of(family)
        model = ["t2i", "--model_name", build(family, families / family), "--num_inference_steps", str(STEPS)]
        for role, columns in (("image", COLUMNS[:2]), ("mask", COLUMNS[2:])):
            model += columns if any(role in row.roles for row in rows) else []
        if family == "qwenimage":
            model += ["--guidance_scale", "4", "--negative_prompt", "ugly"]
        if family == "chroma":
            model += ["--max_sequence_length", str(TEXT_LENGTH)]
        if family in splits:
            few = [row.as_json() for row in rows if row.control is None]
            few_rows = write_jsonl(folder / f"{family}-split.jsonl", few)
            split = [*model, "--backend", "xdit", "--prompts_file", few_rows, "--batch_size", "4"]
            split_commands.append(([*split, "--output_dir", folder / f"{family}-split"], ULYSSES))
        if any(row.control is not None for row in rows):
            controlnet = build_controlnet(family, families / f"{family}-controlnet")
            model += [*CONTROL, "--controlnet", controlnet]
        path = write_jsonl(folder / f"{family}.jsonl", [row.as_json() for row in rows])
        run = [*model, "--prompts_file", path, "--batch_size", "4", "--output_dir", folder / family]
        commands.append((run, {}))
    cases = [*launch(folder, 1, commands), *(launch(folder, 2, split_commands) if splits else [])]
    yield {name: (folder / name, case) for name, case in zip([*names, *(f"{name}-split" for name in splits)], cases)}


@pytest.mark.parametrize("family", rarely(PIPELINES, RARE))
def test_every_row_equals_the_plain_pipeline(runs: dict[str, tuple[Path, Case]], families: Path, family: str) -> None:
    folder, case = runs[family]
    assert case.codes == [0], case.output
    rows, made, expected = rows_of(family), list(images(folder).values()), plain(family, families)
    assert len(made) == len(rows)
    differences = [abs(image / 255 - wanted).max() for image, wanted in zip(made, expected)]
    assert max(differences) <= (TOLERANCE + 0.5) / 255, list(zip(rows, differences))
    for roles, column in MATRIX_COLUMN.items():
        if found := [difference for row, difference in zip(rows, differences) if row.roles == roles]:
            measured(FAMILIES[PIPELINES[family]].name, column, max(found))
    sizes = {line["index"]: line["batch_size"] for line in ledger(folder)}
    alike = [(row.roles, row.strength, row.control_scale) for row in rows]
    assert sizes == {n: alike.count(key) for n, key in enumerate(alike)}, "each has its own images in a call of several"


@pytest.mark.parametrize("family", rarely(PIPELINES, RARE))
def test_images_masks_and_controls_matter(runs: dict[str, tuple[Path, Case]], family: str) -> None:
    """Else the comparison of this file could not fail."""
    rows, made = rows_of(family), [image.astype(int) for image in images(runs[family][0]).values()]
    for n, row in enumerate(rows):
        others = [image for m, image in enumerate(made) if m != n and image.shape == made[n].shape]
        assert min(abs(made[n] - other).max() for other in others) > 10 * TOLERANCE, row


@pytest.mark.parametrize("split_family", rarely(SPLIT, SPLIT))
def test_xdit_draws_them_as_one_rank_does(runs: dict[str, tuple[Path, Case]], split_family: str) -> None:
    folder, case = runs[f"{split_family}-split"]
    assert case.codes == [0, 0], case.output
    made, expected = images(folder), images(runs[split_family][0])
    assert len(made) == len([row for row in rows_of(split_family) if row.control is None])
    worst = max(int(abs(image.astype(int) - expected[name].astype(int)).max()) for name, image in made.items())
    assert worst <= TOLERANCE
    assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks of a replica did not talk"


@pytest.mark.parametrize("checkpoint", PIPELINES)
def test_what_the_table_says_of_a_pipeline_is_its_own(checkpoint: str) -> None:
    import diffusers

    row = FAMILIES[PIPELINES[checkpoint]]
    steps = (
        inspect.signature(getattr(diffusers, PIPELINES[checkpoint]).__call__).parameters["num_inference_steps"].default
    )
    assert row.own_steps == steps
    for each in row.with_inputs:
        takes = inspect.signature(getattr(diffusers, each.pipeline).__call__).parameters
        assert {each.arguments[role] for role in each.roles} <= takes.keys(), each.pipeline
        assert each.strength == (takes["strength"].default if "strength" in takes else None), each.pipeline
        if each.controlnet:
            assert each.control_scale == takes["controlnet_conditioning_scale"].default, each.pipeline
