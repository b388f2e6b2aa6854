"""What xfuser would do wrong, slowly or in silence, is refused here before anything is loaded."""

import math
from collections.abc import Iterable

from dglaunch.config import RunConfig
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import attends_twice, xdit_editors, xdit_families
from dglaunch.models.input_roles import roles_text
from dglaunch.system import need


def check_degrees(checkpoint: Checkpoint, config: RunConfig, topology: Topology) -> None:
    """Refuse a family that xfuser does not have, and degrees that it cannot split this model by."""
    family, parallel = checkpoint.family, topology.parallel
    if family.xdit is None:
        available = xdit_editors() if config.edits else xdit_families()
        raise UserError(
            f"--backend xdit has no {checkpoint.pipeline_class}{' for edit' if config.edits else ''}; it runs {', '.join(available)}. "
            "Use --backend diffusers, where each rank is a replica."
        )
    need("xfuser", "--backend xdit", "pip install 'dglaunch[xdit]'")
    if parallel.use_cfg_parallel and not family.xdit.cfg:
        raise UserError(
            f"{family.name} has no second guidance branch that xfuser could put on other ranks; unset "
            "DG_XDIT_USE_CFG_PARALLEL."
        )
    if parallel.ring_degree > 1 and not family.xdit.ring:
        raise UserError(
            f"Ring attention is not right for {family.name} when a prompt's length is not a multiple of the degree; use "
            "DG_XDIT_ULYSSES_DEGREE instead of DG_XDIT_RING_DEGREE."
        )
    if topology.sequence_degree > 1 and attends_twice(checkpoint.transformer):
        raise UserError(
            f"This {family.name} has blocks with a second attention, of the image alone (Stable Diffusion 3.5 medium does): "
            "xfuser cannot split them, and would end in an error. Unset DG_XDIT_ULYSSES_DEGREE and DG_XDIT_RING_DEGREE; "
            "DG_XDIT_USE_CFG_PARALLEL=1 puts guidance on a second rank, and further ranks become replicas."
        )
    heads, kv_heads, ulysses = checkpoint.heads, checkpoint.kv_heads, parallel.ulysses_degree
    if heads is None or kv_heads is None or family.xdit.pads_heads:
        return
    shared = math.gcd(heads, kv_heads)
    if shared % ulysses:
        counted = f"{heads} attention heads" + (f", {kv_heads} of keys and values" if kv_heads != heads else "")
        raise UserError(
            f"{family.name} here has {counted}, which DG_XDIT_ULYSSES_DEGREE={ulysses} does not divide. "
            f"Degrees that do: {_divisors(shared)}."
        )


def check_inputs(checkpoint: Checkpoint, tasks: Iterable[Task]) -> None:
    """Refuse input images with which xfuser's transformer was not measured to give diffusers' images."""
    family = checkpoint.family
    assert family.xdit is not None
    for roles in dict.fromkeys(task.roles for task in tasks):
        pipeline = family.input_pipeline(roles)
        if pipeline is not None and pipeline.pipeline not in family.xdit.inputs:
            able = ", ".join(
                roles_text(each.roles) for each in family.pipelines_with_inputs if each.pipeline in family.xdit.inputs
            )
            raise UserError(
                f"--backend xdit: {family.name} from {roles_text(roles)} is not drawn as diffusers draws it when several ranks "
                f"share an image ({family.xdit.no_inputs}); "
                + (f"it draws from {able} there. " if able else "")
                + "Use --backend diffusers, where each rank is a replica."
            )


def check_text(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse a text length that xfuser's pipeline, once it splits an image in any way, would not look at."""
    family = checkpoint.family
    assert family.xdit is not None
    if (
        family.xdit.fixed_text_length
        and checkpoint.text_length(config.max_sequence_length) != family.max_sequence_length
    ):
        raise UserError(
            f"xfuser's {family.name} pipeline drops --max_sequence_length and always uses {family.max_sequence_length}; drop the flag."
        )


def check_branches(tasks: Iterable[Task]) -> None:
    """Refuse rows without guidance, where a second group of ranks would have nothing to do."""
    for task in tasks:
        if task.guidance_scale is not None and task.guidance_scale <= 1:
            raise UserError(
                f"Row {task.index} has the guidance scale {task.guidance_scale:g}: without guidance there is no second "
                "branch for DG_XDIT_USE_CFG_PARALLEL to put on other ranks. Raise it above 1, or unset the variable."
            )


def check_split(checkpoint: Checkpoint, config: RunConfig, topology: Topology, tasks: Iterable[Task]) -> None:
    """Refuse texts and images that the sequence-parallel degree does not divide: xfuser draws them wrong."""
    family, degree = checkpoint.family, topology.sequence_degree
    assert family.xdit is not None
    length = checkpoint.text_length(config.max_sequence_length)
    multiple = family.xdit.token_multiple
    if multiple is not None and multiple % degree:
        raise UserError(
            f"{family.name} pads its tokens to multiples of {multiple}, which cannot be split evenly over {degree} ranks (Ulysses x "
            f"ring): the images would be wrong. Degrees that divide it: {_divisors(multiple)}."
        )
    if family.xdit.splits_text and length % degree:
        low = length // degree * degree
        near = f"{low} or {low + degree}" if low else str(degree)
        raise UserError(
            f"The text of {length} tokens cannot be split over {degree} ranks (Ulysses x ring): the images would be wrong. "
            f"The nearest --max_sequence_length: {near}."
        )
    unit = family.xdit.image_unit
    distinct = {(task.height, task.width, task.input_tokens): task for task in tasks if unit != "any"}
    for task in distinct.values():
        shape = checkpoint.shape(task.height, task.width)
        count = shape.height // 16 if unit == "rows" else checkpoint.image_tokens(shape) + task.input_tokens
        if count % degree and task.images:
            raise UserError(
                f"{task.row}: {shape.width}x{shape.height} with its input images is {count} tokens, which cannot be split evenly over "
                f"{degree} ranks (Ulysses x ring): the image would be wrong. Set another --height, choose another degree, "
                "or use --backend diffusers, where each rank is a replica."
            )
        if count % degree:
            raise UserError(
                f"{shape.width}x{shape.height} is {count} {unit}, which cannot be split evenly over {degree} ranks (Ulysses x ring): "
                f"the images would be wrong. The nearest heights: {_near_heights(shape.height, degree)}."
            )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _near_heights(height: int, degree: int) -> str:
    step = 16 * degree
    low = height // step * step
    return f"{low} or {low + step}" if low else str(step)
