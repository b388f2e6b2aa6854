"""The command `plan`: what a run would do, without it."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from dglaunch.cli.flags import parse, take_gpu, take_world_size
from dglaunch.config import COMMANDS
from dglaunch.data.task import BatchSize, Bucket
from dglaunch.environment import another_speaks
from dglaunch.errors import EXIT_DONE, UserError
from dglaunch.output.ledger import OutputFolder
from dglaunch.planning import estimate
from dglaunch.planning.batches import Plan
from dglaunch.planning.job import SHOWN_SIZES, Job, Schedule, prepare
from dglaunch.planning.tuned import recall
from dglaunch.run.report import duration, number
from dglaunch.terminal import Terminal

SHOWN_ERRORS = 5
SHOWN_REPLICAS = 16


def plan(words: list[str], environ: Mapping[str, str]) -> int:
    """Print what a run would do: topology, shards, batches, memory and time (`dglaunch plan t2i [flags of t2i]`).

    Raises:
        UserError: whatever would keep the run from beginning.
    """
    command, rest = words[1] if len(words) > 1 else "", words[2:]
    if command not in COMMANDS:
        raise UserError(f"Name the command to plan: dglaunch plan {' or '.join(COMMANDS)} [flags].")
    world_size, gpu = take_world_size(rest), take_gpu(rest)
    quiet = another_speaks(environ)
    config, origins = parse(COMMANDS[command], rest, environ, f"dglaunch plan {command}", quiet=quiet)
    job = prepare(config, origins, environ, world_size, None if gpu is None else gpu.machine, only_planned=True)
    if job.topology.is_main:
        recalled = recall(config, job.machine, job.topology.parallel)
        limits = OutputFolder(config.output_dir).out_of_memory_limits()
        terminal = Terminal()
        _show(terminal, job, job.schedule((), limits, recalled.sizes, job.machine.memory))
        for note in recalled.notes:
            terminal.print(note)
    return EXIT_DONE


def _show(terminal: Terminal, job: Job, schedule: Schedule) -> None:
    plan = schedule.plan
    terminal.print(
        f"{job.config.backend.model_name} ({job.checkpoint.pipeline_class}), {job.machine.dtype}: {job.topology.describe()}"
    )
    one_kind = "all rows had one size and the same input images" if job.config.edits else "all images had one shape"
    more = f"; {schedule.num_extra_batches:,} more than if {one_kind}" if schedule.num_extra_batches else ""
    terminal.print(f"{number(plan.num_tasks, 'image')} in {number(plan.num_batches, 'batch')}{more}")
    for task in schedule.unmakeable[:SHOWN_ERRORS]:
        terminal.print(f"cannot be made: {task.error}")
    if len(schedule.unmakeable) > SHOWN_ERRORS:
        terminal.print(f"... and {len(schedule.unmakeable) - SHOWN_ERRORS:,} more rows that cannot be made")
    for name, reason in schedule.reasons.items():
        terminal.print(f"{name} {reason}")
    terminal.print(_replicas(job, plan))
    images = plan.images_by_replica
    if len(images) > SHOWN_REPLICAS:
        terminal.print(
            f"... {len(images) - SHOWN_REPLICAS:,} more replicas; {min(images):,} to {max(images):,} images each"
        )
    if job.profile.has_estimates:
        _print_estimates(terminal, job, plan)


def _replicas(job: Job, plan: Plan) -> Table:
    table = Table("replica", "ranks", "images", "batches", "batch sizes")
    size = job.topology.replica_size
    for replica, share in enumerate(plan.batches[:SHOWN_REPLICAS]):
        first = replica * size
        ranks = str(first) if size == 1 else f"{first}-{first + size - 1}"
        sizes = [len(batch) for batch in share]
        table.add_row(str(replica), ranks, str(sum(sizes)), str(len(sizes)), _sizes(sizes))
    return table


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{sizes.count(size)} of {size}" for size in sorted(set(sizes), reverse=True))


def _print_estimates(terminal: Terminal, job: Job, plan: Plan) -> None:
    for bucket, size in list(_by_size(plan).items())[:SHOWN_SIZES]:
        shape = job.checkpoint.shape(bucket.height, bucket.width)
        memory = estimate.memory_of(
            job.checkpoint, job.config, job.topology, job.machine.dtype, shape, bucket.input_tokens
        )
        if memory is None:
            terminal.print("memory and time: not estimated, the weights are not on this machine")
            return
        gib = 2**30
        terminal.print(
            f"memory a rank at {shape}, batch {size.size}: about {memory.needed(size.size) / gib:.2f} GiB "
            f"({memory.weights / gib:.2f} weights + {size.size} x {memory.image / gib:.2f})"
        )
    seconds = estimate.seconds_of(job.checkpoint, job.config, job.topology, plan)
    if seconds is not None:
        terminal.print(
            f"time: about {duration(seconds)} on H100s at {estimate.ASSUMED_TFLOPS:.0f} TFLOP/s each, start-up left "
            "out (arithmetic, not a measurement)"
        )
        if (slow := estimate.bottleneck(job.checkpoint, job.topology, plan, seconds)) is not None:
            terminal.print(slow)


def _by_size(plan: Plan) -> dict[Bucket, BatchSize]:
    """One bucket of each output size."""
    return {
        bucket: plan.sizes[bucket]
        for bucket in {(bucket.height, bucket.width): bucket for bucket in plan.sizes}.values()
    }
