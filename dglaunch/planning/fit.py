"""How well published times are met by what the other published times say: none is fitted to itself.

The tests hold plain diffusers to it, and the tables of docs/throughput.md show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dglaunch.planning.gpus import find_gpu
from dglaunch.planning.measurements import MEASUREMENTS, Run
from dglaunch.planning.speed import Seconds, Span, Work, seconds_of


@dataclass(frozen=True, slots=True)
class Check:
    """One GPU and model, as published and as the others predict it: seconds of the first run's steps."""

    runs: tuple[Run, ...]
    published: Span
    """From the fastest source to the slowest."""
    predicted: Span
    likely: float
    ratios: tuple[tuple[Run, float], ...]
    """For each run, what is predicted by what it took."""


def left_out(setup: tuple[str, str, int, bool]) -> Check:
    """Predict one setup (GPU, model, size, compiled) of plain diffusers from all runs but its own."""
    runs = tuple(run for run in MEASUREMENTS if run.plain and run.setup == setup)
    others = [run for run in MEASUREMENTS if run.setup != setup]
    found = _predict(runs[0], others)
    took = [run.seconds * _work(runs[0]) / _work(run) for run in runs]
    ratios = tuple((run, found.likely / seconds) for run, seconds in zip(runs, took))
    return Check(runs, Span(min(took), max(took)), found.a_batch, found.likely, ratios)


def as_plain(run: Run) -> Span:
    """Return what plain diffusers, compiled if this run was, would take for the work of a run of another kind."""
    return _predict(run, MEASUREMENTS).a_batch


def _predict(run: Run, runs: Sequence[Run]) -> Seconds:
    work = Work(
        model=run.model, step_tflop=run.tflop, steps=run.steps, decode_tflop=run.ends, launches_a_step=run.launches
    )
    found = seconds_of(work, find_gpu(run.gpu), compiled=run.compiled, runs=runs)
    assert found is not None, "the GPU is in the table"
    return found


def _work(run: Run) -> float:
    return run.steps * run.tflop + run.ends
