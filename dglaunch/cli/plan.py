"""The command `plan`: what a run would do, without it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from rich.table import Table

from dglaunch.cli.flags import read_around
from dglaunch.cli.own_flags import LookingFlags, PlanFlags
from dglaunch.errors import EXIT_DONE, UserError
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ownership import refuse_to_replace, write_report
from dglaunch.planning.batches import Plan
from dglaunch.planning.duplicates import duplicates_in
from dglaunch.planning.figures import FigureBook, book_of, in_this_process
from dglaunch.planning.gpus import find_gpu, gpu_of
from dglaunch.planning.host import Host, host_of
from dglaunch.planning.job import Job, Schedule, prepare
from dglaunch.planning.outlook import GIB, Layout, Outlook, look_ahead
from dglaunch.planning.room import SPARE
from dglaunch.planning.speed import Span
from dglaunch.planning.tuned import recall
from dglaunch.run.report import number
from dglaunch.system import Machine, release_of, versions
from dglaunch.terminal import Terminal

Looking = TypeVar("Looking", bound=LookingFlags)
SHOWN_ERRORS = 5
SHOWN_REPLICAS = 16


ASSUMED_GPU = "H100"
"""What a model that is not on this machine is planned for, where there is no GPU and none is named."""
SHOWN_ADVICE = 8


def plan(words: list[str], environ: Mapping[str, str]) -> int:
    """Print what a run would do: topology, shards, batches, memory and time (`dglaunch plan t2i [flags of t2i]`).

    Raises:
        UserError: whatever would keep the run from beginning.
    """
    job, own = job_to_plan(PlanFlags, words, environ, find_gpu(ASSUMED_GPU).machine)
    if job.topology.is_main:
        _print(Terminal(), job, own)
    return EXIT_DONE


def job_to_plan(
    own_type: type[Looking], words: list[str], environ: Mapping[str, str], assumed: Machine | None = None
) -> tuple[Job, Looking]:
    """Prepare the job that is named after a command that only looks at it, and return it with the command's own flags.

    Args:
        assumed: the GPU where none is named, and neither the model nor a GPU is on this machine.

    Raises:
        UserError: whatever would keep the run from beginning.
    """
    asked = read_around(own_type, words, environ)
    own, config = asked.own, asked.config
    elsewhere = None if own.gpu is None else find_gpu(own.gpu).machine
    if own.json is not None:
        refuse_to_replace(own.json)
    if own.world_size is not None and config.num_gpus not in (None, own.world_size):
        raise UserError(
            f"--world_size {own.world_size} and --num_gpus {config.num_gpus} say how many ranks; give one of them."
        )
    world_size = config.num_gpus if own.world_size is None else own.world_size
    job = prepare(config, asked.origins, environ, world_size, elsewhere, assumed, only_planned=True)
    return job, own


def schedule_to_plan(job: Job, book: FigureBook) -> tuple[Schedule, list[str]]:
    """Return all of a job's batches, as a first start would make them, and notes on what was remembered of this machine."""
    recalled = recall(job.config, job.machine, job.topology.parallel)
    limits = OutputFolder(job.config.output_dir).out_of_memory_limits()
    figures = book if job.profile.has_estimates else lambda _: None
    return job.schedule((), limits, recalled.sizes, job.machine.memory, figures=figures), recalled.notes


def _print(terminal: Terminal, job: Job, own: PlanFlags) -> None:
    book = book_of(job, in_this_process(job.checkpoint, job.config))
    schedule, notes = schedule_to_plan(job, book)
    outlook = look_ahead(job, schedule, book, gpu_of(job.machine), own.compare) if job.profile.has_estimates else None
    host = host_of(job)
    _show(terminal, job, schedule)
    if outlook is not None:
        _show_outlook(terminal, outlook, book.problem)
        for line in _host_lines(job, host) if host is not None else ():
            terminal.print(line)
    for note in notes:
        terminal.print(note)
    if own.json is not None:
        found = outlook.as_json() if outlook is not None else {}
        if schedule.cost is not None:
            found |= {"cost_usd": None if schedule.cost.dollars is None else asdict(schedule.cost.dollars)}
        if host is not None:
            found["host"] = {
                "memory_gib_a_rank": host.a_rank / GIB, "memory_gib_a_node": host.a_node / GIB, "copied_bytes": host.copied,
            }  # fmt: skip
        write_report(own.json, "plan", found | {"reasons": schedule.reasons, "num_images": schedule.plan.num_tasks})


def heading(job: Job) -> str:
    """Return what is run, in which type and on which ranks."""
    model = f"{job.config.backend.model_name} ({job.checkpoint.pipeline_name})"
    return f"{model}, {job.machine.dtype}: {job.topology.describe()}"


def _show(terminal: Terminal, job: Job, schedule: Schedule) -> None:
    plan = schedule.plan
    terminal.print(heading(job))
    one_kind = "all rows had one size and the same input images" if job.config.edits else "all images had one shape"
    more = f"; {schedule.num_extra_batches:,} more than if {one_kind}" if schedule.num_extra_batches else ""
    terminal.print(f"{number(plan.num_tasks, 'image')} in {number(plan.num_batches, 'batch')}{more}")
    for task in schedule.unmakeable[:SHOWN_ERRORS]:
        terminal.print(f"cannot be made: {task.error}")
    if len(schedule.unmakeable) > SHOWN_ERRORS:
        terminal.print(f"... and {len(schedule.unmakeable) - SHOWN_ERRORS:,} more rows that cannot be made")
    for name, reason in schedule.reasons.items():
        terminal.print(f"{name} {reason}")
    if (twice := duplicates_in(job.makeable)) is not None:
        terminal.print(f"duplicates: {twice}")
    terminal.print(_replicas(job, plan))
    images = plan.images_by_replica
    if len(images) > SHOWN_REPLICAS:
        terminal.print(
            f"... {len(images) - SHOWN_REPLICAS:,} more replicas; {min(images):,} to {max(images):,} images each"
        )


def _replicas(job: Job, plan: Plan) -> Table:
    table = Table("replica", "ranks", "images", "batches", "batch sizes")
    size = job.topology.replica_size
    for replica, share in enumerate(plan.batches[:SHOWN_REPLICAS]):
        first = replica * size
        ranks = str(first) if size == 1 else f"{first}-{first + size - 1}"
        table.add_row(str(replica), ranks, str(share.num_images), str(len(share)), _sizes(share.lengths))
    return table


def _sizes(lengths: Mapping[int, int]) -> str:
    return ", ".join(f"{count} of {length}" for length, count in sorted(lengths.items(), reverse=True))


def _show_outlook(terminal: Terminal, outlook: Outlook, problem: str) -> None:
    for line in _memory_lines(outlook, problem):
        terminal.print(line)
    if outlook.seconds is not None:
        seconds = outlook.seconds
        name = outlook.gpu.name if outlook.gpu is not None else ""
        terminal.print(
            f"time on {name}: {_time(outlook.total)} in all; {_time(seconds.a_batch)} a batch of {outlook.images}, "
            f"{outlook.rate} images/s, start-up left out"
        )
        for sentence in seconds.basis:
            terminal.print(f"  {sentence}")
    elif outlook.figures is not None:
        terminal.print("time: not known on this device; --gpu NAME tells it for a GPU")
    if outlook.layouts:
        terminal.print(_layouts([layout for layout in outlook.layouts if not layout.refused]))
        for line in _refused(outlook.layouts):
            terminal.print(line)
        if (best := outlook.recommended) is not None:
            terminal.print(f"most images a second: {best.name}" + (f" ({best.words})" if best.words else ""))
    for line in list(outlook.advice)[:SHOWN_ADVICE]:
        terminal.print(f"advice: {line}")


def _memory_lines(outlook: Outlook, problem: str) -> Iterator[str]:
    memory, room, images = outlook.memory, outlook.job.machine.memory, outlook.images
    if memory is None:
        yield f"memory and time: not known{f', as {problem}' if problem else ''}"
        return
    shape = outlook.job.checkpoint.shape(outlook.bucket.height, outlook.bucket.width)
    stages = ", ".join(f"{name} {stage.needed(images) / GIB:.2f}" for name, stage in memory.stages.items())
    yield (
        f"memory a rank at {shape}, batch {images}: {memory.needed(images) / GIB:.2f} GiB at its worst, while it "
        f"{VERBS[memory.peak_stage(images)]} ({stages}; {memory.weights / GIB:.2f} of it weights; {memory.source})"
    )
    if outlook.traced_with:
        yield f"  {_traced_with(outlook.traced_with)}"
    if memory.source == "formula" and problem:
        yield f"  a formula, as it could not be traced: {problem}"
    if room is None:
        return
    left, besides = (room - memory.needed(images)) / GIB, (memory.room(images) - memory.needed(images)) / GIB
    if outlook.fits:
        yield f"  fits into {room / GIB:.1f} GiB; {left:.1f} GiB are left"
    elif left > 0:
        cudnn = f", and cuDNN takes about {besides:.1f} besides" if besides >= 0.05 else ""
        yield f"  does not fit: {room / GIB:.1f} GiB, of which {SPARE:.0%} are planned for, are {left:.1f} more{cudnn}"
    else:
        yield f"  does not fit: {room / GIB:.1f} GiB are {-left:.1f} too few"


def _traced_with(packages: Mapping[str, str]) -> str:
    """With which versions figures were traced, and which of them are others here."""
    with_them = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in packages.items() if version)
    here = {name: versions().get(name, "") for name in packages}
    others = [
        f"{name} {here[name] or 'not installed'}"
        for name, version in packages.items()
        if release_of(here[name]) != release_of(version)
    ]
    return f"traced with {with_them}" + (f"; here: {', '.join(others)}" if others else "")


def _host_lines(job: Job, host: Host) -> Iterator[str]:
    in_turn = ", as they load the text encoders in turn" if host.at_once < host.num_ranks else ""
    node = f"; {host.num_ranks} ranks on a node {host.a_node / GIB:.1f}{in_turn}" if host.num_ranks > 1 else ""
    yield f"memory of the host while the weights are read: up to {host.a_rank / GIB:.1f} GiB a rank{node}"
    if host.copied is not None:
        yield (
            f"--stage_to {job.config.backend.stage_to}: {host.copied / 1e9:.1f} GB on each node, by one reader: "
            f"{_time(host.copying)} at 0.5 to 2 GB/s; later starts only hash it"
        )


VERBS = {"encode": "encodes prompts", "denoise": "denoises", "decode": "decodes"}


def _layouts(layouts: Sequence[Layout]) -> Table:
    table = Table("layout", "batch", "GiB a rank", "s an image", "images/s", "the whole job")
    for layout in layouts:
        memory = "?" if layout.memory is None else f"{layout.memory.needed(layout.images) / GIB:.1f}"
        fits = "" if layout.fits is not False else " (does not fit)"
        known = layout.rate.high > 0
        table.add_row(
            layout.name, str(layout.images), memory + fits, str(layout.image) if known else "?",
            str(layout.rate) if known else "?", _time(layout.job) if known else "?",
        )  # fmt: skip
    return table


def _refused(layouts: Sequence[Layout]) -> Iterator[str]:
    """What cannot be, a line for each reason."""
    for reason in dict.fromkeys(layout.refused for layout in layouts if layout.refused):
        names = [layout.name.partition(" of ")[2] for layout in layouts if layout.refused == reason]
        yield f"not {'; '.join(names)}: {reason}"


def _time(span: Span) -> str:
    """A range of seconds in the unit that fits."""
    for unit, factor in (("h", 3600), ("min", 60)):
        if span.low >= 2 * factor:
            return f"{span.times(1 / factor)} {unit}"
    return f"{span} s"
