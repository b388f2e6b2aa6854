"""What OptimizationConfig does to a pipeline. Each option takes effect, and says how, or raises a UserError.

    undo = ExitStack()
    effects = optimize.apply(pipeline, config, "cuda:0", undo)     # flag -> what was found on the modules afterwards
    undo.close()                                                  # what it changed for the whole process

Which options there are and which go together stands in optimisations.py; rules.py has refused the rest by now.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dglaunch.config import OptimizationConfig
from dglaunch.errors import UserError
from dglaunch.models.optimizations import CACHE_FLAGS

CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "first_block_cache": ("FirstBlockCacheConfig", {"threshold": 0.08}),
    "taylor_seer": ("TaylorSeerCacheConfig", {}),
    "faster_cache": ("FasterCacheConfig", {"attention_weight_callback": lambda _: 0.5, "is_guidance_distilled": True}),
    "pab": ("PyramidAttentionBroadcastConfig", {"spatial_attention_block_skip_range": 2}),
    "mag_cache": ("MagCacheConfig", {}),
}
"""--cache_type -> diffusers' config class and what it needs to be given besides its defaults. (FasterCache's other branch
takes one call with both halves of the guidance for granted, which none of the pipelines makes.)"""
INSIDE_BLOCKS = ("taylor_seer", "faster_cache", "pab")
"""Caches whose hooks sit inside of the repeated blocks and break a compiled block into several graphs."""
RECOMPILE_LIMIT = 64
"""Shapes for which a block may be compiled; beyond it torch would go on uncompiled without a word."""


def network(pipeline: Any) -> Any:
    """What denoises."""
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


# -- while loading ------------------------------------------------------------------------------------------------


def quantized(config: OptimizationConfig, dtype: str) -> Any | None:
    """diffusers' quantisation config for the transformer, given to from_pretrained; None if nothing is done then."""
    if config.quantization != "nf4":
        return None
    import diffusers
    import torch

    return diffusers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )


def place(pipeline: Any, device: str, config: OptimizationConfig) -> Any:
    """Move a loaded pipeline to its device, but for what is to stay in host memory."""
    if config.quantization in ("int8", "fp8"):
        _quantize(network(pipeline), config.quantization, device)
    if config.enable_cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    if not config.enable_group_offloading:
        return pipeline.to(device)
    for part in pipeline.components.values():
        if hasattr(part, "parameters") and part is not network(pipeline):
            part.to(device)
    return pipeline


def _quantize(model: Any, kind: str, device: str) -> None:
    """The linear layers of the repeated blocks, one after the other on the device: a CPU takes minutes for 12B weights, and
    the whole transformer need not fit before. Both kinds scale each row of the activations by itself, so that an image
    does not depend on the others of its batch; the few layers outside of the blocks gain nothing."""
    import torch
    from torchao import quantization as torchao

    kinds = {
        "int8": torchao.Int8DynamicActivationInt8WeightConfig,
        "fp8": lambda: torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow()),
    }
    blocks = [child for child in model.children() if isinstance(child, torch.nn.ModuleList)] or [model]
    inside = {id(module) for block in blocks for module in block.modules() if isinstance(module, torch.nn.Linear)}
    torchao.quantize_(model, kinds[kind](), lambda module, _name: id(module) in inside, device=device)


# -- once it is loaded --------------------------------------------------------------------------------------------


def apply(pipeline: Any, config: OptimizationConfig, device: str, undo: ExitStack) -> dict[str, str]:
    """Do what was asked for to a loaded pipeline of diffusers.

    Returns:
        For each flag what was found on the loaded modules.

    Raises:
        UserError: it cannot take effect here.
    """
    effects: dict[str, str] = {}
    for flag, action in ACTIONS.items():
        value = getattr(config, flag)
        if value not in (None, False):
            effects[flag] = _guarded(flag, value, lambda act=action: act(pipeline, config, device, undo))
    return effects


def _guarded(flag: str, value: Any, action: Callable[[], str]) -> str:
    """The libraries say in their exceptions which package or value is wrong; hand that on as the user's error."""
    try:
        return action()
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        shown = f"--{flag}" if value is True else f"--{flag} {value}"
        raise UserError(f"{shown} cannot take effect: {reason}. Install what it names, or drop the flag.") from None


def _vae(method: str) -> Callable[..., str]:
    def act(pipeline: Any, *_: Any) -> str:
        vae = getattr(pipeline, "vae", None)
        if not hasattr(vae, method):
            raise ValueError(f"the VAE of {type(pipeline).__name__} cannot do it")
        getattr(vae, method)()
        return f"{type(vae).__name__}.{method}()"

    return act


def _channels_last(pipeline: Any, *_: Any) -> str:
    import torch

    moved = 0
    for name in ("vae", "unet"):
        part = getattr(pipeline, name, None)
        for module in part.modules() if part is not None else ():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)
                moved += module.weight.is_contiguous(memory_format=torch.channels_last)
    if not moved:
        raise ValueError(f"{type(pipeline).__name__} has no two-dimensional convolutions")
    return f"{moved} convolutions in NHWC"


def _tf32(_pipeline: Any, _config: Any, _device: str, undo: ExitStack) -> str:
    import torch

    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    undo.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return f"float32 matrix products: {torch.get_float32_matmul_precision()}"


def _quantization(pipeline: Any, *_: Any) -> str:
    """Done while loading or by `place`; here the weights are looked at."""
    import torch

    kinds: dict[str, int] = {}
    linear = [module for module in network(pipeline).modules() if isinstance(module, torch.nn.Linear)]
    for module in linear:
        kind = type(module.weight)
        if kind.__module__.startswith(("torchao", "bitsandbytes")):
            kinds[kind.__name__] = kinds.get(kind.__name__, 0) + 1
    if not kinds:
        raise ValueError(f"no linear layer of {type(network(pipeline)).__name__} was quantised")
    counted = ", ".join(f"{count} of {len(linear)} linear layers {name}" for name, count in kinds.items())
    return f"{type(network(pipeline)).__name__}: {counted}"


def _fuse_qkv(pipeline: Any, *_: Any) -> str:
    model = network(pipeline)
    model.fuse_qkv_projections()
    fused = sum(name.rpartition(".")[2] in ("to_qkv", "to_added_qkv", "to_kv") for name, _ in model.named_modules())
    if not fused:
        raise ValueError(f"{type(model).__name__} has nothing to fuse")
    return f"{fused} fused projections"


def _layerwise_casting(pipeline: Any, *_: Any) -> str:
    import torch

    model = network(pipeline)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    stored = [parameter.dtype == torch.float8_e4m3fn for parameter in model.parameters()]
    if not any(stored):
        raise ValueError(f"no weight of {type(model).__name__} may be kept in 8 bits")
    return f"{sum(stored)} of {len(stored)} weights kept as float8_e4m3fn"


def _attention_backend(pipeline: Any, config: OptimizationConfig, *_: Any) -> str:
    """The kernel of this transformer. diffusers makes it the whole process's default as well: that is taken back."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    model, name = network(pipeline), config.attention_backend
    default = Registry.get_active_backend()[0]
    try:
        model.set_attention_backend(name)
    finally:
        Registry.set_active_backend(default)
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    reached = sum(getattr(processor, "_attention_backend", None) == name for processor in processors)
    if reached < len(processors) or not processors:
        raise ValueError(
            f"{len(processors) - reached} of {len(processors)} attention processors of {type(model).__name__} do not ask "
            "diffusers' dispatcher, so they would go on as they are"
        )
    return f"{reached} attention processors: {name}"


def _cache(pipeline: Any, config: OptimizationConfig, _device: str, undo: ExitStack) -> str:
    kind = config.cache_type
    assert kind is not None
    given = {
        argument: value for flag, argument in CACHE_FLAGS[kind].items() if (value := getattr(config, flag)) is not None
    }
    return _cache_dit(pipeline, given, undo) if kind == "cache_dit" else _diffusers_cache(pipeline, kind, given)


def _diffusers_cache(pipeline: Any, kind: str, given: dict[str, Any]) -> str:
    import diffusers

    model, (name, fixed) = network(pipeline), CACHES[kind]
    arguments = fixed | given
    if kind in ("faster_cache", "pab"):
        arguments["current_timestep_callback"] = lambda: pipeline.current_timestep
    if kind == "mag_cache":
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        arguments["mag_ratios"] = FLUX_MAG_RATIOS
    model.enable_cache(getattr(diffusers, name)(**arguments))
    assert model.is_cache_enabled
    hooked = sum(bool(getattr(getattr(m, "_diffusers_hook", None), "hooks", None)) for m in model.modules())
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items() if isinstance(value, int | float | str))
    return f"{name}({shown}) on {hooked} modules"


def _cache_dit(pipeline: Any, given: dict[str, Any], undo: ExitStack) -> str:
    """DBCache. It replaces the call of the pipeline's class, which `undo` takes back."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import cache_dit
    import torch

    model = network(pipeline)
    depth = max(len(child) for child in model.children() if isinstance(child, torch.nn.ModuleList))
    arguments = {"Fn_compute_blocks": 8 if depth > 16 else 1} | given
    undo.callback(cache_dit.disable_cache, pipeline)
    cache_dit.enable_cache(pipeline, cache_config=cache_dit.DBCacheConfig(**arguments))
    if not getattr(model, "_is_cached", False):
        raise ValueError(f"it did not take hold of {type(model).__name__}")
    return f"DBCache({', '.join(f'{key}={value}' for key, value in arguments.items())})"


def _group_offloading(pipeline: Any, _config: Any, device: str, _undo: ExitStack) -> str:
    import torch

    model = network(pipeline)
    model.enable_group_offload(
        onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level",
        use_stream=device.startswith("cuda"), record_stream=device.startswith("cuda"),
    )  # fmt: skip
    hooked = sum(
        "group_offloading" in getattr(m._diffusers_hook, "hooks", {})
        for m in model.modules()
        if hasattr(m, "_diffusers_hook")
    )
    if not hooked:
        raise ValueError(f"no layer of {type(model).__name__} can be moved")
    return f"{hooked} modules onloaded one by one"


def _cpu_offload(pipeline: Any, *_: Any) -> str:
    """Done by `place`; here the hooks are looked at."""
    parts = [name for name, part in pipeline.components.items() if hasattr(part, "_hf_hook")]
    if not parts:
        raise ValueError("no network can be moved")
    return f"{', '.join(parts)} on the GPU only while they run"


def _compile(pipeline: Any, config: OptimizationConfig, _device: str, undo: ExitStack) -> str:
    """One graph a block where nothing is hooked into it. The first shape is compiled as it is; at the second, torch
    makes the sizes that changed dynamic, so that later shapes and the last, smaller batch share what was compiled."""
    import torch

    model = network(pipeline)
    undo.callback(setattr, torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if config.compile_scope == "whole":
        model.compile()
        return f"{type(model).__name__} as a whole"
    hooked = config.cache_type is not None or config.enable_layerwise_casting
    model.compile_repeated_blocks(fullgraph=not hooked)
    blocks = [m for m in model.modules() if m._compiled_call_impl is not None]
    kinds = ", ".join(dict.fromkeys(type(block).__name__ for block in blocks))
    return f"{len(blocks)} blocks ({kinds}), fullgraph={not hooked}"


ACTIONS: dict[str, Callable[..., str]] = {
    "quantization": _quantization,
    "enable_vae_slicing": _vae("enable_slicing"),
    "enable_vae_tiling": _vae("enable_tiling"),
    "enable_channels_last": _channels_last,
    "enable_tf32": _tf32,
    "enable_fuse_qkv": _fuse_qkv,
    "enable_layerwise_casting": _layerwise_casting,
    "attention_backend": _attention_backend,
    "cache_type": _cache,
    "enable_cpu_offload": _cpu_offload,
    "enable_group_offloading": _group_offloading,
    "enable_compile": _compile,
}
"""In the order in which they are done: what changes modules before what hooks into them, compiling last."""


def forget_steps(pipeline: Any) -> None:
    """After a call that broke off: a cache still holds features of its steps, of another batch than the next."""
    reset = getattr(network(pipeline), "_reset_stateful_cache", None)
    if reset is not None:
        reset()


# -- the time that compiling takes ---------------------------------------------------------------------------------


def time_compilation(folder: Path, seconds: dict[str, float], events: list[str], undo: ExitStack) -> None:
    """Count what torch.compile takes as a stage of its own, and keep what it makes in `folder` for later runs.

    Args:
        folder: for torch's cache, unless TORCHINDUCTOR_CACHE_DIR names one.
        seconds: gets `compile`.
        events: gets one line, kept up to date.
    """
    from torch._dynamo.callback import callback_handler
    from torch._dynamo.utils import counters
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torchs = default_cache_dir()  # to which torch itself sets the variable when it is imported
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", torchs) == torchs:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        undo.callback(os.environ.pop, "TORCHINDUCTOR_CACHE_DIR", None)
    began, times, place = 0.0, 0, len(events)
    before = counters["inductor"]["fxgraph_cache_hit"]
    events.append("--enable_compile: nothing was compiled")

    def start(_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def end(_: Any) -> None:
        nonlocal times
        times += 1
        seconds["compile"] = seconds.get("compile", 0.0) + time.perf_counter() - began
        found = counters["inductor"]["fxgraph_cache_hit"] - before
        events[place] = (
            f"torch.compile worked {times} times, {seconds['compile']:.1f} s in all (a new size of batch or image "
            f"may need it again); {found} graphs were in {os.environ['TORCHINDUCTOR_CACHE_DIR']}"
        )

    undo.callback(_remove, callback_handler.start_callbacks, callback_handler.register_start_callback(start))
    undo.callback(_remove, callback_handler.end_callbacks, callback_handler.register_end_callback(end))


def _remove(callbacks: list[Any], callback: Any) -> None:
    """torch._dynamo.reset() may have cleared the list."""
    if callback in callbacks:
        callbacks.remove(callback)
