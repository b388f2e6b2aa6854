"""The loop alone, in this process: several threads over one list of batches lose none of them."""

from collections import Counter
from collections.abc import Callable, Iterator
from threading import Event
from time import sleep
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
from dglaunch.run.collect import Collector, Sink
from dglaunch.run.encoding import Encoder
from dglaunch.run.loop import Loop
from dglaunch.run.record import Recorder
from dglaunch.run.watchdog import PeerWatch, StallWatch
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


def made_one_by_one(batches: list[Batch]) -> Iterator[Batch]:
    """As a share makes them: another thread may come meanwhile."""
    for batch in batches:
        sleep(0.0002)
        yield batch


def run(workers: int, deliver: Callable[[Result], None], backend: Any) -> Sink:
    topology, facts = Topology(), Facts(workers=workers)
    channel = Channel(topology, "cpu")
    checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False)
    context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=topology, channel=channel, device="cpu", dtype="float32")  # fmt: skip
    watch = StallWatch(topology, 0, Event())
    collector = Collector(topology, channel, deliver, watch, PeerWatch(watch, ""))
    tasks = [Task(index=n, prompt=prompt, seed=n, stem=f"{n:06d}") for n, prompt in enumerate(PROMPTS)]
    batches = [Batch((task,)) for task in tasks]
    assert collector.sender is not None
    with Encoder(context, Recorder(context, facts), collector.sender, watch, workers == 1) as encoder:
        loop = Loop(context, backend, facts, collector.sink, watch, encoder)
        loop.run(iter(batches)) if workers == 1 else loop.run_in_threads(made_one_by_one(batches), workers)
    collector.close(loop.report())
    return collector.sink


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

    sink = run(1, breaks, Instant())
    assert isinstance(sink.error, OutputError) and "could not be written" in str(sink.error)


def test_an_image_that_cannot_be_encoded_is_a_failure_of_its_own() -> None:
    seen: list[Result] = []
    assert run(1, seen.append, Picture()).error is None
    assert len(seen) == len(PROMPTS)
    assert all("could not be encoded" in result.record["error"] for result in seen)
