"""One batch of a run on fake tensors: what each stage of it holds, computes and sends."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.engine import Engine
from dglaunch.backends.diffusers.protocols import denoiser, plain_pipeline
from dglaunch.data.task import Batch
from dglaunch.models.figures import STAGES
from dglaunch.simulation.loader import Simulated, WeightlessLoader
from dglaunch.simulation.meter import Collective, Meter
from dglaunch.simulation.networks import movable


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage of a batch's call takes on one rank."""

    peak_bytes: int
    """Live at its worst moment beyond the weights."""
    flops: float
    launches: int
    """Kernels that are started."""
    collectives: list[Collective] = field(default_factory=list)
    guesses: dict[str, int] = field(default_factory=dict)
    """Where a value was asked for that a fake tensor does not have, and how often."""


def simulated_backend(context: Context, simulated: Simulated, engine: Engine | None = None) -> DiffusersBackend:
    """Return a run's backend whose networks have no weights, and whose images no content."""
    return DiffusersBackend(context, engine, WeightlessLoader(context, simulated), _blank)


def _blank(pixels: torch.Tensor, _is_finite: torch.Tensor) -> Image.Image:
    return Image.new("RGB", (pixels.shape[1], pixels.shape[0]))


@contextmanager
def simulating(meter: Meter) -> Iterator[None]:
    """What runs inside of it is counted, and may change the type of networks without weights."""
    with movable(), meter:
        yield


class StageWatch:
    """A watch tells the stages of a pipeline's call apart: encoding ends where the denoiser begins, denoising where the
    VAE decodes."""

    def __init__(
        self, backend: DiffusersBackend, meter: Meter, after_stage: Callable[[str], None] | None = None
    ) -> None:
        """
        Args:
            after_stage: called with each stage's name at its end, but for the last; what it takes is not counted.
        """
        self.backend, self.meter, self.after_stage = backend, meter, after_stage
        self.stages: dict[str, Stage] = {}
        self._weights = 0

    def run(self, batch: Batch) -> tuple[dict[str, Stage], Any]:
        """Return the stages of a batch's call, and what the call returns."""
        gc.collect()
        self.stages, self._weights = {}, self.meter.live
        self.meter.restart()
        with ExitStack() as undo:
            self._watch(undo)
            slots = self.backend.generate(batch)
        self._close("denoise")
        self.stages["decode"] = self._stage()
        return {name: self.stages[name] for name in STAGES if name in self.stages}, slots

    def _watch(self, undo: ExitStack) -> None:
        pipeline = plain_pipeline(self.backend.pipeline)
        network: Any = denoiser(self.backend.pipeline)
        for module in (network, *network.children()):  # xfuser's transformers call the parts of the plain one
            hook = module.register_forward_pre_hook(lambda *_: self._close("encode"), prepend=True)
            undo.callback(hook.remove)
        vae: Any = pipeline.vae  # type: ignore[attr-defined]
        decode = vae.decode

        def watched(*args: object, **kwargs: object) -> object:
            self._close("denoise")
            return decode(*args, **kwargs)

        vae.decode = watched
        undo.callback(setattr, vae, "decode", decode)

    def _close(self, name: str) -> None:
        if name not in self.stages:
            self.stages[name] = self._stage()
            if self.after_stage is not None:
                self.after_stage(name)
            self.meter.restart()

    def _stage(self) -> Stage:
        meter = self.meter
        return Stage(
            peak_bytes=meter.peak - self._weights,
            flops=meter.flops,
            launches=meter.launches,
            collectives=list(meter.collectives),
            guesses=dict(meter.guesses),
        )
