"""What two ranks do about the run itself, without a run: started as `launch(folder, 2, [(["support.replica_checks:..."], {})])`."""

import contextlib
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from dglaunch.backends.base import Context, Facts
from dglaunch.backends.fake import FakeBackend
from dglaunch.config import BackendConfig, ParallelConfig, T2IConfig
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology, from_environment
from dglaunch.errors import DglaunchError, UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.run.collect import Sink
from dglaunch.run.loop import Loop
from dglaunch.run.watchdog import StallWatch


def topology(ulysses_degree: int = 1) -> Topology:
    config = T2IConfig(prompt="x", backend=BackendConfig(backend="xdit"))
    return from_environment(config, ParallelConfig(ulysses_degree=ulysses_degree), os.environ)


def different_batches() -> int:
    """Each rank of a replica is about to run a batch of its own."""
    place = topology(ulysses_degree=2)
    channel = Channel(place, "cpu")
    checkpoint = Checkpoint("fake", "fake", OTHER, {}, {}, False)
    context = Context(config=T2IConfig(prompt="x"), checkpoint=checkpoint, topology=place, channel=channel, device="cpu", dtype="float32")  # fmt: skip
    watch = StallWatch(place, 0, threading.Event())
    loop = Loop(context, FakeBackend(context), Facts(), Sink(print, watch), watch)
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


def then_say_what_xfuser_was_told(*words: str) -> int:
    """A command; then the type that xfuser's state has for buffers."""
    from dglaunch.cli.main import main

    code = main(list(words))
    from xfuser.core.distributed import get_runtime_state

    print(f"XFUSER {get_runtime_state().runtime_config.dtype}", flush=True)
    return code


def with_tokens_of_their_own(*words: str) -> int:
    """A command on ranks of which each has another token."""
    from dglaunch.cli.main import main

    os.environ["DG_JOB_TOKEN"] = f"token-{os.environ['RANK']}"
    return main(list(words))


def with_packages_on_rank_1(folder: str, *words: str) -> int:
    """A command on ranks of which one finds the packages of a folder before all others."""
    from dglaunch.cli.main import main

    if os.environ["RANK"] == "1":
        sys.path.insert(0, folder)
    return main(list(words))


class Evil:
    """Its pickle makes a file where it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def a_stray_that_pickles(path: str, *words: str) -> int:
    """A command on rank 0; rank 1 is a stranger that has joined the rendezvous and sends pickles."""
    from dglaunch.cli.main import main

    if os.environ["RANK"] == "0":
        return main(list(words))
    import torch.distributed as dist

    from dglaunch.distributed import store as stores
    from dglaunch.distributed.channel import DRAWN_BYTES, MODEL_TIMEOUT

    place = Topology(
        rank=1, world_size=2, local_world_size=2, distributed=True,
        rendezvous=(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), True),
    )  # fmt: skip
    stores.hand_on(place, lambda: b"", MODEL_TIMEOUT)  # where the images go, which every rank has from rank 0
    store = stores.connect(place, MODEL_TIMEOUT)
    part = stores.part(store, stores.agree_on_attempt(place, store, MODEL_TIMEOUT))
    dist.init_process_group("gloo", store=part, rank=1, world_size=2, timeout=MODEL_TIMEOUT)
    group = dist.new_group(backend="gloo")
    for length in (DRAWN_BYTES, 32):  # its numbers and its proof, of the right size, or nobody would look at them
        sent = torch.frombuffer(bytearray(pickle.dumps(Evil(path))[:length].ljust(length)), dtype=torch.uint8)
        dist.all_gather([torch.empty(length, dtype=torch.uint8) for _ in range(2)], sent, group=group)
    said: list[object] = [None, None]
    with contextlib.suppress(RuntimeError):  # the other one has gone
        dist.all_gather_object(said, Evil(path), group=group)
    return 0


def what_listens() -> int:
    """The addresses at which this process listens once the ranks have joined, as /proc has them."""
    from dglaunch.distributed.topology import from_environment

    channel = Channel(from_environment(T2IConfig(prompt="x"), ParallelConfig(), os.environ), "cpu")
    own = {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists() or entry.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A" and f"socket:[{line.split()[9]}]" in own:
                print(f"LISTENS {local.split(':')[0]}", flush=True)
    channel.all_of_world(None)
    return 0
