"""Decodes the input images of the coming batch while the present one is computed."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.data.task import Batch, Task
from dglaunch.data.images import BadImage, InputImage, _decoded, describe


class InputPrefetcher:
    """Decodes the input images of one batch after the other, each distinct image once; those that the next batch has
    too are kept for it.

    `batches` are those that load() will be asked for, perhaps in parts: while one is computed, the images of the next
    are decoded in the background.
    """

    def __init__(self, batches: Iterable["Batch"] = ()) -> None:
        self._images: dict[str, Image | BadImage] = {}
        self._ahead: dict[str, Future[Image | BadImage]] = {}
        self._next = {batch.tasks[-1].id: following.tasks for batch, following in pairwise(batches)}
        self._decoder = ThreadPoolExecutor(1)

    def load(self, tasks: Sequence["Task"]) -> dict[int, str]:
        """Decode what these tasks need; the errors by their positions."""
        wanted = _distinct(tasks)
        self._images = {sha256: self._decoded(image) for sha256, image in wanted.items()}
        coming = _distinct(self._next.get(tasks[-1].id, ()))
        for sha256 in coming.keys() - self._images.keys() - self._ahead.keys():
            self._ahead[sha256] = self._decoder.submit(_decoded, coming[sha256])
        errors: dict[int, str] = {}
        for position, task in enumerate(tasks):
            bad = [(image.name, e) for image in task.images if isinstance(e := self._images[image.sha256], BadImage)]
            if bad:
                errors[position] = f"{task.row}: {describe(bad)}"
        return errors

    def _decoded(self, image: InputImage) -> "Image | BadImage":
        ahead = self._ahead.pop(image.sha256, None)
        known = self._images.get(image.sha256)
        return known or (ahead.result() if ahead is not None else _decoded(image))

    def images(self, task: "Task") -> list["Image"]:
        """The decoded images of a task that had no error."""
        return [self._images[image.sha256] for image in task.images]  # type: ignore[misc]


def _distinct(tasks: Iterable["Task"]) -> dict[str, InputImage]:
    return {image.sha256: image for task in tasks for image in task.images}
