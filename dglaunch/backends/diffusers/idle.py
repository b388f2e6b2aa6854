"""What rows ask of a local model that would not look at it: guidance of a distilled one, negative prompts without guidance."""

from collections.abc import Collection, Iterator, Sequence

from dglaunch.backends.profiles import Idle
from dglaunch.config import CALL, RunConfig, flags_that
from dglaunch.data.grid import places_of
from dglaunch.data.many import num_rows
from dglaunch.data.task import ROW_FIELDS, Task
from dglaunch.models.checkpoint import Checkpoint

USUALLY_GUIDED_ABOVE = 1.0
"""In pipelines outside of the families' table, as far as diffusers has them."""


def idle_arguments(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task]) -> Iterator[Idle]:
    """Yield values for which the call of the pipeline has no parameter, as its row says or its source."""
    if checkpoint.takes is not None:
        yield from without_parameter(checkpoint, config, tasks, checkpoint.takes)
    elif not checkpoint.family.guidance:
        yield from without_parameter(
            checkpoint, config, tasks, set(flags_that(CALL, type(config))) - {"guidance_scale"}
        )


def without_parameter(
    checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task], takes: Collection[str]
) -> Iterator[Idle]:
    """Yield values, of rows and of flags, for which a call that takes these parameters has none.

    A scale up to 1 asks for no guidance, and gets what it asks for.
    """
    for flag in flags_that(CALL, type(config)):
        argument = checkpoint.family.guidance if flag == "guidance_scale" else flag
        if argument in takes:
            continue
        if flag in ROW_FIELDS:
            asking = [task for task in tasks if _asks(task, flag)]
        else:
            asking = list(tasks) if getattr(config, flag) is not None else []
        if asking:
            yield Idle(
                name=flag,
                where=_rows(asking, tasks),
                reason=_why_idle(checkpoint, flag, takes),
                remedy=f"Remove it ({places_of(flag, config.grid) if flag in ROW_FIELDS else f'--{flag}'}).",
            )


def _why_idle(checkpoint: Checkpoint, flag: str, takes: Collection[str]) -> str:
    if checkpoint.modular is None:
        return f"the call of {checkpoint.pipeline_name} has no parameter for it{_akin(flag, takes)}"
    return checkpoint.modular.reasons.get(flag, f"the blocks of {checkpoint.pipeline_name} have no input for it")


def _asks(task: Task, flag: str) -> bool:
    """Whether a task wants something by this value."""
    value = getattr(task, flag)
    return value is not None and (flag != "guidance_scale" or value > 1)


def _akin(flag: str, takes: Collection[str]) -> str:
    """Parameters that sound like guidance, so that one knows why none of them was taken."""
    if flag != "guidance_scale":
        return ""
    found = sorted(name for name in takes if "guidance" in name or "cfg" in name)
    return f" (dglaunch does not know what its {', '.join(found)} mean)" if found else ""


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
    if checkpoint.takes is None and config.max_sequence_length is not None and not checkpoint.family.takes_text_length:
        yield Idle(
            name="max_sequence_length",
            reason=f"{checkpoint.pipeline_class} does not take it, or cuts no prompt at it",
            remedy="Drop --max_sequence_length.",
        )


def idle_negatives(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task]) -> Iterator[Idle]:
    """Yield negative prompts that the pipeline does not take, or that stand beside a guidance scale that means none."""
    family, given = checkpoint.family, [task for task in tasks if task.negative_prompt is not None]
    places = places_of("negative_prompt", config.grid)
    if checkpoint.takes is not None and "negative_prompt" not in checkpoint.takes:
        return  # which `idle_arguments` tells
    has_part = not family.negative_part or family.negative_part in checkpoint.parts
    if given and not (family.takes_negative and has_part):
        without = "" if has_part else f" without a {family.negative_part}, and this checkpoint has none"
        yield Idle(
            name="negative_prompt",
            where=_rows(given, tasks),
            reason=f"{checkpoint.pipeline_class} takes none{without}",
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
    rows, total = num_rows(some, every), num_rows(every, every)
    if rows == total:
        return ""
    first = some[0].index
    return f" in row {first}" if rows == 1 else f" in {rows:,} of {total:,} rows (the first: {first})"
