"""Decodes the input images of the coming batch while the present one is computed.

inputs = InputPrefetcher(batches)
items = inputs.readable(batch, channel)            # without the items whose images turn out bad
images = [inputs.images(task) for task in items.batch.tasks]
return items.with_errors(slots)                    # a slot for each task of `batch`
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dglaunch.backends.base import ItemError, Slot
from dglaunch.data import images, masks
from dglaunch.data.images import BadImage, InputImage, describe
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.models.input_roles import Role
from dglaunch.models.shape import Shape

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


class _Key(NamedTuple):
    """What an image is decoded to."""

    sha256: str
    shape: Shape | None
    """The size to which it is brought; None: its own."""
    is_mask: bool


class InputPrefetcher:
    """An input prefetcher decodes the input images of one batch after the other, each distinct image once; those that
    the next batch has too are kept for it.

    `batches` are those that it will be asked for in this order, perhaps in parts, and perhaps with others between them: while
    one is computed, the images of the next are decoded in the background.
    """

    def __init__(self, batches: Sequence[Batch] = ()) -> None:
        self._images: dict[_Key, Image | BadImage] = {}
        self._ahead: dict[_Key, Future[Image | BadImage]] = {}
        self._batches = batches
        self._number = 0
        """Of the last batch that it was asked for. Its tasks are made for it: of millions, none is made long before its turn."""
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
        self._images = {key: self._find(key, image) for key, image in wanted.items()}
        coming = _distinct(self._after(tasks[-1]))
        for key in coming.keys() - self._images.keys() - self._ahead.keys():
            self._ahead[key] = self._decoder.submit(_decode, key, coming[key])
        errors: dict[int, str] = {}
        for position, task in enumerate(tasks):
            read = [(image.name, self._images[key]) for key, image in _needed(task)]
            bad = [(name, error) for name, error in read if isinstance(error, BadImage)]
            if bad:
                errors[position] = f"{task.row}: {describe(bad)}"
        return errors

    def _after(self, last: Task) -> Sequence[Task]:
        """The tasks of the batch after that which ends with a task."""
        for number in range(self._number, min(self._number + 2, len(self._batches) - 1)):
            if self._batches[number].tasks[-1].id == last.id:
                self._number = number
                return self._batches[number + 1].tasks
        return ()

    def images(self, task: Task) -> "list[Image]":
        """The decoded images that a task which had no error starts from."""
        decoded = [self._images[_key(task, "image", image)] for image in task.images]
        return [image for image in decoded if not isinstance(image, BadImage)]

    def picture(self, task: Task, role: Role) -> "Image":
        """One of the input images of a task that has roles for them and had no error: of text to image at the size that is drawn, a
        mask in black and white."""
        image = {"image": next(iter(task.images), None), "mask": task.mask, "control": task.control}[role]
        assert image is not None, f"the task has no {role}"
        found = self._images[_key(task, role, image)]
        assert not isinstance(found, BadImage)
        return found

    def _find(self, key: _Key, image: InputImage) -> "Image | BadImage":
        """Return an image that was decoded before or in the background; else decode it now."""
        ahead = self._ahead.pop(key, None)
        if (known := self._images.get(key)) is not None:
            return known
        return ahead.result() if ahead is not None else _decode(key, image)


def _decode(key: _Key, image: InputImage) -> "Image | BadImage":
    try:
        decoded = images.decode(image.read(), image.shape.area)
    except BadImage as error:
        return error
    if key.shape is None:
        return masks.black_and_white(decoded) if key.is_mask else decoded
    return masks.as_mask(decoded, key.shape) if key.is_mask else images.fitted(decoded, key.shape)


def _key(task: Task, role: Role, image: InputImage) -> _Key:
    shape = Shape(task.height, task.width) if task.is_fitted and task.height and task.width else None
    return _Key(image.sha256, shape, role == "mask")


def _needed(task: Task) -> list[tuple[_Key, InputImage]]:
    """The images that must be decoded for a task: an API gets the file of an edit's mask as it is."""
    roles: list[tuple[Role, InputImage]] = [("image", image) for image in task.images]
    if task.roles:
        others: list[tuple[Role, InputImage | None]] = [("mask", task.mask), ("control", task.control)]
        roles += [(role, image) for role, image in others if image is not None]
    return [(_key(task, role, image), image) for role, image in roles]


def _distinct(tasks: Iterable[Task]) -> dict[_Key, InputImage]:
    return {key: image for task in tasks for key, image in _needed(task)}
