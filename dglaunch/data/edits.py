"""Rows of images and instructions to tasks: `prompts.RowReader` with a column of input images.

A bad *table* (no instruction, no column, broken JSON) stops the run before it begins, as for t2i. A bad *image* (missing,
torn, a bomb, too many for the family) is its row's error: the task carries it, and the other rows are made.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dglaunch import strict_json
from dglaunch.config import EditingConfig
from dglaunch.data.columns import IMAGES, Columns, Named
from dglaunch.data.grid import Point
from dglaunch.data.images import BadImage, Cell, InputImage, NeedsPackage, describe, probe, probe_files
from dglaunch.data.photos import Photo, PhotoList
from dglaunch.data.plugins import EXTRA
from dglaunch.data.prompts import RowReader
from dglaunch.data.table_formats import Row
from dglaunch.data.tables import Table
from dglaunch.data.task import Record, Task
from dglaunch.data.values import Check, is_given, too_long_for
from dglaunch.errors import MissingPackage, UserError
from dglaunch.models.checkpoint import Checkpoint

MASK = "mask"
MAX_PATH = 4096
"""Characters; what is longer is no path, and asking the system for it would be an error."""


class PhotoTable(Table):
    """Photographs as a table of one column."""

    def __init__(self, named: Sequence[Path], photos: Sequence[Photo]) -> None:
        super().__init__(named)
        self.photos = photos

    def rows(self) -> Iterator[Row]:
        for photo in self.photos:
            yield f"index {photo.index}", {"index": photo.index, IMAGES: [photo.name]}

    def place(self, number: int) -> tuple[Path, int]:
        return self.named[0], number


def read_edits(
    config: EditingConfig, checkpoint: Checkpoint, columns: Columns | None = None, photos: bytes | None = None
) -> list[Task]:
    """Return all tasks of an editing run; those whose images the checkpoint's family cannot use carry an error.

    Args:
        columns: what the table's columns are; afterwards they say what was found of them.
        photos: a PhotoList, where --input is images and no table.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    table = Table(config.tables) if photos is None else PhotoTable(config.tables, PhotoList.loads(photos).photos)
    reader = EditReader(config, checkpoint, table, columns if columns is not None else Columns(config))
    return reader.with_images(reader.read(table.rows()))


class EditReader(RowReader):
    """Rows with images. The files are looked at after the table is read, each once, several at a time."""

    text_column = "instruction"

    def __init__(self, config: EditingConfig, checkpoint: Checkpoint, table: Table, columns: Columns) -> None:
        self.instruction = config.instruction
        self.is_instruction_used = False
        self.stems: Mapping[int, str] | None = None
        """How results are called, by index, where there is no table."""
        if isinstance(table, PhotoTable):
            self.stems = {photo.index: photo.stem for photo in table.photos}
        assert checkpoint.family.edit is not None
        self.rules = checkpoint.family.edit
        self.checkpoint = checkpoint
        if self.rules.takes_mask:
            columns.names = (*columns.names, MASK)
        super().__init__(config, str(table), checkpoint.family.size_multiple, columns, checkpoint.loras)
        self.table = table
        self.output_format = config.output_format
        self.max_pixels = config.max_pixels
        self.references: dict[int, list[tuple[str, Path | Cell]]] = {}
        """By index: the images of a row, by name and place."""
        self.masks: dict[int, tuple[str, Path | Cell]] = {}
        """By index: the mask of a row, where the API takes one."""
        self.files: dict[Path, str] = {}
        self.found: dict[Path | Cell, InputImage | BadImage] = {}

    def own_checks(self) -> dict[str, Check]:
        return checks_of_edits(self.checkpoint)

    def read(self, rows: Iterable[Row]) -> list[Task]:
        tasks = super().read(rows)
        self._refuse_idle_instruction()
        return tasks

    def _refuse_idle_instruction(self) -> None:
        if self.instruction is not None and not self.is_instruction_used:
            raise UserError(
                f"--instruction does nothing: each row of {self.source} has an instruction of its own, in the column "
                f"{self.text_column}. Drop it, or take that column out."
            )

    def _prompt(self, label: str, named: Named, point: Point) -> str:
        if self.instruction is None or self.template is not None or is_given(named.given.get(self.text_column)):
            return super()._prompt(label, named, point)
        self.is_instruction_used = True
        return self.instruction

    def _output_name(self, label: str, row: Record) -> str | None:
        index = row.get("index")
        return (
            self.stems[index] if self.stems is not None and isinstance(index, int) else super()._output_name(label, row)
        )

    # -- a row's cell -------------------------------------------------------------------------------------------------

    def take_references(self, label: str, named: Named, number: int, indices: Sequence[int]) -> str:
        cell = named.given.pop(IMAGES, None)
        if not is_given(cell):
            self.problems.append(f"{label}: {self.columns.missing(IMAGES, named)}")
            return ""
        column = named.called(IMAGES)
        try:
            found = self._references(cell, number, column)
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")
        else:
            self.references |= dict.fromkeys(indices, found)
        if is_given(mask := named.given.pop(MASK, None)) and mask != "":
            self._take_mask(label, mask, number, named.called(MASK), indices)
        return f"{self.source}, {label}"

    def _take_mask(self, label: str, mask: object, number: int, column: str, indices: Sequence[int]) -> None:
        file, row = self.table.place(number)
        try:
            self.masks |= dict.fromkeys(indices, self._reference(mask, file, Cell(file, column, row, 0)))
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")

    def _references(self, cell: object, number: int, column: str) -> list[tuple[str, Path | Cell]]:
        """The images that a cell names.

        Raises:
            ValueError: it is neither a path, a list of paths nor bytes.
        """
        file, row = self.table.place(number)
        items: list[object] = [cell]
        if isinstance(cell, str):
            items = self._split(cell, file)
        elif isinstance(cell, list):
            items = cell
        return [self._reference(item, file, Cell(file, column, row, n)) for n, item in enumerate(items)]

    def _split(self, text: str, table: Path) -> list[object]:
        """One path, a JSON list or a comma list; a file of that very name wins."""
        if self._is_file(table, text):
            return [text]
        if text.lstrip().startswith("["):
            try:
                listed = strict_json.loads(text, allow_nan=False)
            except ValueError as error:
                raise ValueError(f"is no valid JSON list: {error}") from None
            assert isinstance(listed, list), "it begins with a bracket"
            return listed
        return [part.strip() for part in text.split(",")]

    def _is_file(self, table: Path, text: str) -> bool:
        return len(text) < MAX_PATH and "\0" not in text and self.table.file_of(table, text).is_file()

    def _reference(self, item: object, table: Path, cell: Cell) -> tuple[str, Path | Cell]:
        """The name and the place of one image of a cell: a file, or bytes in the table."""
        path, data = item, item
        if isinstance(item, dict):
            path, data = item.get("path"), item.get("bytes")
        if isinstance(data, bytes):
            name = path if isinstance(path, str) and path else f"{cell.column}[{cell.position}]"
            try:
                self.found[cell] = probe(name, cell, data, self.max_pixels)
            except BadImage as error:
                self.found[cell] = error
            return name, cell
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"has {path!r} where a path is needed")
        file, name = self.table.file_of(table, path), self.table.name_of(table, path)
        self.files.setdefault(file, name)
        return name, file

    # -- the images ---------------------------------------------------------------------------------------------------

    def with_images(self, tasks: list[Task]) -> list[Task]:
        """The tasks with what is known of their images: sha256, size, the output size that follows, or an error.

        Raises:
            MissingPackage: the package of an image's format is not installed.
        """
        for path, image in probe_files(self.files, self.max_pixels).items():
            self.found[path] = image
        self._refuse_unknown_formats()
        for task in tasks:
            references = self.references[task.index]
            found = [(name, self.found[source]) for name, source in references]
            task.images = tuple(image for _, image in found if isinstance(image, InputImage))
            error = self._error(found) or self._add_mask(task)
            if error is not None:
                task.error = f"{task.row}: {error}"
                task.unusable = tuple(name for name, _ in references)
                continue
            shapes = self.rules.input_shapes([image.shape for image in task.images], self.checkpoint.defaults)
            task.input_tokens = sum(self.checkpoint.image_tokens(shape) for shape in shapes)
            if self.rules.output_shape is not None:
                output = self.rules.output_shape(task.images[0].shape, self.checkpoint.defaults)
                task.width = output.width if task.width is None else task.width
                task.height = output.height if task.height is None else task.height
        return tasks

    def _add_mask(self, task: Task) -> str | None:
        """Give a task its row's mask; why it cannot be used, if so."""
        if task.index in self.masks:
            name, source = self.masks[task.index]
            mask = self.found[source]
            if isinstance(mask, BadImage):
                return f"mask {name} {mask}"
            task.mask = mask
        return None

    def _refuse_unknown_formats(self) -> None:
        """One error for all: without its package none of a format's images can be read."""
        needed = [image.plugin for image in self.found.values() if isinstance(image, NeedsPackage)]
        if needed:
            plugin, count = Counter(needed).most_common(1)[0]
            images = f"{count:,} {plugin.name} image{'s' * (count != 1)}"
            raise MissingPackage(plugin.package, f"Reading {images} of {self.source}", EXTRA)

    def _error(self, found: list[tuple[str, InputImage | BadImage]]) -> str | None:
        """Why these images cannot be edited by this family."""
        count = len(found)
        most = self.rules.max_images
        if (count != 1 and not (count and self.rules.multi_image)) or (most is not None and count > most):
            several = "one or more" if most is None else f"1 to {most}"
            wanted = several if self.rules.multi_image else "exactly one"
            return f"{count} input images, but {self.rules.name} ({self.checkpoint.pipeline_class}) takes {wanted}"
        bad = [(name, image) for name, image in found if isinstance(image, BadImage)]
        if bad:
            return describe(bad)
        problems = (self._size_problem(image) for _, image in found if isinstance(image, InputImage))
        return next((problem for problem in problems if problem), None)

    def _size_problem(self, image: InputImage) -> str | None:
        shape, pipeline = image.shape, self.checkpoint.pipeline_class
        shown = f"input image {image.name} is {shape.width}x{shape.height}"
        rules = (self.rules.input_shape, self.rules.output_shape or self.rules.input_shape)
        results = [rule(shape, self.checkpoint.defaults) for rule in rules]
        least = min(shape.height, shape.width)
        if least < self.rules.min_side or any(not result.height or not result.width for result in results):
            return f"{shown}, too small for {pipeline}"
        longest = max(results[-1].height, results[-1].width)
        if problem := too_long_for(self.output_format, longest):
            return f"{shown}, and so is the result {longest} pixels long; {problem}"
        if max(shape.ratio, 1 / shape.ratio) > self.rules.max_aspect:
            return f"{shown}; {pipeline} takes at most {self.rules.max_aspect:g}:1"
        return None


def checks_of_edits(checkpoint: Checkpoint) -> dict[str, Check]:
    """Return what looks at values of a row in another way than for text to image: a pipeline that takes no size refuses it."""
    if checkpoint.family.edit is None or checkpoint.family.edit.sets_size:
        return {}

    def refuse(_value: object) -> object:
        raise ValueError(f"cannot be set: {checkpoint.pipeline_class} chooses the size itself; leave it out")

    return dict.fromkeys(("width", "height"), refuse)


def saved_names(task: Task) -> Mapping[str, InputImage]:
    """Where --save_inputs puts a task's images in the output folder: names made of numbers, whatever theirs are."""
    return {f"inputs/{task.index:06d}_{n}{image.suffix}": image for n, image in enumerate(task.images)}
