"""What rows ask of a local model that would not look at it: guidance of a distilled one, negative prompts without guidance."""

from collections.abc import Iterator, Sequence

from dglaunch.backends.profiles import Idle
from dglaunch.config import RunConfig
from dglaunch.data.grid import places_of
from dglaunch.data.task import Task
from dglaunch.models.checkpoint import Checkpoint

USUALLY_GUIDED_ABOVE = 1.0
"""In pipelines outside of the families' table, as far as diffusers has them."""


def idle_guidance(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task]) -> Iterator[Idle]:
    """Yield guidance that a distilled checkpoint would ignore. A scale up to 1 asks for none, and gets what it asks for."""
    switch = checkpoint.family.guidance_switch
    asking = [task for task in tasks if (task.guidance_scale or 0.0) > 1]
    if switch is None or checkpoint.is_guided or not asking:
        return
    file = f"{switch.where}/config.json" if switch.where == "transformer" else "model_index.json"
    yield Idle(
        name="guidance_scale",
        where=_rows(asking, tasks),
        reason=f"the checkpoint is a distilled {checkpoint.pipeline_class}, which does not look at it "
        f"({switch.key} in its {file})",
        remedy=f"Remove it ({places_of('guidance_scale', config.grid)}), or choose a checkpoint that is not distilled.",
    )


def idle_text_length(checkpoint: Checkpoint, config: RunConfig) -> Iterator[Idle]:
    """Yield a length of texts at which the pipeline cuts none (those of Qwen-Image-Edit check it, and read whole prompts)."""
    if config.max_sequence_length is not None and not checkpoint.family.takes_text_length:
        yield Idle(
            name="max_sequence_length",
            reason=f"{checkpoint.pipeline_class} does not take it, or cuts no prompt at it",
            remedy="Drop --max_sequence_length.",
        )


def idle_negatives(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task]) -> Iterator[Idle]:
    """Yield negative prompts that the pipeline does not take, or that stand beside a guidance scale that means none."""
    family, given = checkpoint.family, [task for task in tasks if task.negative_prompt is not None]
    places = places_of("negative_prompt", config.grid)
    if given and not family.takes_negative:
        yield Idle(
            name="negative_prompt",
            where=_rows(given, tasks),
            reason=f"{checkpoint.pipeline_class} takes none",
            remedy=f"Remove it ({places}).",
        )
        return
    above = USUALLY_GUIDED_ABOVE if family.guided_above is None else family.guided_above
    saying = [task for task in given if task.negative_prompt and task.negative_prompt.strip()]
    idle = [task for task in saying if (scale := _scale(checkpoint, task)) is not None and scale <= above]
    if not idle:
        return
    is_mistake = len(idle) == len(saying) and family.guided_above is not None
    usually = "usually " if family.guided_above is None else ""
    yield Idle(
        name="negative_prompt",
        where=_rows(idle, tasks),
        reason=f"a guidance scale of {_scale(checkpoint, idle[0]):g} {usually}means no guidance, which is what a negative prompt is for",
        remedy=f"Give a --guidance_scale above {above:g}, or remove negative_prompt ({places})." if is_mistake else "",
    )


def _scale(checkpoint: Checkpoint, task: Task) -> float | None:
    """A task's guidance scale, its own or the checkpoint's; None: the pipeline's default, which is guidance."""
    scale = checkpoint.defaults.get("guidance_scale") if task.guidance_scale is None else task.guidance_scale
    return float(scale) if isinstance(scale, int | float) else None


def _rows(some: Sequence[Task], every: Sequence[Task]) -> str:
    """Where it stands: nothing is said of what stands in every row."""
    rows, total = {task.index for task in some}, {task.index for task in every}
    if len(rows) == len(total):
        return ""
    first = some[0].index
    return f" in row {first}" if len(rows) == 1 else f" in {len(rows):,} of {len(total):,} rows (the first: {first})"
