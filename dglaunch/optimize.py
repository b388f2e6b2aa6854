"""What OptimizationConfig does to a pipeline. Each option takes effect, and says how, or raises a UserError."""

from collections.abc import Callable
from typing import Any

from dglaunch.config import OptimizationConfig
from dglaunch.errors import UserError

CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "first_block_cache": ("FirstBlockCacheConfig", {"threshold": 0.08}),
    "taylor_seer": ("TaylorSeerCacheConfig", {}),
    "faster_cache": ("FasterCacheConfig", {"attention_weight_callback": lambda _: 0.5}),
    "pab": ("PyramidAttentionBroadcastConfig", {"spatial_attention_block_skip_range": 2}),
    "mag_cache": ("MagCacheConfig", {}),
}
"""--cache_type -> diffusers' config class and what it needs to be given besides its defaults."""
MAG_CACHE_STEPS = 28
"""Denoising steps for which MagCache's published ratios hold."""


def apply(pipeline: Any, config: OptimizationConfig) -> dict[str, str]:
    """Do what was asked for to a loaded pipeline of diffusers; returns what took effect."""
    effects: dict[str, str] = {}
    vae = getattr(pipeline, "vae", None)
    for flag, method in (("enable_vae_slicing", "enable_slicing"), ("enable_vae_tiling", "enable_tiling")):
        if getattr(config, flag):
            if not hasattr(vae, method):
                raise UserError(f"--{flag}: the VAE of {type(pipeline).__name__} cannot do it; drop the flag.")
            getattr(vae, method)()
            effects[flag] = f"{type(vae).__name__}.{method}()"
    transformer = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if config.cache_type is not None:
        effects["cache_type"] = _guarded(
            "cache_type", config.cache_type, lambda: _enable_cache(pipeline, transformer, config)
        )
    if config.attention_backend is not None:
        effects["attention_backend"] = _guarded(
            "attention_backend", config.attention_backend, lambda: _set_attention(transformer, config.attention_backend)
        )
    return effects


def _guarded(flag: str, value: str | None, action: Callable[[], str]) -> str:
    """diffusers says in its exception which package or value is wrong; hand that on as the user's error."""
    try:
        return action()
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--{flag} {value} cannot take effect: {reason.rstrip('.')}. Install what it names, or drop the flag."
        ) from None


def _set_attention(transformer: Any, name: str | None) -> str:
    transformer.set_attention_backend(name)
    return f"{type(transformer).__name__}.set_attention_backend({name!r})"


def _enable_cache(pipeline: Any, transformer: Any, config: OptimizationConfig) -> str:
    import diffusers

    assert config.cache_type is not None
    name, fixed = CACHES[config.cache_type]
    arguments = dict(fixed)
    distilled = bool(getattr(transformer.config, "guidance_embeds", False)) or "Flux" in type(transformer).__name__
    if config.cache_type in ("faster_cache", "pab"):
        arguments["current_timestep_callback"] = lambda: pipeline.current_timestep
    if config.cache_type == "faster_cache":
        arguments["is_guidance_distilled"] = distilled
    if config.cache_type == "mag_cache":
        if type(transformer).__name__ != "FluxTransformer2DModel":
            raise ValueError("its ratios were measured for FLUX.1 only")
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        arguments["mag_ratios"] = FLUX_MAG_RATIOS
    transformer.enable_cache(getattr(diffusers, name)(**arguments))
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items() if isinstance(value, int | float | str))
    return f"{name}({shown})"
