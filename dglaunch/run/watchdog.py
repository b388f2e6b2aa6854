"""What notices that a rank, or the whole run, does not go on: a thread beside the run on every rank.

    with Watch(topology, config.stall_timeout, stop, last_words) as watch:
        watch.meet(channel.attempt)     # all ranks have joined
        with watch.doing("batch of 4: 000000.png to 000003.png"):
            ...; watch.beat()       # after each denoising step

It ends the process, so that torchrun ends the others and a restart can resume, when

- a thing being done makes no progress for `stall_timeout` seconds: a collective that never ends, a hung GPU or disk. It
  says which rank, which batch, and the Python stack of every thread;
- a peer gives no sign of life for as long (stopped, swapped out, its machine frozen): every rank counts up a number in
  torchrun's store, rank 0 watches all of them, the others watch rank 0;
- a signal asked the run to drain, and something is still under way DEADLINE_S later.

It also passes signals on while the main thread is inside C++ and Python cannot run a handler, and lets the run drain
when torchrun's agent has died, which would otherwise leave the ranks running unseen.
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
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from dglaunch.distributed import store as rendezvous
from dglaunch.distributed.topology import Topology
from dglaunch.errors import EXIT_BROKEN, EXIT_DRAINED, LostPeer

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
"""While the run drains, a peer that was silent for so long is not waited for."""
SUSPENDED_S = 20.0
"""A tick that took this much too long: the whole machine or job was suspended, and nothing stalled."""
GONE = 1 << 40
"""Added to a rank's number when it leaves in order."""
_runs = itertools.count()


class Watch:
    """One per rank and run. `last_words(outcome, text)` is called before the process is ended."""

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
        self._last_words = last_words
        self._doing: dict[int, list[tuple[str, float]]] = {}
        """By thread: what it does, innermost last, and since when without progress."""
        self._stopped_at: float | None = None
        self.gone: set[int] = set()
        """On rank 0, once the run was asked to stop: peers that do not live any more."""
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pipe: tuple[int, int] | None = None
        self._prefix = ""

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
        return self._stopped_at is not None and time.monotonic() - self._stopped_at > DRAIN_S

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._watch, name="watch", daemon=True)]
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._threads[0].start()
        return self

    def meet(self, attempt: str) -> None:
        """The ranks have joined, under this name: from now on look for the others' signs of life."""
        if self.topology.world_size > 1 and self.stall_timeout and self.topology.rendezvous is not None:
            self._prefix = f"dglaunch/alive/{attempt}/{next(_runs)}"
            self._threads.append(threading.Thread(target=self._watch_peers, name="watch peers", daemon=True))
            self._threads[-1].start()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            for end in self._pipe:
                os.close(end)

    # -- this rank ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        parent, deadline = os.getppid(), DEADLINE_S[self.topology.distributed]
        last = time.monotonic()
        while not self._ended.is_set():
            self._read_signals()
            now = time.monotonic()
            if now - last > SUSPENDED_S:
                self._start_over(now)
            last = now
            if self.topology.distributed and os.getppid() != parent and not self.stop.is_set():
                _say(
                    f"rank {self.topology.rank}: torchrun's agent has died; what is finished is kept, and the run stops"
                )
                self.stop.set()
            if self.stop.is_set() and self._stopped_at is None:
                self._stopped_at = now
            if self._stopped_at is not None and now - self._stopped_at > deadline:
                self._end("drained", "left in the middle of " + (self._present() or "the run"), EXIT_DRAINED)
            stalled = self._stalled(now)
            if stalled:
                self._stall("; ".join(stalled))

    def _read_signals(self) -> None:
        """Wait a tick, or for a signal."""
        if self._pipe is None:
            self._ended.wait(TICK_S)
            return
        if select.select([self._pipe[0]], [], [], TICK_S)[0] and set(os.read(self._pipe[0], 256)) & set(STOP_SIGNALS):
            self.stop.set()

    def _start_over(self, now: float) -> None:
        for stack in list(self._doing.values()):
            stack[:] = [(what, now) for what, _ in stack]

    def _present(self) -> str:
        return "; ".join(stack[-1][0] for stack in list(self._doing.values()) if stack)

    def _stalled(self, now: float) -> list[str]:
        if not self.stall_timeout:
            return []
        tops = [stack[-1] for stack in list(self._doing.values()) if stack]
        return [f"{what}, for {now - since:.0f} s" for what, since in tops if now - since > self.stall_timeout]

    def _stall(self, what: str) -> None:
        text = f"rank {self.topology.rank} makes no progress (--stall_timeout {self.stall_timeout:g}): {what}"
        _say(f"{text}. The Python stacks of its threads:")
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        self._end("lost", text, EXIT_BROKEN)

    def _end(self, outcome: str, text: str, code: int) -> None:
        """Leave at once: the main thread may never come back from where it is."""
        if self._ended.is_set():
            return
        if outcome == "drained":
            _say(f"rank {self.topology.rank}: {DEADLINE_S[self.topology.distributed]:g} s after the signal, {text}")
        elif "torch" in sys.modules and self.topology.distributed:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(LostPeer(text))  # the root cause in torchrun's summary
        self._last_words(outcome, text)
        os._exit(code)

    # -- the others -----------------------------------------------------------------------------------------------

    def _watch_peers(self) -> None:
        """Count up this rank's number and look whether the others' change."""
        rank = self.topology.rank
        watched = [r for r in range(self.topology.world_size) if r != rank] if rank == 0 else [0]
        interval = min(self.stall_timeout / 8, 15.0)
        store: Any = None
        seen = {peer: (-1, time.monotonic()) for peer in watched}
        last = looked = time.monotonic()
        pause = 0.0  # the first sign at once, so that the connection is there before the first image
        while not self._ended.wait(pause):
            pause = min(ALIVE_S, interval)
            now = time.monotonic()
            try:
                store = store or self._connect(interval)
                store.add(str(rank), 1)
                if self._stopped_at is None and now - looked < interval:
                    continue
                looked = now
                for peer in watched:
                    number = store.add(str(peer), 0)
                    if number != seen[peer][0] or now - last > SUSPENDED_S:
                        seen[peer] = number, now
            except RuntimeError:  # what the store raises when the process that holds it is gone, or does not answer
                store = None
            finally:
                last = now
            if self._stopped_at is not None:
                since_stop = now - self._stopped_at
                self.gone = {p for p, (_, since) in seen.items() if min(now - since, since_stop) > GONE_S}
            silent = {
                peer: now - since
                for peer, (number, since) in seen.items()
                if number < GONE and now - since > self.stall_timeout
            }
            if silent and self._stopped_at is None:
                gone = ", ".join(f"rank {peer} for {seconds:.0f} s" for peer, seconds in silent.items())
                self._stall(f"no sign of life from {gone}")
        with contextlib.suppress(RuntimeError):
            if store is not None:
                store.add(str(rank), GONE)

    def _connect(self, seconds: float) -> Any:
        """A connection of its own to torchrun's store: the one of the process groups is busy while they wait."""
        from torch.distributed import PrefixStore

        return PrefixStore(self._prefix, rendezvous.connect(self.topology, timedelta(seconds=max(seconds, 5))))


def _say(text: str) -> None:
    print(f"dglaunch: {text}", file=sys.stderr, flush=True)
