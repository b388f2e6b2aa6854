"""The peak that was planned beside the one that is measured, once the first of the largest batches is made."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dglaunch.config import BackendConfig, ParallelConfig, T2IConfig
from dglaunch.data.task import Bucket
from dglaunch.models.checkpoint import resolve
from dglaunch.planning.figures import FigureBook
from dglaunch.planning.outlook import PlannedPeak
from dglaunch.run.memory import MemoryCheck

GIB = 2**30
LARGEST = Bucket(height=1024, width=1024)
PLANNED = PlannedPeak(bucket=LARGEST, images=4, num_bytes=30 * GIB, beside_weights=10 * GIB)


class Peak:
    """A rank's peak, and how often somebody asked for it."""

    def __init__(self, gib: float) -> None:
        self.gib, self.asked = gib, 0

    def __call__(self, device: str) -> int:
        self.asked += 1
        return int(self.gib * GIB)


@pytest.fixture
def book(tmp_path: Path) -> FigureBook:
    backend = BackendConfig(model_name="black-forest-labs/FLUX.1-dev", cache_dir=tmp_path)
    config = T2IConfig(backend=backend, prompt="x")
    return FigureBook(resolve(backend), config, ParallelConfig(), "bfloat16", None, machine="H100")


def check(book: FigureBook, peak: Peak, device: str = "cuda") -> MemoryCheck:
    job: Any = SimpleNamespace(
        checkpoint=resolve(BackendConfig(model_name="black-forest-labs/FLUX.1-dev")), device=device, machine=SimpleNamespace(name="H100"),
        topology=SimpleNamespace(replica_ranks=range(2)),
    )  # fmt: skip
    return MemoryCheck(job, book, PLANNED, peak)


def line(**other: object) -> dict[str, object]:
    return {"rank": 1, "batch_size": 4, "height": 1024, "width": 1024, **other}


def test_the_first_of_the_largest_batches_is_noted_and_no_other(book: FigureBook) -> None:
    peak = Peak(35)
    found = check(book, peak)
    for other in ({"rank": 2}, {"batch_size": 3}, {"height": 512}):
        assert found.after(line(**other)) is None
    assert peak.asked == 0
    assert found.after(line()) == 35 * GIB and found.after(line()) is None and peak.asked == 1
    assert book.measured.factor("H100", book.key(LARGEST)) == pytest.approx(1.5)
    assert found.num_bytes == 30 * GIB, "run.json has it as it was planned"
    assert found.told(35 * GIB) == (
        "A batch of 4 took 35.0 GiB a rank; 30.0 were planned. Later starts and plans go by that."
    )
    assert found.told(31 * GIB) == ""


def test_the_end_comes_on_top_of_it(book: FigureBook) -> None:
    found = check(book, Peak(35))
    found.after(line())
    found.compare(35 * GIB)
    assert book.measured.factor("H100", book.key(LARGEST)) == pytest.approx(1.5), "the same peak says the same"
    found.compare(40 * GIB)
    assert book.measured.factor("H100", book.key(LARGEST)) == pytest.approx(2.0)


def test_on_a_cpu_nothing_is_noted_or_said(book: FigureBook) -> None:
    found = check(book, Peak(50), "cpu")
    assert found.after(line()) == 50 * GIB and found.told(50 * GIB) == ""
    assert book.measured.factor("H100", book.key(LARGEST)) is None
