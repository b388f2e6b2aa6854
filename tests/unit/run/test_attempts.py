"""What follows from how a try at a batch ended. Pure."""

from collections.abc import Callable

import pytest

from dglaunch.data.task import Batch
from dglaunch.models.shape import Shape
from dglaunch.run.attempts import Attempts, Ending, Limits, Verdict, ending_of, worst
from support.scripted import OutOfMemoryError, batches_of

SHAPE, OTHER_SHAPE = Shape(64, 64), Shape(128, 64)
FINE, FAILED, FATAL = Ending(), Ending("it broke"), Ending("CUDA error", fatal=True)
OOM = Ending("out of memory", out_of_memory=True)


def follow(
    batch: Batch, ends: Callable[[Batch], Ending], limits: Limits | None = None
) -> list[tuple[list[int], Verdict]]:
    """The parts that were tried, as indices, and what followed from each."""
    attempts = Attempts(batch, SHAPE, limits if limits is not None else Limits())
    return [([task.index for task in part.tasks], attempts.settle(ends(part))) for part in attempts]


def batch_of(size: int) -> Batch:
    (batch,) = batches_of(size)
    return batch


def test_a_batch_that_goes_well_is_tried_once() -> None:
    assert follow(batch_of(3), lambda _: FINE) == [([0, 1, 2], Verdict.DELIVER)]


def test_a_batch_that_raises_is_run_one_by_one_in_its_order() -> None:
    limits = Limits()
    tried = follow(batch_of(4), lambda part: FAILED if 2 in [task.index for task in part.tasks] else FINE, limits)
    assert tried == [
        ([0, 1, 2, 3], Verdict.TRY_SMALLER),
        ([0], Verdict.DELIVER),
        ([1], Verdict.DELIVER),
        ([2], Verdict.RECORD_FAILURE),
        ([3], Verdict.DELIVER),
    ]
    assert limits.events == ["a batch of 4 failed and was run one by one: it broke"]
    assert not limits.largest, "how large a batch may be was not in question"


def test_out_of_memory_halves_until_it_fits_and_is_remembered() -> None:
    limits = Limits()
    tried = follow(batch_of(8), lambda part: OOM if len(part) > 3 else FINE, limits)
    assert [len(part) for part, _ in tried] == [8, 4, 2, 2, 2, 2]
    assert [index for part, verdict in tried for index in part if verdict is Verdict.DELIVER] == list(range(8))
    assert limits.largest == {SHAPE: 2}
    assert limits.events == [
        "8 images of 64x64 ran out of memory; at most 4 from then on",
        "4 images of 64x64 ran out of memory; at most 2 from then on",
    ]
    assert [len(part) for part, _ in follow(batch_of(7), lambda _: FINE, limits)] == [2, 2, 2, 1], "the next batch"


def test_a_limit_holds_for_its_shape_only() -> None:
    limits = Limits({OTHER_SHAPE: 1})
    assert [len(part) for part, _ in follow(batch_of(4), lambda _: FINE, limits)] == [4]


def test_an_image_that_does_not_fit_alone_is_a_failure() -> None:
    assert follow(batch_of(1), lambda _: OOM) == [([0], Verdict.RECORD_FAILURE)]
    tried = follow(batch_of(2), lambda part: OOM if part.tasks[0].index == 0 else FINE)
    assert tried == [([0, 1], Verdict.TRY_SMALLER), ([0], Verdict.RECORD_FAILURE), ([1], Verdict.DELIVER)]


def test_what_no_further_try_helps_against_ends_the_run() -> None:
    assert follow(batch_of(1), lambda _: FATAL)[0][1] is Verdict.GIVE_UP
    assert follow(batch_of(1), lambda _: FATAL) == [([0], Verdict.GIVE_UP)]


def test_limits_never_grow() -> None:
    """Threads that run batches of several sizes at a time may report in any order."""
    limits = Limits()
    limits.halve(SHAPE, 4)
    limits.halve(SHAPE, 8)
    assert limits.largest == {SHAPE: 2}


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ValueError("a  b\n c"), Ending("ValueError: a b c")),
        (OutOfMemoryError("9 GiB"), Ending("OutOfMemoryError: 9 GiB", out_of_memory=True)),
        (
            RuntimeError("CUDA out of memory. Tried"),
            Ending("RuntimeError: CUDA out of memory. Tried", out_of_memory=True),
        ),
        (RuntimeError("CUDA error: illegal access"), Ending("RuntimeError: CUDA error: illegal access", fatal=True)),
        (RuntimeError("[gloo] Connection reset"), Ending("RuntimeError: [gloo] Connection reset", fatal=True)),
    ],
)
def test_errors_are_read(error: Exception, ending: Ending) -> None:
    assert ending_of(error) == ending


def test_known_trouble_stands_before_an_error() -> None:
    assert ending_of(ValueError("x"), "torch 9 cannot").error == "torch 9 cannot: ValueError: x"
    assert len(str(ending_of(ValueError("x" * 9999)).error)) == 2000


def test_the_worst_of_a_replica_counts() -> None:
    assert worst([FINE, FINE]) == FINE
    assert worst([FINE, OOM, FAILED]) == OOM
    assert worst([FINE, FAILED, FATAL, OOM]) == FATAL
