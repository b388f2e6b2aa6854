"""--parallel context, --shard fsdp and --shard tensor on real ranks over gloo: the images of one rank of plain diffusers.

One world of each size serves all cases of this file.

    DG_TEST_MATRIX=1 pytest -m "slow or not slow" tests/torchrun/test_sharing.py      fills their columns of docs/models.md
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dglaunch.models.families import FAMILIES, Family
from support.edit_images import save_table
from support.family_runs import DIFFERENT_LENGTHS, EDITORS, GUIDED, SETS, SIZE
from support.matrix import measured
from support.ranks import Case, launch_planned
from support.raw_pixels import raw_difference
from support.results import ledger, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the runs of all

TOLERANCE = 2e-5
"""Of 1. Far below what 8 bits show."""
KEPT = "support.raw_pixels:kept"
CONTEXT, FSDP, TENSOR = ["--parallel", "context"], ["--shard", "fsdp"], ["--shard", "tensor"]
WAYS: dict[str, tuple[int, list[str], dict[str, str]]] = {
    "context": (2, CONTEXT, {"DG_PARALLEL_DEGREE": "2"}),
    "fsdp": (2, FSDP, {"DG_SHARD_DEGREE": "2"}),
    "tensor": (2, TENSOR, {"DG_SHARD_DEGREE": "2"}),
    "fsdp-context": (2, [*FSDP, *CONTEXT], {"DG_SHARD_DEGREE": "2", "DG_PARALLEL_DEGREE": "2"}),
    "context4": (4, CONTEXT, {"DG_PARALLEL_DEGREE": "4"}),
    "context-data2": (4, CONTEXT, {"DG_PARALLEL_DEGREE": "2"}),
    "fsdp-data2": (4, FSDP, {"DG_SHARD_DEGREE": "2"}),
    "tensor-data2": (4, TENSOR, {"DG_SHARD_DEGREE": "2"}),
    "fsdp4": (4, FSDP, {"DG_SHARD_DEGREE": "4"}),
}
COLUMNS = {"context": "context parallel", "fsdp": "FSDP", "tensor": "tensor parallel"}
"""Of the matrix."""
EDITED = {"flux1_kontext", "qwen_singleimg", "qwen", "longcat"}
"""Editing families that draw from no text alone; flux2 and flux2_klein are among T2I."""
PIPELINES = {
    "flux": "FluxPipeline", "flux2": "Flux2Pipeline", "flux2_klein": "Flux2KleinPipeline",
    "qwenimage": "QwenImagePipeline", "zimage": "ZImagePipeline", "sd3": "StableDiffusion3Pipeline",
    "pixart_sigma": "PixArtSigmaPipeline", "lumina2": "Lumina2Pipeline", "flux1_kontext": "FluxKontextPipeline",
    "qwen_singleimg": "QwenImageEditPipeline", "qwen": "QwenImageEditPlusPipeline",
    "longcat": "LongCatImageEditPipeline",
}  # fmt: skip


def row(family: str) -> Family:
    return FAMILIES[PIPELINES[family]]


SHARED = [(family, way) for way in COLUMNS for family in PIPELINES if way in row(family).shares]
NOT_SHARED = [(family, way) for way in COLUMNS for family in PIPELINES if way not in row(family).shares]
MORE = [
    *[(family, "fsdp-context") for family in ("flux", "flux2", "qwenimage", "qwen")],
    *[(family, "context4") for family in ("flux", "flux2", "qwenimage", "qwen_singleimg", "qwen")],
    *[("flux", way) for way in ("context-data2", "fsdp-data2", "tensor-data2", "fsdp4")],
    *[("qwenimage", way) for way in ("context-data2", "fsdp4")],
]
QUICK = {("qwenimage", "context"), ("qwen_singleimg", "fsdp")}
"""In `make test`."""


def command(folder: Path, families: Path, family: str) -> list[Any]:
    """A job of several batches on the tiny checkpoint of a family."""
    if family in EDITED:
        table = save_table(folder / f"{family}.csv", SETS[family][:5])
        return ["edit", "--model_name", families / EDITORS[family], "--num_inference_steps", "2", "--input", table]
    prompts = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in DIFFERENT_LENGTHS])
    return ["t2i", "--model_name", families / family, *SIZE, *GUIDED.get(family, []), "--prompts_file", prompts]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> Iterator[dict[str, tuple[Path, Case]]]:
    """Every run that the chosen tests look at, by name: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("sharing")
    planned: dict[str, tuple[int, list[Any], Mapping[str, str]]] = {}
    for family, way in selected(request, "family", "way"):
        build(EDITORS.get(family, family) if family in EDITED else family, families / EDITORS.get(family, family))
        job = command(folder, families, family)
        planned[f"{family}-plain"] = (1, [KEPT, *job, "--batch_size", "1", "--encode", "inline"], {})
        world, flags, environment = WAYS[way]
        planned[f"{family}-{way}"] = (world, [KEPT, *job, *flags, "--batch_size", "3"], environment)
    yield launch_planned(folder, planned)


@pytest.mark.parametrize(("family", "way"), rarely([*SHARED, *MORE], {*SHARED, *MORE} - QUICK))
def test_a_shared_model_draws_what_one_rank_draws(runs: dict[str, tuple[Path, Case]], family: str, way: str) -> None:
    (plain, before), (folder, case) = runs[f"{family}-plain"], runs[f"{family}-{way}"]
    assert before.codes == [0], before.output
    assert case.codes == [0] * WAYS[way][0], case.output
    assert not (folder / "failures.jsonl").exists(), ledger(folder, "failures.jsonl")
    found = raw_difference(folder, plain)
    assert found <= TOLERANCE
    if "context" in way:  # the others exchange weights and sums inside of torch, where nothing counts here
        assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks of a replica did not talk"
    said = run_json(folder)["effects"]
    assert ("parallel" in said, "shard" in said) == ("context" in way, "fsdp" in way or "tensor" in way)
    if "shard" in said:
        held = int(re.search(r"holds (\d+)%", said["shard"])[1])  # type: ignore[index]  # it is there
        degree = int(WAYS[way][2]["DG_SHARD_DEGREE"])
        # What is no weight, as a stored table of positions, is whole on each rank.
        assert held <= (100 / degree + 10 if "fsdp" in way else 90), said["shard"]
    if way in COLUMNS:
        measured(row(family).name, COLUMNS[way], found)
