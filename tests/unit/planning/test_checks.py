"""What cannot take effect is refused before anything is loaded."""

import re
from typing import Any

import pytest

from dglaunch.backends.diffusers import checks
from dglaunch.config import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER


def refuse(pipeline: str = "FluxPipeline", device: str = "cpu", backend: str = "diffusers", **flags: Any) -> None:
    dtype, ring = flags.pop("torch_dtype", None), flags.pop("ring", 1)
    config = T2IConfig(
        prompt="x", backend=BackendConfig(backend=backend, torch_dtype=dtype), optimization=OptimizationConfig(**flags)
    )
    checkpoint = Checkpoint("x", pipeline, FAMILIES.get(pipeline, OTHER), {}, {}, True)
    topology = Topology(parallel=ParallelConfig(ring_degree=ring))
    checks.check_optimizations(checkpoint, config, topology, device, xdit=backend == "xdit")


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
    monkeypatch.setattr(checks, "host_memory", lambda: 256 * 2**30)
    checks.check_optimizations(checkpoint, config, Topology(world_size=4, local_world_size=4), "cuda", xdit=False)
    with pytest.raises(UserError, match="would lock 286 GiB of host memory for 8 ranks"):
        checks.check_optimizations(checkpoint, config, Topology(world_size=8, local_world_size=8), "cuda", xdit=False)


@pytest.mark.parametrize("flags", [{"cache_threshold": 0}, {"cache_interval": 1}, {"cache_warmup": -1}])
def test_a_parameter_out_of_range_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        OptimizationConfig(cache_type="taylor_seer", **flags)


def test_what_goes_together_passes() -> None:
    refuse(enable_compile=True, cache_type="first_block_cache", cache_threshold=0.1, enable_vae_slicing=True)
    refuse(attention_backend="sdpa", backend="xdit", enable_compile=True)
    refuse(pipeline="ChromaPipeline", attention_backend="native", enable_fuse_qkv=True)
