"""A replica rehearsed: its ranks in child processes, one of them with all of the model's blocks.

found = rehearse_replica(context, Setting(text_tokens=512, own_tokenizers=False))
found.crashes, found.batches[0].disagreement, found.batches[0].stages["decode"].peak_bytes
"""

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.quiet import quiet_libraries
from dglaunch.backends.registry import imported
from dglaunch.backends.xdit.cpu import import_xfuser
from dglaunch.data.task import Batch
from dglaunch.models.figures import STAGES
from dglaunch.simulation.agreement import disagreement
from dglaunch.simulation.children import at_a_time, in_children
from dglaunch.simulation.meter import Collective
from dglaunch.simulation.networks import CUTS
from dglaunch.simulation.rank import BatchRun, Crash, RankRun, Setting, rehearse_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """A stage of a batch on the rank that has most to do in it."""

    peak_bytes: int
    """Beyond the weights."""
    flops: float
    sent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """One batch of a job on all ranks of its replica."""

    batch: Batch
    stages: dict[str, StageReport]
    """{}: the rank with all blocks did not come so far."""
    crashes: list[Crash]
    disagreement: str | None
    """Where the ranks would wait for one another, or exchange what does not fit."""
    guesses: dict[str, int]
    """Where a value was asked for that fake tensors do not have, and how often."""

    @property
    def num_steps(self) -> int:
        """Denoising steps that were rehearsed."""
        return self.batch.tasks[0].num_inference_steps or 1

    def as_json(self) -> dict[str, object]:
        task = self.batch.tasks[0]
        return {
            "images": len(self.batch),
            "height": task.height,
            "width": task.width,
            "guidance_scale": task.guidance_scale,
            "num_steps": self.num_steps,
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "crashes": [asdict(crash) for crash in self.crashes],
            "disagreement": self.disagreement,
            "guesses": self.guesses,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What a replica of a job would do."""

    weights: dict[str, int]
    """Bytes on each rank while batches are made, by component."""
    ahead: int | None
    """Bytes at the worst moment of encoding prompts ahead; None: the text encoders run in each batch."""
    batches: list[BatchReport]
    crashes: list[Crash]
    """While loading."""

    def as_json(self) -> dict[str, object]:
        return {
            "weights": self.weights,
            "ahead": self.ahead,
            "peak": self.peak,
            "crashes": [asdict(crash) for crash in self.crashes],
            "batches": [batch.as_json() for batch in self.batches],
        }

    @property
    def all_crashes(self) -> list[Crash]:
        return [*self.crashes, *(crash for batch in self.batches for crash in batch.crashes)]

    @property
    def peak(self) -> int:
        """Bytes that a rank holds at its worst moment."""
        weights = sum(self.weights.values())
        stages = [stage for batch in self.batches for stage in batch.stages.values()]
        return max([self.ahead or 0, *(weights + stage.peak_bytes for stage in stages)])


def rehearse_replica(context: Context, setting: Setting) -> ReplicaReport:
    """Rehearse the context's batches on every rank of its replica.

    The leader has all blocks, so that its memory and work are those of a run. All ranks, the leader once more, have one
    block of each kind: enough to see whether they crash and whether they agree.
    """
    topology = context.topology
    import_libraries(context)
    (whole,) = _run_ranks([as_rank(context, topology.replica_ranks[-1])], setting)
    return _report(context.batches, whole, run_short(context, setting) if topology.replica_size > 1 else [])


def run_short(context: Context, setting: Setting) -> list[RankRun]:
    """Run all ranks of a replica with as few blocks as the networks can do with: some count theirs themselves."""
    import_libraries(context)
    runs: list[RankRun] = []
    for cut in CUTS:
        ranks = [as_rank(context, rank) for rank in context.topology.replica_ranks]
        runs = _run_ranks(ranks, replace(setting, cut=cut))
        if not any(_misses_a_block(run) for run in runs):
            break
    return runs


def agreement_of(runs: Sequence[RankRun], number: int) -> str | None:
    """Return where ranks would wait for one another in a batch, or exchange what does not fit."""
    return disagreement({run.rank: _collectives(run.batches[number]) for run in runs})


def _misses_a_block(run: RankRun) -> bool:
    return any(re.search("IndexError|KeyError", crash.message) for crash in run.all_crashes)


def _run_ranks(contexts: Sequence[Context], setting: Setting) -> list[RankRun]:
    """A child runs several ranks, as fake tensors are quicker where others of their shapes were before; a rank that breaks
    down is its child's last, and the others get new ones."""
    runs: dict[int, RankRun] = {}
    while waiting := [context for context in contexts if context.topology.rank not in runs]:
        children = min(at_a_time(), len(waiting))
        hands = [waiting[number::children] for number in range(children)]
        for hand, ended in zip(hands, in_children([partial(_until_a_crash, hand, setting) for hand in hands])):
            found = [_died(hand[0].topology.rank, ended)] if isinstance(ended, int) else ended
            runs |= {run.rank: run for run in found}
    return [runs[context.topology.rank] for context in contexts]


def _until_a_crash(contexts: Sequence[Context], setting: Setting) -> list[RankRun]:
    runs: list[RankRun] = []
    for context in contexts:
        runs.append(rehearse_rank(context, setting))
        if runs[-1].all_crashes:
            break
    return runs


def as_rank(context: Context, rank: int) -> Context:
    """Return the context of another rank of the same world."""
    topology = context.topology
    return replace(context, topology=replace(topology, rank=rank, local_rank=rank % topology.local_world_size))


def _died(rank: int, exit_code: int) -> RankRun:
    crash = Crash(
        rank=rank,
        stage="",
        message=f"the process that rehearsed it ended with {exit_code}",
        place="the system's log may say why; -9 is a lack of memory",
        traceback="",
    )
    return RankRun(rank=rank, crash=crash)


def _report(batches: Sequence[Batch], whole: RankRun, short: Sequence[RankRun]) -> ReplicaReport:
    loading = [run.crash for run in (whole, *short) if run.crash is not None]
    return ReplicaReport(
        weights=whole.weights,
        ahead=whole.ahead,
        crashes=_distinct(loading),
        batches=[] if loading else [_batch_report(number, batch, whole, short) for number, batch in enumerate(batches)],
    )


def _batch_report(number: int, batch: Batch, whole: RankRun, short: Sequence[RankRun]) -> BatchReport:
    runs = [run.batches[number] for run in (whole, *short)]
    crashes = [run.crash for run in runs if run.crash is not None]
    guesses: dict[str, int] = {}
    for stage in (stage for run in runs for stage in run.stages.values()):
        guesses |= {place: max(count, guesses.get(place, 0)) for place, count in stage.guesses.items()}
    return BatchReport(
        batch=batch,
        stages={} if runs[0].crash is not None else _stages(runs),
        crashes=_distinct(crashes),
        disagreement=None if crashes else agreement_of(short, number),
        guesses=guesses,
    )


def _stages(runs: Iterable[BatchRun]) -> dict[str, StageReport]:
    found: dict[str, StageReport] = {}
    for name in STAGES:
        stages = [run.stages[name] for run in runs if name in run.stages]
        if stages:
            found[name] = StageReport(
                peak_bytes=max(stage.peak_bytes for stage in stages),
                flops=max(stage.flops for stage in stages),
                sent_bytes=max(stage.sent_bytes for stage in stages),
            )
    return found


def _collectives(run: BatchRun) -> list[Collective]:
    return [call for name in STAGES if name in run.stages for call in run.stages[name].collectives]


def _distinct(crashes: Iterable[Crash]) -> list[Crash]:
    """The first of each rank and place: the rank with all blocks comes twice."""
    return list({(crash.rank, crash.stage, crash.place): crash for crash in crashes}.values())


def import_libraries(context: Context) -> None:
    """What each child would import for itself, which takes it ten seconds."""
    quiet_libraries()
    import torch.distributed._tools.fake_collectives  # noqa: F401

    family = context.checkpoint.family.xdit
    if context.config.backend.backend == "xdit" and family is not None:
        import_xfuser()
        for name in (family.pipeline, family.wrapper, family.in_place):
            if name is not None:
                imported(name)
    _ = PipelineLoader(context).pipeline_class
    for component in context.checkpoint.components.values():
        if component.library in ("diffusers", "transformers"):
            getattr(importlib.import_module(component.library), component.class_name, None)
