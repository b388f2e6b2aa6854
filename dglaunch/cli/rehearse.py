"""The command `rehearse`: a job's own code at the model's true size, on a machine that has neither the GPUs nor the weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from dglaunch.cli.flags import parse, take_gpu, take_world_size
from dglaunch.config import COMMANDS
from dglaunch.environment import another_speaks
from dglaunch.errors import EXIT_DONE, EXIT_USER, UserError
from dglaunch.output.ledger import OutputFolder
from dglaunch.planning.estimate import SPARE
from dglaunch.planning.job import Job, prepare
from dglaunch.planning.tuned import recall
from dglaunch.run.report import number
from dglaunch.terminal import Terminal

if TYPE_CHECKING:
    from dglaunch.simulation.replica import BatchReport, ReplicaReport

NUM_STEPS = 2
GIB, MIB = 2**30, 2**20


def rehearse(words: list[str], environ: Mapping[str, str]) -> int:
    """Rehearse a job (`dglaunch rehearse t2i [flags of t2i] --world_size 8 --gpu H100`).

    Raises:
        UserError: whatever would keep the run from beginning.
    """
    command, rest = words[1] if len(words) > 1 else "", words[2:]
    if command not in COMMANDS:
        raise UserError(f"Name the command to rehearse: dglaunch rehearse {' or '.join(COMMANDS)} [flags].")
    world_size, gpu = take_world_size(rest), take_gpu(rest)
    quiet = another_speaks(environ)
    config, origins = parse(COMMANDS[command], rest, environ, f"dglaunch rehearse {command}", quiet=quiet)
    job = prepare(config, origins, environ, world_size, None if gpu is None else gpu.machine, only_planned=True)
    if not job.topology.is_main:
        return EXIT_DONE
    return _rehearse(job)


def _rehearse(job: Job) -> int:
    from dglaunch.planning.rehearsal import CANNOT_SEE, to_rehearse

    recalled = recall(job.config, job.machine, job.topology.parallel)
    limits = OutputFolder(job.config.output_dir).out_of_memory_limits()
    schedule = job.schedule((), limits, recalled.sizes, job.machine.memory)
    rehearsed = to_rehearse(job, schedule.plan)
    from dglaunch.simulation.replica import rehearse_replica

    terminal = Terminal()
    terminal.print(
        f"{job.config.backend.model_name} ({job.checkpoint.pipeline_class}), {job.machine.dtype}: "
        f"{job.topology.describe()}, for {job.machine.name}"
    )
    for note in rehearsed.notes:
        terminal.print(f"note: {note}")
    found = rehearse_replica(rehearsed.context, rehearsed.setting)
    _show(terminal, job, found)
    terminal.print(f"not seen: {CANNOT_SEE}")
    return EXIT_DONE if _is_well(terminal, job, found) else EXIT_USER


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
            denoise = batch.stages["denoise"]
            table.add_row(
                _words(job, batch),
                *[_gib(held[name]) if name in held else "" for name in ("encode", "denoise", "decode")],
                f"{denoise.flops / NUM_STEPS / 1e12:,.2f}",
                f"{denoise.sent_bytes / NUM_STEPS / MIB:,.1f}",
                f"{max(held.values()) / job.machine.memory:.0%}" if job.machine.memory else "",
            )
    return table


def _is_well(terminal: Terminal, job: Job, found: "ReplicaReport") -> bool:
    """Say what would go wrong, and whether anything would."""
    for crash in found.all_crashes:
        where = f", {crash.stage}" if crash.stage else ""
        terminal.print(f"would crash: rank {crash.rank}{where}: {crash.message} ({crash.place})")
        if job.config.debug:
            terminal.print(crash.traceback)
    for batch in found.batches:
        if batch.disagreement is not None:
            terminal.print(f"the ranks do not agree on {_words(job, batch)}: {batch.disagreement}")
    peak, memory = found.peak, job.machine.memory
    fits = memory is None or peak <= memory
    if not found.all_crashes and not found.disagreements:
        terminal.print(_room(peak, memory))
    return fits and not found.all_crashes and not found.disagreements


def _room(peak: int, memory: int | None) -> str:
    if memory is None:
        return f"it takes {_gib(peak)} GiB"
    if peak > memory:
        return f"does not fit: it takes {_gib(peak)} GiB, and the GPU has {_gib(memory)}; {_gib(peak - memory)} GiB too much"
    if peak > memory * SPARE:
        return (
            f"may fit: it takes {_gib(peak)} of {_gib(memory)} GiB, which leaves {_gib(memory - peak)} for what a rehearsal "
            "does not see"
        )
    return f"fits: it takes {_gib(peak)} of {_gib(memory)} GiB"


def _words(job: Job, batch: "BatchReport") -> str:
    task = batch.batch.tasks[0]
    guidance = f", guidance {task.guidance_scale:g}" if task.guidance_scale is not None else ""
    inputs = f", {number(len(task.images), 'input image')} each" if task.images else ""
    negative = ", negative prompts" if task.negative_prompt is not None else ""
    return f"{len(batch.batch)} of {job.checkpoint.shape(task.height, task.width)}{inputs}{guidance}{negative}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"
