"""The one loop: this replica's batches through the backend, whatever goes wrong with some of them.

    for batch in batches:                            # its share, then what other replicas leave (run/work.py)
        for part in Attempts(batch):                 # whole, then smaller where that fails
            backend.generate(part) -> slots -> encoded in the background -> sender.send(result)

Where a backend takes several batches at a time (`Facts.workers`: an API), as many threads run this same loop over the
same batches, and each sends its own results before it takes the next batch.

All ranks of a replica take the same way, because they let each other know the outcome of each attempt before they act on
it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dglaunch.backends.base import Backend, Context, Facts, ItemError, Slot
from dglaunch.data.task import Batch
from dglaunch.errors import DglaunchError, Drained, ReplicaError, UserError
from dglaunch.models.shape import Shape
from dglaunch.output.ledger import OutputFolder
from dglaunch.run.attempts import Attempts, Ending, Limits, Verdict, ending_of, worst
from dglaunch.run.collect import Sink
from dglaunch.run.encoding import Encoder
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import StallWatch
from dglaunch.streams import say

LAST_BATCHES_S = {True: 12.0, False: 25.0}
"""Under torchrun or not: how long a stopped run waits for the batches that its threads have under way (one alone is
waited for without limit). torchrun kills 30 s after its signal, and rank 0 must hear of them before."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An Attempt is one call of the backend: what it gave on this rank, how it ended for the replica, and how long it took."""

    slots: Sequence[Slot] | None
    """None on a rank that does not get the images, and after an error."""
    ending: Ending
    seconds: float


@dataclass(slots=True)
class Loop:
    """A Loop is this rank's part of the run."""

    context: Context
    backend: Backend
    facts: Facts
    sink: Sink
    watch: StallWatch
    encoder: Encoder | None = None
    """On leaders."""
    limits: Limits = field(default_factory=Limits)
    drained: bool = False
    error: DglaunchError | None = None
    """What ends the run although what was made is whole."""
    started: float = field(default_factory=time.time)
    _clock: "BusyClock" = field(default_factory=lambda: BusyClock())
    _leaving: bool = False

    def run(self, batches: Iterator[Batch]) -> None:
        """Take batches until there are no more or someone wants to leave; then the other threads take no new one.

        Raises:
            ReplicaError: the ranks of the replica were about to do different things, or one of them is lost.
        """
        try:
            for batch in batches:
                with self.watch.doing(_describe(batch)):
                    if self._leaving or self._should_leave(batch):
                        self._leaving = True
                        break
                    attempts = Attempts(batch, self._shape(batch), self.limits)
                    for part in attempts:
                        attempt = self.attempt(part)
                        self._follow(part, attempt, attempts.settle(attempt.ending))
        except Drained:
            self.drained = self._leaving = True
        except UserError as error:
            self.error, self._leaving = error, True

    def run_in_threads(self, batches: Iterator[Batch], workers: int) -> None:
        """The same by several threads over one iterator that they may share. They are daemons: after the time limit of a stopped run, those
        that still wait for a server are left behind."""
        failed, shared = deque[BaseException](), _OneAtATime(batches)

        def work() -> None:
            try:
                self.run(shared)
            except BaseException as error:  # handed on to the main thread, which raises it
                self._leaving = True
                failed.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        deadline = None
        for thread in threads:
            while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
                thread.join(0.1)
                if deadline is None and (self.watch.stop.is_set() or self.sink.stopped.is_set()):
                    deadline = time.monotonic() + LAST_BATCHES_S[self.context.topology.distributed]
        if left := sum(thread.is_alive() for thread in threads):
            self.drained = True
            self.limits.events.append(
                f"{left} requests had no answer in time when the run was stopped; they will be sent again"
            )
        if failed:
            raise failed[0]

    def attempt(self, batch: Batch) -> Attempt:
        """One call of the backend; what the replica agrees it came to (the worst of its ranks)."""
        slots: Sequence[Slot] | None = None
        ending = Ending()
        start, before = time.perf_counter(), dict(self.backend.seconds)
        with self._clock.running():
            try:
                slots = self.backend.generate(batch)
            except UserError:
                raise
            except Exception as error:  # of one batch, whatever it is: it is split and tried again
                ending = ending_of(error, self.facts.known_trouble)
                if self.context.config.debug and not ending.out_of_memory:
                    raise
        self.watch.beat()
        # Only here, outside of `except`, are the failed batch's tensors free: the traceback held them.
        self._after(batch, ending, before)
        agreed = worst(self.context.channel.all_of_replica(ending))
        if agreed.error is None and self.encoder is not None and (slots is None or len(slots) != len(batch)):
            returned = len(slots) if slots is not None else 0
            agreed = Ending(f"the pipeline returned {returned} images for {len(batch)} prompts", fatal=True)
        return Attempt(slots, agreed, time.perf_counter() - start)

    def report(self) -> LeaderReport:
        """What this rank has to say at its end."""
        encoded = self.encoder.recorder.encode_seconds if self.encoder is not None else 0.0
        return LeaderReport(
            started=self.started,
            inside=self._clock.seconds(),
            seconds=dict(self.backend.seconds) | {"encode_image": encoded},
            peak_memory=peak_memory(self.context.device),
            drained=self.drained,
            events=self.limits.events + self.facts.events,
            usage=dict(self.facts.usage),
            error=self.error,
        )

    def _should_leave(self, batch: Batch) -> bool:
        """Before each batch: is everyone about to run the same, and does anyone want to stop?"""
        here = (batch.digest, self.watch.stop.is_set(), self.sink.stopped.is_set())
        everyone = self.context.channel.all_of_replica(here)
        if len({digest for digest, _, _ in everyone}) > 1:
            ranks = list(self.context.topology.replica_ranks)
            raise ReplicaError(
                f"Ranks {ranks} of one replica were about to run different batches "
                f"({', '.join(digest for digest, _, _ in everyone)}); the images would be wrong. Do all ranks read the "
                "same prompts file with the same flags?"
            )
        self.drained |= any(stop for _, stop, _ in everyone)
        return self.drained or any(stopped for _, _, stopped in everyone)

    def _follow(self, batch: Batch, attempt: Attempt, verdict: Verdict) -> None:
        """Do what follows from an attempt."""
        if verdict is Verdict.GIVE_UP:
            raise ReplicaError(f"Rank {self.context.topology.rank} cannot go on: {attempt.ending.error}")
        if self.encoder is None or verdict is Verdict.TRY_SMALLER:
            return
        slots = attempt.slots
        if verdict is Verdict.RECORD_FAILURE:
            slots = [ItemError(str(attempt.ending.error))]
        assert slots is not None
        if not self.encoder.deliver(batch, slots, attempt.seconds):
            self.drained = True

    def _shape(self, batch: Batch) -> Shape:
        checkpoint, first = self.context.checkpoint, batch.tasks[0]
        return checkpoint.shape(first.height, first.width)

    def _after(self, batch: Batch, ending: Ending, before: dict[str, float]) -> None:
        """Free a GPU's memory and leave notes; no rank has heard of the others' endings yet."""
        context = self.context
        if context.config.debug:
            stages = [
                f"{stage} {taken - before.get(stage, 0.0):.3f} s" for stage, taken in self.backend.seconds.items()
            ]
            say(f"batch of {len(batch)} from row {batch.tasks[0].index}: {', '.join(stages)}", error=True)
        if ending.out_of_memory and context.topology.replica_size > 1:
            # A peer may still wait inside a collective and never hear of it: leave a note for the next start.
            shape = self._shape(batch)
            OutputFolder(context.config.output_dir).note_out_of_memory(shape, len(batch))
        if ending.error is not None and context.device == "cuda":
            import torch

            torch.cuda.empty_cache()


class _OneAtATime(Iterator[Batch]):
    """Batches that several threads take: a generator cannot be asked by two at once."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self._lock = batches, threading.Lock()

    def __next__(self) -> Batch:
        with self._lock:
            return next(self._batches)


class BusyClock:
    """A BusyClock counts the time during which at least one batch is with the backend."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted = 0.0
        self._under_way = 0
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """One batch is with the backend."""
        with self._lock:
            self._under_way += 1
            if self._under_way == 1:
                self._since = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                if self._under_way == 0:
                    self._counted += time.perf_counter() - self._since

    def seconds(self) -> float:
        """Until now: a batch that was left behind counts to here."""
        return self._counted + (time.perf_counter() - self._since if self._under_way else 0.0)


def _describe(batch: Batch) -> str:
    stems = [task.stem for task in batch.tasks]
    return f"a batch of {len(stems)} ({stems[0]} to {stems[-1]})" if len(stems) > 1 else f"image {stems[0]}"


def peak_memory(device: str) -> int:
    """Bytes: of the GPU as torch allocated it, of the process on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
