"""What the optimization flags do to a pipeline. Each option takes effect, and says how, or raises a UserError.

    undo = ExitStack()
    effects = optimizations.apply(pipeline, config, "cuda:0", undo)   # flag -> what was found on the modules afterwards
    undo.close()                                                     # what it changed for the whole process

Which options there are and which go together stands in dglaunch.models.optimizations; checks.py has refused the rest.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from dglaunch.backends.diffusers.loras import NO_PIPELINE_LORAS, PipelineLoras
from dglaunch.backends.diffusers.protocols import Denoiser, Pipeline, denoiser
from dglaunch.config import OptimizationConfig
from dglaunch.errors import UserError
from dglaunch.models.optimizations import CACHE_FLAGS

CACHES: dict[str, tuple[str, dict[str, object]]] = {
    "first_block_cache": ("FirstBlockCacheConfig", {"threshold": 0.08}),
    "taylor_seer": ("TaylorSeerCacheConfig", {}),
    "faster_cache": ("FasterCacheConfig", {"attention_weight_callback": lambda _: 0.5, "is_guidance_distilled": True}),
    "pab": ("PyramidAttentionBroadcastConfig", {"spatial_attention_block_skip_range": 2}),
    "mag_cache": ("MagCacheConfig", {}),
}
"""--cache_type -> diffusers' config class and what it needs to be given besides its defaults. (FasterCache's other branch
takes one call with both halves of the guidance for granted, which none of the pipelines makes.)"""
RECOMPILE_LIMIT = 64
"""Shapes for which a block may be compiled; beyond it torch would go on uncompiled without a word."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target is a loaded pipeline, with what was asked for."""

    pipeline: Pipeline
    config: OptimizationConfig
    device: str
    undo: ExitStack
    """Takes back at the end what was changed for the whole process."""
    num_cores: int
    """Of the host, that this rank may use."""

    @property
    def model(self) -> Denoiser:
        """The network that denoises."""
        found = denoiser(self.pipeline)
        if found is None:
            raise AttributeError(f"{type(self.pipeline).__name__} has neither a transformer nor a U-Net")
        return found


# -- while loading ------------------------------------------------------------------------------------------------


def quantization_config(config: OptimizationConfig, dtype: str) -> object | None:
    """Return diffusers' quantization config for the transformer, for from_pretrained; None if nothing is done then."""
    if config.quantization != "nf4":
        return None
    import diffusers

    wanted: object = diffusers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    return wanted


def quantizes_loaded(config: OptimizationConfig) -> bool:
    """Whether the transformer is quantized once it is loaded (torchao), not as it is read (bitsandbytes)."""
    return config.quantization in ("int8", "fp8")


def _move(pipeline: Pipeline, device: str, config: OptimizationConfig) -> None:
    """Move a loaded pipeline to its device, but for what is to stay in host memory."""
    model: object = denoiser(pipeline)
    if config.enable_cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    elif config.enable_group_offloading:
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module) and part is not model:
                part.to(device)
    else:
        pipeline.to(device)


def _quantize(model: torch.nn.Module, kind: str, device: str) -> None:
    """The linear layers of the repeated blocks, one after the other on the device: a CPU takes minutes for 12B weights, and
    the whole transformer need not fit before. Both kinds scale each row of the activations by itself, so that an image
    does not depend on the others of its batch; the few layers outside of the blocks gain nothing.

    CUDA's product of 8-bit integers takes no matrix of 16 rows or fewer, and a layer that modulates sees one row an image:
    there the weights alone are integers.
    """
    from torchao import quantization as torchao

    if kind == "int8":
        config = torchao.Int8DynamicActivationInt8WeightConfig()
        config_of_few_rows = torchao.Int8WeightOnlyConfig()
    else:
        config = config_of_few_rows = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
    lists = [child for child in model.children() if isinstance(child, torch.nn.ModuleList)]
    blocks: Sequence[torch.nn.Module] = lists if lists else [model]
    inside = {id(module) for block in blocks for module in block.modules() if isinstance(module, torch.nn.Linear)}

    def layers(with_few_rows: bool) -> Callable[[torch.nn.Module, str], bool]:
        return lambda module, name: id(module) in inside and sees_a_row_an_image(name) == with_few_rows

    torchao.quantize_(model, config, layers(with_few_rows=False), device=device)
    torchao.quantize_(model, config_of_few_rows, layers(with_few_rows=True), device=device)


_MODULATES = re.compile(r"(^|[._])(norm\w*|ada_?ln\w*|\w*mod|\w*modulation\w*|time\w*|temb\w*)(\.|$)", re.IGNORECASE)


def sees_a_row_an_image(name: str) -> bool:
    """Return whether a linear layer of this name is given one row for an image (of its timestep, say) and not one for each
    token: as diffusers names the layers of norms and modulations (tests/torchrun/test_true_size.py asks all families)."""
    return _MODULATES.search(name) is not None


# -- once it is loaded --------------------------------------------------------------------------------------------


def apply(
    pipeline: Pipeline,
    config: OptimizationConfig,
    device: str,
    undo: ExitStack,
    num_cores: int = 1,
    loras: PipelineLoras = NO_PIPELINE_LORAS,
) -> dict[str, str]:
    """Move a pipeline that was loaded into host memory to its device, and do to it what was asked for.

    Weights that are kept in 8 bits are cast, with all that has to be done before, on the host: in their full type they
    may not fit on the device.

    Args:
        num_cores: of the host, that this rank may use; torchrun leaves a rank one thread.
        loras: those that are not in the pipeline yet are put into its quantized layers.

    Returns:
        For each flag what was found on the loaded modules.

    Raises:
        UserError: it cannot take effect here.
    """
    target = Target(pipeline, config, device, undo, num_cores)
    flags = [flag for flag in ACTIONS if getattr(config, flag) not in (None, False)]
    on_host = flags.index("enable_layerwise_casting") + 1 if config.enable_layerwise_casting else 0
    effects = _act(target, flags[:on_host])
    model: object = denoiser(pipeline)
    if quantizes_loaded(config) and isinstance(model, torch.nn.Module):
        assert config.quantization is not None
        _quantize(model, config.quantization, device)
        loras.attach(pipeline)
    _move(pipeline, device, config)
    return effects | _act(target, flags[on_host:])


def _act(target: Target, flags: Sequence[str]) -> dict[str, str]:
    effects: dict[str, str] = {}
    for flag in flags:
        value = getattr(target.config, flag)
        with _explained(f"--{flag}" if value is True else f"--{flag} {value}"):
            effects[flag] = ACTIONS[flag](target)
    return effects


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch compute with at least this many threads on the host."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forget_steps(pipeline: Pipeline) -> None:
    """Clear a cache after a call that broke off: it still holds features of its steps, of another batch than the next."""
    reset = getattr(denoiser(pipeline), "_reset_stateful_cache", None)
    if reset is not None:
        reset()


@contextmanager
def _explained(option: str) -> Iterator[None]:
    """The libraries say in their exceptions which package or value is wrong; hand that on as the user's error."""
    try:
        yield
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise UserError(f"{option} cannot take effect: {reason}. Install what it names, or drop the flag.") from None


def _vae_slicing(target: Target) -> str:
    return _enable_of_vae(target, "enable_slicing")


def _vae_tiling(target: Target) -> str:
    return _enable_of_vae(target, "enable_tiling")


def _enable_of_vae(target: Target, method: str) -> str:
    vae = getattr(target.pipeline, "vae", None)
    if not hasattr(vae, method):
        raise ValueError(f"the VAE of {type(target.pipeline).__name__} cannot do it")
    getattr(vae, method)()
    return f"{type(vae).__name__}.{method}()"


def _channels_last(target: Target) -> str:
    moved = 0
    for name in ("vae", "unet"):
        part = getattr(target.pipeline, name, None)
        for module in part.modules() if part is not None else ():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types omit it
                moved += module.weight.is_contiguous(memory_format=torch.channels_last)
    if not moved:
        raise ValueError(f"{type(target.pipeline).__name__} has no two-dimensional convolutions")
    return f"{moved} convolutions in NHWC"


def _tf32(target: Target) -> str:
    target.undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    target.undo.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return f"float32 matrix products: {torch.get_float32_matmul_precision()}"


def _quantization(target: Target) -> str:
    """Done while loading or by `_move`; here the weights are looked at."""
    kinds: dict[str, int] = {}
    linear = [
        module
        for name, module in target.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    ]
    for module in linear:
        kind = type(module.weight)
        if kind.__module__.startswith(("torchao", "bitsandbytes")):
            kinds[kind.__name__] = kinds.get(kind.__name__, 0) + 1
    if not kinds:
        raise ValueError(f"no linear layer of {type(target.model).__name__} was quantized")
    counted = ", ".join(f"{count} of {len(linear)} linear layers {name}" for name, count in kinds.items())
    return f"{type(target.model).__name__}: {counted}"


def _fuse_qkv(target: Target) -> str:
    model = target.model
    model.fuse_qkv_projections()
    fused = sum(name.rpartition(".")[2] in ("to_qkv", "to_added_qkv", "to_kv") for name, _ in model.named_modules())
    if not fused:
        raise ValueError(f"{type(model).__name__} has nothing to fuse")
    return f"{fused} fused projections"


def _layerwise_casting(target: Target) -> str:
    """One thread takes 50 s to cast 12B weights."""
    model = target.model
    with _threads(target.num_cores):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    stored = [parameter.dtype == torch.float8_e4m3fn for parameter in model.parameters()]
    if not any(stored):
        raise ValueError(f"no weight of {type(model).__name__} may be kept in 8 bits")
    return f"{sum(stored)} of {len(stored)} weights kept as float8_e4m3fn"


def _attention_backend(target: Target) -> str:
    """The kernel of this transformer. diffusers makes it the whole process's default as well: that is taken back."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    model, name = target.model, target.config.attention_backend
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


def _cache(target: Target) -> str:
    kind = target.config.cache_type
    assert kind is not None
    values = {argument: getattr(target.config, flag) for flag, argument in CACHE_FLAGS[kind].items()}
    given = {argument: value for argument, value in values.items() if value is not None}
    return _cache_dit(target, given) if kind == "cache_dit" else _diffusers_cache(target, kind, given)


def _diffusers_cache(target: Target, kind: str, given: dict[str, object]) -> str:
    import diffusers

    model, (name, fixed) = target.model, CACHES[kind]
    arguments = fixed | given
    if kind in ("faster_cache", "pab"):
        arguments["current_timestep_callback"] = lambda: target.pipeline.current_timestep
    if kind == "mag_cache":
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        arguments["mag_ratios"] = FLUX_MAG_RATIOS
    model.enable_cache(getattr(diffusers, name)(**arguments))
    assert model.is_cache_enabled
    hooked = sum(bool(getattr(getattr(m, "_diffusers_hook", None), "hooks", None)) for m in model.modules())
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items() if isinstance(value, int | float | str))
    return f"{name}({shown}) on {hooked} modules"


def _cache_dit(target: Target, given: dict[str, object]) -> str:
    """DBCache. It replaces the call of the pipeline's class, which is taken back at the end."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import cache_dit

    model = target.model
    depth = max(len(child) for child in model.children() if isinstance(child, torch.nn.ModuleList))
    arguments = {"Fn_compute_blocks": 8 if depth > 16 else 1} | given
    target.undo.callback(cache_dit.disable_cache, target.pipeline)
    cache_dit.enable_cache(target.pipeline, cache_config=cache_dit.DBCacheConfig(**arguments))
    if not getattr(model, "_is_cached", False):
        raise ValueError(f"it did not take hold of {type(model).__name__}")
    return f"DBCache({', '.join(f'{key}={value}' for key, value in arguments.items())})"


def _group_offloading(target: Target) -> str:
    model = target.model
    model.enable_group_offload(
        onload_device=torch.device(target.device), offload_device=torch.device("cpu"), offload_type="leaf_level",
        use_stream=target.device.startswith("cuda"), record_stream=target.device.startswith("cuda"),
    )  # fmt: skip
    hooked = sum(
        "group_offloading" in getattr(m._diffusers_hook, "hooks", {})
        for m in model.modules()
        if hasattr(m, "_diffusers_hook")
    )
    if not hooked:
        raise ValueError(f"no layer of {type(model).__name__} can be moved")
    return f"{hooked} modules onloaded one by one"


def _cpu_offload(target: Target) -> str:
    """Done by `_move`; here the hooks are looked at."""
    parts = [name for name, part in target.pipeline.components.items() if hasattr(part, "_hf_hook")]
    if not parts:
        raise ValueError("no network can be moved")
    return f"{', '.join(parts)} on the GPU only while they run"


def _compile(target: Target) -> str:
    """One graph a block where nothing is hooked into it. The first shape is compiled as it is; at the second, torch
    makes the sizes that changed dynamic, so that later shapes and the last, smaller batch share what was compiled."""
    model = target.model
    target.undo.callback(setattr, torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if target.config.compile_scope == "whole":
        model.compile()
        return f"{type(model).__name__} as a whole"
    hooked = target.config.cache_type is not None or target.config.enable_layerwise_casting
    model.compile_repeated_blocks(fullgraph=not hooked)
    blocks = [m for m in model.modules() if m._compiled_call_impl is not None]
    kinds = ", ".join(dict.fromkeys(type(block).__name__ for block in blocks))
    return f"{len(blocks)} blocks ({kinds}), fullgraph={not hooked}"


ACTIONS: dict[str, Callable[[Target], str]] = {
    "quantization": _quantization,
    "enable_vae_slicing": _vae_slicing,
    "enable_vae_tiling": _vae_tiling,
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
