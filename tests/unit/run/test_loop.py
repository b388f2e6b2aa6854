"""The loop alone, in this process: several threads over one list of batches lose none of them."""

from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

from PIL import Image

from dglaunch import T2IConfig
from dglaunch.backends.base import Context, Facts, ItemError
from dglaunch.data.task import Batch, Result, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import OutputError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.run.collect import Gather
from dglaunch.run.loop import Loop
from dglaunch.run.watchdog import Watch
from support.results import PROMPTS


class Instant:
    """A backend that answers at once, so that the threads reach the end of the list together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def generate(self, batch: Batch) -> list[ItemError]:
        return [ItemError("no picture") for _ in batch.tasks]


class Picture(Instant):
    """One that gives pictures of a size that no file has."""

    def generate(self, batch: Batch) -> list[Any]:
        return [Image.new("RGB", (0, 0)) for _ in batch.tasks]


def run(workers: int, deliver: Callable[[Result], None], backend: Any) -> Gather:
    place = Topology()
    channel = Channel(place, "cpu")
    checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False)
    context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=place, channel=channel, device="cpu", dtype="float32")  # fmt: skip
    watch = Watch(place, 0, Event())
    gather = Gather(place, channel, deliver, watch)
    loop = Loop(context, backend, Facts(workers=workers), gather, watch)
    tasks = [Task(index=n, prompt=prompt, seed=n, stem=f"{n:06d}") for n, prompt in enumerate(PROMPTS)]
    gather.close(loop.run([Batch((task,)) for task in tasks]))
    return gather


def delivered(workers: int) -> Counter[int]:
    seen: Counter[int] = Counter()
    run(workers, lambda result: seen.update([result.record["index"]]), Instant())
    return seen


def test_no_batch_is_lost_at_the_end() -> None:
    for _ in range(100):
        assert delivered(8) == Counter(range(len(PROMPTS)))


def test_one_worker_delivers_each_once() -> None:
    assert delivered(1) == Counter(range(len(PROMPTS)))


def test_a_writer_that_breaks_off_ends_the_run() -> None:
    """Whatever it raises: nobody may wait for it."""

    def breaks(_: Result) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    gather = run(1, breaks, Instant())
    assert isinstance(gather.error, OutputError) and "could not be written" in str(gather.error)


def test_an_image_that_cannot_be_encoded_is_a_failure_of_its_own() -> None:
    seen: list[Result] = []
    assert run(1, seen.append, Picture()).error is None
    assert len(seen) == len(PROMPTS)
    assert all("could not be encoded" in result.record["error"] for result in seen)
