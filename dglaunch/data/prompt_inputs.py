"""Rows of prompts with input images: an image to begin from, a mask of what is painted anew, a control image.

Each comes only from the column that its flag names. What is wrong with rows (sizes, strengths, masks without a hole) is told
at once, before a model is loaded; an image that cannot be read is its row's failure, as in an edit.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from dglaunch.config import T2IConfig
from dglaunch.data import masks, values
from dglaunch.data.columns import COLUMN_OF, IMAGES, MASK, Columns, Named
from dglaunch.data.image_rows import ImageRowReader
from dglaunch.data.images import BadImage, InputImage, describe
from dglaunch.data.row_images import Inputs
from dglaunch.data.task import INPUT_FIELDS, Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.input_roles import ROLES, InputPipeline, Role, output_shape, roles_text
from dglaunch.models.lora import NO_LORAS, Loras
from dglaunch.models.shape import Shape

TOGETHER = (
    "dglaunch knows no pipeline of diffusers that takes these together; draw from fewer of them, or take another model"
)
CHECKS: dict[str, values.Check] = {"strength": values.share, "control_scale": values.positive}
"""What a row may set besides an image (`InputReader.goes_with`), and what it must be."""


class InputReader(ImageRowReader):
    """Rows that may have input images."""

    column_of = COLUMN_OF
    goes_with: Mapping[str, str] = MappingProxyType(
        {name: COLUMN_OF[role] for name, role in INPUT_FIELDS.items()} | {MASK: IMAGES}
    )

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
        self.fields = [name for name in CHECKS if name in columns.names]
        """What of CHECKS the table's columns may be."""
        self._refuse_family(config)
        super().__init__(config, source, size_multiple, columns, loras)
        self.output_format = config.output_format
        self.defaults |= {name: getattr(config, name) for name in self.fields}
        self.inputs = {}
        self.masks = masks.Looking(config.max_pixels)
        self.resized: dict[str, None] = {}
        """The images that are drawn at another size than theirs."""

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

    # -- a row --------------------------------------------------------------------------------------------------------

    def take_references(self, label: str, named: Named, number: int, indices: Sequence[int]) -> str:
        inputs: Inputs = {}
        named_roles: set[Role] = set()
        for role, name in COLUMN_OF.items():
            cell = named.given.pop(name, None)
            if not values.is_given(cell) or cell in ("", []):
                continue
            named_roles.add(role)
            try:
                single = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
                inputs[role] = self.references(role, single, number, named.called(name))
            except ValueError as error:
                self.problems.append(f"{label}: {named.called(name)} {error}")
        self.refuse_idle_fields(label, named, named_roles)
        if "mask" in named_roles and "image" not in named_roles:
            self.problems.append(
                f"{label}: {named.called(MASK)} is given, and no image that it is the mask of; add the image"
            )
        if not inputs:
            return ""
        self.inputs |= dict.fromkeys(indices, inputs)
        return f"{self.source}, {label}"

    # -- all rows -----------------------------------------------------------------------------------------------------

    def add_inputs(self, tasks: Sequence[Task]) -> None:
        problems: dict[str, None] = {}
        for task in tasks:
            inputs = self.inputs.get(task.index, {})
            if "image" not in inputs:
                task.strength = None
            if "control" not in inputs:
                task.control_scale = None
            if inputs:
                problems |= dict.fromkeys(f"{self.place_of(task)}: {problem}" for problem in self._add(task, inputs))
        problems |= dict.fromkeys(self.masks.problems_of(tasks, self.place_of))
        self.problems += problems

    def _add(self, task: Task, inputs: Inputs) -> Iterable[str]:
        """Give a task its images; yield what is wrong with them. One that cannot be read is the task's error."""
        found = {role: (name, self.images.found[source]) for role, ((name, source),) in inputs.items()}
        if bad := [(name, image) for name, image in found.values() if isinstance(image, BadImage)]:
            task.error = f"{task.row}: {describe(bad)}"
            return
        pictures = {role: image for role, (_, image) in found.items() if isinstance(image, InputImage)}
        task.is_fitted, task.roles = True, tuple(role for role in ROLES if role in inputs)
        task.images = (pictures["image"],) if "image" in pictures else ()
        task.mask, task.control = pictures.get("mask"), pictures.get("control")
        pipeline = self.family.input_pipeline(task.roles)
        if pipeline is None or pipeline.refused:
            reason = pipeline.refused if pipeline is not None else TOGETHER
            yield f"{self.checkpoint.pipeline_name} does not draw from {roles_text(task.roles)}: {reason}"
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
            self.resized[first.name] = None
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

    def tell_of_inputs(self, num_tasks: int, num_drawn: int) -> None:
        said = [f"{num_drawn:,} of {num_tasks:,} images are drawn with input images"]
        if self.resized:
            said.append(
                f"{masks.some(self.resized)} scaled to cover the size that is drawn, and cut off evenly where it juts out"
            )
        if self.masks.grey:
            said.append(masks.told_of_grey(self.masks.grey))
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
