"""A stage of its own before the model is loaded: all ranks rewrite the prompts that are still to be rewritten.

    job = Stage(job, channel, watch, writer, terminal).run(done)

In rounds: each rank rewrites a few prompts, and rank 0 keeps the answers of all in rewritten.jsonl before the next round.
So a start that is killed goes on where it was, and a prompt whose answer is no prompt fails its images and no others.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dglaunch.backends.rewriting.base import Failed, Rewriter, fetch, rewriter_of
from dglaunch.data.rewriting import FILE, Ask, Rewriting, is_ours
from dglaunch.data.task import Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.messages import message
from dglaunch.errors import Drained, OutputError
from dglaunch.files import open_for_appending
from dglaunch.output import ownership
from dglaunch.output.lines import append_line
from dglaunch.output.writer import Writer
from dglaunch.planning.job import Job
from dglaunch.run.report import LOG_EVERY_S
from dglaunch.run.watchdog import StallWatch
from dglaunch.terminal import Terminal


@message
@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a rank made of one prompt."""

    number: int
    """Of the prompt, among those that are asked for."""
    text: str | None
    why: str = ""
    """Why there is no text."""


class Stage:
    """The stage on one rank."""

    def __init__(
        self, job: Job, channel: Channel, watch: StallWatch, writer: Writer, terminal: Terminal | None
    ) -> None:
        assert job.rewriting is not None, "something is to be rewritten"
        self._job, self._channel, self._watch, self._writer = job, channel, watch, writer
        self._wanted: Rewriting = job.rewriting
        self._terminal = terminal if terminal is not None else Terminal(stderr=True)
        self._path = writer.folder.path / f"{FILE}{writer.part.node}.jsonl"
        self._told = time.monotonic()

    def run(self, done: Collection[tuple[int, int]], overwrite: bool) -> Job:
        """Return the job with its prompts rewritten; images whose prompt was not are failures.

        Args:
            done: ids of the images that are there.
            overwrite: what earlier starts have rewritten does not count.

        Raises:
            UserError: nothing can be rewritten.
            Drained: the run is being stopped.
        """
        known = self._known(overwrite)
        pending = [task for task in self._job.tasks if task.id not in done and task.error is None]
        asks = list(dict.fromkeys(ask for task in pending if (ask := self._wanted.ask(task)) not in known))
        failed: dict[Ask, str] = {}
        if asks:
            with self._watch.doing("rewriting prompts"):
                self._rewrite(asks, known, failed)
        changed = {task.id: self._applied(task, known, failed) for task in pending}
        job = replace(self._job, tasks=[changed.get(task.id, task) for task in self._job.tasks])
        job.profile.check(job.config, job.target, job.topology, job.makeable)
        return job

    def _known(self, overwrite: bool) -> dict[Ask, str]:
        """What was rewritten before, as rank 0 finds it."""

        def read() -> list[list[object]]:
            if not self._job.topology.is_main:
                return []
            self._make_room(overwrite)
            files = sorted(path for path in self._writer.folder.path.glob(f"{FILE}*.jsonl") if is_ours(path))
            return [[*ask, text] for ask, text in self._wanted.known(files).items()]

        found = self._channel.broadcast(self._channel.together(read))
        return {Ask(str(prompt), seed if isinstance(seed, int) else None): str(text) for prompt, seed, text in found}

    def _make_room(self, overwrite: bool) -> None:
        """A file that is not ours makes way; with --overwrite ours goes, too."""
        if not self._path.exists():
            return
        if not is_ours(self._path):
            ownership.set_aside(self._writer.folder, self._path)
        elif overwrite:
            ownership.remove([self._path])

    def _rewrite(self, asks: Sequence[Ask], known: dict[Ask, str], failed: dict[Ask, str]) -> None:
        """Rewrite in rounds; each is kept before the next begins."""
        rewriter = self._loaded(len(asks))
        try:
            size = max(self._channel.all_of_world(rewriter.at_a_time if rewriter is not None else 1))
            for first in range(0, len(asks), size * self._job.topology.world_size):
                answers = self._round(rewriter, asks, first, size)
                self._keep(asks, answers)
                for each in answers:
                    if each.text is None:
                        failed[asks[each.number]] = each.why
                    else:
                        known[asks[each.number]] = each.text
                self._report(first + size * self._job.topology.world_size, len(asks))
        finally:
            if rewriter is not None:
                rewriter.close()

    def _loaded(self, count: int) -> Rewriter | None:
        """The model, on ranks that have something to do; each node fetches it once."""
        topology, wanted = self._job.topology, self._wanted
        device = f"cuda:{topology.local_rank}" if self._job.device == "cuda" else "cpu"

        def fetched() -> None:
            if topology.local_rank == 0 and wanted.api_base is None:
                fetch(str(wanted.model))

        def load() -> Rewriter | None:
            if topology.rank >= count:
                return None
            return rewriter_of(wanted, device, self._job.machine.dtype, self._watch.stop.is_set)

        if topology.is_main:
            self._terminal.print(f"rewriting {count:,} prompts {wanted.where}")
        self._channel.together(fetched)
        return self._channel.together(load)

    def _round(self, rewriter: Rewriter | None, asks: Sequence[Ask], first: int, size: int) -> list[Rewritten]:
        """What all ranks made of the next prompts."""
        world, rank = self._job.topology.world_size, self._job.topology.rank
        mine = range(first + rank, min(first + size * world, len(asks)), world)

        def work() -> list[Rewritten]:
            if rewriter is None or not mine:
                return []
            answers = zip(mine, rewriter.rewrite([asks[number] for number in mine]))
            return [_told(number, answer) for number, answer in answers if answer is not None]

        told = self._channel.together(work)
        self._watch.beat()
        everyone = self._channel.all_of_world((told, self._watch.stop.is_set()))
        answers = [answer for each, _ in everyone for answer in each]
        if any(stopped for _, stopped in everyone):
            self._keep(asks, answers)
            raise Drained
        return answers

    def _keep(self, asks: Sequence[Ask], answers: Sequence[Rewritten]) -> None:
        """Add what was rewritten to the file, on rank 0."""

        def write() -> None:
            if not self._job.topology.is_main:
                return
            lines = [self._wanted.line(asks[each.number], each.text) for each in answers if each.text is not None]
            try:
                with open_for_appending(self._path) as stream:
                    for line in lines:
                        append_line(stream, line)
            except OSError as error:
                raise OutputError(
                    f"{self._path} cannot be written: {error.strerror or error}. What was rewritten before is kept; make room "
                    "and start the same command again."
                ) from None

        self._channel.together(write)

    def _report(self, count: int, total: int) -> None:
        if self._job.topology.is_main and time.monotonic() - self._told >= LOG_EVERY_S:
            self._told = time.monotonic()
            self._terminal.print(f"{min(count, total):,} of {total:,} prompts rewritten")

    def _applied(self, task: Task, known: Mapping[Ask, str], failed: Mapping[Ask, str]) -> Task:
        ask = self._wanted.ask(task)
        if ask in known:
            return replace(task, rewritten=known[ask])
        return replace(task, error=f"the prompt was not rewritten: {failed.get(ask, 'it is in no file')}")


def _told(number: int, answer: str | Failed) -> Rewritten:
    return Rewritten(number, None, answer.why) if isinstance(answer, Failed) else Rewritten(number, answer)
