"""A network whose weights are shared over the ranks of a replica: how they are cut, and how each rank reads its part.

layout = Fsdp(mesh)                        # or Tensor(mesh)
network = outline(component, torch.bfloat16)    # its true size, no memory
layout.apply(network)
fill(network, layout, files, "cuda:0")     # each rank reads its own part of each weight, and nothing else
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from dglaunch.backends.diffusers.blocks import kept_in_float32, outermost_lists
from dglaunch.errors import UserError
from dglaunch.models.building import build
from dglaunch.models.components import Component
from dglaunch.models.figures import BlockSizes

Whole = Any
"""A weight in a file, of which a part can be read (safetensors has no public type for it)."""


class Layout(Protocol):
    """A layout says which part of each weight a rank holds, and makes a network compute with parts."""

    def apply(self, network: torch.nn.Module) -> None:
        """Cut the weights of a network, which may be on the meta device, in place.

        Raises:
            UserError: they cannot be cut over so many ranks.
        """

    def part(self, name: str, whole: Whole) -> torch.Tensor:
        """Return this rank's part of the weight of that name."""


class Fsdp:
    """FSDP2: each rank holds the rows of every weight that are its own, and the weights of a block are whole while it runs.

    Every rank computes what one rank alone would, with the same numbers: it is exact."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def apply(self, network: torch.nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        network.requires_grad_(False)
        for _, blocks in outermost_lists(network):
            for block in blocks:
                fully_shard(block, mesh=self.mesh)
        # The weights outside of the blocks go as well, which by default would stay.
        fully_shard(network, mesh=self.mesh, reshard_after_forward=True)
        _can_record_as_before(network)

    def part(self, _name: str, whole: Whole) -> torch.Tensor:
        rows = whole.get_shape()[0]
        height = -(-rows // self.mesh.size())
        start = min(self.mesh.get_local_rank() * height, rows)
        part: torch.Tensor = whole[start : min(start + height, rows)]
        return part


def _can_record_as_before(network: torch.nn.Module) -> None:
    """Let a model of transformers give its hidden states: it looks up what it can give by its class's name, which
    fully_shard has changed, and would give none."""
    recorded = getattr(network, "_can_record_outputs", None)
    if recorded is not None:
        from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

        _CAN_RECORD_REGISTRY[network] = recorded


class Tensor:
    """Tensor parallelism by diffusers' plan: each rank holds some heads and some channels of the feed-forward layers, and the
    ranks add up what these give. What the plan does not name is whole on every rank."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.specs: dict[str, Any] = {}
        """How diffusers cuts each weight, by name."""

    def apply(self, network: torch.nn.Module) -> None:
        from diffusers import TensorParallelConfig
        from diffusers.hooks import tensor_parallel

        network.requires_grad_(False)
        plan: Any = network._tp_plan
        try:
            self.specs = tensor_parallel.resolve_tp_shard_specs(network, plan, self.mesh.size())
        except ValueError as error:
            raise UserError(f"--shard tensor: {error} Take another DG_SHARD_DEGREE, or --shard fsdp.") from None
        for name in self.specs:
            path, _, last = name.rpartition(".")
            owner = network.get_submodule(path)
            owner.register_parameter(last, self._cut(name, owner.get_parameter(last)))
        with on_any_device():
            config = network._resolve_parallel_config(TensorParallelConfig(mesh=self.mesh))  # type: ignore[operator]
            tensor_parallel.apply_tensor_parallel(
                network, config.tensor_parallel_config, plan, weights_already_sharded=True
            )

    def part(self, name: str, whole: Whole) -> torch.Tensor:
        from diffusers.hooks.tensor_parallel import _local_shard

        spec = self.specs.get(name)
        if spec is None or spec.dim is None:
            given: torch.Tensor = whole[...]
            return given
        part: torch.Tensor = _local_shard(whole, spec.dim, spec.block_sizes, self.mesh)
        return part

    def _cut(self, name: str, weight: torch.nn.Parameter) -> torch.nn.Parameter:
        spec = self.specs[name]
        placement = Replicate() if spec.dim is None else Shard(spec.dim)
        cut = DTensor.from_local(self.part(name, weight.data), self.mesh, [placement], run_check=False)
        return torch.nn.Parameter(cut, requires_grad=False)


@contextmanager
def on_any_device() -> Iterator[None]:
    """Let diffusers share networks on a CPU too, as tests and rehearsals do: it takes an accelerator for granted."""
    if torch.accelerator.is_available():
        yield
        return
    from diffusers.hooks import tensor_parallel

    devices = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")
    with (
        mock.patch.object(tensor_parallel, "_SUPPORTED_TP_DEVICES", devices),
        mock.patch.object(torch.accelerator, "device_count", lambda: 1),
    ):
        yield


def replica_mesh(device: str, num_replicas: int, replica_size: int) -> DeviceMesh:
    """Return the ranks of the world as replicas and places in them; diffusers wants a place as `ring` and `ulysses`.

    All ranks must call it."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (num_replicas, 1, replica_size), mesh_dim_names=("replica", "ring", "ulysses"))


# -- weights ------------------------------------------------------------------------------------------------------


def outline(component: Component, dtype: torch.dtype) -> torch.nn.Module:
    """Return a network without memory for its weights, which have the type that from_pretrained would give them; small
    tables that are computed and not read are there.

    Raises:
        UserError: it does not build from its configuration.
    """
    from accelerate import init_empty_weights

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does
    try:
        with init_empty_weights(include_buffers=False):
            network = build(component)
    finally:
        torch.set_default_dtype(default)
    in_float32 = kept_in_float32(network, dtype)
    for name, weight in list(network.named_parameters()):
        path, _, last = name.rpartition(".")
        kept = torch.float32 if any(word in name.split(".") for word in in_float32) else dtype
        empty = torch.empty_like(weight, dtype=kept if weight.is_floating_point() else weight.dtype)
        network.get_submodule(path).register_parameter(last, torch.nn.Parameter(empty, requires_grad=False))
    return network.eval()


def fill(network: torch.nn.Module, layout: Layout, files: Sequence[Path], device: str) -> None:
    """Read this rank's part of each weight into a network that was laid out on the meta device.

    Raises:
        UserError: a weight is in none of the files, or a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    tables = [(name, table) for name, table in network.named_buffers() if not table.is_meta]
    network.to_empty(device=device)
    for name, table in tables:
        path, _, last = name.rpartition(".")
        network.get_submodule(path)._buffers[last] = table.to(device)
    names = network.state_dict().keys()
    missing = {name: _local(weight) for name, weight in network.named_parameters()}
    stored = {name: table for name, table in network.named_buffers() if name in names}
    try:
        for file in files:
            with safe_open(file, framework="pt", device="cpu") as opened, torch.no_grad():
                for name in opened.keys():  # noqa: SIM118  it is no dict
                    if name in missing:
                        missing.pop(name).copy_(layout.part(name, opened.get_slice(name)))
                    elif name in stored:
                        stored[name].copy_(opened.get_tensor(name))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read in parts: {error}. Fetch the checkpoint again.") from None
    if missing:
        raise UserError(
            f"{', '.join(sorted(missing)[:3])} and others ({len(missing):,} weights) are in none of the files that --shard reads: "
            "safetensors of diffusers' own names. Fetch the checkpoint again, or run it without --shard."
        )


def block_sizes_of(network: torch.nn.Module) -> BlockSizes:
    """Return how Fsdp divides the weights of a network, which may lack some of its equal blocks."""
    in_blocks = [_bytes_of(block.parameters()) for _, blocks in outermost_lists(network) for block in blocks]
    weights = _bytes_of(network.parameters())
    return BlockSizes(
        largest=max(in_blocks, default=0), outside=weights - sum(in_blocks), tables=bytes_here(network) - weights
    )


def _bytes_of(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _local(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that is on this rank."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def bytes_here(network: torch.nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers that this rank holds, each counted once."""
    held = {id(weight): _local(weight) for weight in (*network.parameters(), *network.buffers())}
    return sum(part.numel() * part.element_size() for part in held.values())


def bytes_of_all(network: torch.nn.Module) -> int:
    """Return the bytes that the ranks hold together of a network's weights, what is whole on each of them once."""
    return _bytes_of((*network.parameters(), *network.buffers()))
