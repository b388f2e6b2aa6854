"""Images to files' bytes in threads of their own, while the model goes on."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from dglaunch.backends.base import Context, ItemError, Slot, arrived
from dglaunch.data.task import Batch, Task
from dglaunch.run.collect import Sender
from dglaunch.run.images import ImageQueue
from dglaunch.run.record import Recorder
from dglaunch.run.watchdog import StallWatch

MOST_ENCODERS = 4
POLL_S = 1.0


class Encoder:
    """An Encoder makes results of what a backend gave for a batch and hands them to the sender; on leaders.

    `in_background=False` encodes in the calling thread: where several threads wait for an API, or with --debug. `finished`
    also gets the images, for a caller that wants to see them.
    """

    def __init__(
        self,
        context: Context,
        recorder: Recorder,
        sender: Sender,
        watch: StallWatch,
        in_background: bool = True,
        finished: ImageQueue | None = None,
    ) -> None:
        self.recorder = recorder
        self._context = context
        self._sender = sender
        self._watch = watch
        self._finished = finished
        self._under_way: deque[Future[None]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        if in_background:
            count = min(MOST_ENCODERS, context.num_cores)
            self._threads = ThreadPoolExecutor(count, initializer=self._use_gpu)

    def _use_gpu(self) -> None:
        """A thread begins on GPU 0, and waiting for another's event there would make a context on it for every rank."""
        if self._context.device == "cuda":
            import torch

            torch.cuda.set_device(self._context.topology.local_rank)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._watch.doing("encoding and handing over the last images"):
            while self._under_way:
                self._wait_for_first()
                self._watch.beat()
        if self._threads is not None:
            self._threads.shutdown()

    def deliver(self, batch: Batch, slots: Sequence[Slot], seconds: float) -> bool:
        """Encode and send; whether every task had something in its slot (else the run was stopped first)."""
        whole = True
        for task, slot in zip(batch.tasks, slots, strict=True):
            if slot is None:
                whole = False
            elif self._threads is None:
                self._encode_and_send(task, slot, len(batch), seconds)
            else:
                # As many under way as one batch of images and the encoders: the model waits rather than memory grows.
                while len(self._under_way) >= 2 * len(batch) + 4:
                    self._wait_for_first()
                self._under_way.append(self._threads.submit(self._encode_and_send, task, slot, len(batch), seconds))
        return whole

    def _wait_for_first(self) -> None:
        first = self._under_way.popleft()
        while self._finished is not None and not wait([first], timeout=POLL_S).done:
            if self._finished.is_full():
                self._watch.beat()  # a caller who takes long over an image is no stall
        first.result()

    def _encode_and_send(self, task: Task, slot: Slot, batch_size: int, seconds: float) -> None:
        image = arrived(slot)
        assert image is not None
        if isinstance(image, ItemError):
            self._sender.send(self.recorder.failure(task, image, batch_size, seconds))
            return
        try:
            result = self.recorder.image(task, image, batch_size, seconds)
        except Exception as error:  # of one image: whatever its encoder raises concerns it alone
            failed = ItemError(f"the image could not be encoded: {type(error).__name__}: {error}")
            self._sender.send(self.recorder.failure(task, failed, batch_size, seconds))
            return
        self._sender.send(result)
        if self._finished is not None:
            self._finished.put(result, image, self._watch.beat)
