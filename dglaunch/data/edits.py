"""Rows of images and instructions to tasks: `prompts.RowReader` with a column of input images.

A bad *table* (no instruction, no column, broken JSON) stops the run before it begins, as for t2i. A bad *image* (missing,
torn, a bomb, too many for the family) is its row's error: the task carries it, and the other rows are made.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from dglaunch import strict_json
from dglaunch.config import EditingConfig
from dglaunch.data.images import BadImage, Cell, InputImage, describe, probe, probe_files
from dglaunch.data.prompts import RowReader
from dglaunch.data.tables import Row, base_of, files_of, path_in, read_table
from dglaunch.data.task import Record, Task
from dglaunch.data.values import is_given, missing, too_long_for
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint

COLUMN, MASK = "input_images", "mask"
MAX_PATH = 4096
"""Characters; what is longer is no path, and asking the system for it would be an error."""


def read_edits(config: EditingConfig, checkpoint: Checkpoint) -> list[Task]:
    """Return all tasks of an editing run; those whose images the checkpoint's family cannot use carry an error.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    assert config.input is not None
    reader = EditReader(config, checkpoint)
    return reader.with_images(reader.read(read_table(config.input)))


def parse_ranges(text: str) -> list[range]:
    """`0:100,250` as ranges of indices; a side of the colon may be left out.

    Raises:
        UserError: it is something else.
    """
    ranges = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split(":")]
        if len(ends) > 2 or not all(end.isdecimal() or (not end and len(ends) == 2) for end in ends):
            raise UserError(f"--filter_rows {text}: {part.strip()!r} is no index (250) and no range of them (0:100).")
        start = int(ends[0] or 0)
        ranges.append(range(start, start + 1) if len(ends) == 1 else range(start, int(ends[1] or 2**62)))
    return ranges


class EditReader(RowReader):
    """Rows with images. The files are looked at after the table is read, each once, several at a time."""

    def __init__(self, config: EditingConfig, checkpoint: Checkpoint) -> None:
        super().__init__(config, str(config.input), checkpoint.family.size_multiple, config.instruction_key)
        assert checkpoint.family.edit is not None
        self.rules = checkpoint.family.edit
        self.checkpoint = checkpoint
        self.output_format = config.output_format
        self.max_pixels = config.max_pixels
        self.filter_rows = config.filter_rows
        self.ranges = parse_ranges(config.filter_rows) if config.filter_rows is not None else None
        self.references: dict[int, list[tuple[str, Path | Cell]]] = {}
        """By index: the images of a row, by name and place."""
        self.masks: dict[int, tuple[str, Path | Cell]] = {}
        """By index: the mask of a row, where the API takes one."""
        self.files: dict[Path, str] = {}
        self.found: dict[Path | Cell, InputImage | BadImage] = {}
        if not self.rules.sets_size:
            self.checks |= {"width": self._no_size, "height": self._no_size}
            self.defaults = self._flag_values()

    def _no_size(self, _value: object) -> object:
        raise ValueError(f"cannot be set: {self.checkpoint.pipeline_class} chooses the size itself; leave it out")

    def wants(self, index: int) -> bool:
        return self.ranges is None or any(index in part for part in self.ranges)

    def read(self, rows: Iterable[Row]) -> list[Task]:
        try:
            return super().read(rows)
        except UserError:
            if self.ranges is None or self.problems or not self.lines:
                raise
        raise UserError(
            f"--filter_rows {self.filter_rows} leaves none of the {len(self.lines):,} rows of {self.source}, "
            f"whose indices are {min(self.lines)} to {max(self.lines)}."
        )

    # -- a row's cell -------------------------------------------------------------------------------------------------

    def take_references(self, label: str, row: Record, number: int, index: int) -> str:
        cell = row.pop(COLUMN, None)
        if cell is None:
            self.problems.append(f"{label}: {missing(COLUMN, row)}")
            return ""
        try:
            self.references[index] = self._references(cell, number)
        except ValueError as error:
            self.problems.append(f"{label}: {COLUMN} {error}")
        if self.rules.takes_mask and is_given(mask := row.pop(MASK, None)) and mask != "":
            self._take_mask(label, mask, number, index)
        return f"{self.source}, {label}"

    def _take_mask(self, label: str, cell: object, number: int, index: int) -> None:
        try:
            self.masks[index] = self._reference(cell, number, 0, MASK)
        except ValueError as error:
            self.problems.append(f"{label}: {MASK} {error}")

    def _references(self, cell: object, number: int) -> list[tuple[str, Path | Cell]]:
        """The images that a cell names.

        Raises:
            ValueError: it is neither a path, a list of paths nor bytes.
        """
        items: list[object] = [cell]
        if isinstance(cell, str):
            items = self._split(cell)
        elif isinstance(cell, list):
            items = cell
        return [self._reference(item, number, position) for position, item in enumerate(items)]

    def _split(self, text: str) -> list[object]:
        """One path, a JSON list or a comma list; a file of that very name wins."""
        if self._is_file(text):
            return [text]
        if text.lstrip().startswith("["):
            try:
                listed = strict_json.loads(text, allow_nan=False)
            except ValueError as error:
                raise ValueError(f"is no valid JSON list: {error}") from None
            assert isinstance(listed, list), "it begins with a bracket"
            return listed
        return [part.strip() for part in text.split(",")]

    def _reference(self, item: object, number: int, position: int, column: str = COLUMN) -> tuple[str, Path | Cell]:
        path, data = item, item
        if isinstance(item, dict):
            path, data = item.get("path"), item.get("bytes")
        if isinstance(data, bytes):
            source = self._cell(number, position, column)
            name = path if isinstance(path, str) and path else f"{column}[{position}]"
            try:
                self.found[source] = probe(name, source, data, self.max_pixels)
            except BadImage as error:
                self.found[source] = error
            return name, source
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"has {path!r} where a path is needed")
        file = self._path(path)
        self.files.setdefault(file, path)
        return path, file

    def _cell(self, number: int, position: int, column: str) -> Cell:
        """Where the bytes of a row stand: in the table, or in that part of it which has the row."""
        first, table = next(part for part in reversed(self._parts) if part[0] <= number)
        return Cell(table, column, number - first, position)

    @cached_property
    def _parts(self) -> list[tuple[int, Path]]:
        """The files that the table is made of, each with the number of its first row."""
        from pyarrow.parquet import read_metadata

        files = files_of(Path(self.source)) if Path(self.source).is_dir() else [Path(self.source)]
        counts = [read_metadata(path).num_rows for path in files]
        return list(zip(accumulate(counts, initial=0), files))

    def _path(self, text: str) -> Path:
        return path_in(base_of(Path(self.source)), text)

    def _is_file(self, text: str) -> bool:
        return len(text) < MAX_PATH and "\0" not in text and self._path(text).is_file()

    # -- the images ---------------------------------------------------------------------------------------------------

    def with_images(self, tasks: list[Task]) -> list[Task]:
        """The tasks with what is known of their images: sha256, size, the output size that follows, or an error."""
        for path, image in probe_files(self.files, self.max_pixels).items():
            self.found[path] = image
        for task in tasks:
            references = self.references[task.index]
            found = [(name, self.found[source]) for name, source in references]
            task.images = tuple(image for _, image in found if isinstance(image, InputImage))
            error = self._error(found) or self._add_mask(task)
            if error is not None:
                task.error = f"{task.row}: {error}"
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


def saved_names(task: Task) -> Mapping[str, InputImage]:
    """Where --save_inputs puts a task's images in the output folder: names made of numbers, whatever theirs are."""
    return {f"inputs/{task.index:06d}_{n}{image.suffix}": image for n, image in enumerate(task.images)}
