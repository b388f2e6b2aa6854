"""`edit` within masks, against plain diffusers' own pipelines one row at a time; rows without a mask stand in the same tables.

The plain calls are written out here, so that they share nothing with the code under test but the rows of the families: what
these say of a pipeline (its own strength, its steps) is compared with its signature.

    DG_TEST_MATRIX=1 pytest -m "slow or not slow" tests/torchrun/test_masked_edits.py      fills the column mask of docs/models.md
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.models.families import FAMILIES, masked_editors
from support.edit_images import picture
from support.input_tables import mask
from support.lora_files import fitting_lora
from support.matrix import measured
from support.ranks import Case, launch_planned
from support.results import images, ledger, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = [
    pytest.mark.timeout(1800),  # the first test waits for the runs of all
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

TOLERANCE = 2
"""Of 255."""
STEPS = 2
TEXT_LENGTH = 64
"""Of those that take it: 512 tokens of text cost most of a step."""
CHECKPOINTS = {"flux1_kontext": "flux_kontext", "flux2_klein": "flux2_klein", "qwen_singleimg": "qwenimage_edit"}
PIPELINES = {
    "flux1_kontext": "FluxKontextPipeline", "flux2_klein": "Flux2KleinPipeline", "qwen_singleimg": "QwenImageEditPipeline",
}  # fmt: skip
RARE = {"flux2_klein", "qwen_singleimg"}
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "ulysses": (["--backend", "xdit"], {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "context": (["--parallel", "context"], {"DG_PARALLEL_DEGREE": "2"}),
    "fsdp": (["--shard", "fsdp"], {"DG_SHARD_DEGREE": "2"}),
    "tensor": (["--shard", "tensor"], {"DG_SHARD_DEGREE": "2"}),
}
"""In which two ranks share an image or the weights."""
SPLIT = [(family, way) for family in CHECKPOINTS for way in WAYS]
LORAS = ["one", "two:0.5", "", "one:0.7"]


@dataclass(frozen=True)
class Row:
    """A row of the table: which picture and which mask it has, by number."""

    instruction: str
    image: int
    mask: int | None = None
    strength: float | None = None

    def as_json(self) -> dict[str, Any]:
        said = {"instruction": self.instruction, "input_images": f"i{self.image}.png"}
        named = {} if self.mask is None else {"mask": f"m{self.image}-{self.mask}.png"}
        return said | named | ({} if self.strength is None else {"strength": self.strength})


SIZES = [(64, 64), (64, 64), (70, 96)]
"""The last is none that a pipeline makes: it and its mask are stretched alike."""
ROWS = [
    Row("make it red", 0, mask=0, strength=1.0),
    Row("a very long and winding drawing", 0, mask=1, strength=1.0),
    Row("blue", 1, mask=2, strength=1.0),
    Row("snow", 0, mask=0, strength=0.5),
    Row("night", 2, mask=0),
    Row("all of it", 0),
    Row("all of it", 1),
]
BATCHES = {
    "flux1_kontext": [3, 3, 3, 1, 1, 2, 2],
    "qwen_singleimg": [3, 3, 3, 1, 1, 2, 2],
    "flux2_klein": [2, 2, 1, 1, 1, 1, 1],
}
"""With how many others each row shares a call; FLUX.2-klein's rows share their image."""


def mask_of(row: Row) -> Image.Image:
    assert row.mask is not None
    return mask(row.mask).resize(SIZES[row.image])


def save(folder: Path) -> None:
    for n, size in enumerate(SIZES):
        picture(n, size).save(folder / f"i{n}.png")
    for row in ROWS:
        if row.mask is not None:
            mask_of(row).save(folder / f"m{row.image}-{row.mask}.png")


def plain_call(family: str, row: Row) -> dict[str, Any]:
    """What diffusers' documentation says of such a row."""
    call: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "output_type": "np",
        "image": picture(row.image, SIZES[row.image]),
    }
    if row.mask is not None:
        call["mask_image"] = mask_of(row)
        call |= {} if row.strength is None else {"strength": row.strength}
    if family == "qwen_singleimg":
        return call | {"true_cfg_scale": 4.0, "negative_prompt": "ugly"}
    call["max_sequence_length"] = TEXT_LENGTH
    if family == "flux2_klein":
        return call | {"guidance_scale": 4.0}  # that of the pipeline without a mask
    width, height = (side // 16 * 16 for side in SIZES[row.image])
    return call | {
        "guidance_scale": 2.5,
        "_auto_resize": False,
        "width": width,
        "height": height,
        "max_area": width * height,
    }


def plain(family: str, model: Path, loras: Mapping[str, Path], rows: list[Row]) -> list[np.ndarray]:
    """Every row with plain diffusers, one at a time, by the class that is made for it."""
    import diffusers
    import torch

    edit = FAMILIES[PIPELINES[family]].edit
    assert edit is not None and edit.inpaint is not None
    made = {
        name: getattr(diffusers, name).from_pretrained(model) for name in (PIPELINES[family], edit.inpaint.pipeline)
    }
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
        for adapter, file in loras.items():
            pipeline.load_lora_weights(str(file), weight_name=file.name, adapter_name=adapter)
    found = []
    for n, row in enumerate(rows):
        pipeline = made[PIPELINES[family] if row.mask is None else edit.inpaint.pipeline]
        if loras:
            adapter, _, weight = LORAS[n].partition(":")
            pipeline.set_adapters([adapter], [float(weight or 1)]) if adapter else pipeline.disable_lora()
            pipeline.enable_lora() if adapter else None
        generator = torch.Generator().manual_seed(n)
        found.append(pipeline(prompt=row.instruction, generator=generator, **plain_call(family, row)).images[0])
    return found


def command(family: str, model: Path, table: Path, *more: object) -> list[Any]:
    found = [
        "edit",
        "--model_name",
        model,
        "--input",
        table,
        "--mask_column",
        "mask",
        "--num_inference_steps",
        str(STEPS),
    ]
    if family == "qwen_singleimg":
        return [*found, "--guidance_scale", "4", "--negative_prompt", "ugly", *more]
    if family == "flux1_kontext":
        found += ["--guidance_scale", "2.5"]
    return [*found, "--max_sequence_length", str(TEXT_LENGTH), *more]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> Iterator[dict[str, tuple[Path, Case]]]:
    """Every run that the chosen tests look at, by name: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("masked")
    save(folder)
    table = write_jsonl(folder / "t.jsonl", [row.as_json() for row in ROWS])
    splits = selected(request, "split_family", "way")
    planned: dict[str, tuple[int, list[Any], dict[str, str]]] = {}
    for family in dict.fromkeys([*(name for (name,) in selected(request, "family")), *(name for name, _ in splits)]):
        model = build(CHECKPOINTS[family], families / CHECKPOINTS[family])
        planned[family] = (1, command(family, model, table, "--batch_size", "4"), {})
    for family, way in splits:
        flags, environment = WAYS[way]
        model = families / CHECKPOINTS[family]
        planned[f"{family}-{way}"] = (2, command(family, model, table, "--batch_size", "4", *flags), environment)
    yield launch_planned(folder, planned)


@pytest.mark.parametrize("family", rarely(CHECKPOINTS, RARE))
def test_every_row_equals_the_plain_pipeline(runs: dict[str, tuple[Path, Case]], families: Path, family: str) -> None:
    folder, case = runs[family]
    assert case.codes == [0], case.output
    made, expected = list(images(folder).values()), plain(family, families / CHECKPOINTS[family], {}, ROWS)
    differences = [abs(image / 255 - wanted).max() for image, wanted in zip(made, expected, strict=True)]
    assert max(differences) <= (TOLERANCE + 0.5) / 255, list(zip(ROWS, differences))
    masked = [difference for row, difference in zip(ROWS, differences) if row.mask is not None]
    measured(FAMILIES[PIPELINES[family]].name, "mask", max(masked))
    assert [line["batch_size"] for line in sorted(ledger(folder), key=lambda line: line["index"])] == BATCHES[family]


@pytest.mark.parametrize("family", rarely(CHECKPOINTS, RARE))
def test_masks_and_instructions_matter(runs: dict[str, tuple[Path, Case]], family: str) -> None:
    """Else the comparison of this file could not fail."""
    made = [image.astype(int) for image in images(runs[family][0]).values()]
    for n, image in enumerate(made):
        others = [other for m, other in enumerate(made) if m != n and other.shape == image.shape]
        assert all(abs(image - other).max() > 10 * TOLERANCE for other in others), ROWS[n]


@pytest.mark.parametrize(("split_family", "way"), rarely(SPLIT, SPLIT))
def test_ranks_that_share_them_draw_as_one_rank_does(
    runs: dict[str, tuple[Path, Case]], split_family: str, way: str
) -> None:
    folder, case = runs[f"{split_family}-{way}"]
    assert case.codes == [0, 0], case.output
    made, expected = images(folder), images(runs[split_family][0])
    assert len(made) == len(ROWS)
    worst = max(int(abs(image.astype(int) - expected[name].astype(int)).max()) for name, image in made.items())
    assert worst <= TOLERANCE
    if way in ("ulysses", "context"):  # the others exchange weights inside of torch, where nothing counts here
        assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks of a replica did not talk"


@pytest.mark.parametrize("lora_family", rarely(CHECKPOINTS, CHECKPOINTS))
def test_rows_with_masks_and_loras_equal_peft(tmp_path: Path, families: Path, lora_family: str) -> None:
    model = build(CHECKPOINTS[lora_family], families / CHECKPOINTS[lora_family])
    loras = {
        name: fitting_lora(model, tmp_path / f"{name}.safetensors", seed=seed, parts=("transformer",))
        for seed, name in enumerate(("one", "two"))
    }
    save(tmp_path)
    rows = [Row("make it red", 0, mask=n % 2, strength=1.0) for n in range(len(LORAS))]
    table = write_jsonl(tmp_path / "t.jsonl", [{**row.as_json(), "lora": cell} for row, cell in zip(rows, LORAS)])
    named = [f"{name}={file}" for name, file in loras.items()]
    run = command(lora_family, model, table, "--batch_size", "4", "--lora", *named)
    ((folder, case),) = launch_planned(tmp_path, {"loras": (1, run, {})}).values()
    assert case.codes == [0], case.output
    made, expected = list(images(folder).values()), plain(lora_family, model, loras, rows)
    differences = [abs(image / 255 - wanted).max() for image, wanted in zip(made, expected, strict=True)]
    assert max(differences) <= (TOLERANCE + 0.5) / 255, differences


def test_what_the_table_says_of_a_pipeline_is_its_own() -> None:
    import diffusers

    assert set(masked_editors()) == set(CHECKPOINTS)
    for name in PIPELINES.values():
        family = FAMILIES[name]
        assert family.edit is not None and family.edit.inpaint is not None
        inpaint = family.edit.inpaint
        takes = inspect.signature(getattr(diffusers, inpaint.pipeline).__call__).parameters
        assert {inpaint.arguments[role] for role in inpaint.roles} <= takes.keys()
        assert inpaint.strength == takes["strength"].default
        steps = inspect.signature(getattr(diffusers, name).__call__).parameters["num_inference_steps"].default
        assert family.own_steps == steps
