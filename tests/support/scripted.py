"""Eight ranks in one process: each is a thread with a Channel that talks through memory, and a backend that does as told.

    world = World(8, replica_size=2)
    outcomes = world.run(batches, backend=lambda rank: Scripted(...))       # of each rank: its Loop, Sink and error

Nothing of torch is used, and the order of messages is what the threads make of it.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dglaunch import ParallelConfig, T2IConfig
from dglaunch.backends.base import Context, Facts, ItemError, Slot
from dglaunch.data.task import Batch, Result, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.messages import pack, unpack
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.run.collect import Collector
from dglaunch.run.encoding import Encoder
from dglaunch.run.loop import Loop
from dglaunch.run.record import Recorder
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import PeerWatch, StallWatch

Value = TypeVar("Value")
TIMEOUT_S = 30.0


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Meeting:
    """Where the threads of a group exchange values; who waits too long for another raises, as gloo does."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self._values: list[Any] = [None] * size

    def exchange(self, position: int, value: Any) -> list[Any]:
        self._values[position] = pack(value)  # as gloo would carry it
        self._barrier.wait()
        values = [unpack(said) for said in self._values]
        self._barrier.wait()  # nobody may write the next value before all have read
        return values

    def leave(self) -> None:
        """A rank died: whoever waits for it gets a RuntimeError."""
        self._barrier.abort()


class ScriptedChannel(Channel):
    """A Channel between threads."""

    def __init__(self, topology: Topology, world: "World") -> None:
        self.topology = topology
        self._world_of_threads = world

    def broadcast(self, value: Value) -> Value:
        return self.all_of_world(value)[0]

    def all_of_world(self, value: Value) -> list[Value]:
        return self._world_of_threads.everyone.exchange(self.topology.rank, value)

    def all_of_replica(self, value: Value) -> list[Value]:
        if self.topology.replica_size == 1:
            return [value]
        meeting = self._world_of_threads.replicas[self.topology.replica]
        return meeting.exchange(self.topology.rank - self.topology.replica_ranks[0], value)

    def any_of_replica(self, flag: bool) -> bool:
        return any(self.all_of_replica(flag))

    def send(self, body: bytes, rank: int) -> int:
        self._world_of_threads.mail[rank].put((self.topology.rank, body))
        answer = self._world_of_threads.answers[self.topology.rank].get(timeout=TIMEOUT_S)
        assert isinstance(answer, int)
        return answer

    def receive(self) -> tuple[int, bytes]:
        return self._world_of_threads.mail[self.topology.rank].get(timeout=TIMEOUT_S)

    def answer(self, rank: int, word: int) -> None:
        self._world_of_threads.answers[rank].put(word)


@dataclass
class Scripted:
    """A backend that gives an image for each task, but for what `trouble` raises or puts in a slot.

    `trouble(batch)` may raise, or return slots by position.
    """

    trouble: Callable[[Batch], dict[int, Slot] | None] = lambda _: None
    gives_images: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    calls: list[list[int]] = field(default_factory=list)
    """The indices of each batch that it was asked for."""

    def load(self) -> Facts:
        return Facts()

    def generate(self, batch: Batch) -> Sequence[Slot] | None:
        self.calls.append([task.index for task in batch.tasks])
        slots = self.trouble(batch) or {}
        if not self.gives_images:
            return None
        return [slots.get(n, Image.new("RGB", (4, 4))) for n in range(len(batch))]

    def close(self) -> None:
        pass


@dataclass
class Rank:
    """One rank of a world, and what became of it."""

    topology: Topology
    watch: StallWatch
    channel: ScriptedChannel
    backend: Scripted
    batches: Sequence[Batch] | None = None
    """In place of its replica's share."""
    collector: Collector | None = None
    loop: Loop | None = None
    written: list[Result] = field(default_factory=list)
    """What came to it to be written or counted."""
    error: BaseException | None = None


class World:
    """Ranks that share out batches and collect what they make."""

    def __init__(self, size: int = 8, replica_size: int = 1, mode: str = "main", node_size: int = 0) -> None:
        self.everyone = Meeting(size)
        self.replicas = [Meeting(replica_size) for _ in range(size // replica_size)]
        self.mail: list[queue.Queue[tuple[int, bytes]]] = [queue.Queue() for _ in range(size)]
        self.answers: list[queue.Queue[int]] = [queue.Queue() for _ in range(size)]
        self.ranks: list[Rank] = []
        node_size = node_size or size
        for number in range(size):
            topology = Topology(
                rank=number, local_rank=number % node_size, world_size=size, local_world_size=node_size,
                parallel=ParallelConfig(ulysses_degree=replica_size), mode=mode, distributed=True,
            )  # fmt: skip
            watch = StallWatch(topology, 0, threading.Event())
            backend = Scripted(gives_images=topology.is_leader)
            self.ranks.append(Rank(topology, watch, ScriptedChannel(topology, self), backend))

    @property
    def leaders(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.topology.is_leader]

    def run(
        self,
        shares: Sequence[Sequence[Batch]],
        folder: Path,
        write: Callable[[Rank, Result], None] = lambda *_: None,
        workers: int = 1,
    ) -> list[Rank]:
        """Each replica its share of batches; `write` is what the writers do, and may raise."""
        threads = [
            threading.Thread(
                target=self._one, args=(rank, rank.batches or shares[rank.topology.replica], folder, write, workers)
            )
            for rank in self.ranks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
        return self.ranks

    def _one(
        self, rank: Rank, batches: Sequence[Batch], folder: Path, write: Callable[[Rank, Result], None], workers: int
    ) -> None:
        def deliver(result: Result) -> None:
            if not result.written:
                write(rank, result)
            rank.written.append(result)

        context, facts = context_of(rank, folder), Facts(workers=workers)
        peers = PeerWatch(rank.watch, "")
        collector = rank.collector = Collector(rank.topology, rank.channel, deliver, rank.watch, peers)
        encoder = None
        if collector.sender is not None:
            recorder = Recorder(context, facts)
            encoder = Encoder(context, recorder, collector.sender, rank.watch, in_background=workers == 1)
        loop = rank.loop = Loop(context, rank.backend, facts, collector.sink, rank.watch, encoder)
        report = LeaderReport(0.0, 0.0)
        try:
            with encoder or nullcontext():
                if workers == 1:
                    loop.run(iter(batches))
                else:
                    loop.run_in_threads(iter(batches), workers)
            report = loop.report()
        except BaseException as error:  # a process would end here, and torchrun the others
            rank.error = error
        collector.close(report)


def context_of(rank: Rank, folder: Path) -> Context:
    return Context(
        config=T2IConfig(prompt="x", output_dir=folder),
        checkpoint=Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False),
        topology=rank.topology,
        channel=rank.channel,
        device="cpu",
        dtype="float32",
    )


def batches_of(*sizes: int, first: int = 0) -> list[Batch]:
    """Batches of so many tasks, numbered through."""
    tasks = (Task(index=first + n, prompt=f"p{n}", seed=n, stem=f"{first + n:06d}") for n in range(sum(sizes)))
    return [Batch(tuple(next(tasks) for _ in range(size))) for size in sizes]


def shares_of(num_replicas: int, *sizes: int) -> list[list[Batch]]:
    """For each replica, batches of these sizes."""
    return [batches_of(*sizes, first=replica * sum(sizes)) for replica in range(num_replicas)]


def indices(results: Sequence[Result]) -> Counter[object]:
    return Counter(result.record["index"] for result in results)


def item_error(position: int, message: str = "refused") -> dict[int, Slot]:
    return {position: ItemError(message)}
