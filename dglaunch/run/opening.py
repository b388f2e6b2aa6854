"""The start of a run: the folder is taken, by rank 0 and by all that write beside it, and what is known of the job read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dglaunch.data.task import BatchSize
from dglaunch.distributed.channel import Channel
from dglaunch.models.shape import Shape
from dglaunch.output import layouts
from dglaunch.output.writer import Writer
from dglaunch.planning.job import Job
from dglaunch.planning.tuned import recall
from dglaunch.run.journal import Journal


@dataclass(frozen=True, slots=True)
class Found:
    """What is done in a writer's folder, and what is damaged there."""

    done: list[int]
    """Numbers of tasks."""
    damaged: int


@dataclass(frozen=True, slots=True)
class Known:
    """What rank 0 knows and the ranks must not each find out for themselves, or they might plan differently."""

    limits: Mapping[Shape, int]
    """Largest batch that did not run out of memory, by shape."""
    tuned: Mapping[Shape, BatchSize]
    """What `dglaunch tune` measured, by shape."""
    memory: int | None
    """Bytes of its device."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What all ranks know once the folder is taken; the same on each."""

    done: frozenset[tuple[int, int]]
    """Ids of the tasks whose image is there."""
    damaged: int
    """Ledger lines that could not be read or whose image is not as written."""
    known: Known


def open_folders(job: Job, channel: Channel, writer: Writer, journal: Journal) -> Opened:
    """On every rank: take the folder that all share, or those of all writers.

    Rank 0 comes first, as it joins what earlier starts have left. Only --overwrite is the others' first: nobody has
    opened a ledger yet, and they may have folders of their own.

    Raises:
        UserError: a folder cannot be written, is in use, or holds another job's results.
    """
    topology = job.topology
    beside = topology.writes and not topology.is_main
    overwrite = job.config.overwrite and not any(channel.all_of_world(topology.restarted))
    if overwrite and topology.mode != "main":
        channel.together(lambda: writer.start_anew() if beside else None)

    def open_first() -> tuple[Found, Known] | None:
        return _open_main_folder(job, writer, journal, overwrite) if topology.is_main else None

    opened = channel.broadcast(channel.together(open_first))
    assert opened is not None
    found, known = opened
    done, damaged = set(found.done), found.damaged
    if topology.mode != "main":

        def open_beside() -> Found | None:
            return _open_folder(job, writer, journal, overwrite=False, known=found.done) if beside else None

        for other in channel.all_of_world(channel.together(open_beside)):
            if other is not None:
                done.update(other.done)
                damaged += other.damaged
    return Opened(frozenset(job.tasks[number].id for number in done), damaged, known)


def _open_main_folder(job: Job, writer: Writer, journal: Journal, overwrite: bool) -> tuple[Found, Known]:
    folder = job.config.output_dir
    layouts.check(job.config.layout, folder, job.tasks, job.config.output_format)
    tuned = recall(job.config, job.machine, job.topology.parallel)
    found = _open_folder(job, writer, journal, overwrite)
    return found, Known(writer.folder.out_of_memory_limits(), tuned, job.machine.memory)


def _open_folder(job: Job, writer: Writer, journal: Journal, overwrite: bool, known: Collection[int] = ()) -> Found:
    """On a writer: what is done there beyond what is known already."""
    ledger = writer.open(job.settings, job.tasks, job.config.output_format, overwrite)
    journal.write({"outcome": "running", "num_total": len(job.tasks)})
    done = {number for number, task in enumerate(job.tasks) if task.id in ledger.done}
    return Found(sorted(done.difference(known)), ledger.damaged)
