"""Real models on real ranks: the same image at the same index on any number of ranks, batch size and split.

One world of each size serves all cases of this file.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.family_runs import DIFFERENT_LENGTHS, GUIDED, SIZE, T2I
from support.ranks import Case, launch_planned
from support.results import PROMPTS, difference, images, ledger, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the runs of all

TOLERANCE = 2
"""Of 255."""

SPLITS: dict[str, tuple[int, dict[str, str]]] = {
    "ulysses2": (2, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "ring2": (2, {"DG_XDIT_RING_DEGREE": "2"}),
    "cfg2": (2, {"DG_XDIT_USE_CFG_PARALLEL": "1"}),
    "data2": (2, {}),
    "ulysses2-data2": (4, {"DG_XDIT_ULYSSES_DEGREE": "2", "DG_SHARES": "static"}),
    "ulysses4": (4, {"DG_XDIT_ULYSSES_DEGREE": "4"}),
}
TINY_SPLITS = ("ulysses2", "ring2", "data2", "ulysses2-data2")
FAMILY_SPLITS = [
    *[(family, "ulysses2") for family in T2I],
    *[(family, "ring2") for family in ("flux", "sd3")],
    *[(family, "cfg2") for family in ("sd3", "pixart_sigma", "zimage", "lumina2")],
    *[(family, "data2") for family in ("qwenimage", "sd3", "lumina2")],
    *[(family, "ulysses2-data2") for family in ("flux", "sd3")],
    ("zimage", "ulysses4"),  # which does not divide its 30 heads
]
RARE_SPLITS = [
    *[(family, "cfg2") for family in ("pixart_sigma", "zimage", "lumina2")],
    *[(family, "data2") for family in ("sd3", "lumina2")],
    ("flux", "ring2"), ("qwenimage", "data2"), ("flux", "ulysses2-data2"), ("sd3", "ulysses2-data2"),
    ("flux2", "ulysses2"), ("pixart_sigma", "ulysses2"), ("zimage", "ulysses2"),
]  # fmt: skip
WORLDS = [(1, 1), (1, 4), (1, 8), (2, 1), (2, 4), (2, 8), (4, 1), (4, 4), (4, 8)]
RARE_WORLDS = [(1, 4), (1, 8), (2, 1), (2, 8), (4, 1), (4, 4), (4, 8)]
MANY = PROMPTS[:13]
"""A number that no batch size or world size divides."""


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> Iterator[dict[str, tuple[Path, Case]]]:
    """Every run that the chosen tests look at, by name: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("runs")
    many = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in MANY])
    few = write_jsonl(folder / "few.jsonl", [{"prompt": prompt} for prompt in DIFFERENT_LENGTHS])
    planned: dict[str, tuple[int, list[Any], dict[str, str]]] = {}
    tiny = ["t2i", "--model_name", "tiny", "--num_inference_steps", "2", "--prompts_file", many]
    for world, batch in [(1, 1), (2, 4), *selected(request, "world", "batch")]:
        planned[f"tiny-{world}-{batch}"] = (world, [*tiny, "--batch_size", str(batch)], {})
    for split in TINY_SPLITS:
        world, environment = SPLITS[split]
        planned[f"tiny-{split}"] = (world, [*tiny, "--backend", "xdit", "--batch_size", "4"], environment)
    splits, aheads = selected(request, "family", "split"), selected(request, "ahead")
    for family in [family for family in T2I if (family,) in aheads or family in {name for name, _ in splits}]:
        build(family, families / family)
        model = ["t2i", "--model_name", families / family, *SIZE, *GUIDED.get(family, []), "--prompts_file", few]
        planned[f"{family}-plain"] = (1, [*model, "--batch_size", "1", "--encode", "inline"], {})
        if (family,) in aheads:
            planned[f"{family}-ahead"] = (1, [*model, "--batch_size", "3", "--encode", "ahead"], {})
        for split in [split for name, split in splits if name == family]:
            world, environment = SPLITS[split]
            planned[f"{family}-{split}"] = (world, [*model, "--backend", "xdit", "--batch_size", "3"], environment)
    told = ["support.replica_checks:then_say_what_xfuser_was_told", "t2i", "--backend", "xdit", "--prompt", "a fox"]
    planned["type"] = (1, [*told, "--torch_dtype", "bfloat16", "--num_inference_steps", "1"], {})
    yield launch_planned(folder, planned)


@pytest.mark.parametrize(("world", "batch"), rarely(WORLDS, RARE_WORLDS))
def test_ranks_and_batch_size_do_not_change_the_images(
    runs: dict[str, tuple[Path, Case]], world: int, batch: int
) -> None:
    folder, case = runs[f"tiny-{world}-{batch}"]
    assert case.codes == [0] * world, case.output
    assert sorted(images(folder)) == [f"{n:06d}.png" for n in range(len(MANY))]
    assert difference(folder, runs["tiny-1-1"][0]) <= TOLERANCE


def test_different_prompts_and_seeds_give_different_images(runs: dict[str, tuple[Path, Case]]) -> None:
    """Else the comparisons of this file could not fail."""
    made = list(images(runs["tiny-1-1"][0]).values())
    assert min(abs(a.astype(int) - b.astype(int)).max() for a, b in pairwise(made)) > 10 * TOLERANCE
    for family in [name.removesuffix("-plain") for name in runs if name.endswith("-plain")]:
        made = list(images(runs[f"{family}-plain"][0]).values())
        assert min(abs(a.astype(int) - b.astype(int)).max() for a, b in pairwise(made)) > 10 * TOLERANCE, family


@pytest.mark.parametrize("split", TINY_SPLITS)
def test_tiny_split_by_xdit_equals_one_rank(runs: dict[str, tuple[Path, Case]], split: str) -> None:
    folder, case = runs[f"tiny-{split}"]
    world = SPLITS[split][0]
    assert case.codes == [0] * world, case.output
    assert difference(folder, runs["tiny-1-1"][0]) <= TOLERANCE
    if "ulysses" in split:
        assert all(rank["all_to_all_single"] > 0 for rank in case.collectives)
    if "ring" in split:
        assert all(rank["all_gather_single"] > 0 for rank in case.collectives)


@pytest.mark.parametrize(("family", "split"), rarely(FAMILY_SPLITS, RARE_SPLITS))
def test_every_xdit_family_equals_plain_diffusers(runs: dict[str, tuple[Path, Case]], family: str, split: str) -> None:
    plain, before = runs[f"{family}-plain"]
    folder, case = runs[f"{family}-{split}"]
    assert before.codes == [0], before.output
    assert case.codes == [0] * SPLITS[split][0], case.output
    assert not (folder / "failures.jsonl").exists()
    assert difference(folder, plain) <= TOLERANCE
    if split != "data2":
        assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks of a replica did not talk"


@pytest.mark.parametrize("ahead", rarely(T2I, set(T2I) - {"flux", "sd3"}))
def test_prompts_encoded_ahead_give_the_same_images(runs: dict[str, tuple[Path, Case]], ahead: str) -> None:
    """The other families' on a pretended GPU: test_pretended_gpu.py."""
    folder, case = runs[f"{ahead}-ahead"]
    assert case.codes == [0], case.output
    assert difference(folder, runs[f"{ahead}-plain"][0]) <= TOLERANCE
    assert run_json(folder)["effects"]["encode"].startswith(f"{len(DIFFERENT_LENGTHS)} distinct prompts ahead")
    assert "encode" not in run_json(runs[f"{ahead}-plain"][0])["effects"]


def test_two_replicas_of_two(runs: dict[str, tuple[Path, Case]]) -> None:
    folder, _ = runs["tiny-ulysses2-data2"]
    told = run_json(folder)
    assert told["topology"]["num_replicas"] == 2 and told["topology"]["replica_size"] == 2
    # Only the last rank of each replica sends; the shares are equal to within one image.
    assert {line["rank"] for line in ledger(folder)} == {1, 3}
    assert sorted(told["images_by_rank"].values()) == [6, 7]


def test_ledger_and_run_json_say_what_was_used(runs: dict[str, tuple[Path, Case]]) -> None:
    folder, _ = runs["tiny-2-4"]
    lines = sorted(ledger(folder), key=lambda line: line["index"])
    assert [line["prompt"] for line in lines] == MANY
    assert all(
        line["width"] and line["num_inference_steps"] == 2 and line["guidance_scale"] is not None for line in lines
    )
    told = run_json(folder)
    assert (told["num_ok"], told["num_failed"], told["num_skipped"], told["outcome"]) == (len(MANY), 0, 0, "done")
    assert {"load", "encode_prompts", "denoise", "decode", "encode_image", "wait"} <= told["seconds"].keys()
    assert told["config"]["batch_size"] == {"value": 4, "from": "flag"}
    assert told["config"]["seed"]["from"] == "default"
    assert told["versions"]["diffusers"] and told["choices"]["torch_dtype"].startswith("float32")


def test_xfuser_is_told_the_type_of_the_run(runs: dict[str, tuple[Path, Case]]) -> None:
    """Its own default is float16, whatever the model's type."""
    _, case = runs["type"]
    assert case.codes == [0], case.output
    assert "XFUSER torch.bfloat16" in case.output
