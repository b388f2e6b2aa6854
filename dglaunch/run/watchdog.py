"""What notices that a rank, or the whole run, does not go on: two threads beside the run on every rank.

    with StallWatch(topology, config.stall_timeout, stop, last_words) as watch:
        ...                                                  # all ranks join
        with PeerWatch(watch, channel.attempt) as peers:     # and look for each other's signs of life
            with watch.doing("batch of 4: 000000.png to 000003.png"):
                ...; watch.beat()       # after each denoising step

They end the process, so that torchrun ends the others and a restart can resume, when

- a thing being done makes no progress for `stall_timeout` seconds: a collective that never ends, a hung GPU or disk. It
  says which rank, which batch, and the Python stack of every thread;
- a peer gives no sign of life for as long (stopped, swapped out, its machine frozen): every rank counts up a number in
  torchrun's store, rank 0 watches all of them, the others watch rank 0;
- a peer's connections broke and it gives no sign of life for GONE_S: it was killed on another machine, or that is gone;
- a signal asked the run to drain, and something is still under way DEADLINE_S later.

StallWatch also passes signals on while the main thread is inside C++ and Python cannot run a handler, and lets the run
drain when torchrun's agent has died, which would otherwise leave the ranks running unseen.
"""

import contextlib
import faulthandler
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dglaunch.distributed import store as stores
from dglaunch.distributed.lifelines import Lifelines
from dglaunch.distributed.topology import Topology
from dglaunch.errors import EXIT_BROKEN, EXIT_DRAINED, LostPeer
from dglaunch.streams import readable, say

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""USR2, as NCCL and Slurm use USR1 in places."""
DRAIN_S = 14.0
"""After a signal, how long rank 0 waits for the results of the others; longer than they wait for their requests."""
DEADLINE_S = {True: 17.0, False: 30.0}
"""Under torchrun or not: after a signal, when a rank leaves whatever it is doing; torchrun kills 30 s after its signal."""
TICK_S = 0.25
ALIVE_S = 1.0
"""How often a rank counts up its number."""
GONE_S = 4.0
"""While the run drains, or a connection has broken, a peer that was silent for so long is not waited for."""
SHOWN = 8
"""Ranks that a message names."""
SUSPENDED_S = 20.0
"""A tick that took this much too long: the whole machine or job was suspended, and nothing stalled."""
GONE = 1 << 40
"""Added to a rank's number when it leaves in order."""
_runs = itertools.count()


class StallWatch:
    """A StallWatch ends this process when what it does makes no progress; one per rank and run.

    `last_words(outcome, text)` is called before the process is ended.
    """

    def __init__(
        self,
        topology: Topology,
        stall_timeout: float,
        stop: threading.Event,
        last_words: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.topology = topology
        self.stall_timeout = stall_timeout
        self.stop = stop
        self.stopped_at: float | None = None
        """When it was noticed that the run was asked to stop."""
        self.ended = threading.Event()
        """The run is over, and nothing is watched any more."""
        self._last_words = last_words
        self._doing: dict[int, list[tuple[str, float]]] = {}
        """By thread: what it does, innermost last, and since when without progress."""
        self._woken_at = 0.0
        """When this machine was found to have slept, which is nobody's fault."""
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._pipe: tuple[int, int] | None = None

    # -- for the run ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """What this thread does from here on must make progress."""
        stack = self._doing.setdefault(threading.get_ident(), [])
        stack.append((what, time.monotonic()))
        try:
            yield
        finally:
            stack.pop()
            self.beat()

    def beat(self) -> None:
        """This thread made progress."""
        if stack := self._doing.get(threading.get_ident()):
            stack[-1] = (stack[-1][0], time.monotonic())

    def overdue(self) -> bool:
        """Whether the run was asked to stop so long ago that nobody is to be waited for any more."""
        return self.stopped_at is not None and time.monotonic() - self.stopped_at > DRAIN_S

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.ended.set()
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._pipe[1], b"\0")  # no signal, but the thread need not sit its tick out
        self._thread.join()
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)

    def lose(self, peers: str) -> None:
        """Leave as after a signal, since other ranks are gone: what is finished is written, and torchrun forms a new world."""
        if self.topology.tells_of_deaths:
            _say(
                f"rank {self.topology.rank}: {peers} is gone, its process or its whole machine; what is finished is kept, and the "
                "run stops"
            )
        self.stop.set()

    # -- its thread -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        parent, deadline = os.getppid(), DEADLINE_S[self.topology.distributed]
        last = time.monotonic()
        while not self.ended.is_set():
            self._read_signals()
            now = time.monotonic()
            if now - last > SUSPENDED_S:
                self._woken_at = now
            last = now
            if self.topology.distributed and os.getppid() != parent and not self.stop.is_set():
                if self.topology.tells_of_deaths:
                    _say(
                        f"rank {self.topology.rank}: torchrun's agent has died; what is finished is kept, and the run "
                        "stops"
                    )
                self.stop.set()
            if self.stop.is_set() and self.stopped_at is None:
                self.stopped_at = now
            if self.stopped_at is not None and now - self.stopped_at > deadline:
                self._end("drained", "left in the middle of " + (self._present() or "the run"), EXIT_DRAINED)
            stalled = self._stalled(now)
            if stalled:
                self.stall("; ".join(stalled))

    def _read_signals(self) -> None:
        """Wait a tick, or for a signal."""
        if self._pipe is None:
            self.ended.wait(TICK_S)
            return
        poll = select.poll()  # select() takes no descriptor from 1024 on, which a process with many files open has
        poll.register(self._pipe[0], select.POLLIN)
        if poll.poll(1000 * TICK_S) and set(os.read(self._pipe[0], 256)) & set(STOP_SIGNALS):
            self.stop.set()

    def _tops(self) -> list[tuple[str, float]]:
        """What each thread does, and since when; it may be through with it meanwhile."""
        tops = [top for stack in list(self._doing.values()) for top in stack[-1:]]
        return [(what, max(since, self._woken_at)) for what, since in tops]

    def _present(self) -> str:
        return "; ".join(what for what, _ in self._tops())

    def _stalled(self, now: float) -> list[str]:
        if not self.stall_timeout:
            return []
        return [f"{what}, for {now - since:.0f} s" for what, since in self._tops() if now - since > self.stall_timeout]

    def stall(self, what: str) -> None:
        """End the process because of what makes no progress, with the Python stack of every thread."""
        text = f"rank {self.topology.rank} makes no progress (--stall_timeout {self.stall_timeout:g}): {what}"
        _say(f"{text}. The Python stacks of its threads:")
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        self._end("lost", text, EXIT_BROKEN)

    def _end(self, outcome: str, text: str, code: int) -> None:
        """Leave at once: the main thread may never come back from where it is."""
        if self.ended.is_set():
            return
        if outcome == "drained":
            _say(f"rank {self.topology.rank}: {DEADLINE_S[self.topology.distributed]:g} s after the signal, {text}")
        elif "torch" in sys.modules and self.topology.distributed:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(LostPeer(readable(text)))  # the root cause in torchrun's summary
        self._last_words(outcome, text)
        os._exit(code)


class PeerWatch:
    """A PeerWatch ends this process when a peer gives no sign of life; one per rank and run.

    `attempt` is the name under which all ranks have joined. It works where torchrun's store can be reached. When one of the
    connections has broken, a peer that is silent for GONE_S is gone, and the run is left as after a signal.
    """

    def __init__(self, watch: StallWatch, attempt: str, lifelines: Lifelines | None = None) -> None:
        self.gone: set[int] = set()
        """On rank 0, once the run was asked to stop: peers that do not live any more."""
        self._watch = watch
        self._topology = watch.topology
        self._lifelines = lifelines if lifelines is not None else Lifelines(())
        self._broken_at: float | None = None
        """When a connection was found broken, until it is known whose it was."""
        self._thread: threading.Thread | None = None
        self._prefix = ""
        if self._topology.world_size > 1 and watch.stall_timeout and self._topology.rendezvous is not None:
            self._prefix = f"dglaunch/alive/{attempt}/{next(_runs)}"
            self._thread = threading.Thread(target=self._watch_peers, name="watch peers", daemon=True)

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._watch.ended.set()  # no deadline may end the process while this thread leaves
        if self._thread is not None:
            self._thread.join()

    def _watch_peers(self) -> None:
        """Count up this rank's number and look whether the others' change."""
        rank, watch = self._topology.rank, self._watch
        peers = [0] if rank else list(range(1, self._topology.world_size))
        interval = min(watch.stall_timeout / 8, 15.0)
        store: Store | None = None
        seen = {peer: (-1, time.monotonic()) for peer in peers}
        last = looked = time.monotonic()
        pause = 0.0  # the first sign at once, so that the connection is there before the first image
        while not watch.ended.wait(pause):
            pause = min(ALIVE_S, interval)
            now = time.monotonic()
            if self._lifelines.have_broken():
                self._broken_at = now
            is_calm = watch.stopped_at is None and self._broken_at is None
            try:
                store = store or self._connect(interval if is_calm else GONE_S)
                store.add(str(rank), 1)
                if is_calm and now - looked < interval:
                    continue
                looked = now
                for peer in peers:
                    number = store.add(str(peer), 0)
                    if number != seen[peer][0] or now - last > SUSPENDED_S:
                        seen[peer] = number, now
            except RuntimeError:  # what the store raises when the process that holds it is gone, or does not answer
                store = None
            finally:
                last = now
            self._judge(seen, now)
        with contextlib.suppress(RuntimeError):
            if store is not None:
                store.add(str(rank), GONE)

    def _judge(self, seen: Mapping[int, tuple[int, float]], now: float) -> None:
        """Who is gone, and whether that ends this process: peers with their numbers, and when those last changed."""
        stopped_at, timeout = self._watch.stopped_at, self._watch.stall_timeout
        if stopped_at is not None:
            self.gone = _silent(seen, now, stopped_at)
            return
        if self._broken_at is not None:
            gone = {peer for peer in _silent(seen, now, self._broken_at) if seen[peer][0] < GONE}
            if gone:
                self._watch.lose(", ".join(f"rank {peer}" for peer in sorted(gone)[:SHOWN]))
            elif now - self._broken_at > GONE_S:
                self._broken_at = None  # it was of one that has left in order, or not a rank's
            return
        silent = [
            f"rank {peer} for {now - since:.0f} s"
            for peer, (number, since) in seen.items()
            if number < GONE and now - since > timeout
        ]
        if silent:
            self._watch.stall(f"no sign of life from {', '.join(silent)}")

    def _connect(self, seconds: float) -> "Store":
        """Open a connection of its own to torchrun's store: the one of the process groups is busy while they wait."""
        return stores.part(stores.connect(self._topology, timedelta(seconds=max(seconds, 5))), self._prefix)


def _silent(seen: Mapping[int, tuple[int, float]], now: float, since: float) -> set[int]:
    """The peers that gave no sign of life for GONE_S, all of them after this time."""
    return {peer for peer, (_, last) in seen.items() if now - max(last, since) > GONE_S}


def _say(text: str) -> None:
    say(f"dglaunch: {text}", error=True)
