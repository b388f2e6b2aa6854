"""Pure functions: pending tasks to buckets, to shards of replicas, to balanced batches.

Tasks that may share a forward pass (same size, steps, guidance, ...) form a bucket. The buckets are laid in a line, the
line is cut into one stretch of equal cost for each replica, and each stretch into balanced batches (9 images at 8 are
5 + 4). So a bucket is split only where the cut falls, every replica gets the same work to within one image, and the
result depends on nothing but the arguments. `dglaunch plan` prints the object that the run executes.
"""

import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dglaunch.data.many import ManyTasks
from dglaunch.data.shares import Part, Share
from dglaunch.data.task import Batch, BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology


@dataclass(frozen=True, slots=True)
class Plan:
    """Which replica computes what, in which order."""

    batches: list[Share]
    """For each replica, its batches."""
    sizes: dict[Bucket, BatchSize]
    """The largest batch of each bucket, and why."""

    @property
    def num_tasks(self) -> int:
        return sum(self.images_by_replica)

    @property
    def num_batches(self) -> int:
        return sum(len(share) for share in self.batches)

    @property
    def images_by_replica(self) -> list[int]:
        return [share.num_images for share in self.batches]

    @property
    def costs(self) -> list[Iterator[float]]:
        """For each replica, what each of its batches costs, in the unit of `build`."""
        return [share.costs for share in self.batches]

    @property
    def parts(self) -> Iterator[Part]:
        """Of all shares, one after the other."""
        return itertools.chain.from_iterable(share.parts for share in self.batches)

    @property
    def num_extra_batches(self) -> int:
        """Forward passes beyond those that one bucket of all tasks would take."""
        if not self.sizes:
            return 0
        largest = max(size.size for size in self.sizes.values())
        return self.num_batches - sum(math.ceil(count / largest) for count in self.images_by_replica)


def build(
    tasks: Sequence[Task],
    num_replicas: int,
    batch_size: Callable[[Bucket], BatchSize],
    bucket_of: Callable[[Task], Bucket] = plain_bucket,
    cost: Callable[[Bucket], float] = lambda _: 1.0,
) -> Plan:
    """Distribute tasks over replicas.

    Args:
        tasks: the pending tasks, the same on every rank.
        num_replicas: how many shares to make.
        batch_size: the largest batch for a bucket.
        bucket_of: what must be equal within a batch.
        cost: relative cost of one image of a bucket, in any unit.
    """
    buckets = into_buckets(tasks, bucket_of)
    sizes = {bucket: batch_size(bucket) for bucket in buckets}
    shares = [
        Share([Part(bucket, part, sizes[bucket].size, cost(bucket)) for bucket, part in stretch])
        for stretch in cut(buckets, num_replicas, cost)
    ]
    return Plan(shares, sizes)


def into_buckets(tasks: Sequence[Task], bucket_of: Callable[[Task], Bucket]) -> Mapping[Bucket, Sequence[Task]]:
    """Return the buckets in the order in which their first task stands."""
    if isinstance(tasks, ManyTasks) and len(tasks):
        of_kinds = [bucket_of(task) for task in tasks.kinds]
        if not any(bucket.is_of_one_task for bucket in of_kinds):
            numbers = {bucket: number for number, bucket in enumerate(dict.fromkeys(of_kinds))}
            names = list(numbers)
            return {names[group]: some for group, some in tasks.by_kind([numbers[bucket] for bucket in of_kinds])}
        places: dict[Bucket, array[int]] = {}
        for place, task in enumerate(tasks):
            places.setdefault(bucket_of(task), array("q")).append(place)
        return {bucket: tasks.at(some) for bucket, some in places.items()}
    buckets: dict[Bucket, list[Task]] = {}
    for task in tasks:
        buckets.setdefault(bucket_of(task), []).append(task)
    return buckets


def cut(
    buckets: Mapping[Bucket, Sequence[Task]], parts: int, cost: Callable[[Bucket], float]
) -> list[list[tuple[Bucket, Sequence[Task]]]]:
    """Cut the line of buckets into stretches of equal cost, between tasks; each task falls into exactly one."""
    line = [(bucket, items, max(cost(bucket), 1e-9)) for bucket, items in buckets.items()]
    total = sum(len(items) * each for _, items, each in line)
    stretches: list[list[tuple[Bucket, Sequence[Task]]]] = [[] for _ in range(parts)]
    part, before = 0, 0.0
    for bucket, items, each in line:
        start = 0
        while start < len(items):
            # The part ends where the cost so far reaches its share; rounding leaves no task out and no part behind.
            left = round((total * (part + 1) / parts - before) / each) if part < parts - 1 else len(items)
            take = min(max(left, 0), len(items) - start)
            if take:
                stretches[part].append((bucket, items[start : start + take]))
                start, before = start + take, before + take * each
            if start < len(items):
                part += 1
    return stretches


def balanced(tasks: Sequence[Task], size: int) -> list[Batch]:
    """As few batches as `size` allows, their lengths differing by one at most."""
    part = Part(Bucket(), tasks, size, 0.0)
    return part.batches(0, part.num_batches)


def share_of_node(
    tasks: Sequence[Task],
    topology: Topology,
    bucket_of: Callable[[Task], Bucket],
    cost: Callable[[Bucket], float],
) -> Sequence[Task]:
    """With --num_nodes: this node's tasks, cut from *all* tasks, done or not, so that nodes that start at different
    times agree on who makes what."""
    if topology.num_nodes == 1:
        return tasks
    stretches = cut(into_buckets(tasks, bucket_of), topology.num_nodes, cost)
    parts = [part for _, part in stretches[topology.node]]
    if isinstance(tasks, ManyTasks):
        first, *others = (part for part in (*parts, tasks[:0]) if isinstance(part, ManyTasks))
        return first.followed_by(others)
    return [task for part in parts for task in part]
