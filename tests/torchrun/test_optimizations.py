"""Each optimisation takes effect and says so in run.json, or is refused before anything is loaded.

Layers, cheapest first: the table against the libraries' own names; every refusal (pure); the modules of a tiny pipeline
in this process; runs of `tiny`, all in one torchrun; torch.compile twice, for what it keeps between runs.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dglaunch.backends.diffusers import optimizations as optimize
from dglaunch.backends.diffusers.checks import check_optimizations
from dglaunch.config import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models import optimizations
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER
from support.commands import dglaunch
from support.ranks import Case, launch
from support.results import PROMPTS, difference, ledger, run_json, write_jsonl

# -- the table ----------------------------------------------------------------------------------------------------

SMALL = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]
PARAMETERS = {"compile_scope", "cache_threshold", "cache_interval", "cache_warmup", "encode", "embedding_cache"}


def test_every_flag_is_a_row_or_a_parameter_of_one() -> None:
    flags = {item.name for item in fields(OptimizationConfig)}
    assert flags == {row.flag for row in optimizations.OPTIMIZATIONS} | PARAMETERS
    assert flags == optimize.ACTIONS.keys() | PARAMETERS


def test_rows_name_rows_and_families() -> None:
    names = {row.name for row in optimizations.OPTIMIZATIONS}
    for row in optimizations.OPTIMIZATIONS:
        assert set(row.excludes) <= names
    for family in FAMILIES.values():
        assert (family.takes or set()) <= names and (family.xdit is None or family.xdit.takes <= names)


def test_what_changes_the_images_is_another_job() -> None:
    for row in optimizations.OPTIMIZATIONS:
        if row.changes and row.flag != "attention_backend":
            config = OptimizationConfig(**{row.flag: row.value or True})
            assert row.flag in optimizations.image_settings(config)
    assert optimizations.image_settings(OptimizationConfig(attention_backend="flash")) == {}
    assert optimizations.image_settings(OptimizationConfig(attention_backend="sage")) == {"attention_backend": "sage"}


def test_the_attention_backends_are_the_libraries_own() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert optimizations.ATTENTION.keys() == {name.value for name in AttentionBackendName}
    if find_spec("xfuser"):
        from dglaunch.backends.xdit.cpu import import_xfuser

        import_xfuser()
        from xfuser.core.distributed.attention_backend import AttentionBackendType

        assert optimizations.XFUSER_ATTENTION.keys() <= AttentionBackendType.__members__.keys()


# -- refusals -----------------------------------------------------------------------------------------------------


def refuse(pipeline: str = "FluxPipeline", device: str = "cpu", backend: str = "diffusers", **flags: Any) -> None:
    dtype, ring = flags.pop("torch_dtype", None), flags.pop("ring", 1)
    config = T2IConfig(
        prompt="x", backend=BackendConfig(backend=backend, torch_dtype=dtype), optimization=OptimizationConfig(**flags)
    )
    checkpoint = Checkpoint("x", pipeline, FAMILIES.get(pipeline, OTHER), {}, {}, True)
    topology = Topology(parallel=ParallelConfig(ring_degree=ring))
    check_optimizations(checkpoint, config, topology, device, xdit=backend == "xdit")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"quantization": "fp8"}, "(runs on GPUs only|needs the package torchao)"),
    ({"quantization": "nf4"}, "(runs on GPUs only|needs the package bitsandbytes)"),
    ({"quantization": "fp8", "device": "cuda", "torch_dtype": "float16"}, "--torch_dtype bfloat16"),
    ({"quantization": "int8", "device": "cuda"}, "needs --enable_compile on a GPU"),
    ({"enable_cpu_offload": True}, "GPUs only"),
    ({"enable_group_offloading": True}, "in host memory already"),
    ({"enable_tf32": True}, "GPUs only"),
    ({"enable_tf32": True, "device": "cuda"}, "weights in bfloat16"),
    ({"enable_tf32": True, "device": "cuda", "torch_dtype": "bfloat16"}, "--torch_dtype float32"),
    ({"enable_cpu_offload": True, "enable_group_offloading": True, "device": "cuda"}, "do not go together"),
    ({"enable_compile": True, "enable_group_offloading": True, "device": "cuda"}, "do not go together"),
    ({"enable_layerwise_casting": True, "quantization": "int8"}, "do not go together"),
    ({"enable_fuse_qkv": True, "quantization": "int8"}, "do not go together"),
    ({"enable_fuse_qkv": True, "pipeline": "QwenImagePipeline"}, "does nothing or fails with QwenImage"),
    ({"attention_backend": "native", "pipeline": "StableDiffusion3Pipeline"}, "does nothing or fails with SD3"),
    ({"cache_type": "first_block_cache", "pipeline": "Flux2Pipeline"}, "it works with Flux, QwenImage"),
    ({"cache_type": "pab", "pipeline": "QwenImagePipeline"}, "does nothing or fails"),
    ({"cache_type": "taylor_seer", "pipeline": "ZImagePipeline"}, "does nothing or fails"),
    ({"enable_compile": True, "pipeline": "StableDiffusion3Pipeline"}, "--compile_scope whole"),
    ({"compile_scope": "whole"}, "without --enable_compile"),
    ({"cache_threshold": 0.1}, "there is no cache"),
    ({"cache_interval": 3, "cache_type": "first_block_cache"}, "belongs to taylor_seer, faster_cache, pab"),
    ({"attention_backend": "sage"}, "pip install sageattention"),
    ({"attention_backend": "flash"}, "pip install flash-attn"),
    ({"attention_backend": "xformers"}, "pip install xformers"),
    ({"attention_backend": "flash_hub"}, "pip install kernels"),
    ({"attention_backend": "_native_cudnn"}, "on a CPU there are native"),
    ({"attention_backend": "nativ"}, "the nearest: native"),
    ({"attention_backend": "native", "backend": "xdit"}, "none of xfuser's names"),
    ({"attention_backend": "FLASH_3", "backend": "xdit"}, "flash_attn_interface"),
    ({"cache_type": "first_block_cache", "backend": "xdit"}, "ranks that decide differently hang"),
    ({"enable_fuse_qkv": True, "backend": "xdit", "pipeline": "StableDiffusion3Pipeline"}, "for Flux, Flux2 only"),
    ({"cache_type": "taylor_seer", "backend": "xdit", "pipeline": "QwenImagePipeline"}, "for Flux only"),
    ({"attention_backend": "SDPA", "backend": "xdit", "ring": 2}, "cannot be merged over a ring"),
    ({"enable_cpu_offload": True, "backend": "xdit", "device": "cuda"}, "does not go with --backend xdit"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said"), REFUSALS, ids=lambda value: str(value)[:60])
def test_what_cannot_take_effect_is_refused_before_loading(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as told:
        refuse(**flags)
    assert re.search(said, str(told.value)), told.value


def test_group_offloading_does_not_lock_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint("x", "FluxPipeline", FAMILIES["FluxPipeline"], {}, {}, True)
    checkpoint.__dict__["parameters"] = {"transformer": 12 * 10**9, "text_encoder_2": 5 * 10**9}
    config = T2IConfig(prompt="x", optimization=OptimizationConfig(enable_group_offloading=True))
    monkeypatch.setattr(optimizations, "host_memory", lambda: 256 * 2**30)
    optimizations.check(checkpoint, config, Topology(world_size=4, local_world_size=4), "cuda")
    with pytest.raises(UserError, match="would lock 286 GiB of host memory for 8 ranks"):
        optimizations.check(checkpoint, config, Topology(world_size=8, local_world_size=8), "cuda")


def test_which_attention_kernels_take_no_mask() -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    refusing = {
        str(name.value) for name, kernel in Registry._backends.items()
        if "`attn_mask` is not supported" in inspect.getsource(inspect.unwrap(kernel))
    }  # fmt: skip
    assert refusing == optimizations.WITHOUT_MASK


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


def test_guidance_of_zimage_needs_a_mask(families: Path) -> None:
    from support.tiny_models import build

    build("zimage", families / "zimage")
    command = [
        "plan",
        "t2i",
        "--model_name",
        families / "zimage",
        "--prompt",
        "x",
        "--attention_backend",
        "_native_flash",
    ]
    ended = dglaunch(*command)
    assert ended.code == 2 and "takes no mask" in ended.output
    assert dglaunch(*command, "--guidance_scale", "0").code == 0


@pytest.mark.parametrize("flags", [{"cache_threshold": 0}, {"cache_interval": 1}, {"cache_warmup": -1}])
def test_a_parameter_out_of_range_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        OptimizationConfig(cache_type="taylor_seer", **flags)


def test_what_goes_together_passes() -> None:
    refuse(enable_compile=True, cache_type="first_block_cache", cache_threshold=0.1, enable_vae_slicing=True)
    refuse(attention_backend="sdpa", backend="xdit", enable_compile=True)
    refuse(pipeline="ChromaPipeline", attention_backend="native", enable_fuse_qkv=True)


def test_the_estimate_counts_what_is_on_the_device() -> None:
    """FLUX.1-dev's sizes in bfloat16: 24 GB transformer, 10 GB text encoders that leave before it comes."""
    from dglaunch.planning.estimate import memory_of

    checkpoint = Checkpoint("x", "FluxPipeline", FAMILIES["FluxPipeline"], {}, {}, True)
    checkpoint.__dict__["parameters"] = {"transformer": 12 * 10**9, "text_encoder_2": 5 * 10**9, "vae": 10**8}

    def weights(**flags: Any) -> float:
        config = T2IConfig(prompt="x", optimization=OptimizationConfig(**flags))
        memory = memory_of(checkpoint, config, Topology(), "bfloat16", 1024, 1024)
        assert memory is not None
        return memory.weights / 1e9

    assert weights() == pytest.approx(24.2) and weights(encode="inline") == pytest.approx(34.2)
    assert weights(quantization="fp8") == weights(enable_layerwise_casting=True) == pytest.approx(12.2)
    assert weights(quantization="nf4", encode="inline") == pytest.approx(6.72 + 10.2)
    assert weights(enable_group_offloading=True) == pytest.approx(10) and weights(enable_cpu_offload=True) == 24


# -- the modules, in this process ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes a new pipeline of the tiny random FLUX.1 at each call."""
    from diffusers import FluxPipeline

    from support.tiny_models import build

    folder = build("flux", tmp_path_factory.mktemp("models") / "flux")

    def load() -> Any:
        pipeline = FluxPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    yield load


def draw(pipeline: Any) -> Any:
    import torch

    with torch.inference_mode():
        return pipeline(
            prompt=["a red circle", "b"], height=64, width=64, num_inference_steps=6, max_sequence_length=32,
            output_type="np", generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        ).images  # fmt: skip


def test_an_attention_backend_does_not_leak_into_the_process(tiny_flux: Any) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    pipeline = tiny_flux()
    effects = optimize.apply(pipeline, OptimizationConfig(attention_backend="_native_math"), "cpu", ExitStack())
    assert effects == {"attention_backend": "4 attention processors: _native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE
    assert {block.attn.processor._attention_backend for block in pipeline.transformer.transformer_blocks} == {
        "_native_math"
    }
    other = tiny_flux()
    assert {block.attn.processor._attention_backend for block in other.transformer.transformer_blocks} == {None}


def test_group_offloading_moves_layers_and_not_the_image(tiny_flux: Any) -> None:
    """On a GPU alone it saves memory; that its hooks are there and right shows on a CPU too."""
    config = OptimizationConfig(enable_group_offloading=True)
    pipeline = tiny_flux()
    optimize.move(pipeline, "cpu", config)
    effects = optimize.apply(pipeline, config, "cpu", ExitStack())
    assert int(effects["enable_group_offloading"].split()[0]) > 50
    assert abs(draw(pipeline) - draw(tiny_flux())).max() < 2e-6


@pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")
def test_cache_dit_takes_hold_and_lets_go(tiny_flux: Any) -> None:
    plain = draw(tiny_flux())
    pipeline = tiny_flux()
    config = OptimizationConfig(cache_type="cache_dit", cache_threshold=50.0, cache_warmup=1)
    with ExitStack() as undo:
        effects = optimize.apply(pipeline, config, "cpu", undo)
        assert effects["cache_type"] == "DBCache(Fn_compute_blocks=1, residual_diff_threshold=50.0, max_warmup_steps=1)"
        assert abs(draw(pipeline) - plain).max() > 0.01
    assert abs(draw(tiny_flux()) - plain).max() == 0


def test_a_cache_forgets_a_call_that_broke_off(tiny_flux: Any) -> None:
    pipeline = tiny_flux()
    config = OptimizationConfig(cache_type="first_block_cache", cache_threshold=100.0)
    optimize.apply(pipeline, config, "cpu", ExitStack())
    expected = draw(pipeline)
    call, calls = pipeline.transformer.forward, []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return call(*args, **kwargs)

    pipeline.transformer.forward = breaks
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(pipeline)
    pipeline.transformer.forward = call
    optimize.forget_steps(pipeline)
    assert abs(draw(pipeline) - expected).max() == 0


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Case]]]:
    folder = tmp_path_factory.mktemp("optimize")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--prompts_file", prompts, "--num_inference_steps", "28", "--batch_size", "2"]
    # The plain run comes last too: what an option changes for the whole process must not reach the next run.
    flags = {name: words for name, (words, _) in {**SAME, **CHANGED, **OTHERS}.items() if installed(name)}
    wanted = {"plain": [], **flags, "plain again": []}
    cases = launch(folder, 1, [([*base, *words, "--output_dir", folder / name], {}) for name, words in wanted.items()])
    yield {name: (folder / name, case) for name, case in zip(wanted, cases)}


def installed(name: str) -> bool:
    return name not in NEEDS or find_spec(NEEDS[name]) is not None


@pytest.mark.parametrize("name", [*SAME, *CHANGED, *OTHERS])
def test_what_took_effect_is_recorded(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    if not installed(name):
        pytest.skip(f"{NEEDS[name]} is not installed")
    folder, case = runs[name]
    assert case.codes == [0], case.output
    effects = run_json(folder)["effects"]
    assert effects.pop("encode").startswith("3 distinct prompts ahead")
    (effect,) = effects.values()
    assert {**SAME, **CHANGED, **OTHERS}[name][1] in effect


@pytest.mark.parametrize("name", [*SAME, "plain again"])
def test_the_image_stays(runs: dict[str, tuple[Path, Case]], name: str) -> None:
    assert difference(runs[name][0], runs["plain"][0]) <= 2


@pytest.mark.parametrize("name", CHANGED)
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


@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
def test_what_reaches_xfusers_transformer_makes_the_same_images(
    runs: dict[str, tuple[Path, Case]], tmp_path: Path
) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--backend", "xdit", "--prompts_file", prompts, "--num_inference_steps", "28", "--batch_size", "2"]
    split = {"DG_XDIT_ULYSSES_DEGREE": "2"}
    cases = launch(
        tmp_path, 2, [([*base, *words, "--output_dir", tmp_path / name], split) for name, words in XDIT.items()]
    )
    for name, case in zip(XDIT, cases):
        assert case.codes == [0, 0], (name, case.output)
        assert difference(tmp_path / name, runs[name][0]) <= 2, name


def test_compiling_is_counted_apart_and_kept_for_the_next_run(tmp_path: Path) -> None:
    """Three images in batches of two: the last batch is smaller and needs another compilation."""
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    # Three images at most two at a time are balanced as 2 + 1.
    words = ["t2i", "--prompts_file", prompts, "--num_inference_steps", "2", "--batch_size", "2", "--cache_dir"]
    words += [tmp_path / "cache"]
    plain = dglaunch(*words, "--output_dir", tmp_path / "plain")
    assert plain.code == 0, plain.output
    told = []
    for name in ("first", "second"):
        ended = dglaunch(*words, "--enable_compile", "--output_dir", tmp_path / name)
        assert ended.code == 0, ended.output
        assert difference(tmp_path / name, tmp_path / "plain") <= 2
        run = run_json(tmp_path / name)
        assert run["seconds"]["compile"] > 0
        assert "blocks (FluxTransformerBlock, FluxSingleTransformerBlock)" in run["effects"]["enable_compile"]
        (event,) = [text for text in run["events"] if "torch.compile worked" in text]
        told.append(re.search(r"worked (\d+) times, .*; (\d+) graphs were in", event))
    assert list((tmp_path / "cache" / "compile").rglob("*.py")), "nothing was kept in --cache_dir"
    assert [len(line) for line in (ledger(tmp_path / "first"),)] == [3]
    assert told[0] and int(told[0][1]) > 2, "the smaller batch was compiled too"
    assert told[1] and int(told[1][2]) > 0, "the second run found what the first had kept"
