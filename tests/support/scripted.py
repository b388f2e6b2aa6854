"""Ranks without processes: threads of this one that agree through a scripted channel, over a backend that follows a script.

    run = on_ranks_of_one_process(8, replica_size=4, backend=lambda rank: Scripted(rank, ...))
    run.generated[5]        the batches that rank 5's backend was asked for, as lists of indices
    run.results             what the leaders sent, by index
    run.endings[5]          rank 5's report, or the error that it left with

What a rank decides must depend on what all ranks of its replica say, never on itself alone: here every split, every
half, every drain is seen on 8 ranks in milliseconds. That the real channel (gloo) carries it is shown in tests/torchrun.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dglaunch import T2IConfig
from dglaunch.backends.base import Context, Facts
from dglaunch.config import ParallelConfig
from dglaunch.data.task import Batch, Result, Task
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.run.loop import Loop
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import Watch

PATIENCE_S = 20.0
"""A rank that waits for longer waits for one that has left without it."""


class Meeting:
    """Where the ranks of one replica tell each other something, all at the same time."""

    def __init__(self, size: int) -> None:
        self._values: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, place: int, value: Any) -> list[Any]:
        self._values[place] = value
        self._barrier.wait(PATIENCE_S)
        everyone = list(self._values)
        self._barrier.wait(PATIENCE_S)
        return everyone


class ScriptedChannel:
    """What a Channel does for the loop."""

    def __init__(self, topology: Topology, meeting: Meeting) -> None:
        self._place = topology.rank - topology.replica_ranks[0]
        self._meeting = meeting

    def all_of_replica(self, value: Any) -> list[Any]:
        return self._meeting.exchange(self._place, value)

    def any_of_replica(self, flag: bool) -> bool:
        return any(self.all_of_replica(flag))


class Scripted:
    """A backend that makes a small picture of each task, unless its script says otherwise.

    `script(rank, indices)` is asked before each batch: it may raise, or give what `generate` is to return."""

    def __init__(self, rank: int, script: Callable[[int, list[int]], Any]) -> None:
        self.rank = rank
        self.seconds: dict[str, float] = {}
        self.asked: list[list[int]] = []
        self._script = script

    def generate(self, batch: Batch) -> Any:
        indices = [task.index for task in batch.tasks]
        self.asked.append(indices)
        given = self._script(self.rank, indices)
        return [Image.new("RGB", (8, 8)) for _ in indices] if given is None else given


class Collected:
    """Takes what a leader sends."""

    def __init__(self, results: "dict[int, Result]", stopped: threading.Event) -> None:
        self._results = results
        self._stopped = stopped
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def send(self, result: Result) -> None:
        with self._lock:
            assert result.record["index"] not in self._results, "sent twice"
            self._results[result.record["index"]] = result


@dataclass
class Ran:
    """What became of a run; see the module's docstring."""

    generated: dict[int, list[list[int]]] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    endings: dict[int, LeaderReport | BaseException] = field(default_factory=dict)

    @property
    def failures(self) -> dict[int, str]:
        return {index: result.record["error"] for index, result in sorted(self.results.items()) if result.data is None}


def batch(*indices: int, seed: int = 0) -> Batch:
    return Batch(tuple(Task(index=n, prompt=f"p{n}", seed=n + seed, stem=f"{n:06d}") for n in indices))


def on_ranks_of_one_process(
    world_size: int,
    replica_size: int,
    batches: Callable[[Topology], Sequence[Batch]],
    script: Callable[[int, list[int]], Any] = lambda *_: None,
    stop: Callable[[int], threading.Event] = lambda _: threading.Event(),
    no_room: threading.Event | None = None,
) -> Ran:
    """Run the loop on all ranks. `batches` are those of a rank's replica, `stop` is what a signal to a rank sets, and
    `no_room` is what a full disk sets for all."""
    parallel = ParallelConfig(ulysses_degree=replica_size)
    places = [
        Topology(rank=n, world_size=world_size, local_world_size=world_size, parallel=parallel)
        for n in range(world_size)
    ]
    meetings = [Meeting(replica_size) for _ in range(world_size // replica_size)]
    ran = Ran()
    gather = Collected(ran.results, no_room or threading.Event())

    def rank(place: Topology) -> None:
        backend = Scripted(place.rank, script)
        ran.generated[place.rank] = backend.asked
        channel: Any = ScriptedChannel(place, meetings[place.replica])
        checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 8, "width": 8}, {}, False)
        context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=place, channel=channel, device="cpu", dtype="float32")  # fmt: skip
        loop = Loop(context, backend, Facts(), gather, Watch(place, 0, stop(place.rank)))  # type: ignore[arg-type]
        try:
            ran.endings[place.rank] = loop.run(batches(place))
        except BaseException as error:
            ran.endings[place.rank] = error

    threads = [threading.Thread(target=rank, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
    return ran
