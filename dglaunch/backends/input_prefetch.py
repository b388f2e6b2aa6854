"""Decodes the input images of the coming batch while the present one is computed.

inputs = InputPrefetcher(batches)
items = inputs.readable(batch, channel)            # without the items whose images turn out bad
images = [inputs.images(task) for task in items.batch.tasks]
return items.with_errors(slots)                    # a slot for each task of `batch`
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from dglaunch.backends.base import ItemError, Slot
from dglaunch.data import images
from dglaunch.data.images import BadImage, InputImage, describe
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class ReadableItems:
    """The items of a batch whose input images could be read, and why those of the others could not."""

    batch: Batch
    errors: Mapping[int, str]
    """By the position in the whole batch."""

    def with_errors(self, slots: Sequence[Slot] | None) -> Sequence[Slot] | None:
        """Put the errors between the slots of the readable items, each where its task stands in the whole batch."""
        if slots is None or not self.errors:
            return slots
        remaining = iter(slots)
        count = len(slots) + len(self.errors)
        return [ItemError(self.errors[n]) if n in self.errors else next(remaining) for n in range(count)]


class InputPrefetcher:
    """An input prefetcher decodes the input images of one batch after the other, each distinct image once; those that
    the next batch has too are kept for it.

    `batches` are those that it will be asked for, perhaps in parts: while one is computed, the images of the next are
    decoded in the background.
    """

    def __init__(self, batches: Iterable[Batch] = ()) -> None:
        self._images: dict[str, Image | BadImage] = {}
        self._ahead: dict[str, Future[Image | BadImage]] = {}
        self._next = {batch.tasks[-1].id: following.tasks for batch, following in pairwise(batches)}
        self._decoder = ThreadPoolExecutor(1)

    def readable(self, batch: Batch, channel: Channel) -> ReadableItems:
        """Decode a batch's images and put the items apart whose images turn out bad. The ranks of a replica leave out
        the same items, even if only one of them could not read a file."""
        found: list[dict[int, str]] = channel.all_of_replica(self.load(batch.tasks))
        errors = {position: message for one_rank in found for position, message in one_rank.items()}
        if not errors:
            return ReadableItems(batch, {})
        kept = tuple(task for position, task in enumerate(batch.tasks) if position not in errors)
        return ReadableItems(Batch(kept), errors)

    def load(self, tasks: Sequence[Task]) -> dict[int, str]:
        """Decode what these tasks need, and return the errors by the tasks' positions."""
        wanted = _distinct(tasks)
        self._images = {sha256: self._find(image) for sha256, image in wanted.items()}
        coming = _distinct(self._next.get(tasks[-1].id, ()))
        for sha256 in coming.keys() - self._images.keys() - self._ahead.keys():
            self._ahead[sha256] = self._decoder.submit(_decode, coming[sha256])
        errors: dict[int, str] = {}
        for position, task in enumerate(tasks):
            bad = [(image.name, e) for image in task.images if isinstance(e := self._images[image.sha256], BadImage)]
            if bad:
                errors[position] = f"{task.row}: {describe(bad)}"
        return errors

    def images(self, task: Task) -> "list[Image]":
        """The decoded images of a task that had no error."""
        decoded = [self._images[image.sha256] for image in task.images]
        return [image for image in decoded if not isinstance(image, BadImage)]

    def _find(self, image: InputImage) -> "Image | BadImage":
        """Return an image that was decoded before or in the background; else decode it now."""
        ahead = self._ahead.pop(image.sha256, None)
        if (known := self._images.get(image.sha256)) is not None:
            return known
        return ahead.result() if ahead is not None else _decode(image)


def _decode(image: InputImage) -> "Image | BadImage":
    try:
        return images.decode(image.read(), image.shape.area)
    except BadImage as error:
        return error


def _distinct(tasks: Iterable[Task]) -> dict[str, InputImage]:
    return {image.sha256: image for task in tasks for image in task.images}
