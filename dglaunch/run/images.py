"""The finished images of this rank's replica, for a caller that wants to see them while they are written as usual.

    for finished in dglaunch.images(config):
        finished.row["prompt"], finished.image.size

The run goes on in a thread beside the caller's loop. A short queue lies between them: a caller that takes long makes the
model wait, and memory does not grow.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dglaunch.data.images import open_image
from dglaunch.data.task import Record, Result

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.run.record import Picture

QUEUED = 8
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A FinishedImage is an image that went to its writer, and what its ledger line says of it."""

    row: Record
    image: "Image"


class ImageQueue:
    """An ImageQueue is the way of finished images from the threads of a run to its caller.

    Once `stop` is set nobody waits for the caller any more: what has no room is on the disk only.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._queue: queue.Queue[FinishedImage] = queue.Queue(QUEUED)
        self._stop = stop
        self._ended = threading.Event()

    def put(self, result: Result, picture: "Picture", beat: Callable[[], None]) -> None:
        """Wait for room; `beat` is called meanwhile."""
        assert result.data is not None
        row: Record = {"file_name": result.file_name, **result.record, "bytes": len(result.data)}
        finished = FinishedImage(row, _as_image(picture))
        while True:
            try:
                self._queue.put(finished, timeout=POLL_S)
                return
            except queue.Full:
                beat()
            if self._stop.is_set():
                return

    def is_full(self) -> bool:
        """Whether the run waits for the caller."""
        return self._queue.full()

    def end(self) -> None:
        """No more will come."""
        self._ended.set()

    def __iter__(self) -> Iterator[FinishedImage]:
        while True:
            ended = self._ended.is_set()
            try:
                yield self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if ended:
                    return


def _as_image(picture: "Picture") -> "Image":
    """An API's answer is still the file that came: it is opened, and decoded when it is looked at."""
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture
    return open_image(picture.data)
