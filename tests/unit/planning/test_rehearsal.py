"""Which batches of a job are rehearsed."""

from dglaunch.data.task import Batch, Task, plain_bucket
from dglaunch.planning.differing import MOST_BATCHES, differing


def batch(size: int, side: int, steps: int = 20, guidance: float | None = None) -> Batch:
    tasks = [
        Task(
            index=number, prompt="a", seed=0, stem="0", height=side, width=side, num_inference_steps=steps,
            guidance_scale=guidance,
        )
        for number in range(size)
    ]  # fmt: skip
    return Batch(tuple(tasks))


def chosen(*batches: Batch) -> list[tuple[int, int | None]]:
    found, _ = differing(batches, plain_bucket, lambda task: (task.height or 0) ** 2)
    return [(len(each), each.tasks[0].height) for each in found]


def test_of_each_kind_the_greatest_and_the_smallest_batch_the_largest_first() -> None:
    found = chosen(batch(4, 64), batch(3, 64), batch(2, 64), batch(1, 128), batch(1, 128))
    assert found == [(4, 64), (1, 128), (2, 64)]


def test_the_number_of_steps_makes_no_kind_of_its_own_but_guidance_does() -> None:
    assert len(chosen(batch(1, 64, steps=4), batch(1, 64, steps=28))) == 1
    assert len(chosen(batch(1, 64), batch(1, 64, guidance=0.0))) == 2


def test_a_table_of_photographs_is_rehearsed_at_its_largest_sizes() -> None:
    batches = [batch(1, 64 + 16 * number) for number in range(20)]
    found, num_kinds = differing(batches, plain_bucket, lambda task: (task.height or 0) ** 2)
    assert num_kinds == 20 and len(found) == MOST_BATCHES
    assert found[0].tasks[0].height == 64 + 16 * 19
