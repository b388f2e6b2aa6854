"""The input images of a large table's tasks, in columns: which they are, and what is known of each.

A task's columns have the numbers of its images (`image`, `mask`, `control`), and what follows from them. What is known of an
image (its hash, its size, where it lies) stands once in a second file, which the ranks of a node map, too.

Texts are bytes here: the name of a file may be none that UTF-8 can say.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dglaunch.addresses import Address, path_or_address
from dglaunch.data.images import Cell, InputImage
from dglaunch.data.many_numbers import Numbers
from dglaunch.data.row_images import Inputs, Reference
from dglaunch.data.task import Task
from dglaunch.models.input_roles import ROLES, Role
from dglaunch.models.shape import Shape

AS_IN_TASK: Mapping[str, pa.DataType] = {
    "row": pa.binary(),
    "strength": pa.float64(),
    "control_scale": pa.float64(),
    "roles": pa.list_(pa.string()),
    "is_fitted": pa.bool_(),
    "input_tokens": pa.int32(),
    "error": pa.binary(),
    "unusable": pa.list_(pa.binary()),
}
"""What a task has because of its input images; nothing there where it is as in a task without any."""
SHAPES = "shapes"
NUMBERS = pa.list_(pa.int32())
FIELDS: Mapping[str, pa.DataType] = {**AS_IN_TASK, SHAPES: pa.int32(), **dict.fromkeys(ROLES, NUMBERS)}
"""shapes: a number for the shapes of all its images: equal where they are."""
FOLLOWING = ("width", "height", *(name for name in FIELDS if name != "row"))
"""The columns that are known once the images have been looked at."""
DECIDING = (*ROLES, "width", "height", "num_inference_steps", "strength", "control_scale")
"""The columns that decide what those are."""
IMAGE = pa.schema({
    "name": pa.binary(), "path": pa.binary(), "column": pa.binary(), "cell_row": pa.int64(), "position": pa.int32(),
    "sha256": pa.binary(32), "height": pa.int32(), "width": pa.int32(), "suffix": pa.string(), "converted": pa.string(),
})  # fmt: skip
"""Of an image that is bytes in a table: column, cell_row and position say where it stands in the file `path`."""
WRITTEN_AT_ONCE = 1 << 14
"""Images of a record batch."""


def raw(text: str | None) -> bytes | None:
    """Return a text as a column has it."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def plain(text: bytes | None) -> str | None:
    """Return the text that a column has."""
    return None if text is None else text.decode("utf-8", "surrogatepass")


def packed(task: Task, name: str) -> object:
    """Return what a column of AS_IN_TASK has of a task."""
    if name == "unusable":
        return [raw(each) for each in task.unusable] or None
    if name == "roles":
        return [*task.roles] or None
    value = getattr(task, name)
    return raw(value) if isinstance(value, str) else value


def alike(rows: pa.RecordBatch) -> tuple[list[int], list[int]]:
    """Return for each row a number, equal where the images and the settings that go with them are, and the first row of each."""
    columns = [
        [tuple(value) if isinstance(value, list) else value for value in rows.column(name).to_pylist()]
        for name in DECIDING
        if name in rows.schema.names
    ]
    numbers: dict[tuple[object, ...], int] = {}
    which = [numbers.setdefault(row, len(numbers)) for row in zip(*columns)]
    firsts = dict(zip(reversed(which), range(len(which) - 1, -1, -1)))
    return which, [firsts[number] for number in range(len(numbers))]


class ImageNumbers:
    """The images that rows name, numbered in the order in which they are named first."""

    def __init__(self) -> None:
        self._number_of: dict[Reference, int] = {}
        self._all: list[Reference] = []

    def of(self, references: Iterable[Reference]) -> list[int]:
        """Return the number of each of these images."""
        found = []
        for reference in references:
            number = self._number_of.setdefault(reference, len(self._all))
            if number == len(self._all):
                self._all.append(reference)
            found.append(number)
        return found

    def columns_of(self, inputs: Sequence[Inputs]) -> dict[str, list[object]]:
        """Return the columns of numbers of rows with such images."""
        return {role: [self.of(each[role]) if role in each else None for each in inputs] for role in ROLES}

    def inputs_of(self, rows: pa.RecordBatch) -> list[Inputs]:
        """Return the images of rows by such columns of them."""
        found: list[Inputs] = [{} for _ in range(rows.num_rows)]
        for role in ROLES:
            for inputs, numbers in zip(found, rows.column(role).to_pylist()):
                if numbers is not None:
                    inputs[role] = [self._all[number] for number in numbers]
        return found


class ImageFile:
    """A file of what is known of images, each of which stands there once."""

    def __init__(self, path: str) -> None:
        self._file = pa.OSFile(path, "wb")
        self._writer = pa.ipc.new_file(self._file, IMAGE)
        self._number_of: dict[InputImage, int] = {}
        self._shapes: dict[tuple[object, ...], int] = {}
        self._waiting: list[InputImage] = []
        self._num_written = 0

    def columns_of(self, tasks: Sequence[Task]) -> dict[str, list[object]]:
        """Return the columns that say which images tasks have, and note these."""
        found: dict[str, list[object]] = {role: [] for role in ROLES} | {SHAPES: []}
        for task in tasks:
            held = images_of(task)
            for role in ROLES:
                found[role].append([self._number(image) for image in held[role]] or None)
            shapes = tuple(tuple(image.shape for image in held[role]) for role in ROLES)
            found[SHAPES].append(self._shapes.setdefault(shapes, len(self._shapes)) if any(shapes) else None)
        return found

    def _number(self, image: InputImage) -> int:
        number = self._number_of.setdefault(image, len(self._number_of))
        if number == self._num_written + len(self._waiting):
            self._waiting.append(image)
            if len(self._waiting) == WRITTEN_AT_ONCE:
                self._write()
        return number

    def _write(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist([*map(_as_row, self._waiting)], schema=IMAGE))
        self._num_written += len(self._waiting)
        self._waiting = []

    def close(self) -> None:
        """Write what is left and finish the file.

        Raises:
            OSError: the disk is full.
        """
        if self._waiting:
            self._write()
        self._writer.close()
        self._file.close()


class ImageTable:
    """What is known of images, as an ImageFile has written it: an InputImage is made when somebody asks for it."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.batches = batches

    @classmethod
    def open(cls, path: str) -> Self:
        """Map a file."""
        file = pa.ipc.open_file(pa.memory_map(path))
        return cls([file.get_batch(number) for number in range(file.num_record_batches)])

    def of(self, numbers: Collection[int]) -> dict[int, InputImage]:
        """Return the images of these numbers."""
        by_batch: dict[int, list[int]] = {}
        for number in numbers:
            by_batch.setdefault(number // WRITTEN_AT_ONCE, []).append(number)
        found: dict[int, InputImage] = {}
        for at, some in by_batch.items():
            rows = self.batches[at].take(pa.array([number % WRITTEN_AT_ONCE for number in some]))
            found.update(zip(some, map(_as_image, rows.to_pylist())))
        return found

    def files(self) -> Iterator[Path]:
        """Yield the files that are images."""
        for batch in self.batches:
            for path in batch.filter(pc.is_null(batch.column("column"))).column("path").to_pylist():
                yield path_or_address(str(plain(path)))

    def digests(self) -> Numbers:
        """Return a number for each image that follows from its content."""
        data = b"".join(value for batch in self.batches for value in batch.column("sha256").to_pylist())
        digests: Numbers = np.frombuffer(data, np.int64)[::4]
        return digests


def images_of(task: Task) -> dict[Role, tuple[InputImage, ...]]:
    """Return the input images of a task, by what they are for."""
    mask, control = (() if image is None else (image,) for image in (task.mask, task.control))
    return {"image": task.images, "mask": mask, "control": control}


def _as_row(image: InputImage) -> dict[str, object]:
    source = image.source
    place = source.table if isinstance(source, Cell) else source
    row: dict[str, object] = {
        "name": raw(image.name), "path": raw(place.full if isinstance(place, Address) else str(place)),
        "sha256": bytes.fromhex(image.sha256), "height": image.shape.height, "width": image.shape.width,
        "suffix": image.suffix, "converted": image.converted,
    }  # fmt: skip
    if isinstance(source, Cell):
        row |= {"column": raw(source.column), "cell_row": source.row, "position": source.position}
    return row


def _as_image(row: Mapping[str, Any]) -> InputImage:
    path, column = path_or_address(str(plain(row["path"]))), plain(row["column"])
    return InputImage(
        name=str(plain(row["name"])),
        source=path if column is None else Cell(path, column, row["cell_row"], row["position"]),
        sha256=row["sha256"].hex(),
        shape=Shape(row["height"], row["width"]),
        suffix=row["suffix"],
        converted=row["converted"],
    )


def inputs_of_tasks(columns: Mapping[str, Sequence[Any]], images: ImageTable | None) -> list[dict[str, Any]]:
    """Return what each task of a batch has because of its input images.

    Args:
        columns: the batch's, as lists.
        images: what the numbers in them stand for; None: that is not known yet.
    """
    numbers = {role: columns[role] if images is not None else [None] * len(columns[role]) for role in ROLES}
    made = images.of({*chain.from_iterable(some or () for role in ROLES for some in numbers[role])}) if images else {}
    held = {role: [tuple(made[number] for number in some or ()) for some in numbers[role]] for role in ROLES}
    return [
        {
            "row": plain(row) or "", "strength": strength, "control_scale": scale, "roles": tuple(roles or ()), "is_fitted": bool(is_fitted),
            "input_tokens": tokens or 0, "error": plain(error), "unusable": tuple(str(plain(each)) for each in unusable or ()),
            "images": found, "mask": next(iter(mask), None), "control": next(iter(control), None),
        }
        for row, strength, scale, roles, is_fitted, tokens, error, unusable, found, mask, control in zip(
            *(columns[name] for name in AS_IN_TASK), *(held[role] for role in ROLES)
        )
    ]  # fmt: skip


def digests_of_inputs(columns: Iterable[pa.ChunkedArray], images: ImageTable) -> Numbers:
    """Return a number for each task that follows from its input images.

    Args:
        columns: the tasks' numbers of images.
    """
    digests = images.digests()
    found: Numbers | None = None
    for column in columns:
        held = np.concatenate([digests[chunk.flatten().to_numpy()] for chunk in column.chunks])
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        sums = np.concatenate([[0], np.cumsum(held)])[np.concatenate([[0], ends])]
        each = np.diff(sums)
        found = each if found is None else found * 31 + each
    assert found is not None
    return found
