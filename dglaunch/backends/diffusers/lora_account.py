"""Which tensors of a LoRA file end up in the networks: each one of the file, and nothing else.

diffusers drops what it does not know, and says "safe to ignore" of it as of good files. So each tensor is followed: from the
file through diffusers' conversion of its keys (traced), and from there into the layers that peft has made (compared).

    converted = convert(path, pipeline)                     # by diffusers; converted.sources says what came of which tensor
    converted.unused                                        # tensors of the file that nothing was made of
    account(converted, "transformer", network, "lora0")     # problems; [] where each is where it belongs
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

READ_AS_NUMBERS = frozenset({"item", "__float__", "tolist"})
"""Functions by which a conversion takes a number out of a tensor (alpha)."""
Renamed = Mapping[str, torch.Tensor]


class _Traced(torch.Tensor):
    """A tensor that knows which tensors of the file it was made of; so does what is computed from it."""

    sources: frozenset[str]
    read: set[str]
    """Names of tensors that were read as numbers; one set for a whole file."""

    @classmethod
    def of(cls, tensor: torch.Tensor, sources: frozenset[str], read: set[str]) -> "_Traced":
        found = tensor.as_subclass(cls)
        found.sources, found.read = sources, read
        return found

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        traced = list(_traced_in((args, kwargs or {})))
        sources = frozenset().union(*(tensor.sources for tensor in traced))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func.__name__ in READ_AS_NUMBERS:
            traced[0].read.update(sources)
        return _marked(result, sources, traced[0].read) if traced else result


def _traced_in(value: object) -> Iterable[_Traced]:
    if isinstance(value, _Traced):
        if hasattr(value, "sources"):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _traced_in(item)
    elif isinstance(value, dict):
        yield from _traced_in(list(value.values()))


def _marked(value: Any, sources: frozenset[str], read: set[str]) -> Any:
    if isinstance(value, torch.Tensor):
        return _Traced.of(value, sources, read)
    if type(value) in (list, tuple):
        return type(value)(_marked(item, sources, read) for item in value)
    return value


@dataclass(frozen=True)
class Converted:
    """A LoRA in diffusers' own keys."""

    tensors: dict[str, torch.Tensor]
    alphas: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    sources: Mapping[str, frozenset[str]]
    """By key: the tensors of the file that it was made of."""
    unused: list[str]
    """Tensors of the file that nothing was made of."""

    def of(self, part: str) -> dict[str, torch.Tensor]:
        """Return what is about a part of the pipeline, by the part's own names."""
        prefix = f"{part}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    @property
    def parts(self) -> set[str]:
        """The parts of the pipeline that it is about."""
        return {key.split(".", 1)[0] for key in self.tensors}

    def in_file(self, keys: Iterable[str]) -> list[str]:
        """Return what these keys are called in the file."""
        return sorted(set().union(*(self.sources.get(key, {key}) for key in keys)))


def convert(path: Path, pipeline: Any) -> Converted:
    """Let diffusers bring a file's keys into its own form, as load_lora_weights does.

    Raises:
        Exception: diffusers does not know the format.
    """
    given: dict[str, Any] = {}
    if "return_alphas" in inspect.signature(pipeline.lora_state_dict).parameters:
        given["return_alphas"] = True
    if hasattr(pipeline, "unet"):
        given["unet_config"] = pipeline.unet.config
    # Without a name diffusers up to 0.39 takes no file at all where HF_HUB_OFFLINE is set.
    tensors, *alphas, metadata = pipeline.lora_state_dict(
        str(path), weight_name=path.name, use_safetensors=True, return_lora_metadata=True, **given
    )
    read: set[str] = set()
    raw = {key: _Traced.of(value, frozenset({key}), read) for key, value in load_file(path).items()}
    names = list(raw)
    found, *others = pipeline.lora_state_dict(raw, return_lora_metadata=True, **given)
    sources = {key: _sources(value) for key, value in found.items()}
    used = read.union(*sources.values(), *map(_sources_in, others[:-1]))
    return Converted(
        tensors, alphas[0] if alphas else None, metadata, sources, [name for name in names if name not in used]
    )


def _sources(value: object) -> frozenset[str]:
    return value.sources if isinstance(value, _Traced) else frozenset()


def _sources_in(alphas: object) -> frozenset[str]:
    return frozenset().union(*map(_sources, alphas.values())) if isinstance(alphas, dict) else frozenset()


# -- in the network -----------------------------------------------------------------------------------------------


def as_in_denoiser(tensors: Renamed) -> dict[str, torch.Tensor]:
    """Return a transformer's or U-Net's tensors by peft's names, as load_lora_adapter renames them."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    renamed: dict[str, torch.Tensor] = dict(tensors)
    return renamed if "lora_A" in next(iter(renamed), "lora_A") else dict(convert_unet_state_dict_to_peft(renamed))


def as_in_encoder(tensors: Renamed, encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a text encoder's tensors by peft's names, as load_lora_into_text_encoder renames them."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    renamed = convert_state_dict_to_peft(convert_state_dict_to_diffusers(dict(tensors)))
    if hasattr(encoder, "text_model"):
        return dict(renamed)
    return {key.removeprefix("text_model."): value for key, value in renamed.items()}


def account(renamed: Renamed, network: torch.nn.Module, adapter: str) -> tuple[list[str], list[str], int]:
    """Compare a part of a LoRA with what is in the network.

    Returns:
        Names of what is not in the network as the file has it; what is there and is not of the file; the number of layers.
    """
    mark = f".{adapter}."
    injected = {
        name.replace(mark, "."): parameter
        for name, parameter in network.named_parameters()
        if mark in name and ".lora_" in name
    }
    dropped = [key for key, value in renamed.items() if key not in injected or not _is_same(injected[key], value)]
    strange = [name for name in injected if name not in renamed]
    layers = {name.partition(".lora_")[0] for name in injected}
    return dropped, strange, len(layers)


def _is_same(parameter: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a layer holds what the file says, in the layer's type."""
    if parameter.device.type == "meta" or parameter.shape != value.shape:
        return False
    held = parameter.detach().cpu()
    return torch.equal(held, value.to(held.dtype)) or torch.equal(held.float(), value.to(torch.float32))
