"""Rows of prompts with input images: an image to begin from, a mask of what is painted anew, a control image.

Each comes only from the column that its flag names. What is wrong with rows (sizes, strengths, masks without a hole) is told
at once, before a model is loaded; an image that cannot be read is its row's failure, as in an edit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dglaunch.config import T2IConfig
from dglaunch.data import masks, values
from dglaunch.data.columns import CONTROL, IMAGES, MASK, Columns, Named
from dglaunch.data.images import BadImage, InputImage, describe
from dglaunch.data.prompts import RowReader
from dglaunch.data.row_images import Here, Reference, RowImages
from dglaunch.data.task import Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.input_roles import ROLES, InputPipeline, Role, output_shape, roles_text
from dglaunch.models.lora import NO_LORAS, Loras
from dglaunch.models.shape import Shape

COLUMN_OF: dict[Role, str] = {"image": IMAGES, "mask": MASK, "control": CONTROL}
FIELD_OF: dict[str, Role] = {"strength": "image", "control_scale": "control"}
"""What a row may set, and the image that it is about."""
TOGETHER = (
    "dglaunch knows no pipeline of diffusers that takes these together; draw from fewer of them, or take another model"
)
CHECKS: dict[str, values.Check] = {"strength": values.share, "control_scale": values.positive}


@dataclass(slots=True)
class _Inputs:
    """The input images of a row."""

    label: str
    references: dict[Role, Reference]
    column_of: dict[Role, str]
    """The table's names of their columns."""

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(role for role in ROLES if role in self.references)


@dataclass(slots=True)
class _Told:
    """What is no problem and yet is told."""

    resized: dict[str, None] = field(default_factory=dict)
    grey: dict[str, None] = field(default_factory=dict)


class InputReader(RowReader):
    """Rows that may have input images."""

    def __init__(
        self,
        config: T2IConfig,
        source: str,
        size_multiple: int,
        columns: Columns,
        loras: Loras = NO_LORAS,
        *,
        checkpoint: Checkpoint,
    ) -> None:
        self.family = checkpoint.family
        self.checkpoint = checkpoint
        self.size_multiple = size_multiple
        self.max_pixels = config.max_pixels
        self.fields = [name for name in FIELD_OF if name in columns.names]
        """What of FIELD_OF the table's columns may be."""
        self._refuse_family(config)
        super().__init__(config, source, size_multiple, columns, loras)
        self.output_format = config.output_format
        self.defaults |= {name: getattr(config, name) for name in self.fields}
        self.rows: dict[int, _Inputs] = {}
        """By index."""
        self.told = _Told()
        self._images: RowImages | None = None

    def own_checks(self) -> dict[str, values.Check]:
        return {name: CHECKS[name] for name in self.fields}

    def _refuse_family(self, config: T2IConfig) -> None:
        """A family without a pipeline for what the flags name."""
        flags: dict[Role, str | None] = {
            "image": config.image_column,
            "mask": config.mask_column,
            "control": config.control_column,
        }
        for role, column in flags.items():
            fitting = [each for each in self.family.with_inputs if role in each.roles]
            if column is None or any(not each.refused for each in fitting):
                continue
            reasons = [each.refused for each in fitting] or [self.family.no_inputs]
            raise UserError(
                f"--{role}_column {column}: {self.checkpoint.pipeline_name} takes no {_called(role)} with t2i: {reasons[0]}. Drop the flag "
                "(the column is then carried along), or take a model that does."
            )

    @property
    def images(self) -> RowImages:
        """The images of the table, whose place is known once it is read."""
        if self._images is None:
            self._images = RowImages(self.table or Here(), self.max_pixels)
        return self._images

    # -- a row --------------------------------------------------------------------------------------------------------

    def take_references(self, label: str, named: Named, number: int, indices: Sequence[int]) -> str:
        inputs = _Inputs(label, {}, {})
        for role, name in COLUMN_OF.items():
            cell = named.given.pop(name, None)
            if not values.is_given(cell) or cell in ("", []):
                continue
            inputs.column_of[role] = named.called(name)
            try:
                single = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
                inputs.references[role] = self.images.one(single, number, named.called(name))
            except ValueError as error:
                self.problems.append(f"{label}: {named.called(name)} {error}")
        self._refuse_idle(label, named, inputs)
        if not inputs.references:
            return ""
        self.rows |= dict.fromkeys(indices, inputs)
        return f"{self.source}, {label}"

    def _refuse_idle(self, label: str, named: Named, inputs: _Inputs) -> None:
        """What a row sets of an image that it does not have."""
        for name in self.fields:
            column, role = named.column_of.get(name), FIELD_OF[name]
            if column is not None and values.is_given(named.row[column]) and role not in inputs.column_of:
                self.problems.append(
                    f"{label}: {column} does nothing, as the row has no {role}; take one of them out or add it"
                )
        if "mask" in inputs.column_of and "image" not in inputs.column_of:
            column = inputs.column_of["mask"]
            self.problems.append(f"{label}: {column} is given, and no image that it is the mask of; add the image")

    # -- all rows -----------------------------------------------------------------------------------------------------

    def look_at_inputs(self, tasks: Sequence[Task]) -> None:
        self.images.probe()
        problems: dict[str, None] = {}
        for task in tasks:
            inputs = self.rows.get(task.index)
            if inputs is None or "image" not in inputs.roles:
                task.strength = None
            if inputs is None or "control" not in inputs.roles:
                task.control_scale = None
            if inputs is not None:
                problems |= dict.fromkeys(f"{inputs.label}: {problem}" for problem in self._add(task, inputs))
        problems |= dict.fromkeys(
            masks.problems_of(tasks, lambda task: self.rows[task.index].label, self.max_pixels, self.told.grey)
        )
        self.problems += problems
        self._tell(tasks)

    def _add(self, task: Task, inputs: _Inputs) -> Iterable[str]:
        """Give a task its images; yield what is wrong with them. One that cannot be read is the task's error."""
        found = {role: (name, self.images.found[source]) for role, (name, source) in inputs.references.items()}
        if bad := [(name, image) for name, image in found.values() if isinstance(image, BadImage)]:
            task.error = f"{task.row}: {describe(bad)}"
            return
        pictures = {role: image for role, (_, image) in found.items() if isinstance(image, InputImage)}
        task.is_fitted, task.roles = True, inputs.roles
        task.images = (pictures["image"],) if "image" in pictures else ()
        task.mask, task.control = pictures.get("mask"), pictures.get("control")
        pipeline = self.family.input_pipeline(inputs.roles)
        if pipeline is None or pipeline.refused:
            reason = pipeline.refused if pipeline is not None else TOGETHER
            yield f"{self.checkpoint.pipeline_name} does not draw from {roles_text(inputs.roles)}: {reason}"
            return
        yield from self._sizes(task, pictures)
        yield from self._settings(task, pipeline)

    def _sizes(self, task: Task, pictures: dict[Role, InputImage]) -> Iterable[str]:
        """Set the size of what is drawn, and yield what does not fit it."""
        first = pictures.get("image") or pictures["control"]
        asked = task.height, task.width
        output = output_shape(first.shape, *asked, self.size_multiple)
        shown = f"{first.name} is {_size(first.shape)}"
        if not output.height or not output.width:
            yield f"{shown}, and this model draws at least {self.size_multiple}x{self.size_multiple}; set width and height"
            return
        task.height, task.width = output.height, output.width
        for name, side in (("width", output.width), ("height", output.height)):
            try:
                values.side(side, self.size_multiple, self.output_format)
            except ValueError as error:
                yield f"{shown}, so that {name} {error}; set width and height"
        if "image" not in pictures and None not in asked and output != first.shape:
            yield f"the control image {shown}, and {_size(output)} is drawn; give it that size, or leave width and height out"
        elif output != first.shape:
            self.told.resized[first.name] = None
        for role in ("mask", "control"):
            other = pictures.get(role)
            if other is not None and other.shape not in (first.shape, output if role == "control" else first.shape):
                yield f"the {_called(role)} {other.name} is {_size(other.shape)}, and {shown}; give both one size"

    def _settings(self, task: Task, pipeline: InputPipeline) -> Iterable[str]:
        """Set strength and scale where nobody did, and yield what is wrong with them."""
        task.strength = pipeline.strength if task.strength is None else task.strength
        task.control_scale = pipeline.control_scale if task.control_scale is None else task.control_scale
        if pipeline.strength is None:
            task.strength = None
        if problem := strength_problem(self.checkpoint, task):
            yield problem

    def _tell(self, tasks: Sequence[Task]) -> None:
        """Say once for all rows what was done to their images."""
        count = sum(bool(task.roles) for task in tasks)
        said = [f"{count:,} of {len(tasks):,} images are drawn with input images"]
        if self.told.resized:
            said.append(
                f"{masks.some(self.told.resized)} scaled to cover the size that is drawn, and cut off evenly where it juts out"
            )
        if self.told.grey:
            said.append(masks.told_of_grey(self.told.grey))
        self.columns.told["inputs"] = "; ".join(said)


def strength_problem(checkpoint: Checkpoint, task: Task) -> str | None:
    """Return what is wrong with a row's strength for its steps, as the end of a sentence about it; None if nothing."""
    pipeline = checkpoint.family.input_pipeline(task.roles)
    if pipeline is None:
        return None
    return pipeline.problem(checkpoint.steps_of_strength(task.num_inference_steps), task.strength)


def _size(shape: Shape) -> str:
    return f"{shape.width}x{shape.height}"


def _called(role: Role) -> str:
    return "control image" if role == "control" else role
