"""Each optimization takes effect and says so in run.json: runs of `tiny` one after the other; torch.compile twice, for
what it keeps between runs. The table, the refusals and the modules are in tests/unit."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.commands import dglaunch
from support.ranks import Case, launch, run_forked
from support.results import PROMPTS, difference, ledger, run_json, write_jsonl
from support.selection import rarely, selected

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the runs of all

SMALL = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]


def test_a_kernel_without_masks_gets_batches_of_one_length(tmp_path: Path, families: Path) -> None:
    from support.tiny_models import build

    build("qwenimage", families / "qwenimage")
    rows = [{"prompt": prompt} for prompt in ("a red cat", "two blue dogs on the moon", "a tiny fox")]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    command = ["t2i", "--model_name", families / "qwenimage", "--prompts_file", prompts, "--batch_size", "4", *SMALL]
    for name, flags in (("plain", []), ("flash", ["--attention_backend", "_native_flash"])):
        ended = dglaunch(*command, *flags, "--output_dir", tmp_path / name)
        assert ended.code == 0 and not run_json(tmp_path / name)["events"], ended.output
    assert difference(tmp_path / "flash", tmp_path / "plain") <= 2
    assert [row["batch_size"] for row in ledger(tmp_path / "flash")].count(3) == 0


# -- runs ---------------------------------------------------------------------------------------------------------

SAME = {
    "vae_slicing": (["--enable_vae_slicing"], "AutoencoderKL.enable_slicing()"),
    "native": (["--attention_backend", "native"], "attention processors: native"),
    "native_math": (["--attention_backend", "_native_math"], "attention processors: _native_math"),
    "fuse_qkv": (["--enable_fuse_qkv"], "fused projections"),
    "channels_last": (["--enable_channels_last"], "convolutions in NHWC"),
}
CHANGED = {
    "first_block_cache": (["--cache_type", "first_block_cache", "--cache_threshold", "0.5"], "threshold=0.5"),
    "taylor_seer": (["--cache_type", "taylor_seer", "--cache_interval", "2", "--cache_warmup", "1"],
                    "cache_interval=2, disable_cache_before_step=1"),
    "pab": (["--cache_type", "pab"], "spatial_attention_block_skip_range=2"),
    "layerwise_casting": (["--enable_layerwise_casting"], "weights kept as float8_e4m3fn"),
    "int8": (["--quantization", "int8"], "linear layers Int8Tensor"),
    "cache_dit": (["--cache_type", "cache_dit", "--cache_threshold", "1"], "residual_diff_threshold=1.0"),
}  # fmt: skip
NEEDS = {"int8": "torchao", "cache_dit": "cache_dit"}
OTHERS = {
    "vae_tiling": (["--enable_vae_tiling"], "enable_tiling"),  # one tile is larger than these images
    "faster_cache": (["--cache_type", "faster_cache"], "FasterCacheConfig"),
    "mag_cache": (["--cache_type", "mag_cache"], "MagCacheConfig"),
}

RARE = {"native", "native_math", "channels_last", "pab", "vae_tiling", "faster_cache", "mag_cache"}


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Case]]]:
    folder = tmp_path_factory.mktemp("optimize")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--prompts_file", prompts, "--batch_size", "2"]
    # The plain run comes last too: what an option changes for the whole process must not reach the next run.
    chosen = {name for (name,) in [*selected(request, "name"), *selected(request, "with_xdit")]}
    table = {**SAME, **CHANGED, **OTHERS}.items()
    flags = {name: words for name, (words, _) in table if name in chosen and installed(name)}
    wanted = {"plain": [], **flags, "plain again": []}
    if "mag_cache" in wanted:
        wanted["plain 28"] = []
    cases = launch(folder, 1, [
        ([*base, *steps_of(name), *words, "--output_dir", folder / name], {}) for name, words in wanted.items()
    ])  # fmt: skip
    yield {name: (folder / name, case) for name, case in zip(wanted, cases)}


def steps_of(name: str) -> list[str]:
    """mag_cache has magnitudes for 28 steps; the others show in ten, of which cache-dit computes eight whole."""
    return ["--num_inference_steps", "28" if name in ("mag_cache", "plain 28") else "10"]


def installed(name: str) -> bool:
    return name not in NEEDS or find_spec(NEEDS[name]) is not None


@pytest.mark.parametrize("name", rarely([*SAME, *CHANGED, *OTHERS], RARE))
def test_what_took_effect_is_recorded(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    if not installed(name):
        pytest.skip(f"{NEEDS[name]} is not installed")
    folder, case = runs[name]
    assert case.codes == [0], case.output
    effects = run_json(folder)["effects"]
    assert effects.pop("encode").startswith("3 distinct prompts ahead")
    (effect,) = effects.values()
    assert {**SAME, **CHANGED, **OTHERS}[name][1] in effect


@pytest.mark.parametrize("name", rarely([*SAME, "plain again"], RARE & SAME.keys()))
def test_the_image_stays(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    assert difference(runs[name][0], runs["plain"][0]) <= 2


@pytest.mark.parametrize("name", rarely(CHANGED, RARE & CHANGED.keys()))
def test_what_changes_the_image_shows(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    if not installed(name):
        pytest.skip(f"{NEEDS[name]} is not installed")
    assert difference(runs[name][0], runs["plain"][0]) > 0


XDIT = {
    "plain": [],
    "taylor_seer": CHANGED["taylor_seer"][0],
    "pab": CHANGED["pab"][0],
    "mag_cache": OTHERS["mag_cache"][0],
    "layerwise_casting": CHANGED["layerwise_casting"][0],
    "fuse_qkv": ["--enable_fuse_qkv"],
    "channels_last": ["--enable_channels_last"],
    "native_math": ["--attention_backend", "SDPA_MATH"],
}
"""What the table says goes with --backend xdit, by the name of the run on one rank."""


@pytest.fixture(scope="module")
def xdit_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Case]]:
    folder = tmp_path_factory.mktemp("xdit")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--backend", "xdit", "--prompts_file", prompts, "--batch_size", "2"]
    split = {"DG_XDIT_ULYSSES_DEGREE": "2"}
    names = [name for (name,) in selected(request, "with_xdit")]
    cases = launch(folder, 2, [
        ([*base, *steps_of(name), *XDIT[name], "--output_dir", folder / name], split) for name in names
    ])  # fmt: skip
    return {name: (folder / name, case) for name, case in zip(names, cases)}


@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
@pytest.mark.parametrize("with_xdit", rarely(XDIT, {"plain", "pab", "mag_cache", "channels_last", "native_math"}))
def test_what_reaches_xfusers_transformer_makes_the_same_images(
    runs: dict[str, tuple[Path, Case]], xdit_runs: dict[str, tuple[Path, Case]], with_xdit: str
) -> None:
    folder, case = xdit_runs[with_xdit]
    assert case.codes == [0, 0], case.output
    assert difference(folder, runs[with_xdit][0]) <= 2


@pytest.mark.slow  # a minute of gcc
def test_compiling_is_counted_apart(tmp_path: Path) -> None:
    words = ["t2i", "--prompt", PROMPTS[0], "--num_inference_steps", "1", "--height", "64", "--width", "64"]
    plain = dglaunch(*words, "--output_dir", tmp_path / "plain")
    assert plain.code == 0, plain.output
    compiled(tmp_path, "compiled", *words)


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_run(tmp_path: Path) -> None:
    """Three images in batches of two: the last batch is smaller and needs another compilation."""
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    # Three images at most two at a time are balanced as 2 + 1.
    words = ["t2i", "--prompts_file", prompts, "--num_inference_steps", "2", "--batch_size", "2"]
    plain = dglaunch(*words, "--output_dir", tmp_path / "plain")
    assert plain.code == 0, plain.output
    first, second = (compiled(tmp_path, name, *words) for name in ("first", "second"))
    assert list((tmp_path / "cache" / "compile").rglob("*.py")), "nothing was kept in --cache_dir"
    assert len(ledger(tmp_path / "first")) == 3
    assert int(first[1]) > 2, "the smaller batch was compiled too"
    assert int(second[2]) > 0, "the second run found what the first had kept"


def compiled(folder: Path, name: str, *words: str | Path) -> re.Match[str]:
    """A run that compiles and draws what the plain one does: how often it compiled, and how many graphs were kept."""
    out = folder / name
    ended = run_forked(folder, *words, "--enable_compile", "--cache_dir", folder / "cache", "--output_dir", out)
    assert ended.code == 0, ended.output
    assert difference(out, folder / "plain") <= 2
    run = run_json(out)
    assert run["seconds"]["compile"] > 0
    assert "blocks (FluxTransformerBlock, FluxSingleTransformerBlock)" in run["effects"]["enable_compile"]
    (event,) = [text for text in run["events"] if "torch.compile worked" in text]
    told = re.search(r"worked (\d+) times, .*; (\d+) graphs were in", event)
    assert told, event
    return told
