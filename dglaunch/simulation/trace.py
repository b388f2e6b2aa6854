"""What a model needs at its true size, found by running it on fake tensors with one block of each kind.

trace(checkpoint, config, Request(shape=Shape(1024, 1024), dtype="bfloat16", text_tokens=128))

The pipeline's own call runs for one image and for two: memory is linear in the images. While it denoises the first, the
calls of its denoiser run again with one more block of each kind: work and weights are linear in the blocks.
"""

import copy
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.shards import block_sizes_of, bytes_here
from dglaunch.config import OptimizationConfig, ParallelConfig, RunConfig
from dglaunch.data.images import InputImage
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.figures import DENOISERS, STAGES, BlockSizes, Figures, Request, StageCost
from dglaunch.models.shape import Shape
from dglaunch.simulation.loader import Simulated
from dglaunch.simulation.meter import Meter
from dglaunch.simulation.networks import CUTS, Blocks, equal_blocks, keep, owner_of
from dglaunch.simulation.rehearsal import (
    Stage,
    StageWatch,
    bytes_of_networks,
    networks_of,
    simulated_backend,
    simulating,
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of blocks, of which most were left out of a traced network."""

    component: str
    path: str
    """Of its list."""
    position: int
    """Of the last one that was kept, in the list that was cut."""
    numbers: tuple[int, ...]
    """Their places in the list of the whole network."""
    kept: int

    @property
    def others(self) -> int:
        """How many were left out."""
        return len(self.numbers) - self.kept


_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A module, and what it was called with."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of the denoiser's calls in one step."""

    peak: int
    flops: float
    launches: int
    sent: int

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.peak + other.peak, self.flops + other.flops, self.launches + other.launches, self.sent + other.sent
        )

    def more(self, base: "_Cost", times: int) -> "_Cost":
        """What it has beyond another, so many times; a peak that falls is another moment's."""
        return _Cost(
            times * max(self.peak - base.peak, 0),
            times * (self.flops - base.flops),
            times * (self.launches - base.launches),
            times * (self.sent - base.sent),
        )


NOTHING = _Cost(0, 0.0, 0, 0)


def trace(checkpoint: Checkpoint, config: RunConfig, request: Request) -> Figures:
    """Return what a batch takes on one rank of a replica.

    Args:
        checkpoint: needs no files beside its configurations.

    Raises:
        UserError: a component does not build.
        Exception: whatever the pipeline raises; then nothing is known of it.
    """
    for cut in CUTS[:-1]:
        with suppress(IndexError, KeyError):  # a network misses a block
            return _Tracing(checkpoint, config, request, cut).figures()
    return _Tracing(checkpoint, config, request, CUTS[-1]).figures()


class _Tracing:
    """One trace: the backend of a run with fake weights, and the blocks that were left out."""

    def __init__(self, checkpoint: Checkpoint, config: RunConfig, request: Request, cut: tuple[str, ...]) -> None:
        """
        Args:
            cut: how the names of components begin of which blocks are left out.
        """
        self.request, self.cut = request, cut
        self.checkpoint = replace(checkpoint, family=replace(checkpoint.family, tensor_output=True))
        flags = dict.fromkeys(request.flags, True)
        self.config = replace(
            config, optimization=OptimizationConfig(encode="inline", **flags),  # type: ignore[arg-type]
            max_sequence_length=request.max_sequence_length, debug=False,
        )  # fmt: skip
        self.meter = Meter()
        self.kept = 2 if request.context_degree > 1 else 1
        """Blocks of each kind that are left. (By some of diffusers' plans the first cuts its input among the ranks, and no other.)"""
        self.kinds: list[_Kind] = []
        self.extra: dict[str, _Cost] = {}
        """What they would add to a stage, but for its peak."""
        self.extra_inside: dict[str, dict[int, int]] = {}
        """Bytes that they would add to its peak while their network runs, which is the one with this id()."""
        self.replaying = False
        self.calls: list[_Call] = []
        """Of the modules that run blocks of which some were left out, in the stage under way."""

    def figures(self) -> Figures:
        topology = _leader(self.request)
        with simulating(self.meter, topology), TemporaryDirectory() as folder:
            backend = self._backend(topology)
            try:
                facts = backend.load()
                weights, block_sizes = self._weights(backend), self._block_sizes(backend)
                one = self._run(backend, 1, Path(folder))
                # A family that takes no batch has no second image, and a split image's memory is next to all its own.
                several = self.checkpoint.family.batch and self.request.replica_size == 1
                two = self._run(backend, 2, Path(folder)) if several else None
            finally:
                backend.undo.close()
        steps = facts.defaults["num_inference_steps"]
        return Figures(
            weights=weights,
            block_sizes=block_sizes,
            num_inference_steps=steps if isinstance(steps, int) else 0,
            **{name: self._cost(name, one, two) for name in STAGES},
        )

    # -- the backend -----------------------------------------------------------------------------------------------

    def _backend(self, topology: Topology) -> DiffusersBackend:
        context = Context(
            config=self.config,
            checkpoint=self.checkpoint,
            topology=topology,
            channel=Channel(Topology(), "cpu"),
            device="cpu",
            dtype=self.request.dtype,
        )
        return simulated_backend(context, Simulated(self.meter, self.request.text_tokens, self._cut))

    def _cut(self, name: str, network: torch.nn.Module) -> None:
        """Leave few blocks of each kind of a denoiser or text encoder."""
        if not name.startswith(self.cut):
            return
        blocks = equal_blocks(network)
        kept = self.kept
        self.kinds += [_Kind(name, each.path, _position(each, blocks, kept), each.numbers, kept) for each in blocks]
        keep(network, dict.fromkeys(blocks, kept))

    def _weights(self, backend: DiffusersBackend) -> dict[str, int]:
        """Bytes of each component, as they are after the optimizations."""
        found = bytes_of_networks(backend)
        for kind in self.kinds:
            block = getattr(self._owner(backend, kind), kind.path.rpartition(".")[2])[kind.position]
            found[kind.component] += bytes_here(block) * kind.others
        return found

    def _block_sizes(self, backend: DiffusersBackend) -> dict[str, BlockSizes]:
        """How the weights of each component are divided that --shard shares."""
        shared = (*DENOISERS, "text_encoder")
        networks = {name: part for name, part in networks_of(backend).items() if name.startswith(shared)}
        return {name: block_sizes_of(network) for name, network in networks.items()}

    # -- its calls ---------------------------------------------------------------------------------------------------

    def _run(self, backend: DiffusersBackend, images: int, folder: Path) -> dict[str, Stage]:
        """A batch's stages; with the first one the blocks that were left out are looked at."""
        networks: list[Any] = [
            backend.pipeline.components[name] for name in {kind.component: None for kind in self.kinds}
        ]
        with ExitStack() as undo:
            if images == 1:
                owners = {id(owner): owner for owner in (self._owner(backend, kind) for kind in self.kinds)}
                for owner in owners.values():
                    undo.callback(owner.register_forward_pre_hook(self._record, with_kwargs=True).remove)
            after = partial(self._replay, backend) if images == 1 else None
            stages = StageWatch(backend, self.meter, after, networks).run(self._batch(images, folder))
        return stages

    def _owner(self, backend: DiffusersBackend, kind: _Kind) -> torch.nn.Module:
        """The module that runs a kind of blocks; xfuser's transformers may hold the one of diffusers."""
        network: Any = backend.pipeline.components[kind.component]
        return owner_of(getattr(network, "module", network), kind.path)

    def _record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.replaying:
            self.calls.append((module, args, kwargs))

    def _replay(self, backend: DiffusersBackend, stage: str) -> None:
        """A stage's calls once more, first as they were and then with one more block of each kind."""
        calls, self.calls = self.calls, []
        self.replaying = True
        as_they_were: dict[int, _Cost] = {}
        for kind in self.kinds:
            owner = self._owner(backend, kind)
            own = [call for call in calls if call[0] is owner]
            if own:
                name = kind.path.rpartition(".")[2]
                blocks = getattr(owner, name)
                if id(owner) not in as_they_were:
                    as_they_were[id(owner)] = self._cost_of(own)
                setattr(owner, name, torch.nn.ModuleList(_doubled(blocks, kind)))
                more = self._cost_of(own).more(as_they_were[id(owner)], kind.others)
                self.extra[stage] = self.extra.get(stage, NOTHING) + more
                inside = self.extra_inside.setdefault(stage, {})
                network = id(backend.pipeline.components[kind.component])
                inside[network] = inside.get(network, 0) + more.peak
                setattr(owner, name, blocks)
        self.replaying = False

    def _cost_of(self, calls: list[_Call]) -> _Cost:
        self.meter.restart()
        before = self.meter.live
        with torch.inference_mode():
            for module, args, kwargs in calls:
                module.forward(*args, **kwargs)
        meter = self.meter
        return _Cost(
            meter.peak - before, meter.flops, meter.launches, sum(call.num_bytes for call in meter.collectives)
        )

    def _cost(self, name: str, one: dict[str, Stage], two: dict[str, Stage] | None) -> StageCost:
        stage = one[name]
        extra = self.extra.get(name, NOTHING)
        peak = self._peak(name, stage, 1)
        slope = self._peak(name, two[name], 2) - peak if two is not None else peak
        return StageCost(
            fixed_bytes=max(peak - slope, 0),
            image_bytes=max(slope, 0),
            flops=stage.flops + extra.flops,
            launches=stage.launches + extra.launches,
            sent_bytes=stage.sent_bytes + extra.sent,
        )

    def _peak(self, name: str, stage: Stage, images: int) -> int:
        """A stage's peak with the blocks that were left out, which take something while their network runs. (An edit's text encoder
        is done when the VAE encodes the image, which takes more.)"""
        peaks = [stage.peak_bytes]
        for network, extra in self.extra_inside.get(name, {}).items():
            peaks.append(stage.peaks_inside.get(network, stage.peak_bytes) + images * extra)
        return max(peaks)

    def _batch(self, images: int, folder: Path) -> Batch:
        request = self.request
        inputs = tuple(_blank(shape, folder) for shape in request.input_shapes)
        white = _blank(request.shape, folder, "white") if request.roles else None
        pipeline = self.checkpoint.family.input_pipeline(request.roles)
        roles: dict[str, Any] = {}
        if white is not None and pipeline is not None:
            roles = {
                "roles": request.roles, "is_fitted": not self.config.edits,
                "images": (white,) if "image" in request.roles else (),
                "mask": white if "mask" in request.roles else None,
                "control": white if "control" in request.roles else None,
                "strength": None if pipeline.strength is None else 1.0, "control_scale": pipeline.control_scale,
            }  # fmt: skip
        tasks = [
            Task(
                index=number, prompt="a", seed=number, stem=str(number), height=request.shape.height,
                width=request.shape.width, num_inference_steps=1, guidance_scale=self.checkpoint.family.guidance_of(request.guidance_scale, 1),
                negative_prompt="b" if request.has_negative else None, **{"images": inputs} | roles,
            )
            for number in range(images)
        ]  # fmt: skip
        return Batch(tuple(tasks))


def _position(blocks: Blocks, others: list[Blocks], kept: int) -> int:
    """Where the last block of a kind stands once only so many of each kind are left."""
    gone = {number for each in others if each.path == blocks.path for number in each.numbers[kept:]}
    return sum(number not in gone for number in range(blocks.numbers[kept - 1]))


def _doubled(blocks: Any, kind: _Kind) -> list[torch.nn.Module]:
    """A list with one more block of a kind, which stands beside the one that is there."""
    found = list(blocks)
    return [
        *found[: kind.position + 1],
        _twin(found[kind.position], kind.numbers[kind.kept]),
        *found[kind.position + 1 :],
    ]


def _twin(block: torch.nn.Module, number: int) -> torch.nn.Module:
    """A second block with the weights of the first. Those of a language model keep keys and values by their number, so that
    the second needs its own; of others the block itself is run twice."""
    if not any(hasattr(module, "layer_idx") for module in block.modules()):
        return block
    held = {id(weight): weight for weight in (*block.parameters(), *block.buffers())}
    twin = copy.deepcopy(block, held)
    for module in twin.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = number  # type: ignore[assignment]  # torch types every attribute as a module or a tensor
    return twin


def _blank(shape: Shape, folder: Path, color: str = "black") -> InputImage:
    out = BytesIO()
    Image.new("RGB", (shape.width, shape.height), color).save(out, "PNG")
    data = out.getvalue()
    source = folder / f"{shape}.png"
    source.write_bytes(data)
    return InputImage(
        name=source.name, source=source, sha256=sha256(data).hexdigest(), shape=shape, suffix=source.suffix
    )


def _leader(request: Request) -> Topology:
    """The last rank of a replica: with xfuser's pipelines no other one decodes."""
    size = request.replica_size
    return Topology(
        rank=size - 1,
        local_rank=size - 1,
        world_size=size,
        local_world_size=size,
        distributed=size > 1,
        parallel=ParallelConfig(
            ulysses_degree=request.ulysses_degree,
            ring_degree=request.ring_degree,
            use_cfg_parallel=request.use_cfg_parallel,
            context_degree=request.context_degree,
        ),
    )
