"""The engine of a pipeline: how it is loaded, changed and called, by diffusers alone or by xfuser over a replica's ranks."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Protocol

import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers import optimizations
from dglaunch.backends.diffusers.arguments import scale_to_area
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.loras import PipelineLoras
from dglaunch.backends.diffusers.protocols import Pipeline, PipelineOutput
from dglaunch.data.task import Batch

Call = Callable[[], PipelineOutput | None]
"""A call of a pipeline that is ready; it gives None on a rank that does not get the images."""


class Engine(Protocol):
    """An engine loads and calls the pipeline for DiffusersBackend, which does the rest: inputs, prompts, errors, time.

    class Plain:
        def start(self, undo): pass
        together = False
        def load_pipeline(self, loader): return loader.load()
        def load_text_encoders(self, loader, pipeline): return loader.load_text_encoders(pipeline)
        def optimize(self, pipeline, loras, undo): return {}
        def prepare(self, pipeline, batch, arguments): return partial(pipeline, **arguments)
    """

    together: bool
    """Whether the ranks of a replica must call the text encoders with the same prompts at the same time."""

    def start(self, undo: ExitStack) -> None:
        """Set up what must be there before a pipeline is loaded; `undo` takes it back at the end."""
        ...

    def load_pipeline(self, loader: PipelineLoader) -> Pipeline:
        """Load the checkpoint's pipeline into the host's memory."""
        ...

    def load_text_encoders(self, loader: PipelineLoader, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        """Load the text encoders alone, by name, for a pipeline that was loaded without them."""
        ...

    def optimize(self, pipeline: Pipeline, loras: PipelineLoras, undo: ExitStack) -> dict[str, str]:
        """Move the pipeline to its device, do what the optimization flags ask for, and say for each of them what was found
        on the loaded modules. LoRAs that are not in it yet go into quantized layers."""
        ...

    def prepare(self, pipeline: Pipeline, batch: Batch, arguments: dict[str, object]) -> Call:
        """Prepare the call for a batch, with these keyword arguments."""
        ...


class DiffusersEngine:
    """The engine of diffusers alone: each rank computes whole images."""

    together = False

    def __init__(self, context: Context) -> None:
        self.context = context

    def start(self, undo: ExitStack) -> None:
        pass

    def load_pipeline(self, loader: PipelineLoader) -> Pipeline:
        return loader.load()

    def load_text_encoders(self, loader: PipelineLoader, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        return loader.load_text_encoders(pipeline)

    def optimize(self, pipeline: Pipeline, loras: PipelineLoras, undo: ExitStack) -> dict[str, str]:
        context, wanted = self.context, self.context.config.optimization
        return optimizations.apply(pipeline, wanted, context.torch_device, undo, context.num_cores, loras)

    def prepare(self, pipeline: Pipeline, batch: Batch, arguments: dict[str, object]) -> Call:
        scale_to_area(pipeline, batch, self.context.checkpoint)
        return partial(pipeline, **arguments)
