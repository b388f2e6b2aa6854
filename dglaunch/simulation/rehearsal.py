"""One batch of a run on fake tensors: what each stage of it holds, computes and sends."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.protocols import denoiser, plain_pipeline
from dglaunch.backends.diffusers.quiet import quiet_libraries
from dglaunch.backends.diffusers.shards import bytes_here
from dglaunch.backends.xdit.backend import XDiTEngine
from dglaunch.data.task import Batch
from dglaunch.distributed.topology import Topology
from dglaunch.models.figures import STAGES
from dglaunch.simulation.cluster import fake_cluster
from dglaunch.simulation.loader import Simulated, WeightlessLoader
from dglaunch.simulation.meter import Collective, Meter
from dglaunch.simulation.networks import movable
from dglaunch.simulation.sharded import fsdp_on_fakes, known_shares, uncounted_propagation


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
    peaks_inside: dict[int, int] = field(default_factory=dict)
    """The same as peak_bytes, but while one of the modules that are watched ran; by its id()."""

    @property
    def sent_bytes(self) -> int:
        return sum(call.num_bytes for call in self.collectives)


def simulated_backend(context: Context, simulated: Simulated) -> DiffusersBackend:
    """Return a run's backend whose networks have no weights, and whose images no content; xfuser's where there is a world
    that diffusers itself does not share."""
    parallel = context.topology.parallel
    is_xfusers = context.topology.distributed and max(parallel.context_degree, parallel.shard_degree) == 1
    engine = XDiTEngine(context) if is_xfusers else None
    return DiffusersBackend(context, engine, WeightlessLoader(context, simulated), _blank)


def networks_of(backend: DiffusersBackend) -> dict[str, torch.nn.Module]:
    """Return a loaded pipeline's networks, by component."""
    parts = {**backend.pipeline.components, "controlnet": backend.with_inputs.controlnet}
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def bytes_of_networks(backend: DiffusersBackend) -> dict[str, int]:
    """Return the bytes of a loaded pipeline's networks, by component."""
    return {name: bytes_here(network) for name, network in networks_of(backend).items()}


def _blank(pixels: torch.Tensor, _is_finite: torch.Tensor) -> Image.Image:
    return Image.new("RGB", (pixels.shape[1], pixels.shape[0]))


@contextmanager
def simulating(meter: Meter, topology: Topology) -> Iterator[None]:
    """What runs inside of it is counted, as this rank of a world that is not there, and may change the type of networks
    without weights. What libraries warn of is not the user's: a step or two are no schedule. And their own million objects
    are not looked through again and again for garbage, which takes a third of the time."""
    quiet_libraries()
    gc.freeze()
    try:
        with ExitStack() as undo:
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            undo.enter_context(fake_cluster(topology))
            undo.enter_context(movable())
            if topology.parallel.shard_degree > 1:
                undo.enter_context(fsdp_on_fakes(meter))
                undo.enter_context(uncounted_propagation())
            if topology.parallel.context_degree > 1:
                undo.enter_context(known_shares())
            undo.enter_context(meter)
            yield
    finally:
        gc.unfreeze()


class StageWatch:
    """A watch tells the stages of a pipeline's call apart: encoding ends where the denoiser begins, denoising where the
    VAE decodes."""

    def __init__(
        self, backend: DiffusersBackend, meter: Meter, after_stage: Callable[[str], None] | None = None,
        modules: Iterable[torch.nn.Module] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            after_stage: called with each stage's name at its end, but for the last; what it takes is not counted.
            modules: of which it is told how much is live while they run; none of them runs another.
        """
        self.backend, self.meter, self.after_stage, self.modules = backend, meter, after_stage, modules
        self.stages: dict[str, Stage] = {}
        self._weights = self._peak_before = 0
        self._peaks_inside: dict[int, int] = {}

    def run(self, batch: Batch) -> dict[str, Stage]:
        """Return the stages of a batch's call."""
        gc.collect()
        self.stages, self._weights = {}, self.meter.live
        self.meter.restart()
        with ExitStack() as undo:
            self._watch(undo)
            self.backend.generate(batch)
        self._close("denoise")
        self.stages["decode"] = self._stage()
        return {name: self.stages[name] for name in STAGES if name in self.stages}

    def _watch(self, undo: ExitStack) -> None:
        pipeline = plain_pipeline(self.backend.pipeline)
        network: Any = denoiser(self.backend.pipeline)
        controlnet = self.backend.with_inputs.controlnet
        steering = [controlnet] if controlnet is not None else []  # it runs first
        for module in (
            network,
            *network.children(),
            *steering,
        ):  # xfuser's transformers call the parts of the plain one
            hook = module.register_forward_pre_hook(lambda *_: self._close("encode"), prepend=True)
            undo.callback(hook.remove)
        vae: Any = pipeline.vae  # type: ignore[attr-defined]
        decode = vae.decode

        def watched(*args: object, **kwargs: object) -> object:
            self._close("denoise")
            return decode(*args, **kwargs)

        vae.decode = watched
        undo.callback(setattr, vae, "decode", decode)
        for module in self.modules:
            undo.callback(module.register_forward_pre_hook(self._enter).remove)
            undo.callback(module.register_forward_hook(self._leave).remove)

    def _enter(self, *_: object) -> None:
        self._peak_before, self.meter.peak = self.meter.peak, self.meter.live

    def _leave(self, module: torch.nn.Module, *_: object) -> None:
        inside = self.meter.peak
        self._peaks_inside[id(module)] = max(inside - self._weights, self._peaks_inside.get(id(module), 0))
        self.meter.peak = max(inside, self._peak_before)

    def _close(self, name: str) -> None:
        if name not in self.stages:
            self.stages[name] = self._stage()
            if self.after_stage is not None:
                self.after_stage(name)
            self.meter.restart()

    def _stage(self) -> Stage:
        meter = self.meter
        inside, self._peaks_inside = self._peaks_inside, {}
        return Stage(
            peak_bytes=meter.peak - self._weights,
            flops=meter.flops,
            launches=meter.launches,
            collectives=list(meter.collectives),
            guesses=dict(meter.guesses),
            peaks_inside=inside,
        )
