"""What a network is made of: its lists of blocks, and the weights that its class keeps in float32."""

from collections.abc import Iterator

import torch


def outermost_lists(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Yield the lists of blocks that stand in no other list, each with its name in the network."""
    for name, part in module.named_children():
        inside = f"{path}.{name}" if path else name
        if isinstance(part, torch.nn.ModuleList):
            yield inside, part
        else:
            yield from outermost_lists(part, inside)


def kept_in_float32(network: torch.nn.Module, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the names of modules whose weights stay float32. diffusers does so whatever the type; transformers has a list
    for float16 and a strict one."""
    strict = getattr(network, "_keep_in_fp32_modules_strict", None)
    usual = getattr(network, "_keep_in_fp32_modules", None)
    has_strict = hasattr(network, "_keep_in_fp32_modules_strict")
    return tuple((strict if has_strict and dtype is not torch.float16 else usual) or ())
