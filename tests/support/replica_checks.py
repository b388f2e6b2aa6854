"""What two ranks do about the run itself, without a run: started as `launch(folder, 2, [(["support.replica_checks:..."], {})])`."""

import os
import threading

from dglaunch.backends.base import Context
from dglaunch.config import ParallelConfig, T2IConfig
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import DglaunchError, UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.run.collect import Gather
from dglaunch.run.loop import Loop
from dglaunch.run.watchdog import Watch


def topology(ulysses_degree: int = 1) -> Topology:
    parallel = ParallelConfig(ulysses_degree=ulysses_degree)
    rank = int(os.environ["RANK"])
    return Topology(rank=rank, world_size=2, local_world_size=2, distributed=True, parallel=parallel)


def different_batches() -> int:
    """Each rank of a replica is about to run a batch of its own."""
    place = topology(ulysses_degree=2)
    channel = Channel(place, "cpu")
    checkpoint = Checkpoint("fake", "fake", OTHER, {}, {}, False)
    context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=place, channel=channel, device="cpu", dtype="float32")  # fmt: skip
    watch = Watch(place, 0, threading.Event())
    loop = Loop(context, None, None, Gather(place, channel, print, watch), watch)  # type: ignore[arg-type]
    try:
        loop._should_leave(Batch((Task(index=0, prompt="a", seed=place.rank, stem="0"),)))
    except DglaunchError as error:
        print(f"CAUGHT {type(error).__name__} {error}", flush=True)
    return 0


def user_error_on_rank_1() -> int:
    return _fails_on_rank_1(UserError("no weights"))


def key_error_on_rank_1() -> int:
    return _fails_on_rank_1(KeyError("w"))


def _fails_on_rank_1(error: Exception) -> int:
    """First what works on both, then what fails on one; the exit code is what `main` would make of it."""
    place = topology()
    channel = Channel(place, "cpu")
    print(f"BOTH {channel.together(lambda: place.rank * 10)}", flush=True)

    def load() -> None:
        if place.rank == 1:
            raise error

    try:
        channel.together(load)
    except DglaunchError as caught:
        return caught.exit_code
    except KeyError:
        return 1
    return 0
