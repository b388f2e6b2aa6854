"""Results to who writes them, with bounded memory: each leader sends encoded bytes point to point, in the background.

The writer (rank 0, or with --writer node one on each node) receives from any source in one thread and writes each result
before it takes the next, so what it holds does not grow with the job. A sender waits for the answer to each result
before it sends the next (a queue of two lies between it and the model). Where another than rank 0 writes, or with
--writer rank the leader itself, the leader then lets rank 0 know of the result, without its bytes. An answer says whether
to go on, which is how a full disk or a signal reaches every replica.
"""

import queue
import threading
from collections.abc import Callable

from dglaunch.data.task import Result
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.messages import pack, unpack
from dglaunch.distributed.topology import Topology
from dglaunch.errors import DglaunchError, LostPeer, OutputError
from dglaunch.run.report import LeaderReport
from dglaunch.run.watchdog import PeerWatch, StallWatch

QUEUED = 2
GO_ON, STOP, DRAIN = 0, 1, 2
"""Answers: STOP when a writer can take no more, DRAIN when a signal reached a rank."""
POLL_S = 0.1


class Collector:
    """A Collector brings the results of all replicas to their writers; one per rank.

    `write` is called on rank 0, for every result, and on the writers, by one thread at a time; `settle` after the last of
    them, before rank 0 hears that all is written. `in_background=False` is for one process without threads.
    """

    def __init__(
        self,
        topology: Topology,
        channel: Channel,
        write: Callable[[Result], None],
        watch: StallWatch,
        peers: PeerWatch,
        in_background: bool = True,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.sink = Sink(write, watch, settle)
        self.sender: Sender | None = None
        """On leaders."""
        self._receiver: Receiver | None = None
        self._is_main = topology.is_main
        if topology.receives_from:
            self._receiver = Receiver(topology, channel, self.sink, watch, peers)
        if topology.is_leader:
            self.sender = Sender(topology, channel, self.sink, watch, in_background)

    def close(self, report: LeaderReport) -> None:
        """Wait until everything is delivered; `report` reaches rank 0 as one of `sink.reports`.

        Once the run was asked to stop, a rank that does not answer in time is left behind.
        """
        if self._receiver is not None and not self._is_main:
            self._receiver.wait()  # what became of the others' results is part of the last word to rank 0
        report.error = report.error or self.sink.error
        if self.sender is not None:
            self.sender.finish(report)
        if self._receiver is not None:
            self._receiver.wait()
        if self._is_main:
            self.sink.settle()


class Sink:
    """A Sink is where results end on a rank that writes or counts them; the first failure to take one stops the run."""

    def __init__(
        self, write: Callable[[Result], None], watch: StallWatch, settle: Callable[[], None] = lambda: None
    ) -> None:
        self.error: DglaunchError | None = None
        """What made delivery impossible; the first one."""
        self.stopped = threading.Event()
        """Set when a writer, here or elsewhere, can take no more results."""
        self.reports: dict[int, LeaderReport] = {}
        """On rank 0, in the end: what each leader said last."""
        self._write = write
        self._settle = settle
        self._watch = watch
        self._writing = threading.Lock()

    def accept(self, result: Result) -> None:
        """Write, unless writing failed before; what comes after a failure is dropped and made again on resume."""
        with self._writing:
            if self.error is not None and not result.written:
                return
            try:
                with self._watch.doing(f"writing {result.file_name}"):
                    self._write(result)
            except Exception as error:  # of one item, whatever it is: who sent it waits for an answer
                text = f"{result.file_name} could not be written: {type(error).__name__}: {error}"
                self.fail(error if isinstance(error, DglaunchError) else OutputError(text))

    def settle(self) -> None:
        """All that is written here has been."""
        with self._writing:
            try:
                with self._watch.doing("closing what was written"):
                    self._settle()
            except Exception as error:  # whatever it is, rank 0 has to hear of it
                self.fail(
                    error if isinstance(error, DglaunchError) else OutputError(f"Closing what was written: {error}")
                )

    def fail(self, error: DglaunchError) -> None:
        """Take no more results."""
        self.error = self.error or error
        self.stopped.set()


class Sender:
    """A Sender takes the results of a leader, so that its model does not wait for the way to the writer."""

    def __init__(
        self, topology: Topology, channel: Channel, sink: Sink, watch: StallWatch, in_background: bool = True
    ) -> None:
        self._topology = topology
        self._channel = channel
        self._sink = sink
        self._watch = watch
        self._queue: queue.Queue[Result | LeaderReport] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None
        if not topology.is_main:
            self._thread = _start(self._send_all, "send results", sink)
        elif in_background:
            self._thread = _start(self._write_all, "write results", sink)

    def send(self, result: Result) -> None:
        """Hand over one result; waits while two are under way."""
        if self._thread is None:
            self._sink.accept(result)
            return
        while not self._sink.stopped.is_set():
            if self._put(result):
                return

    def finish(self, report: LeaderReport) -> None:
        """Hand over the last word, and wait until it has arrived."""
        if self._thread is None:
            self._sink.reports[self._topology.rank] = report
            return
        while self._thread.is_alive() and not self._watch.overdue():
            if self._put(report):
                break
        while self._thread.is_alive() and not self._watch.overdue():
            self._thread.join(POLL_S)

    def _put(self, item: Result | LeaderReport) -> bool:
        try:
            self._queue.put(item, timeout=POLL_S)
        except queue.Full:
            return False
        return True

    # -- in the thread --------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        """On rank 0."""
        while isinstance(item := self._queue.get(), Result):
            self._sink.accept(item)
        self._sink.reports[self._topology.rank] = item

    def _send_all(self) -> None:
        """On other leaders."""
        while isinstance(item := self._queue.get(), Result):
            if not self._sink.stopped.is_set():  # else drop what was queued, so that send() never waits for ever
                self._send_result(item)
        if self._topology.writer not in (self._topology.rank, 0):
            self._pass(item, self._topology.writer)
        self._sink.settle()
        item.error = item.error or self._sink.error
        self._pass(item, 0)

    def _send_result(self, result: Result) -> None:
        writer = self._topology.writer
        if writer == 0:
            self._pass(result, 0)
            return
        if writer == self._topology.rank:
            self._sink.accept(result)
        else:
            self._pass(result, writer)
        if not self._sink.stopped.is_set():  # else it was perhaps not written
            self._pass(result.as_written(), 0)

    def _pass(self, item: Result | LeaderReport, rank: int) -> None:
        """To another rank; back when it has been delivered there."""
        answer = self._channel.send(pack(item), rank)
        if answer == STOP:
            self._sink.stopped.set()
        if answer == DRAIN:
            self._watch.stop.set()


class Receiver:
    """A Receiver takes what other leaders send, on rank 0 and writers, until each has said its last word."""

    def __init__(self, topology: Topology, channel: Channel, sink: Sink, watch: StallWatch, peers: PeerWatch) -> None:
        self._channel = channel
        self._sink = sink
        self._watch = watch
        self._peers = peers
        self._awaited = set(topology.receives_from)
        """Leaders that have not said their last word here."""
        self._thread = _start(self._receive_all, "receive results", sink)

    def wait(self) -> None:
        """Until all have said their last word, or need not be waited for: gloo does not tell when one of them dies, and a
        receive from any source goes on waiting for the others."""
        while self._thread.is_alive() and not self._watch.overdue():
            self._thread.join(POLL_S)
            if self._peers.gone and self._awaited <= self._peers.gone:
                return

    def _receive_all(self) -> None:
        while self._awaited:
            source, body = self._channel.receive()
            self._take(source, unpack(body))
            self._channel.answer(source, self._word())

    def _take(self, source: int, item: object) -> None:
        if isinstance(item, Result):
            self._sink.accept(item)
            return
        assert isinstance(item, LeaderReport)
        self._sink.reports[source] = item
        self._awaited.discard(source)
        if item.drained:
            self._watch.stop.set()
        if isinstance(item.error, OutputError):
            self._sink.stopped.set()

    def _word(self) -> int:
        if self._sink.stopped.is_set():
            return STOP
        return DRAIN if self._watch.stop.is_set() else GO_ON


def _start(target: Callable[[], None], name: str, sink: Sink) -> threading.Thread:
    """A thread whose end by an error stops the run."""

    def guarded() -> None:
        try:
            target()
        except RuntimeError as error:  # what gloo raises when the other side has died
            sink.fail(LostPeer(f"The connection that carries results broke, as a rank has died: {error}"))
        except Exception as error:  # nobody else sees what a thread raises
            sink.fail(DglaunchError(f"The thread that is to {name} broke off: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread
