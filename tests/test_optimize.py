"""Each optimisation takes effect and says so in run.json, or ends the run with a word; some must not change the image."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROMPTS, Case, difference, launch, run_json, write_jsonl

SAME = {
    "vae_slicing": ["--enable_vae_slicing"],
    "native": ["--attention_backend", "native"],
    "native_math": ["--attention_backend", "_native_math"],
}
CHANGED = {
    "taylor_seer": ["--cache_type", "taylor_seer"],
    "pab": ["--cache_type", "pab"],
}
OTHERS = {
    "vae_tiling": ["--enable_vae_tiling"],  # one tile is larger than these images
    "first_block_cache": ["--cache_type", "first_block_cache"],  # the threshold may never be met
    "faster_cache": ["--cache_type", "faster_cache"],
    "mag_cache": ["--cache_type", "mag_cache"],
}
REFUSED = {"sage": ["--attention_backend", "sage"], "nonsense": ["--attention_backend", "nonsense"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Case]]]:
    folder = tmp_path_factory.mktemp("optimize")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--prompts_file", prompts, "--num_inference_steps", "28", "--batch_size", "2"]
    # The plain run comes last too: what an option changes for the whole process must not reach the next run.
    wanted = {"plain": [], **REFUSED, **SAME, **CHANGED, **OTHERS, "plain again": []}
    cases = launch(folder, 1, [([*base, *words, "--output_dir", folder / name], {}) for name, words in wanted.items()])
    yield {name: (folder / name, case) for name, case in zip(wanted, cases)}


@pytest.mark.parametrize("name", [*SAME, *CHANGED, *OTHERS])
def test_what_took_effect_is_recorded(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    folder, case = runs[name]
    assert case.codes == [0], case.output
    effects = run_json(folder)["effects"]
    assert effects.pop("encode").startswith("3 distinct prompts ahead")
    (effect,) = effects.values()
    assert effect


@pytest.mark.parametrize("name", [*SAME, "plain again"])
def test_the_image_stays(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    assert difference(runs[name][0], runs["plain"][0]) <= 2


@pytest.mark.parametrize("name", CHANGED)
def test_a_cache_that_is_used_shows(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    assert difference(runs[name][0], runs["plain"][0]) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_take_effect_ends_the_run(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    folder, case = runs[name]
    assert case.codes == [2] and "cannot take effect" in case.output
    assert run_json(folder)["outcome"] == "broken"
