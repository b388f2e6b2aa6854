"""Rows of images and instructions to tasks: `prompts.RowReader` with a column of input images.

A bad *table* (no instruction, no column, broken JSON) stops the run before it begins, as for t2i. A bad *image* (missing,
torn, a bomb, too many for the family) is its row's error: the task carries it, and the other rows are made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dglaunch.config import EditingConfig
from dglaunch.data.columns import COLUMN_OF, IMAGES, MASK, Columns, Named
from dglaunch.data.grid import Point
from dglaunch.data.image_rows import ImageRowReader
from dglaunch.data.images import BadImage, InputImage, describe
from dglaunch.data.masked_edits import MaskedEdits, check_masks_taken
from dglaunch.data.photos import Photo, PhotoList
from dglaunch.data.prompt_inputs import CHECKS
from dglaunch.data.prompts import RowReader
from dglaunch.data.row_images import Inputs
from dglaunch.data.table_formats import Row
from dglaunch.data.tables import Table
from dglaunch.data.task import Record, Task, goes_with
from dglaunch.data.values import Check, is_given, too_long_for
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.input_roles import Role


class PhotoTable(Table):
    """Photographs as a table of one column."""

    def __init__(self, named: Sequence[Path], photos: Sequence[Photo]) -> None:
        super().__init__(named)
        self.photos = photos

    def rows(self) -> Iterator[Row]:
        for photo in self.photos:
            yield f"index {photo.index}", {"index": photo.index, IMAGES: [photo.name]}

    @property
    def is_large(self) -> bool:
        """Never: the list of them is on each rank anyway."""
        return False

    def place(self, number: int) -> tuple[Path, int]:
        return self.named[0], number


def read_edits(
    config: EditingConfig,
    checkpoint: Checkpoint,
    columns: Columns | None = None,
    photos: bytes | None = None,
    large: "Callable[[RowReader, Table], Sequence[Task]] | None" = None,
) -> Sequence[Task]:
    """Return all tasks of an editing run; those whose images the checkpoint's family cannot use carry an error.

    Args:
        columns: what the table's columns are; afterwards they say what was found of them.
        photos: a PhotoList, where --input is images and no table.
        large: reads a table that is large; None: as a small one.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    table = Table(config.tables) if photos is None else PhotoTable(config.tables, PhotoList.loads(photos).photos)
    reader = EditReader(config, checkpoint, table, columns if columns is not None else Columns(config))
    return large(reader, table) if large is not None and table.is_large else reader.read(table.rows())


class EditReader(ImageRowReader):
    """Rows of images that are edited."""

    text_column = "instruction"
    column_of: Mapping[Role, str] = MappingProxyType({"image": IMAGES, "mask": MASK})
    needs_image = True

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
        self.masked: MaskedEdits | None = None
        """Where diffusers paints within the masks of rows."""
        if config.mask_column is not None:
            check_masks_taken(checkpoint, config.mask_column, config.strength)
            if self.rules.inpaint is not None:
                self.masked = MaskedEdits(checkpoint, self.rules.inpaint, config.max_pixels)
        if self.rules.takes_mask:
            columns.names = (*columns.names, MASK)
        super().__init__(config, str(table), checkpoint.family.size_multiple, columns, checkpoint.loras)
        if self.masked is not None:
            self.defaults["strength"] = config.strength
            self.fields, self.goes_with = (
                ("strength",),
                {**self.goes_with, "strength": COLUMN_OF[goes_with("strength", edits=True)]},
            )
        self.table = table
        self.output_format = config.output_format
        self.max_pixels = config.max_pixels
        self.inputs = {}

    def own_checks(self) -> dict[str, Check]:
        return checks_of_edits(self.checkpoint) | ({"strength": CHECKS["strength"]} if self.masked is not None else {})

    def takes_several(self, role: Role) -> bool:
        return role == "image"

    def check_before_images(self, num_tasks: int) -> None:
        if self.masked is None:  # else what is wrong with masks is told with the rest
            self.check_rows(num_tasks)
        self._refuse_idle_instruction()

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
        cells: dict[Role, object] = {"image": cell}
        if is_given(mask := named.given.pop(MASK, None)) and mask != "":
            cells["mask"] = mask
        self.refuse_idle_fields(label, named, cells.keys())
        inputs: Inputs = {}
        for role, each in cells.items():
            column = named.called(self.column_of[role])
            try:
                inputs[role] = self.references(role, each, number, column)
            except ValueError as error:
                self.problems.append(f"{label}: {column} {error}")
        self.inputs |= dict.fromkeys(indices, inputs)
        return f"{self.source}, {label}"

    # -- the images ---------------------------------------------------------------------------------------------------

    def add_inputs(self, tasks: Sequence[Task]) -> None:
        """Give tasks what is known of their images: sha256, size, the output size that follows, or an error."""
        problems: dict[str, None] = {}
        for task in tasks:
            inputs = self.inputs[task.index]
            if "mask" not in inputs:
                task.strength = None
            found = [(name, self.images.found[source]) for name, source in inputs["image"]]
            task.images = tuple(image for _, image in found if isinstance(image, InputImage))
            error = self._error(found) or self._add_mask(task, inputs)
            if error is not None:
                task.error = f"{task.row}: {error}"
                task.unusable = tuple(name for name, _ in found)
                continue
            if self.masked is not None and task.mask is not None:
                problems |= dict.fromkeys(f"{self.place_of(task)}: {each}" for each in self.masked.add(task))
            shapes = self.rules.input_shapes([image.shape for image in task.images], self.checkpoint.defaults)
            task.input_tokens = sum(self.checkpoint.image_tokens(shape) for shape in shapes)
            if self.rules.output_shape is not None:
                output = self.rules.output_shape(task.images[0].shape, self.checkpoint.defaults)
                task.width = output.width if task.width is None else task.width
                task.height = output.height if task.height is None else task.height
        if self.masked is not None:
            problems |= dict.fromkeys(self.masked.look_at_masks(tasks, self.place_of))
        self.problems += problems

    def tell_of_inputs(self, num_tasks: int, num_drawn: int) -> None:
        if self.masked is not None:
            self.columns.told["inputs"] = self.masked.told(num_tasks, num_drawn)

    def _add_mask(self, task: Task, inputs: Inputs) -> str | None:
        """Give a task its row's mask; why it cannot be used, if so."""
        for name, source in inputs.get("mask", ()):
            mask = self.images.found[source]
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


def checks_of_edits(checkpoint: Checkpoint) -> dict[str, Check]:
    """Return what looks at values of a row in another way than for text to image: a pipeline that takes no size refuses it."""
    if checkpoint.family.edit is None or checkpoint.family.edit.sets_size:
        return {}

    def refuse(_value: object) -> object:
        raise ValueError(f"cannot be set: {checkpoint.pipeline_class} chooses the size itself; leave it out")

    return dict.fromkeys(("width", "height"), refuse)


def saved_names(task: Task) -> Mapping[str, InputImage]:
    """Where --save_inputs puts a task's images in the output folder: names made of numbers, whatever theirs are."""
    return {f"inputs/{task.index:06d}_{n}{image.suffix}": image for n, image in enumerate(task.inputs)}
