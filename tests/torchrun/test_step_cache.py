"""--cache_type fbcache, xfuser's own, on real ranks: the ranks of an image decide as one rank does, with several replicas too."""

from pathlib import Path

import pytest

from support.ranks import Case, launch
from support.raw_pixels import raw_difference
from support.results import PROMPTS, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = pytest.mark.timeout(900)

ROUNDING = 2e-5
SPLIT = {"DG_XDIT_ULYSSES_DEGREE": "2"}
CACHED = ["--cache_type", "fbcache", "--cache_threshold"]
RUNS: dict[str, tuple[int, list[str], dict[str, str]]] = {
    "plain": (1, [], {}),
    "never": (1, [*CACHED, "1e-9"], {}),
    "alone": (1, [*CACHED, "1000"], {}),
    "split": (2, [*CACHED, "1000"], SPLIT),
    "replicas": (4, [*CACHED, "1000"], SPLIT),
}
"""Of `replicas` each of two splits an image."""


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> dict[str, tuple[Path, Case]]:
    folder = tmp_path_factory.mktemp("cached")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:4]])
    planned = {}
    for family, name in [*selected(request, "family", "name")]:
        build(family, families / family)
        job = ["t2i", "--backend", "xdit", "--model_name", families / family, "--height", "64", "--width", "64"]
        job += ["--num_inference_steps", "8", "--batch_size", "1", "--prompts_file", prompts]
        for run in ("plain", "alone", name):
            world, flags, environment = RUNS[run]
            out = folder / f"{family}-{run}"
            planned[f"{family}-{run}"] = (
                world,
                (["support.raw_pixels:kept", *job, *flags, "--output_dir", out], environment),
            )
    found: dict[str, tuple[Path, Case]] = {}
    for world in sorted({world for world, _ in planned.values()}):
        chosen = {name: command for name, (needed, command) in planned.items() if needed == world}
        found |= {name: (folder / name, case) for name, case in zip(chosen, launch(folder, world, [*chosen.values()]))}
    return found


CASES = [(family, name) for family in ("flux", "flux2") for name in ("never", "split", "replicas")]


@pytest.mark.parametrize(("family", "name"), rarely(CASES, CASES))
def test_the_ranks_of_an_image_decide_together(runs: dict[str, tuple[Path, Case]], family: str, name: str) -> None:
    (plain, before), (alone, cached), (folder, case) = (runs[f"{family}-{each}"] for each in ("plain", "alone", name))
    assert before.codes == [0] and cached.codes == [0], cached.output
    assert case.codes == [0] * RUNS[name][0], case.output
    assert "FBCache(threshold=" in run_json(folder)["effects"]["cache_type"]
    assert raw_difference(alone, plain) > 100 * ROUNDING, "no step was skipped"
    assert raw_difference(folder, plain if name == "never" else alone) <= ROUNDING
