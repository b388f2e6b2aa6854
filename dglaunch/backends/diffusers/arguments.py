"""What a pipeline is called with for a batch. No model is needed here: what the pipeline takes is an argument."""

import math
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, signature

import torch

from dglaunch.config import CALL, RunConfig, flags_that
from dglaunch.data.task import Batch, Record, Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.own_pipeline import OwnPipeline
from dglaunch.models.unlisted import Takes, Unsaid

LATENT = 8
"""Pixels of a latent's side."""
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
StepCallback = Callable[[object, int, object, dict[str, object]], dict[str, object]]
"""What a pipeline calls after each denoising step: with itself, the step, its time and tensors that may be changed."""


def call_arguments(
    batch: Batch,
    config: RunConfig,
    checkpoint: Checkpoint,
    takes: Collection[str],
    on_step_end: StepCallback,
) -> dict[str, object]:
    """Return the call's keyword arguments for a batch whose tasks agree in all but prompt, seed and negative prompt.

    One CPU generator for each image: its noise depends on its seed alone, not on batch, rank or device.

    Args:
        takes: the names of the pipeline's arguments.
    """
    family, first = checkpoint.family, batch.tasks[0]
    settings = _settings(first, config, checkpoint)
    arguments = {name: value for name, value in settings.items() if name in takes} | {
        name: value for name, value in family.arguments if name in takes
    }
    if family.guidance in arguments:
        arguments |= {name: value for name, value in family.with_guidance if name in takes}
    if "max_area" in takes and first.height is not None and first.width is not None:
        # Kontext would rescale the output to 1 Mpx, whatever height and width say.
        arguments["max_area"] = first.height * first.width
    arguments["prompt"] = [task.text for task in batch.tasks]  # a new list: some pipelines write into it
    if first.negative_prompt is not None:
        arguments["negative_prompt"] = [task.negative_prompt for task in batch.tasks]
    arguments["generator"] = [torch.Generator("cpu").manual_seed(task.seed) for task in batch.tasks]
    if family.tensor_output and "output_type" in takes:
        arguments["output_type"] = "pt"
    if "callback_on_step_end" in takes:
        arguments["callback_on_step_end"] = on_step_end
    return arguments


def scale_to_area(pipeline: object, batch: Batch, checkpoint: Checkpoint) -> None:
    """Let a pipeline that scales every size to the area of a square leave the size of this batch as it is: a hair more than
    its area, as it rounds down."""
    if attribute := checkpoint.family.area_attribute:
        shape = checkpoint.shape(batch.tasks[0].height, batch.tasks[0].width)
        setattr(pipeline, attribute, math.sqrt(shape.height * shape.width) / LATENT * (1 + 1e-9))


def call_parameters(pipeline_class: type) -> dict[str, Parameter]:
    """Return the arguments of a pipeline class's call. One that hands `**kwargs` on has those of the class that it derives
    from, too."""
    found: dict[str, Parameter] = {}
    for cls in pipeline_class.__mro__:
        if "__call__" not in vars(cls):
            continue
        parameters = signature(vars(cls)["__call__"]).parameters
        found = {name: item for name, item in parameters.items() if item.kind in NAMED} | found
        if not any(item.kind is Parameter.VAR_KEYWORD for item in parameters.values()):
            break
    return found


def declared(takes: Takes) -> dict[str, Parameter]:
    """Return as parameters what a call takes where no signature says it."""
    defaults = {name: Parameter.empty if default is Unsaid.REQUIRED else default for name, default in takes.items()}
    return {name: Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in defaults.items()}


def check_own(own: OwnPipeline, takes: Collection[str]) -> None:
    """Refuse a pipeline of the user's own that cannot be told what to draw.

    Raises:
        UserError: with what its call must take.
    """
    missing = [name for name in ("prompt", "generator") if name not in takes]
    if missing:
        raise UserError(
            f"The call of {own.name} takes no {' and no '.join(missing)}. dglaunch calls it with prompt=[text] and "
            "generator=[torch.Generator], and with each flag that it names (height, num_inference_steps, ...); give its "
            "__call__ these arguments."
        )


def call_defaults(checkpoint: Checkpoint, parameters: Mapping[str, Parameter]) -> Record:
    """Return what a call without these arguments uses, for the ledger: the checkpoint's, else the signature's."""
    shape = checkpoint.shape(None, None)
    guidance = parameters.get(checkpoint.family.guidance)
    steps = parameters.get("num_inference_steps")
    return {
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps.default if steps else None,
        "guidance_scale": guidance.default if guidance else None,
    } | checkpoint.defaults


def _settings(task: Task, config: RunConfig, checkpoint: Checkpoint) -> dict[str, object]:
    """The checkpoint's settings, then what was given for the task or for all; the guidance scale under the pipeline's name
    for it."""
    given = {name: getattr(task if hasattr(task, name) else config, name) for name in flags_that(CALL, type(config))}
    settings = checkpoint.defaults | {name: value for name, value in given.items() if value is not None}
    if "guidance_scale" in settings:
        settings[checkpoint.family.guidance] = settings.pop("guidance_scale")
    return settings
