"""The one loop: this replica's batches through the backend, whatever goes wrong with some of them.

    for batch in plan.batches[topology.replica]:
        backend.generate(batch) -> images -> encoded in the background -> gather.send(result)

Where a backend takes several batches at a time (`Facts.workers`: an API), as many threads run this same loop over the
same batches, and each sends its own results before it takes the next batch.

A batch that raises is split: halved when out of memory (and the size remembered), else one by one; an item that still
fails becomes a line of failures.jsonl. All ranks of a replica take the same way, because they tell each other the
outcome of each attempt before they act on it.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dglaunch.backends.base import Backend, Context, Facts, ItemError, Slot, arrived
from dglaunch.config import EditingConfig, settings
from dglaunch.data.edits import saved_names
from dglaunch.data.task import Batch, Result, Task, file_name
from dglaunch.errors import DglaunchError, Drained, LostPeer, ReplicaError, UserError, is_out_of_memory
from dglaunch.models import optimizations
from dglaunch.output.ledger import OutputFolder
from dglaunch.planning.batches import balanced
from dglaunch.run.collect import Gather
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import Watch

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.encode import WholePng

FATAL_WORDS = ("CUDA error", "NCCL", "Connection closed by peer", "Connection reset", "Gloo", "gloo")
"""In the text of an error after which this process computes nothing right any more: the GPU or a peer is lost."""
LAST_BATCHES_S = {True: 12.0, False: 25.0}
"""Under torchrun or not: how long a stopped run waits for the batches that its threads have under way (one alone is
waited for without limit). torchrun kills 30 s after its signal, and rank 0 must hear of them before."""

DESCRIBED = (
    "backend", "revision", "max_sequence_length", "attention_backend", "model_type", *optimizations.DESCRIBED,
)  # fmt: skip
"""Flags that an image file carries where they were given: another value may give another image."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one try at a batch ended on this rank; the images stay behind, this part is compared across the replica."""

    error: str | None = None
    out_of_memory: bool = False
    fatal: bool = False


@dataclass(slots=True)
class Loop:
    """This rank's part of the run."""

    context: Context
    backend: Backend
    facts: Facts
    gather: Gather
    watch: Watch
    events: list[str] = field(default_factory=list)
    limits: dict[tuple[int, int], int] = field(default_factory=dict)
    """Largest batch by (height, width), learnt from running out of memory."""
    inside: float = 0.0
    encode_seconds: float = 0.0
    started: float = 0.0
    drained: bool = False
    error: DglaunchError | None = None
    """What ends the run although what was made is whole."""
    _settings: dict[str, Any] = field(init=False)
    _leaving: bool = False
    _under_way: int = 0
    _since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _encoders: ThreadPoolExecutor | None = None
    _encoding: deque[Future[None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._settings = settings(self.context.config)

    def run(self, batches: Sequence[Batch]) -> LeaderReport:
        """All batches of this replica, or as many as there is time for.

        Raises:
            ReplicaError: the ranks of the replica were about to do different things, or one of them is lost.
        """
        topology, config = self.context.topology, self.context.config
        one = config.debug or self.facts.workers == 1
        if topology.is_leader and not config.debug and one:
            count = max(1, min(4, (os.cpu_count() or 1) // topology.local_world_size))
            self._encoders = ThreadPoolExecutor(count, initializer=self._use_gpu)
        self.started = time.time()
        try:
            self._work(iter(batches)) if one else self._work_in_threads(batches)
        finally:
            with self.watch.doing("encoding and handing over the last images"):
                while self._encoding:
                    self._encoding.popleft().result()
                    self.watch.beat()
            if self._encoders is not None:
                self._encoders.shutdown()
        return LeaderReport(
            started=self.started,
            inside=self.inside + (time.perf_counter() - self._since if self._under_way else 0.0),
            seconds=dict(self.backend.seconds) | {"encode_image": self.encode_seconds},
            peak_memory=peak_memory(self.context.device),
            drained=self.drained,
            events=self.events + self.facts.events,
            usage=dict(self.facts.usage),
            error=self.error,
        )

    def _use_gpu(self) -> None:
        """A thread begins on GPU 0, and waiting for another's event there would make a context on it for every rank."""
        if self.context.device == "cuda":
            import torch

            torch.cuda.set_device(self.context.topology.local_rank)

    def _work(self, batches: Iterable[Batch]) -> None:
        """Take batches until there are no more or someone wants to leave; then the other threads take no new one."""
        try:
            for batch in batches:
                with self.watch.doing(_describe(batch)):
                    if self._leaving or self._should_leave(batch):
                        self._leaving = True
                        break
                    self._batch(batch)
        except Drained:
            self.drained = self._leaving = True
        except UserError as error:
            self.error, self._leaving = error, True
        except BaseException:
            self._leaving = True
            raise

    def _work_in_threads(self, batches: Sequence[Batch]) -> None:
        """The same by several threads over one iterator. They are daemons: after the time limit of a stopped run, those
        that still wait for a server are left behind."""
        shared, failed = iter(batches), deque[BaseException]()

        def work() -> None:
            try:
                self._work(shared)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.facts.workers, len(batches)))]
        for thread in threads:
            thread.start()
        deadline = None
        for thread in threads:
            while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
                thread.join(0.1)
                if deadline is None and (self.watch.stop.is_set() or self.gather.stopped):
                    deadline = time.monotonic() + LAST_BATCHES_S[self.context.topology.distributed]
        if left := sum(thread.is_alive() for thread in threads):
            self.drained = True
            self.events.append(
                f"{left} requests had no answer in time when the run was stopped; they will be sent again"
            )
        if failed:
            raise failed[0]

    def _should_leave(self, batch: Batch) -> bool:
        """Before each batch: is everyone about to run the same, and does anyone want to stop?"""
        mine = (batch.digest, self.watch.stop.is_set(), self.gather.stopped)
        everyone = self.context.channel.all_of_replica(mine)
        if len({digest for digest, _, _ in everyone}) > 1:
            ranks = list(self.context.topology.replica_ranks)
            raise ReplicaError(
                f"Ranks {ranks} of one replica were about to run different batches "
                f"({', '.join(digest for digest, _, _ in everyone)}); the images would be wrong. Do all ranks read the "
                "same prompts file with the same flags?"
            )
        self.drained |= any(stop for _, stop, _ in everyone)
        return self.drained or any(stopped for _, _, stopped in everyone)

    def _batch(self, batch: Batch) -> None:
        todo = deque([batch])
        while todo:
            part = todo.popleft()
            shape = self._shape(part)
            limit = self.limits.get(shape, len(part))
            if len(part) > limit:
                todo.extendleft(reversed(balanced(part.tasks, limit)))
                continue
            start = time.perf_counter()
            images, attempt = self._attempt(part)
            seconds = time.perf_counter() - start
            if attempt.error is None:
                self._deliver(part, images, seconds)
            elif attempt.fatal:
                raise ReplicaError(f"Rank {self.context.topology.rank} cannot go on: {attempt.error}")
            elif len(part) == 1:
                self._deliver(part, [ItemError(attempt.error)] if self.context.topology.is_leader else None, seconds)
            elif attempt.out_of_memory:
                self.limits[shape] = len(part) // 2
                self.events.append(
                    f"{len(part)} images of {shape[0]}x{shape[1]} ran out of memory; at most {len(part) // 2} from then on"
                )
                todo.appendleft(part)
            else:
                self.events.append(f"a batch of {len(part)} failed and was run one by one: {attempt.error}")
                todo.extendleft(reversed(balanced(part.tasks, 1)))

    def _shape(self, batch: Batch) -> tuple[int, int]:
        checkpoint, first = self.context.checkpoint, batch.tasks[0]
        return checkpoint.size("height", first.height), checkpoint.size("width", first.width)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Count the time during which at least one batch is with the backend."""
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
                    self.inside += time.perf_counter() - self._since

    def _attempt(self, batch: Batch) -> tuple[Sequence[Slot] | None, Attempt]:
        """One call of the backend; what the replica agrees it came to (the worst of its ranks)."""
        images: Sequence[Slot] | None = None
        mine = Attempt()
        before = dict(self.backend.seconds)
        with self._inside():
            try:
                images = self.backend.generate(batch)
            except UserError:
                raise
            except Exception as error:
                mine = self._classify(error, batch)
                if self.context.config.debug and not mine.out_of_memory:
                    raise
        self.watch.beat()
        # Only here, outside of `except`, are the failed batch's tensors free: the traceback held them.
        if self.context.config.debug:
            stages = {stage: seconds - before.get(stage, 0.0) for stage, seconds in self.backend.seconds.items()}
            told = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in stages.items())
            print(f"batch of {len(batch)} from row {batch.tasks[0].index}: {told}", file=sys.stderr)
        if mine.error is not None and self.context.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        everyone = self.context.channel.all_of_replica(mine)
        worst = next((a for a in everyone if a.fatal), None) or next((a for a in everyone if a.error is not None), mine)
        if worst.error is None and self.context.topology.is_leader and (images is None or len(images) != len(batch)):
            worst = Attempt(f"the pipeline returned {len(images or [])} images for {len(batch)} prompts", fatal=True)
        return images, worst

    def _classify(self, error: Exception, batch: Batch) -> Attempt:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000]
        if self.facts.known_trouble:
            text = f"{self.facts.known_trouble}: {text}"
        if is_out_of_memory(error):
            if self.context.topology.replica_size > 1:
                # A peer may still wait inside a collective and never hear of it: leave a note for the next start.
                OutputFolder(self.context.config.output_dir).note_out_of_memory(*self._shape(batch), len(batch))
            return Attempt(text, out_of_memory=True)
        return Attempt(text, fatal=any(word in text for word in FATAL_WORDS))

    # -- results --------------------------------------------------------------------------------------------------

    def _deliver(self, batch: Batch, images: Sequence[Slot] | None, seconds: float) -> None:
        if not self.context.topology.is_leader:
            return
        assert images is not None
        for task, image in zip(batch.tasks, images, strict=True):
            if image is None:
                self.drained = True
                continue
            if self._encoders is None:
                self._encode_and_send(task, image, len(batch), seconds)
                continue
            # As many under way as one batch of images and the encoders: the model waits rather than memory grows.
            while len(self._encoding) >= 2 * len(batch) + 4:
                self._encoding.popleft().result()
            self._encoding.append(self._encoders.submit(self._encode_and_send, task, image, len(batch), seconds))

    def _encode_and_send(self, task: Task, slot: Slot, batch_size: int, seconds: float) -> None:
        image = arrived(slot)
        assert image is not None
        try:
            result = self.result(task, image, batch_size, seconds)
        except Exception as error:
            text = f"the image could not be encoded: {type(error).__name__}: {error}"
            result = self.result(task, ItemError(text), batch_size, seconds)
        self.gather.send(result)

    def result(self, task: Task, image: "Image | WholePng | ItemError", batch_size: int, seconds: float) -> Result:
        """A finished or failed task as what is sent: bytes and its ledger line. `seconds` are those of its batch."""
        from dglaunch.output import encode as images

        config = self.context.config
        name = file_name(task, config.output_format)
        used = self._used(task)
        if isinstance(image, ItemError):
            return failed(task, image.message, self.context, used, batch_size, seconds)
        used |= {"width": image.width, "height": image.height}
        start = time.perf_counter()
        data = images.encode(image, config.output_format, used | self._described(task))
        digest = images.sha256(data)
        with self._lock:
            self.encode_seconds += time.perf_counter() - start
        place = _place(self.context, batch_size, seconds)
        record = {"index": task.index, "sample": task.sample, **used, "key": task.key, "sha256": digest, **place}
        if isinstance(config, EditingConfig) and config.save_inputs:
            record["input_file_names"] = list(saved_names(task))
        record |= self.facts.ledger
        carried = {
            f"row_{k}" if k in record or k in ("file_name", "bytes") else k: v for k, v in (task.extra or {}).items()
        }
        return Result(task_id=task.id, file_name=name, record=record | carried, data=data)

    def _described(self, task: Task) -> dict[str, Any]:
        """What an image file says of itself besides the task's content: all that `dglaunch replay` needs. What would
        differ between batch sizes or world sizes is left out, so that the bytes of the file do not depend on them."""
        flat = self._settings
        given = {name: flat[name] for name in DESCRIBED if flat.get(name) not in (None, False)}
        model = {"model": flat["model_name"], "dtype": self.context.dtype}
        chosen = {"width", "height"} | {n for n, value in self.facts.defaults.items() if value is not None}
        own = [n for n, value in task.content().items() if value is None and n in chosen]
        return {"index": task.index, "sample": task.sample, **model, **given, "defaults": own}

    def _used(self, task: Task) -> dict[str, Any]:
        """The task's content, with what the pipeline used where the task said nothing."""
        return {
            name: value if value is not None else self.facts.defaults.get(name)
            for name, value in task.content().items()
        } | task.origin()


def failed(
    task: Task, message: str, context: Context, used: dict[str, Any], batch_size: int, seconds: float = 0.0
) -> Result:
    """A task without an image, as its line of failures.jsonl."""
    place = _place(context, batch_size, seconds)
    record = {"index": task.index, "sample": task.sample, "error": message, **used, **place}
    name = file_name(task, context.config.output_format)
    return Result(task_id=task.id, file_name=name, record=record)


def _place(context: Context, batch_size: int, seconds: float) -> dict[str, Any]:
    """Where and when an image was made, with how many others, and how long that batch took."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    place = {"rank": context.topology.rank, "node": context.topology.node, "batch_size": batch_size}
    return place | {"seconds": round(seconds, 3), "time": now}


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


def end_of(error: DglaunchError | None, drained: bool, num_failed: int) -> str:
    """The outcome that run.json carries; after `drained` and `lost` the same command goes on, `broken` needs someone."""
    if error is not None:
        return "lost" if isinstance(error, LostPeer) else "broken"
    return "drained" if drained else "failed" if num_failed else "done"
