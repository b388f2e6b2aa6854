"""`edit` with real pipelines on tiny random weights, against the plain pipeline one row at a time.

One world of each size serves all cases. The plain calls are written out here family by family, as their
documentation shows them, so that they share nothing with the code under test.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.edit_images import INSTRUCTIONS, MULTI, SINGLE, SIZES, picture, save_table
from support.family_runs import EDITORS, SETS
from support.ranks import Case, launch_planned
from support.results import images, ledger, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the runs of all

TOLERANCE = 2
"""Of 255."""
STEPS = 2
WORLDS = [(1, 1), (1, 4), (2, 1), (2, 4)]
RARE_WORLDS = [(1, 1), (1, 4), (2, 1)]
SPLIT = ["flux1_kontext", "flux2", "flux2_klein", "qwen_singleimg", "qwen"]
"""What xDiT runs."""
ULYSSES = {"DG_XDIT_ULYSSES_DEGREE": "2"}
ORDERS = {"reversed": list(range(12))[::-1], "mixed": [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6]}


def plain_call(family: str, pipeline: Any, pictures: list[Image.Image]) -> dict[str, Any]:
    """The image arguments of one row."""
    first = pictures[0]
    if family == "flux1_kontext":
        size = {"width": first.width, "height": first.height, "max_area": first.width * first.height}
        return {"image": first, "_auto_resize": False, **size}
    return {"image": first if family in ("qwen_singleimg", "longcat") else pictures}


def plain(family: str, folder: Path) -> list[np.ndarray]:
    """Every row with plain diffusers, one at a time."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    sources = {name: picture(seed, size) for seed, (name, size) in enumerate(SIZES.items())}
    made = []
    for n, names in enumerate(SETS[family]):
        call = plain_call(family, pipeline, [sources[name] for name in names])
        generator = torch.Generator().manual_seed(n)
        output = pipeline(prompt=INSTRUCTIONS[n], num_inference_steps=STEPS, generator=generator, **call)
        made.append(np.asarray(output.images[0].convert("RGB")).astype(int))
    return made


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, families: Path) -> Path:
    """The checkpoints."""
    for name in [*(EDITORS[family] for family in chosen(request)), "glm_image"]:
        build(name, families / name)
    return families


def chosen(request: pytest.FixtureRequest) -> list[str]:
    """The families that the tests look at which are going to run; those of single runs among them."""
    asked = [name for (name,) in [*selected(request, "family"), *selected(request, "split_family")]]
    return list(dict.fromkeys([*asked, "flux1_kontext", "longcat", "flux2_klein"]))


@pytest.fixture(scope="module")
def expected(request: pytest.FixtureRequest, models: Path) -> dict[str, list[np.ndarray]]:
    return {family: plain(family, models / EDITORS[family]) for family in chosen(request)}


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Path
) -> Iterator[dict[str, tuple[Path, Case]]]:
    """Every run that the chosen tests look at, by name: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("edits")
    tables = {
        family: save_table(folder / f"{'multi' if sets is MULTI else 'single'}.csv", sets)
        for family, sets in SETS.items()
    }
    planned: dict[str, tuple[int, list[Any], dict[str, str]]] = {}

    def command(model: str, table: Path, *more: str) -> list[Any]:
        return ["edit", "--model_name", models / model, "--num_inference_steps", str(STEPS), "--input", table, *more]

    for family, world, batch in selected(request, "family", "world", "batch"):
        edit = command(EDITORS[family], tables[family], "--batch_size", str(batch), "--shares", "static")
        planned[f"{family}-{world}-{batch}"] = (world, edit, {})
    for (family,) in selected(request, "split_family"):
        edit = command(EDITORS[family], tables[family], "--backend", "xdit", "--batch_size", "4")
        planned[f"{family}-ulysses"] = (2, edit, ULYSSES)
    for (name,) in selected(request, "order"):
        table = save_table(folder / f"{name}.csv", SINGLE, ORDERS[name])
        planned[name] = (1, command("flux_kontext", table, "--batch_size", "4"), {})
    # 9 and 15 tokens: neither is even, their sum is.
    picture(1, (80, 48)).save(folder / "odd.png")
    odd = [{"input_images": "odd.png", "instruction": "x", "width": 48, "height": 48}]
    table = write_jsonl(folder / "odd.jsonl", odd)
    planned["odd"] = (1, command("flux_kontext", table), {})
    planned["odd-ulysses"] = (2, command("flux_kontext", table, "--backend", "xdit"), ULYSSES)
    planned["glm_image"] = (1, command("glm_image", tables["flux2"], "--filter_rows", "0:2"), {})
    planned["tiny"] = (1, ["edit", "--input", tables["flux1_kontext"], "--num_inference_steps", "2"], {})
    planned["longcat-xdit"] = (1, command("longcat_edit", tables["longcat"], "--backend", "xdit"), {})
    planned["wrong class"] = (1, command("flux2_klein", tables["longcat"], "--model_type", "flux1_kontext"), {})
    yield launch_planned(folder, planned)


def worst(folder: Path, expected: list[np.ndarray]) -> int:
    made = images(folder)
    assert sorted(made) == [f"{n:06d}.png" for n in range(len(expected))]
    assert all(picture.shape == e.shape for picture, e in zip(made.values(), expected)), "another size"
    return max(int(abs(picture.astype(int) - e).max()) for picture, e in zip(made.values(), expected))


def fewest_calls(family: str, rows: list[int], batch: int) -> int:
    """By the issue's table: what may share a call, cut into as few as the batch size allows."""
    if family in ("qwen", "longcat"):
        return len(rows)
    key = SETS[family] if SETS[family] is MULTI else [str(SIZES[name]) for name in SETS[family]]
    return sum(ceil(count / batch) for count in Counter(key[row] for row in rows).values())


@pytest.mark.parametrize(("world", "batch"), rarely(WORLDS, RARE_WORLDS))
@pytest.mark.parametrize("family", rarely(EDITORS, {"flux2", "flux2_klein", "qwen"}))
def test_every_family_equals_the_plain_pipeline_row_by_row(
    runs: dict[str, tuple[Path, Case]], expected: dict[str, list[np.ndarray]], family: str, world: int, batch: int
) -> None:
    """Of flux2_klein and qwen, `make test` has the split runs below."""
    folder, case = runs[f"{family}-{world}-{batch}"]
    assert case.codes == [0] * world, case.output
    assert worst(folder, expected[family]) <= TOLERANCE
    by_rank = {rank: [line["index"] for line in ledger(folder) if line["rank"] == rank] for rank in range(world)}
    for rank, calls in enumerate(case.calls):
        assert len(calls) == fewest_calls(family, by_rank[rank], batch), (calls, by_rank)
    # Cutting the table into equal shares costs one call at most.
    assert sum(map(len, case.calls)) <= fewest_calls(family, list(range(12)), batch) + world - 1
    assert run_json(folder)["num_batches"] == sum(map(len, case.calls))


def test_images_and_instructions_matter(expected: dict[str, list[np.ndarray]]) -> None:
    """Else the comparisons of this file could not fail."""
    for family, made in expected.items():
        for one, other in combinations(range(12), 2):
            if made[one].shape == made[other].shape:
                assert abs(made[one] - made[other]).max() > 10 * TOLERANCE, (family, one, other)


@pytest.mark.parametrize("split_family", rarely(SPLIT, {"flux2", "qwen_singleimg"}))
def test_xdit_equals_the_plain_pipeline(
    runs: dict[str, tuple[Path, Case]], expected: dict[str, list[np.ndarray]], split_family: str
) -> None:
    folder, case = runs[f"{split_family}-ulysses"]
    assert case.codes == [0, 0], case.output
    assert worst(folder, expected[split_family]) <= TOLERANCE
    assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks did not talk"


def test_only_the_sum_of_all_image_tokens_must_divide(runs: dict[str, tuple[Path, Case]]) -> None:
    (plain_folder, before), (folder, case) = runs["odd"], runs["odd-ulysses"]
    assert before.codes == [0] and case.codes == [0, 0], case.output
    reference = [np.asarray(i).astype(int) for i in images(plain_folder).values()]
    assert reference[0].shape == (48, 48, 3) and worst(folder, reference) <= TOLERANCE


@pytest.mark.parametrize("order", rarely(ORDERS, {"reversed"}))
def test_the_order_of_the_table_does_not_change_an_image(
    runs: dict[str, tuple[Path, Case]], expected: dict[str, list[np.ndarray]], order: str
) -> None:
    folder, case = runs[order]
    assert case.codes == [0], case.output
    assert worst(folder, expected["flux1_kontext"]) <= TOLERANCE
    assert len(case.calls[0]) == 4


def test_glm_image_ends_as_a_clear_error_per_item(runs: dict[str, tuple[Path, Case]]) -> None:
    """When this fails, the libraries have been mended: take `known_trouble` out of the family's row."""
    folder, case = runs["glm_image"]
    assert case.codes == [3], case.output
    failures = ledger(folder, "failures.jsonl")
    assert sorted(line["index"] for line in failures) == [0, 1]
    assert all(line["error"].startswith("editing with GLM-Image fails inside transformers") for line in failures)
    assert "have 32 channels" in next(line["error"] for line in failures if line["index"] == 0)


def test_the_shipped_checkpoint_edits(runs: dict[str, tuple[Path, Case]]) -> None:
    folder, case = runs["tiny"]
    assert case.codes == [0], case.output
    sizes = {line["index"]: (line["width"], line["height"]) for line in ledger(folder)}
    assert (sizes[0], sizes[2], sizes[4]) == ((64, 64), (64, 48), (48, 64))


def test_what_cannot_run_is_refused_with_what_can(runs: dict[str, tuple[Path, Case]]) -> None:
    folder, case = runs["longcat-xdit"]
    assert case.codes == [2] and not folder.exists()
    assert (
        "--backend xdit has no LongCatImageEditPipeline for edit; it runs flux1_kontext, flux2, flux2_klein, qwen_singleimg, qwen"
        in case.output
    )
    _, case = runs["wrong class"]
    assert case.codes == [2] and "cannot be loaded as FluxKontextPipeline" in case.output


def test_the_sizes_are_diffusers_own() -> None:
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    from dglaunch.models.editing import KONTEXT_SHAPES, a_megapixel, at_most_a_megapixel
    from dglaunch.models.shape import Shape

    ours = [(shape.width, shape.height) for shape in KONTEXT_SHAPES]
    assert ours == kontext.PREFERRED_KONTEXT_RESOLUTIONS
    for width, height in [(640, 480), (3000, 2000), (999, 1777), (64, 400)]:
        large = Flux2ImageProcessor._resize_if_exceeds_area(Image.new("RGB", (width, height)))
        shape = at_most_a_megapixel(Shape(height, width), {})
        assert (shape.width, shape.height) == tuple(side // 16 * 16 for side in large.size)
    source = Path(kontext.__file__).parent.parent / "qwenimage" / "pipeline_qwenimage_edit.py"
    text = source.read_text()
    scope: dict[str, Any] = {}
    start = text.index("def calculate_dimensions")
    exec("import math\n" + text[start : text.index("\nclass ", start)], scope)
    for width, height in [(640, 480), (3000, 2000), (999, 1777), (64, 400)]:
        shape = a_megapixel(Shape(height, width), {})
        assert (shape.width, shape.height) == scope["calculate_dimensions"](1024 * 1024, width / height)[:2]
