"""Which batches of a plan differ in what a model does with them."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from dglaunch.data.task import Batch, Bucket, Task

MOST_BATCHES = 8
"""Of those that are rehearsed; each takes every rank a second or more."""


def differing(
    batches: Iterable[Batch], bucket_of: Callable[[Task], Bucket], pixels: Callable[[Task], int]
) -> tuple[list[Batch], int]:
    """Return one batch of each kind, the largest first and MOST_BATCHES at most, and how many kinds there are.

    Batches are of one kind if their images have one size, as many prompts and what else a call depends on; the numbers
    of steps do not matter. Of a kind the greatest and the smallest batch are taken (the last one is often smaller).
    """
    kinds: dict[Bucket, dict[int, Batch]] = {}
    for batch in batches:
        bucket = replace(bucket_of(batch.tasks[0]), num_inference_steps=None, input_sha256=(), row=None)
        kinds.setdefault(bucket, {}).setdefault(len(batch), batch)
    ends = [{max(sizes): sizes[max(sizes)], min(sizes): sizes[min(sizes)]} for sizes in kinds.values()]
    found = [batch for of_kind in ends for batch in of_kind.values()]
    found.sort(key=lambda batch: -pixels(batch.tasks[0]) * len(batch))
    return found[:MOST_BATCHES], len(found)
