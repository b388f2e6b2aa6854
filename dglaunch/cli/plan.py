"""`dglaunch plan`: what a run would do, without it."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dglaunch import errors
from dglaunch.config import RunConfig
from dglaunch.data.task import Bucket
from dglaunch.output.ledger import OutputFolder
from dglaunch.planning import batches, estimate
from dglaunch.planning.job import SHOWN_SIZES, Job, prepare
from dglaunch.planning.tuned import recall
from dglaunch.run import report

SHOWN_ERRORS = 5
SHOWN_REPLICAS = 16


def show_plan(config: RunConfig, origins: dict[str, str], environ: Mapping[str, str], world_size: int | None) -> int:
    """Print what a run would do: topology, shards, batches, memory and time."""
    job = prepare(config, origins, environ, world_size)
    if not job.topology.is_main:
        return errors.EXIT_DONE
    bucket_of = job.bucket_of()
    mine = batches.share_of_node(job.makeable, job.topology, bucket_of, job.cost)
    limits = OutputFolder(config.output_dir).out_of_memory_limits()
    made = job.make_plan(bucket_of, mine, limits, recall(config, job.machine, job.topology.parallel))
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{config.backend.model_name} ({job.checkpoint.pipeline_class}), {job.machine.dtype}: {job.topology.describe()}"
    )
    more = f"; {made.lost:,} more than if {job.one_kind}" if made.lost else ""
    console.print(f"{report.number(made.num_tasks, 'image')} in {report.number(made.num_batches, 'batch')}{more}")
    for task in job.hopeless[:SHOWN_ERRORS]:
        console.print(f"cannot be made: {task.error}")
    if len(job.hopeless) > SHOWN_ERRORS:
        console.print(f"... and {len(job.hopeless) - SHOWN_ERRORS:,} more rows that cannot be made")
    for name, reason in job.reasons.items():
        console.print(f"{name} {reason}")
    table = Table("replica", "ranks", "images", "batches", "batch sizes")
    for number, share in enumerate(made.batches[:SHOWN_REPLICAS]):
        size = job.topology.replica_size
        ranks = f"{number * size}" if size == 1 else f"{number * size}-{number * size + size - 1}"
        sizes = [len(batch) for batch in share]
        table.add_row(str(number), ranks, str(sum(sizes)), str(len(sizes)), _sizes(sizes))
    console.print(table)
    images = made.images_by_replica
    if len(images) > SHOWN_REPLICAS:
        console.print(
            f"... {len(images) - SHOWN_REPLICAS:,} more replicas; {min(images):,} to {max(images):,} images each"
        )
    if not config.backend.is_remote:
        _print_estimates(console, job, made)
    return errors.EXIT_DONE


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{sizes.count(size)} of {size}" for size in sorted(set(sizes), reverse=True))


def _print_estimates(console: Console, job: Job, made: batches.Plan) -> None:
    for bucket, size in list(_by_size(made).items())[:SHOWN_SIZES]:
        height, width = job.checkpoint.size("height", bucket[0]), job.checkpoint.size("width", bucket[1])  # type: ignore[arg-type]
        memory = estimate.memory_of(
            job.checkpoint, job.config, job.topology, job.machine.dtype, height, width, bucket[5]
        )  # type: ignore[arg-type]
        if memory is None:
            console.print("memory and time: not estimated, the weights are not on this machine")
            return
        gib = 2**30
        console.print(
            f"memory a rank at {height}x{width}, batch {size.size}: about {memory.needed(size.size) / gib:.2f} GiB "
            f"({memory.weights / gib:.2f} weights + {size.size} x {memory.image / gib:.2f})"
        )
    seconds = estimate.seconds_of(job.checkpoint, job.config, job.topology, made)
    if seconds is not None:
        console.print(
            f"time: about {report.duration(seconds)} on H100s at {estimate.ASSUMED_TFLOPS:.0f} TFLOP/s each, start-up left "
            "out (arithmetic, not a measurement)"
        )
        if (slow := estimate.bottleneck(job.checkpoint, job.topology, made, seconds)) is not None:
            console.print(slow)


def _by_size(made: batches.Plan) -> dict[Bucket, batches.BatchSize]:
    """One bucket of each output size."""
    return {bucket: made.sizes[bucket] for bucket in {bucket[:2]: bucket for bucket in made.sizes}.values()}
