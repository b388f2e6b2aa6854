"""Networks of their true size without weights, and with fewer of their equal blocks.

network = weightless(lambda: build(component), torch.bfloat16, meter)
equal_blocks(network)      # [Blocks("transformer_blocks", 19 numbers), Blocks("single_transformer_blocks", 38)]

A transformer is a few kinds of blocks, each many times over: what it computes is linear in the number of each kind. So
one with a single block of each kind, and one more for each kind with two of it, tell of the whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes

from dglaunch.backends.diffusers.blocks import kept_in_float32, outermost_lists
from dglaunch.models.figures import DENOISERS
from dglaunch.simulation.meter import Meter

FEW = 2
"""Equal blocks that are not worth cutting: leaving one out takes a run more."""
CUTS: tuple[tuple[str, ...], ...] = ((*DENOISERS, "text_encoder"), DENOISERS, ())
"""How the names of the networks begin of whose equal blocks one is left, the quickest first: some networks count theirs
themselves, and miss what is gone."""
SMALL_BUFFER = 1 << 20
"""Numbers in a buffer up to which it keeps its values: rotary frequencies and the like."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one class with weights of the same shapes, in one list of a network."""

    path: str
    """The list's name in the network."""
    numbers: tuple[int, ...]
    """Their places in that list."""


def equal_blocks(network: torch.nn.Module) -> list[Blocks]:
    """Return the kinds of blocks of which a network has many, in its outermost lists."""
    found: list[Blocks] = []
    for path, blocks in outermost_lists(network):
        kinds: dict[object, list[int]] = {}
        for number, block in enumerate(blocks):
            kinds.setdefault(_kind(block), []).append(number)
        found += [Blocks(path, tuple(numbers)) for numbers in kinds.values() if len(numbers) > FEW]
    return found


def keep(network: torch.nn.Module, counts: Mapping[Blocks, int]) -> None:
    """Leave only the first so many blocks of each kind."""
    gone: dict[str, set[int]] = {}
    for blocks, count in counts.items():
        gone.setdefault(blocks.path, set()).update(blocks.numbers[count:])
    for path, numbers in gone.items():
        left = [block for number, block in enumerate(network.get_submodule(path).children()) if number not in numbers]
        replace_list(network, path, left)


def owner_of(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """Return the module that has a list of blocks, and runs them."""
    return network.get_submodule(path.rpartition(".")[0])


def replace_list(network: torch.nn.Module, path: str, blocks: Iterable[torch.nn.Module]) -> None:
    """Put other blocks in the place of a list's."""
    setattr(owner_of(network, path), path.rpartition(".")[2], torch.nn.ModuleList(blocks))


def _kind(block: torch.nn.Module) -> object:
    return type(block), tuple((name, tuple(weight.shape)) for name, weight in block.named_parameters())


def weightless(
    make: Callable[[], torch.nn.Module],
    dtype: torch.dtype,
    meter: Meter,
    cut: Callable[[torch.nn.Module], None] = lambda _: None,
) -> torch.nn.Module:
    """Return a network whose weights are fake; its small buffers have their values.

    Args:
        make: builds it, by its configuration.
        cut: takes away of the network what is not to be computed.
    """
    from accelerate import init_empty_weights
    from transformers import PreTrainedModel

    # Weights without values need no random ones, which take as long as the rest of it.
    without_values = mock.patch.object(PreTrainedModel, "initialize_weights", lambda _: None)
    with _disable_current_modes(), init_empty_weights(include_buffers=False), without_values:
        network = make()
    cut(network)
    in_float32 = kept_in_float32(network, dtype)
    fakes: dict[int, torch.nn.Parameter] = {}
    for prefix, module in network.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in fakes:  # tied weights are one
                    kept = any(word in f"{prefix}.{name}".split(".") for word in in_float32)
                    fakes[id(weight)] = _parameter(weight, torch.float32 if kept else dtype, meter)
                module._parameters[name] = fakes[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _buffer(buffer, dtype, name in module._non_persistent_buffers_set, meter)
        if isinstance(experts := getattr(module, "experts", None), torch.nn.ModuleList):
            module.register_forward_pre_hook(partial(_tell_experts, meter, len(experts)))
            module.register_forward_hook(partial(_tell_experts, meter, None))
    return network.eval()


def _tell_experts(meter: Meter, count: int | None, *_: object) -> None:
    meter.num_experts = count


def _parameter(weight: torch.Tensor, dtype: torch.dtype, meter: Meter) -> torch.nn.Parameter:
    kept = dtype if weight.is_floating_point() else weight.dtype
    return torch.nn.Parameter(meter.empty(weight, kept), requires_grad=False)


def _buffer(buffer: torch.Tensor, dtype: torch.dtype, computed: bool, meter: Meter) -> torch.Tensor:
    """`computed` buffers are no part of a checkpoint's files, and keep their type."""
    kept = dtype if buffer.is_floating_point() and not computed else buffer.dtype
    if buffer.is_meta or buffer.numel() > SMALL_BUFFER:
        return meter.empty(buffer, kept)
    with _disable_current_modes():
        return buffer.to(kept)


@contextmanager
def movable() -> Iterator[None]:
    """Let networks with fake weights change their type: torch swaps a parameter's content, which fakes refuse."""
    with mock.patch.object(torch.nn.Module, "_apply", _apply):
        yield


def _apply(
    self: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    for child in self.children() if recurse else ():
        child._apply(change)  # type: ignore[no-untyped-call]
    for name, weight in self._parameters.items():
        if weight is not None and (changed := change(weight)) is not weight:
            self._parameters[name] = torch.nn.Parameter(changed, requires_grad=False)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = change(buffer)
    return self
