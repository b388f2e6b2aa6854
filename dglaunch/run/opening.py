"""The start of a run: the folder is taken, by rank 0 and by all that write beside it, and what is known of the job read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from dglaunch.data.edits import saved_names
from dglaunch.data.many import ids_at, input_files, kinds_of
from dglaunch.data.tables import files_there
from dglaunch.data.task import BatchSize, file_name
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.messages import message
from dglaunch.models.figures import BlockSizes, Figures, Request, StageCost
from dglaunch.models.shape import Shape
from dglaunch.output import batch_jobs, layouts, ownership
from dglaunch.output.lines import TaskId, id_of
from dglaunch.output.resume import Progress
from dglaunch.output.writer import Writer
from dglaunch.planning.figures import book_of, in_another_process
from dglaunch.planning.job import Job
from dglaunch.planning.redo import Redo
from dglaunch.planning.tuned import recall
from dglaunch.run.journal import Journal
from dglaunch.system import versions

for _kind in (Request, StageCost, BlockSizes, Figures):
    message(_kind)


LET_GO_S = 150.0
"""How long a start that goes on with an earlier one waits for that one's hold on the folder: a rank that lost its agent leaves
within 17 s, and a file server gives the locks of a dead machine back after its lease (NFS: 90 s, Lustre: 100 s)."""


@message
@dataclass(frozen=True, slots=True)
class Found:
    """What is done in a writer's folder, and what is damaged there."""

    done: bytes
    """A bit for each task."""
    damaged: int
    anew: list[int] | None = None
    """Of a redo: the numbers of the tasks that are made anew; of those, `done` says which it has made already."""
    token: str = ""
    """Of a redo: what the lines of its images say."""


@message
@dataclass(frozen=True, slots=True)
class Known:
    """What rank 0 knows and the ranks must not each find out for themselves, or they might plan differently."""

    limits: Mapping[Shape, int]
    """Largest batch that did not run out of memory, by shape."""
    tuned: Mapping[Shape, BatchSize]
    """What `dglaunch tune` measured, by shape."""
    memory: int | None
    """Bytes of its device."""
    parameters: Mapping[str, int]
    """Number of the model's weights by component, if the batch size depends on it: the hub may answer one rank and not
    another."""
    figures: Mapping[Request, Figures]
    """Memory and work of the model at the job's sizes, if the batch size depends on it."""
    notes: list[str]
    """What the report should say of the files that this was read from."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What all ranks know once the folder is taken; the same on each."""

    job: Job
    """What is made now: of a redo, the images that are made anew."""
    done: Collection[TaskId]
    """Ids of the tasks whose image is there."""
    damaged: int
    """Ledger lines that could not be read or whose image is not as written."""
    known: Known
    overwrite: bool
    """The earlier results are still there: they go once the model is loaded, or the key accepted."""


def open_folders(job: Job, channel: Channel, writer: Writer, journal: Journal) -> Opened:
    """On every rank: take the folder that all share, or those of all writers.

    Rank 0 comes first, as it joins what earlier starts have left. With --overwrite nothing is changed yet.

    Raises:
        UserError: a folder cannot be written, is in use, or holds another job's results or files of the user's.
    """
    topology = job.topology
    beside = topology.writes and not topology.is_main
    overwrite = job.config.overwrite and not any(channel.all_of_world(topology.restarted))
    agent = topology.agent.identity if topology.agent is not None else ""
    journal.ranks = channel.all_of_world((versions()["host"], agent))

    def open_first() -> tuple[Found, Known] | None:
        return _open_main_folder(job, writer, journal, overwrite) if topology.is_main else None

    opened = channel.broadcast(channel.together(open_first))
    assert opened is not None
    found, known = opened
    done, damaged = _mask(found.done, len(job.tasks)), found.damaged
    if topology.mode != "main":

        def open_beside() -> Found | None:
            return _open_folder(job, writer, journal, overwrite) if beside else None

        for other in channel.all_of_world(channel.together(open_beside)):
            if other is not None:
                done |= _mask(other.done, len(job.tasks))
                damaged += other.damaged
    made = job if found.anew is None else job.anew(found.anew, found.token)
    return Opened(made, ids_at(job.tasks, np.flatnonzero(done)), damaged, known, overwrite)


def start_anew(job: Job, channel: Channel, writer: Writer, journal: Journal) -> None:
    """With --overwrite, once nothing can refuse the run any more: remove the earlier results. Each step is rank 0's first,
    and all come through it before the next: writers may share a folder or have one each.

    Raises:
        UserError: a folder cannot be written.
    """
    topology = job.topology

    def begin() -> None:
        _begin(job, writer, journal, Progress())

    for step in (writer.clear, begin):
        for turn in (topology.is_main, topology.writes and not topology.is_main):
            channel.together(step if turn else lambda: None)


def _open_main_folder(job: Job, writer: Writer, journal: Journal, overwrite: bool) -> tuple[Found, Known]:
    folder = job.config.output_dir
    layouts.check(job.config.layout, folder, job.tasks, job.config.output_format)
    _refuse_inputs_as_outputs(job, writer)
    _refuse_open_jobs(job, writer, overwrite)
    recalled = recall(job.config, job.machine, job.topology.parallel)
    found = _open_folder(job, writer, journal, overwrite)
    if job.config.remote.api_batch:  # killed before its record went, a job that owes nothing may have left it
        batch_jobs.forget_settled(writer.folder)
    limits = writer.folder.out_of_memory_limits()
    parameters = dict(job.checkpoint.parameters) if job.config.batch_size == "auto" else {}
    return found, Known(limits, recalled.sizes, job.machine.memory, parameters, _figures(job), recalled.notes)


def _refuse_open_jobs(job: Job, writer: Writer, overwrite: bool) -> None:
    """A start that does not wait for what is ordered (--api_batch) would order, and pay for, the same images again."""
    if overwrite:
        batch_jobs.refuse_open_jobs(
            writer.folder, "Without --overwrite the same command takes them; --api_batch_cancel gives them up."
        )
    elif not job.config.remote.api_batch:
        batch_jobs.refuse_open_jobs(
            writer.folder, "With --api_batch the same command takes them; with --api_batch_cancel too it gives them up."
        )


def _figures(job: Job) -> Mapping[Request, Figures]:
    """What is known, or can be traced, of the model on this GPU: on a CPU no batch size depends on it. The trace runs apart,
    as this process has joined the run's world."""
    if job.config.batch_size != "auto" or job.device != "cuda":
        return {}
    book = book_of(job, in_another_process(job.config))
    bucket_of = job.profile.buckets(job.config, job.target, job.tasks)
    for bucket in dict.fromkeys(map(bucket_of, kinds_of(job.makeable))):
        book(bucket)
    return book.known


def _refuse_inputs_as_outputs(job: Job, writer: Writer) -> None:
    inputs = chain(files_there(job.config.tables), input_files(job.tasks))
    names = (file_name(task, job.config.output_format) for task in job.tasks)
    filled = {job.config.layout, *(["inputs"] if job.config.saves_inputs else [])}
    ownership.refuse_inputs_as_outputs(writer.folder, inputs, names, filled)
    if job.config.saves_inputs:
        copies = {name: image.sha256 for task in job.tasks for name, image in saved_names(task).items()}
        ownership.refuse_foreign_copies(writer.folder, copies)


def _open_folder(job: Job, writer: Writer, journal: Journal, overwrite: bool) -> Found:
    """On a writer: what is done there."""
    config = job.config
    patience = LET_GO_S if job.topology.restarted and job.redo is None else 0.0
    image_folders = () if job.image_folders is None else job.image_folders.names(job.tasks)
    progress = writer.open(
        job.settings, job.tasks, config.output_format, overwrite, config.is_partial, patience, image_folders
    )
    if job.redo is not None:
        return _begin_anew(job, job.redo, writer, journal, progress)
    if not overwrite:
        _begin(job, writer, journal, progress)
    return Found(_bits(progress.done.rows_of(job.tasks) >= 0), progress.damaged)


def _bits(mask: npt.NDArray[np.bool_]) -> bytes:
    """A bit for each task, as ranks send it: ten million take a megabyte."""
    return np.packbits(mask).tobytes()


def _mask(bits: bytes, count: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)


def _begin_anew(job: Job, redo: Redo, writer: Writer, journal: Journal, progress: Progress) -> Found:
    """On rank 0: choose what is made anew, and note it in the folder before anything is replaced."""
    pending = redo.choose(writer.folder, job.tasks, progress.done)
    numbers = [number for number, task in enumerate(job.tasks) if task.id in pending.task_ids]
    wanted = {task.id: task for task in job.anew(numbers, pending.token).tasks}
    records = {id_of(record): record for record in writer.folder.records() if id_of(record) in wanted}

    def is_made(task_id: TaskId) -> bool:
        record = records.get(task_id, {})
        is_as_asked = redo.changes and record.get("key") == wanted[task_id].key
        return task_id in progress.done and (record.get("redo") == pending.token or is_as_asked)

    made = np.zeros(len(job.tasks), dtype=bool)
    made[[number for number in numbers if is_made(job.tasks[number].id)]] = True
    writer.begin_anew(pending, records)
    _begin(job, writer, journal, progress)
    return Found(_bits(made), progress.damaged, numbers, pending.token)


def _begin(job: Job, writer: Writer, journal: Journal, progress: Progress) -> None:
    writer.begin(progress, job.tasks)
    if job.piped is not None and job.topology.is_main:
        writer.keep_prompts(job.piped.data)
    journal.write({"outcome": "running", "num_total": len(job.tasks)})
