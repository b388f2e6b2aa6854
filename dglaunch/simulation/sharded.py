"""Ranks that share a model, on fake tensors: FSDP makes the room for a block's whole weights itself, and gives it back behind
torch's back; context parallelism asks the other ranks how many tokens they hold."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from dglaunch.simulation.meter import Meter


@contextmanager
def fsdp_on_fakes(meter: Meter) -> Iterator[None]:
    """Let FSDP gather into fake tensors, and count what it gathers for as long as it keeps it."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
    from torch.distributed.fsdp._fully_shard import _fsdp_param as parameters

    alloc, free = parameters.alloc_storage, parameters.free_storage

    def allocate(_self: object, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return _empty(meter, size, dtype)

    def room(
        self: Any, numels: Sequence[int], dtypes: Sequence[torch.dtype], world_size: int, device: torch.device,
        force_recreate: bool = False,
    ) -> None:  # fmt: skip
        if force_recreate or not self.all_gather_outputs:
            self.all_gather_outputs = [_empty(meter, [n * world_size], dtype) for n, dtype in zip(numels, dtypes)]

    def take(tensor: torch.Tensor) -> None:
        alloc(tensor)
        meter.recount(tensor)

    def give_back(tensor: torch.Tensor) -> None:
        free(tensor)
        meter.recount(tensor)

    with (
        mock.patch.object(collectives.DefaultAllocMixin, "allocate", allocate),
        mock.patch.object(parameters.FSDPParam, "init_all_gather_outputs", room),
        mock.patch.object(parameters, "alloc_storage", take),
        mock.patch.object(parameters, "free_storage", give_back),
    ):
        yield


def _empty(meter: Meter, size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return meter.empty(torch.empty(tuple(size), device="meta"), dtype)


@contextmanager
def uncounted_propagation() -> Iterator[None]:
    """Let DTensor find out unseen how the parts of an output lie: it computes with fake tensors of the whole ones' sizes."""
    from torch.distributed.tensor._decompositions import DecompShardingStrategy
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    def unseen(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return method(*args, **kwargs)

        return call

    with ExitStack() as undo:
        for kind, name in (
            (ShardingPropagator, "_propagate_tensor_meta_non_cached"),
            (DecompShardingStrategy, "propagate_strategy"),
        ):
            undo.enter_context(mock.patch.object(kind, name, unseen(getattr(kind, name))))
        yield


@contextmanager
def known_shares() -> Iterator[None]:
    """Let diffusers' context parallelism know how many tokens each rank holds, which it asks them in each attention: here no
    other rank answers, but this one has cut the same sequences."""
    from diffusers.hooks import context_parallel as hooks
    from diffusers.models import _modeling_parallel as parallel
    from diffusers.models import attention_dispatch

    cut = hooks.PartitionAnythingSharder.shard_anything
    sequences: list[list[int]] = []
    """The sizes of the parts of each sequence that was cut, by rank."""

    def shard(tensor: torch.Tensor, dim: int, mesh: Any) -> torch.Tensor:
        sizes = [
            part.shape[dim] for part in torch.empty(tensor.shape, device="meta").tensor_split(mesh.size(), dim=dim)
        ]
        if sizes not in sequences:
            sequences.append(sizes)
        part: torch.Tensor = cut(tensor, dim, mesh)
        return part

    def sizes_of(size: int, group: Any) -> list[int]:
        rank = dist.get_rank(group)
        sums = [[sum(both) for both in zip(*pair)] for pair in itertools.combinations(sequences, 2)]
        fitting = [sizes for sizes in (*sequences, *sums) if sizes[rank] == size]
        return fitting[0] if fitting else [size] * dist.get_world_size(group)

    with ExitStack() as undo:
        undo.enter_context(mock.patch.object(hooks.PartitionAnythingSharder, "shard_anything", staticmethod(shard)))
        for module in (hooks, parallel, attention_dispatch):
            undo.enter_context(mock.patch.object(module, "gather_size_by_comm", sizes_of))
        yield
