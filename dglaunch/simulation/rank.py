"""One rank of a job, rehearsed: the run's own backend loads and makes batches at the model's true size, on fake tensors.

report = rehearse_rank(context, setting)     # in a child process: libraries set things for the whole of it
report.batches[0].stages["denoise"].peak_bytes
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers import prompt_encoder
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.data.task import Batch
from dglaunch.models.figures import STAGES
from dglaunch.simulation.loader import Simulated, WeightlessLoader
from dglaunch.simulation.meter import Meter
from dglaunch.simulation.networks import equal_blocks, keep
from dglaunch.simulation.rehearsal import Stage, StageWatch, bytes_of_networks, simulated_backend, simulating
from dglaunch.simulation.tokenizers import NotSimulatedError, TextTokens

LOADING = "load"
"""The stage before the first batch."""
SHOWN_FOLDERS = 3
"""Of the path of a source file, its last parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What a rank raised where a run would."""

    rank: int
    stage: str
    """load, encode, denoise or decode."""
    message: str
    place: str
    """The line outside of torch that it came from."""
    traceback: str
    is_of_rehearsal: bool = False
    """Whether no run would raise it: the rehearsal lacks something that a run has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """A batch on one rank: its stages, the last one cut short by a crash."""

    stages: dict[str, Stage]
    crash: Crash | None = None


@dataclass(slots=True, kw_only=True)
class RankRun:
    """All that one rank did."""

    rank: int
    weights: dict[str, int] = field(default_factory=dict)
    """Bytes on the device while batches are made, by component."""
    ahead: int | None = None
    """Bytes at the worst moment of encoding prompts ahead, with the text encoders' weights; None: none were."""
    batches: list[BatchRun] = field(default_factory=list)
    crash: Crash | None = None
    """Of the loading, so that there are no batches."""

    @property
    def all_crashes(self) -> list[Crash]:
        found = (self.crash, *(batch.crash for batch in self.batches))
        return [crash for crash in found if crash is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a rank is rehearsed."""

    text_tokens: TextTokens
    """Of a prompt, where the tokenizers are not here."""
    own_tokenizers: bool
    """Whether they are."""
    cut: tuple[str, ...] = ()
    """How the names of the networks begin that have one block of each kind only. With none left out, memory and work are
    those of a run."""


def rehearse_rank(context: Context, setting: Setting) -> RankRun:
    """Load as this rank and make the context's batches, one after the other."""
    run = RankRun(rank=context.topology.rank)
    meter = Meter()
    torch.set_num_threads(1)
    with simulating(meter, context.topology), _as_on_a_gpu():
        backend = _backend(context, setting, meter)
        try:
            run.ahead = _load(backend, meter)
            run.weights = bytes_of_networks(backend)
            run.batches = [_batch_run(StageWatch(backend, meter), batch, run.rank) for batch in context.batches]
        except Exception as error:  # whatever it is: it would end the run, and is what was looked for
            run.crash = _crash(error, run.rank, LOADING)
        finally:
            backend.undo.close()
    return run


def _backend(context: Context, setting: Setting, meter: Meter) -> DiffusersBackend:
    simulated = Simulated(meter, setting.text_tokens, own_tokenizers=setting.own_tokenizers)
    if setting.cut:
        simulated.cut = partial(_one_of_each_kind, setting.cut)
    return simulated_backend(context, simulated)


def _one_of_each_kind(prefixes: tuple[str, ...], name: str, network: torch.nn.Module) -> None:
    """Leave one block of each kind of a network: ranks exchange the same in each of them."""
    if name.startswith(prefixes):
        keep(network, dict.fromkeys(equal_blocks(network), 1))


def _load(backend: DiffusersBackend, meter: Meter) -> int | None:
    """Load; return what encoding ahead takes. The other networks are on the host until it is done."""
    loader = backend.loader
    assert isinstance(loader, WeightlessLoader)
    meter.restart()
    backend.load()
    return None if loader.live_before_encoders is None else meter.peak - loader.live_before_encoders


def _batch_run(watch: StageWatch, batch: Batch, rank: int) -> BatchRun:
    try:
        return BatchRun(stages=watch.run(batch))
    except Exception as error:  # the next batch may be another kind
        under_way = next(name for name in STAGES if name not in watch.stages)
        return BatchRun(stages=watch.stages, crash=_crash(error, rank, under_way))


def _crash(error: Exception, rank: int, stage: str) -> Crash:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    own = [frame for frame in frames if "/dglaunch/simulation/" not in frame.filename] or frames
    place = "/".join(own[-1].filename.split("/")[-SHOWN_FOLDERS:])
    message = " ".join(str(error).split())
    return Crash(
        rank=rank,
        stage=stage,
        message=f"{type(error).__name__}: {message}",
        place=f"{place}:{own[-1].lineno}",
        traceback="".join(traceback.format_exception(error)),
        is_of_rehearsal=isinstance(error, NotSimulatedError),
    )


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """The fake tensors are on the host, where a run would encode prompts batch by batch and not all of them first."""
    with mock.patch.object(prompt_encoder, "GRADUAL_ON", ()):
        yield
