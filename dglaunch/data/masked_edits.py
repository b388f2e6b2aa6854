"""Rows of edits with a mask: what a pipeline of diffusers paints anew of their image, and what is wrong with them.

An API gets its masks as they are, and looks at them itself (backends/api/checks.py).
"""

from collections.abc import Callable, Iterator, Sequence

from dglaunch.data import masks
from dglaunch.data.images import InputImage
from dglaunch.data.prompt_inputs import strength_problem
from dglaunch.data.task import Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import masked_editors
from dglaunch.models.input_pipelines import MASK
from dglaunch.models.input_roles import InputPipeline


class MaskedEdits:
    """The rows of a table that have a mask, for a family that paints within one."""

    def __init__(self, checkpoint: Checkpoint, inpaint: InputPipeline, max_pixels: int) -> None:
        self.checkpoint = checkpoint
        self.inpaint = inpaint
        self._masks = masks.Looking(max_pixels, masks.Reading(masks.stretched, inpaint.mask_pixels))
        self._resized: dict[str, None] = {}

    def add(self, task: Task) -> Iterator[str]:
        """Let a task be painted within its mask; yield what is wrong with it."""
        assert task.mask is not None and self.checkpoint.family.edit is not None
        image, mask = task.images[0], task.mask
        drawn = self.checkpoint.family.edit.input_shape(image.shape, self.checkpoint.defaults)
        task.roles = MASK
        task.height, task.width = task.height or drawn.height, task.width or drawn.width
        task.strength = self.inpaint.strength if task.strength is None else task.strength
        if len(task.images) > 1:
            yield f"{len(task.images)} input images and a mask, and {self.inpaint.pipeline} takes one with a mask; leave the others out"
        if mask.shape != image.shape:
            yield f"the mask {mask.name} is {_size(mask)}, and {image.name} is {_size(image)}; give both one size"
        if problem := size_problem(self.checkpoint, task):
            yield problem
        elif drawn != image.shape:
            self._resized[image.name] = None
        if problem := strength_problem(self.checkpoint, task):
            yield problem

    def look_at_masks(self, tasks: Sequence[Task], label_of: Callable[[Task], str]) -> Iterator[str]:
        """Decode the masks; yield what is wrong with them."""
        return self._masks.problems_of(tasks, label_of)

    def told(self, num_tasks: int, num_masked: int) -> str:
        """Return what is said once for all rows."""
        said = [f"{num_masked:,} of {num_tasks:,} images are painted anew within a mask"]
        if self._resized:
            said.append(
                f"{masks.some(self._resized)} drawn at the size that {self.inpaint.pipeline} gives it, its mask too"
            )
        if self._masks.grey:
            said.append(masks.told_of_grey(self._masks.grey))
        return "; ".join(said)


def size_problem(checkpoint: Checkpoint, task: Task) -> str | None:
    """Return what is wrong with the size that is asked of an edit within a mask, as the end of a sentence about its row; None if
    nothing, or if it is none."""
    rules = checkpoint.family.edit
    if not task.roles or task.is_fitted or rules is None or rules.inpaint is None:
        return None
    drawn = rules.input_shape(task.images[0].shape, checkpoint.defaults)
    if (task.height, task.width) == (drawn.height, drawn.width):
        return None
    return (
        f"{task.width}x{task.height} is asked for, and {rules.inpaint.pipeline} draws {task.images[0].name} at "
        f"{drawn.width}x{drawn.height}, whatever width and height say; leave them out"
    )


def check_masks_taken(checkpoint: Checkpoint, mask_column: str, strength: float | None) -> None:
    """Refuse --mask_column, or a strength with it, where nothing would come of it.

    Raises:
        UserError: with what to do instead.
    """
    rules = checkpoint.family.edit
    assert rules is not None
    if rules.inpaint is None and not rules.takes_mask:
        raise UserError(
            f"--mask_column {mask_column}: {checkpoint.pipeline_name} edits whole images, as diffusers has no pipeline of it that "
            f"paints within a mask; it has them of {', '.join(masked_editors())}. Take one of these, or drop the flag (the column "
            "is then carried along)."
        )
    if rules.inpaint is None and strength is not None:
        raise UserError(
            f"--strength would do nothing: {rules.name} decides itself how far it goes from the image within a mask. Drop it."
        )


def _size(image: InputImage) -> str:
    return f"{image.shape.width}x{image.shape.height}"
