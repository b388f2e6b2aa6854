"""The engine of diffusers itself over several ranks of a replica: --parallel context, --shard fsdp and --shard tensor.

- context: each rank holds some of the tokens of text and image; attention exchanges them for heads (Ulysses, for any number
  of tokens and heads).
- shard: each rank holds a part of the weights of the transformer (shards.py), and of the text encoders (FSDP).

Every rank of a replica makes the same images from the same noise; the run hands on those of its leader.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.engine import DiffusersEngine, Engine
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.loras import PipelineLoras
from dglaunch.backends.diffusers.modular import ModularEngine
from dglaunch.backends.diffusers.protocols import Pipeline
from dglaunch.backends.diffusers.shards import (
    Fsdp,
    Layout,
    Tensor,
    bytes_here,
    bytes_of_all,
    on_any_device,
    replica_mesh,
)

Returned = TypeVar("Returned")

LAYOUTS: dict[str, Callable[[DeviceMesh], Layout]] = {"fsdp": Fsdp, "tensor": Tensor}
"""--shard -> how the transformer's weights are cut."""
GIB = 2**30


def own_engine(context: Context) -> Engine:
    """Return diffusers' engine for one rank alone, or for a rank that shares a model with others."""
    if context.checkpoint.modular is not None:
        return ModularEngine(context)
    parallel = context.topology.parallel
    is_shared = max(parallel.context_degree, parallel.shard_degree) > 1
    return SharingEngine(context) if is_shared else DiffusersEngine(context)


class SharingEngine(DiffusersEngine):
    """The engine of a rank that shares its replica's images, weights or both with the other ranks."""

    mesh: DeviceMesh
    loader: PipelineLoader

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        parallel = context.topology.parallel
        self.splits_images = parallel.context_degree > 1
        self.together = parallel.shard_degree > 1
        self.layout: Layout | None = None

    def start(self, undo: ExitStack) -> None:
        topology = self.context.topology
        if self.context.device == "cuda":
            torch.cuda.set_device(topology.local_rank)
        self.mesh = replica_mesh(self.context.device, topology.num_replicas, topology.replica_size)
        if self.together:
            assert self.context.config.backend.shard is not None, "planning refuses a degree without it"
            self.layout = LAYOUTS[self.context.config.backend.shard](self.mesh["ulysses"])

    def load_pipeline(self, loader: PipelineLoader) -> Pipeline:
        if self.layout is None:
            return loader.load()
        without = dict.fromkeys(loader.text_encoders())
        pipeline = loader.load(transformer=loader.outline(), **without)
        if not loader.encodes_ahead:
            for name, encoder in self._load_encoders(loader, pipeline).items():
                setattr(pipeline, name, encoder)
        self.loader = loader
        return pipeline

    def load_text_encoders(self, loader: PipelineLoader, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        if self.layout is None:
            return super().load_text_encoders(loader, pipeline)
        return self._load_encoders(loader, pipeline)

    def optimize(self, pipeline: Pipeline, loras: PipelineLoras, undo: ExitStack) -> dict[str, str]:
        transformer: Any = pipeline.components["transformer"]
        effects: dict[str, str] = {}
        if self.layout is not None:
            effects["shard"] = self._share_weights(transformer, self.layout)
        effects |= super().optimize(pipeline, loras, undo)
        if self.splits_images:
            effects["parallel"] = self._split_images(transformer)
        return effects

    # -- weights -----------------------------------------------------------------------------------------------------

    def _share_weights(self, transformer: torch.nn.Module, layout: Layout) -> str:
        """Fill the transformer, of which there is nothing but the outline yet, with this rank's part of its weights."""
        layout.apply(transformer)
        self.context.channel.together(lambda: self.loader.fill(transformer, layout))
        here, whole = bytes_here(transformer), bytes_of_all(transformer)
        degree = self.context.topology.replica_size
        return (
            f"{self.context.config.backend.shard} over {degree} ranks: this one holds {here / whole:.0%} of the transformer's "
            f"{whole / GIB:.3g} GiB"
        )

    def _load_encoders(self, loader: PipelineLoader, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        """Load the text encoders on one rank of the replica after the other, so that the host holds them whole only once, and
        leave each rank its part."""
        layout = Fsdp(self.mesh["ulysses"])

        def load() -> dict[str, torch.nn.Module]:
            encoders = loader.load_text_encoders(pipeline)
            for encoder in encoders.values():
                layout.apply(encoder)
            loader.leave_host()
            return encoders

        return self._in_turn(load)

    def _in_turn(self, action: Callable[[], Returned]) -> Returned:
        """What the action gives on this rank, once each rank of the replica has done it, one after the other."""
        topology, results = self.context.topology, []

        def act(rank: int) -> None:
            if rank == topology.rank:
                results.append(action())

        for rank in topology.replica_ranks:
            self.context.channel.together(partial(act, rank), of="replica")
        return results[0]

    # -- images ------------------------------------------------------------------------------------------------------

    def _split_images(self, transformer: Any) -> str:
        """Let each rank hold some of the tokens. It comes last, as what is hooked in before would see all of them."""
        from diffusers import ContextParallelConfig

        degree = self.context.topology.replica_size
        with on_any_device():
            transformer.enable_parallelism(
                config=ContextParallelConfig(
                    ulysses_degree=degree, ulysses_anything=True, mesh=self.mesh["ring", "ulysses"]
                )
            )
        split = sum(
            any(name.startswith("cp_") for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}))
            for module in transformer.modules()
        )
        return f"context over {degree} ranks, split and joined at {split} modules"
