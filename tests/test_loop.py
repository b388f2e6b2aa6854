"""The loop alone, in this process: several threads over one list of batches lose none of them."""

from collections import Counter
from threading import Event
from typing import Any

from conftest import PROMPTS

from dglaunch import T2IConfig
from dglaunch.backends import Context, Facts, ItemError
from dglaunch.gather import Gather
from dglaunch.models import OTHER, Checkpoint
from dglaunch.plan import Batch
from dglaunch.run import Loop
from dglaunch.tasks import Task
from dglaunch.topology import Channel, Topology
from dglaunch.watch import Watch


class Instant:
    """A backend that answers at once, so that the threads reach the end of the list together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def generate(self, batch: Batch) -> list[ItemError]:
        return [ItemError("no picture") for _ in batch.tasks]


def delivered(workers: int) -> Counter[int]:
    place = Topology()
    channel = Channel(place, "cpu")
    seen: Counter[int] = Counter()
    checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False)
    context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=place, channel=channel, device="cpu", dtype="float32")  # fmt: skip
    watch = Watch(place, 0, Event())
    gather = Gather(place, channel, lambda result: seen.update([result.record["index"]]), watch)
    backend: Any = Instant()
    loop = Loop(context, backend, Facts(workers=workers), gather, watch)
    tasks = [Task(index=n, prompt=prompt, seed=n, stem=f"{n:06d}") for n, prompt in enumerate(PROMPTS)]
    gather.close(loop.run([Batch((task,)) for task in tasks]))
    return seen


def test_no_batch_is_lost_at_the_end() -> None:
    for _ in range(100):
        assert delivered(8) == Counter(range(len(PROMPTS)))


def test_one_worker_delivers_each_once() -> None:
    assert delivered(1) == Counter(range(len(PROMPTS)))
