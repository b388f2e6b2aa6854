"""Rows of images and instructions to tasks: `prompts.RowReader` with a column of input images.

A bad *table* (no instruction, no column, broken JSON) stops the run before it begins, as for t2i. A bad *image* (missing,
torn, a bomb, too many for the family) is its row's error: the task carries it, and the other rows are made.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from dglaunch import strict_json
from dglaunch.config import EditingConfig
from dglaunch.data.images import BadImage, Cell, InputImage, NeedsPackage, describe, probe, probe_files
from dglaunch.data.photos import Photo, PhotoList
from dglaunch.data.plugins import EXTRA
from dglaunch.data.prompts import RowReader
from dglaunch.data.tables import Row, base_of, files_of, path_in, read_table
from dglaunch.data.task import Record, Task
from dglaunch.data.values import is_given, missing, too_long_for
from dglaunch.errors import MissingPackage, UserError
from dglaunch.models.checkpoint import Checkpoint

COLUMN = "input_images"
MAX_PATH = 4096
"""Characters; what is longer is no path, and asking the system for it would be an error."""


def read_edits(config: EditingConfig, checkpoint: Checkpoint, photos: bytes | None = None) -> list[Task]:
    """Return all tasks of an editing run; those whose images the checkpoint's family cannot use carry an error.

    Args:
        photos: a PhotoList, where --input is images and no table.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    assert config.input is not None
    listed = PhotoList.loads(photos).photos if photos is not None else None
    reader = EditReader(config, checkpoint, listed)
    rows = read_table(config.input) if listed is None else map(_row_of, listed)
    return reader.with_images(reader.read(rows))


def _row_of(photo: Photo) -> Row:
    return f"index {photo.index}", {"index": photo.index, COLUMN: [photo.name]}


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

    def __init__(self, config: EditingConfig, checkpoint: Checkpoint, photos: Sequence[Photo] | None = None) -> None:
        if photos is not None:
            config = replace(config, output_name_column=COLUMN)
        super().__init__(config, str(config.input), checkpoint.family.size_multiple, config.instruction_key)
        self.instruction = config.instruction
        self.is_instruction_used = False
        self.stems = {photo.index: photo.stem for photo in photos} if photos is not None else None
        """How results are called, by index, where there is no table."""
        assert checkpoint.family.edit is not None
        self.rules = checkpoint.family.edit
        self.checkpoint = checkpoint
        self.output_format = config.output_format
        self.max_pixels = config.max_pixels
        self.filter_rows = config.filter_rows
        self.ranges = parse_ranges(config.filter_rows) if config.filter_rows is not None else None
        self.references: dict[int, list[tuple[str, Path | Cell]]] = {}
        """By index: the images of a row, by name and place."""
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
            tasks = super().read(rows)
        except UserError:
            if self.ranges is None or self.problems or not self.lines:
                raise
        else:
            self._refuse_idle_instruction()
            return tasks
        raise UserError(
            f"--filter_rows {self.filter_rows} leaves none of the {len(self.lines):,} rows of {self.source}, "
            f"whose indices are {min(self.lines)} to {max(self.lines)}."
        )

    def _refuse_idle_instruction(self) -> None:
        if self.instruction is not None and not self.is_instruction_used:
            raise UserError(
                f"--instruction does nothing: each row of {self.source} has an instruction of its own, in the column "
                f"{self.text_column}. Drop it, or take that column out."
            )

    def _row(self, label: str, row: Record, number: int) -> list[Task]:
        if self.instruction is not None and not is_given(row.get(self.text_column)):
            self.is_instruction_used = True
            row = {**row, self.text_column: self.instruction}
        return super()._row(label, row, number)

    def _output_name(self, label: str, row: Mapping[str, object], index: int) -> str:
        return super()._output_name(label, row, index) if self.stems is None else self.stems[index]

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
        return f"{self.source}, {label}"

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

    def _reference(self, item: object, number: int, position: int) -> tuple[str, Path | Cell]:
        path, data = item, item
        if isinstance(item, dict):
            path, data = item.get("path"), item.get("bytes")
        if isinstance(data, bytes):
            source = self._cell(number, position)
            name = path if isinstance(path, str) and path else f"{COLUMN}[{position}]"
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

    def _cell(self, number: int, position: int) -> Cell:
        """Where the bytes of a row stand: in the table, or in that part of it which has the row."""
        first, table = next(part for part in reversed(self._parts) if part[0] <= number)
        return Cell(table, COLUMN, number - first, position)

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
            error = self._error(found)
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


def saved_names(task: Task) -> Mapping[str, InputImage]:
    """Where --save_inputs puts a task's images in the output folder: names made of numbers, whatever theirs are."""
    return {f"inputs/{task.index:06d}_{n}{image.suffix}": image for n, image in enumerate(task.images)}
