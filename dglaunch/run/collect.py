"""Results to who writes them, with bounded memory: each leader sends encoded bytes point to point, in the background.

The writer (rank 0, or with --writer node one on each node) receives from any source in one thread and writes each result
before it takes the next, so what it holds does not grow with the job. A sender waits for the answer to each result
before it sends the next (a queue of two lies between it and the model). Where another than rank 0 writes, or with
--writer rank the leader itself, the leader then tells rank 0 of the result, without its bytes. An answer says whether to
go on, which is how a full disk or a signal reaches every replica.
"""

import contextlib
import pickle
import queue
import threading
from collections.abc import Callable

from dglaunch.data.task import Result
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import DglaunchError, LostPeer, OutputError
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import Watch

QUEUED = 2
GO_ON, STOP, DRAIN = 0, 1, 2
"""Answers: STOP when a writer can take no more, DRAIN when a signal reached a rank."""
POLL_S = 0.1
_HEADER, _BODY, _ANSWER = 1, 2, 3


class Gather:
    """One per rank. `deliver` is called on rank 0, for every result, and on the writers, by one thread at a time."""

    def __init__(
        self,
        topology: Topology,
        channel: Channel,
        deliver: Callable[[Result], None],
        watch: Watch,
        threads: bool = True,
    ) -> None:
        self.topology = topology
        self.watch = watch
        self.group = channel.gather
        self.error: DglaunchError | None = None
        """On rank 0 and writers: what made delivery impossible; the first one."""
        self.reports: dict[int, LeaderReport] = {}
        """On rank 0, after close(): what each leader said at its end."""
        self._deliver = deliver
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._queue: queue.Queue[Result | LeaderReport] = queue.Queue(QUEUED)
        self._sender: threading.Thread | None = None
        self._receiver: threading.Thread | None = None
        if topology.sources:
            self._receiver = self._start(lambda: self._receive(len(topology.sources)), "receive results")
        if topology.is_leader and not topology.is_main:
            self._sender = self._start(self._send, "send results")
        elif topology.is_leader and threads:
            self._sender = self._start(self._write_own, "write results")

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except Exception as error:
                lost = isinstance(error, RuntimeError)  # what gloo raises when the other side has died
                self.error = self.error or (
                    LostPeer(f"The connection that carries results broke, as a rank has died: {error}")
                    if lost
                    else DglaunchError(f"The thread that is to {name} broke off: {type(error).__name__}: {error}")
                )
                self._stop.set()
                self._discard()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    @property
    def stopped(self) -> bool:
        """Whether a writer can take no more results."""
        return self._stop.is_set()

    def send(self, result: Result) -> None:
        """Hand over one result; waits while two are under way. On leaders only."""
        if self._sender is None:
            self._accept(result)
        elif not self._stop.is_set():
            self._queue.put(result)

    def _discard(self) -> None:
        """Empty the queue, so that send() never waits for a thread that has gone."""
        while not self._queue.empty():
            self._queue.get_nowait()

    def close(self, report: LeaderReport) -> None:
        """Wait until everything is delivered; `report` reaches rank 0 as `reports[rank]`.

        Once the run was asked to stop, a rank that does not answer in time is left behind.
        """
        if self._receiver is not None and not self.topology.is_main:
            self._wait(self._receiver)  # what became of the others' results is part of the last word to rank 0
        report.error = report.error or self.error
        if self._sender is not None:
            self._hand_over(report, self._sender)
            self._wait(self._sender)
        elif self.topology.is_leader:
            self.reports[self.topology.rank] = report
        if self._receiver is not None:
            self._wait(self._receiver)

    def _hand_over(self, report: LeaderReport, sender: threading.Thread) -> None:
        while sender.is_alive() and not self.watch.overdue():
            with contextlib.suppress(queue.Full):
                self._queue.put(report, timeout=POLL_S)
                return

    def _wait(self, thread: threading.Thread) -> None:
        while thread.is_alive() and not self.watch.overdue():
            thread.join(POLL_S)
            if thread is self._receiver and self.watch.gone and self._awaited() <= self.watch.gone:
                return

    def _awaited(self) -> set[int]:
        """Leaders that have not said their last word here. Gloo does not tell when one of them dies: a receive from any
        source goes on waiting for the others."""
        return set(self.topology.sources) - self.reports.keys()

    # -- rank 0 and writers ---------------------------------------------------------------------------------------

    def _accept(self, result: Result) -> None:
        """Deliver, unless delivery failed before; what comes after a failure is dropped and made again on resume."""
        with self._writing:
            if self.error is not None and not result.written:
                return
            try:
                with self.watch.doing(f"writing {result.file_name}"):
                    self._deliver(result)
            except Exception as error:
                text = f"{result.file_name} could not be written: {type(error).__name__}: {error}"
                self.error = error if isinstance(error, DglaunchError) else OutputError(text)
                self._stop.set()

    def _write_own(self) -> None:
        while isinstance(item := self._queue.get(), Result):
            self._accept(item)
        self.reports[self.topology.rank] = item

    def _receive(self, senders: int) -> None:
        import torch
        import torch.distributed as dist

        while senders:
            header = torch.zeros(1, dtype=torch.int64)
            source = dist.recv(header, group=self.group, tag=_HEADER)
            body = torch.empty(int(header), dtype=torch.uint8)
            dist.recv(body, src=source, group=self.group, tag=_BODY)
            item = pickle.loads(body.numpy().tobytes())  # from our own ranks, over the run's own group
            if isinstance(item, Result):
                self._accept(item)
            else:
                self.reports[source] = item
                senders -= 1
                if item.drained:
                    self.watch.stop.set()
                if isinstance(item.error, OutputError):
                    self._stop.set()
            answer = torch.tensor([STOP if self._stop.is_set() else DRAIN if self.watch.stop.is_set() else GO_ON])
            dist.send(answer, dst=source, group=self.group, tag=_ANSWER)

    # -- other leaders --------------------------------------------------------------------------------------------

    def _send(self) -> None:
        own, writer = self.topology.rank, self.topology.writer
        while True:
            item = self._queue.get()
            last = isinstance(item, LeaderReport)
            if not last and self._stop.is_set():
                continue  # drain what was queued, so that send() never waits for ever
            if not last and writer == own:
                self._accept(item)
            elif writer not in (own, 0):
                self._pass(item, writer)
            if not last and writer != 0:
                if self._stop.is_set():
                    continue  # it was perhaps not written
                item = item.told()
            self._pass(item, 0)
            if last:
                return

    def _pass(self, item: Result | LeaderReport, rank: int) -> None:
        """To another rank; back when it has been delivered there."""
        import torch
        import torch.distributed as dist

        body = torch.frombuffer(bytearray(pickle.dumps(item)), dtype=torch.uint8)
        dist.send(torch.tensor([body.numel()]), dst=rank, group=self.group, tag=_HEADER)
        dist.send(body, dst=rank, group=self.group, tag=_BODY)
        answer = torch.zeros(1, dtype=torch.int64)
        dist.recv(answer, src=rank, group=self.group, tag=_ANSWER)
        if int(answer) == STOP:
            self._stop.set()
        if int(answer) == DRAIN:
            self.watch.stop.set()
