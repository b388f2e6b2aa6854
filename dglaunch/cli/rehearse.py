"""The command `rehearse`: a job's own code at the model's true size, on a machine that has neither the GPUs nor the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dglaunch.cli.own_flags import RehearseFlags
from dglaunch.cli.plan import heading, job_to_plan, schedule_to_plan
from dglaunch.errors import EXIT_DONE, EXIT_USER
from dglaunch.output.ownership import write_report
from dglaunch.planning.figures import book_of, in_this_process
from dglaunch.planning.job import Job
from dglaunch.planning.room import fits
from dglaunch.run.report import number
from dglaunch.terminal import Terminal

if TYPE_CHECKING:
    from dglaunch.simulation.rank import Crash
    from dglaunch.simulation.replica import BatchReport, ReplicaReport

GIB, MIB = 2**30, 2**20


def rehearse(words: list[str], environ: Mapping[str, str]) -> int:
    """Rehearse a job (`dglaunch rehearse t2i [flags of t2i] --world_size 8 --gpu H100`).

    Raises:
        UserError: whatever would keep the run from beginning.
    """
    job, own = job_to_plan(RehearseFlags, words, environ)
    if not job.topology.is_main:
        return EXIT_DONE
    return _rehearse(job, own.json)


def _rehearse(job: Job, file: Path | None) -> int:
    from dglaunch.planning.rehearsal import CANNOT_SEE, check, room_for, to_rehearse

    check(job)
    schedule, _ = schedule_to_plan(job, book_of(job, in_this_process(job.checkpoint, job.config)))
    rehearsed = to_rehearse(job, schedule)
    from dglaunch.simulation.replica import rehearse_replica

    terminal = Terminal()
    terminal.print(f"{heading(job)}, for {job.machine.name}")
    for note in rehearsed.notes:
        terminal.print(f"note: {note}")
    found = rehearse_replica(rehearsed.context, rehearsed.setting)
    _show(terminal, job, found)
    terminal.print(f"not seen: {CANNOT_SEE}")
    problems = [*_crashes(job, found), *_disagreements(job, found), *_lack_of_room(job, found)]
    for problem in problems:
        terminal.print(problem)
    if not problems:
        terminal.print(f"fits: {_room(job, found)}")
    if file is not None:
        report = found.as_json() | {
            "room": room_for(found),
            "problems": problems,
            "notes": rehearsed.notes,
            "not_seen": CANNOT_SEE,
        }
        write_report(file, "rehearse", report)
    return EXIT_USER if problems else EXIT_DONE


def _show(terminal: Terminal, job: Job, found: "ReplicaReport") -> None:
    if found.weights:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in found.weights.items())
        terminal.print(f"weights on each rank: {_gib(sum(found.weights.values()))} GiB ({parts})")
    if found.ahead is not None:
        terminal.print(
            f"prompts are encoded ahead, which takes {_gib(found.ahead)} GiB and is over before the weights come"
        )
    if any(batch.stages for batch in found.batches):
        terminal.print(_stages_table(job, found))


def _stages_table(job: Job, found: "ReplicaReport") -> Table:
    """A row a batch: what its worst rank holds in each stage, weights included."""
    table = Table("batch", "encode GiB", "denoise GiB", "decode GiB", "TFLOP a step", "MiB sent a step", "of the GPU")
    weights = sum(found.weights.values())
    for batch in found.batches:
        if batch.stages:
            held = {name: weights + stage.peak_bytes for name, stage in batch.stages.items()}
            denoise, steps = batch.stages["denoise"], batch.num_steps
            table.add_row(
                _words(job, batch),
                *[_gib(held[name]) if name in held else "" for name in ("encode", "denoise", "decode")],
                f"{denoise.flops / steps / 1e12:,.2f}",
                f"{denoise.sent_bytes / steps / MIB:,.1f}",
                f"{max(held.values()) / job.machine.memory:.0%}" if job.machine.memory else "",
            )
    return table


def _crashes(job: Job, found: "ReplicaReport") -> list[str]:
    """What ranks would raise, or what no rehearsal shows; what several raise alike, once."""
    alike: dict[tuple[str, str, str], list[Crash]] = {}
    for crash in found.all_crashes:
        alike.setdefault((crash.stage, crash.message, crash.place), []).append(crash)
    said = []
    for (stage, message, place), crashes in alike.items():
        ranks = ", ".join(map(str, sorted({crash.rank for crash in crashes})))
        details = f"\n{crashes[0].traceback}" if job.config.debug else ""
        if crashes[0].is_of_rehearsal:
            said.append(
                f"cannot be rehearsed here: {message.partition(': ')[2]} ({place}). dglaunch plan estimates it.{details}"
            )
            continue
        said.append(f"would crash: rank {ranks}, {stage}: {message} ({place}){details}")
    return said


def _disagreements(job: Job, found: "ReplicaReport") -> list[str]:
    return [
        f"the ranks do not agree on {_words(job, batch)}: {batch.disagreement}"
        for batch in found.batches
        if batch.disagreement is not None
    ]


def _lack_of_room(job: Job, found: "ReplicaReport") -> list[str]:
    from dglaunch.planning.rehearsal import room_for

    memory = job.machine.memory
    if memory is None or fits(room_for(found), memory):
        return []
    return [f"does not fit: {_room(job, found)}, of which a tenth is left for what a rehearsal does not see"]


def _room(job: Job, found: "ReplicaReport") -> str:
    from dglaunch.planning.rehearsal import room_for

    besides = room_for(found) - found.peak
    cudnn = f", {_gib(room_for(found))} with what cuDNN takes while it decodes," if besides else ""
    return f"it takes {_gib(found.peak)}{cudnn} of {_gib(job.machine.memory or 0)} GiB"


def _words(job: Job, batch: "BatchReport") -> str:
    task = batch.batch.tasks[0]
    guidance = f", guidance {task.guidance_scale:g}" if task.guidance_scale is not None else ""
    inputs = f" of {number(len(task.images), 'input image')}" if task.images else ""
    negative = ", negative prompts" if task.negative_prompt is not None else ""
    return f"{len(batch.batch)} of {job.checkpoint.shape(task.height, task.width)}{inputs}{guidance}{negative}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"
