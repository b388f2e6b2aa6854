"""What must hold between checkpoint, degrees, flags and rows, checked before anything is loaded.

Each of these was seen to go wrong later, slowly or in silence; each message names the numbers and what would work.
"""

from collections.abc import Iterable, Sequence

from dglaunch.backends.api import profile
from dglaunch.backends.diffusers import checks as optimization_checks
from dglaunch.config import EditingConfig, RunConfig
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models import editing, optimizations
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import xdit_families
from dglaunch.system import need

MAG_CACHE_STEPS = 28
"""Denoising steps for which MagCache's published ratios hold."""
ZIMAGE_GUIDANCE = 5.0
"""ZImagePipeline's own guidance scale."""


def check(checkpoint: Checkpoint, config: RunConfig, topology: Topology, tasks: Sequence[Task], device: str) -> None:
    """Raise a UserError for the first rule that does not hold."""
    if config.backend.backend == "fake":
        return
    if config.backend.is_remote:
        return profile.check(config, topology, tasks)
    for package, extra in (("torch", "torch"), ("diffusers", "diffusers"), ("transformers", "transformers")):
        need(package, "Running a model", f"pip install {extra}")
    if config.backend.revision is not None and checkpoint.local:
        raise UserError(
            f"--revision {config.backend.revision} would do nothing: {config.backend.model_name} is a folder on this machine, "
            "not a model of the hub. Drop it."
        )
    _check_guidance(checkpoint, config, tasks)
    optimization_checks.check(checkpoint, config, topology, device)
    _check_masks(checkpoint, config, tasks)
    if config.optimization.cache_type == "mag_cache":
        _check_steps(checkpoint, tasks)
    _check_encode(checkpoint, config)
    if config.backend.backend == "xdit":
        _check_xdit(checkpoint, config, topology, device)
        if topology.parallel.use_cfg_parallel:
            _check_branches(tasks)
        if topology.sequence_degree > 1:
            _check_split(checkpoint, config, topology, tasks)


def _check_guidance(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task]) -> None:
    family = checkpoint.family
    for task in tasks:
        if task.negative_prompt is not None and not family.takes_negative:
            raise UserError(
                f"Row {task.index} has a negative prompt, but {checkpoint.pipeline_class} is guidance-distilled and would "
                "ignore it. Remove negative_prompt (the column, or --negative_prompt)."
            )
        scale = task.guidance_scale or 0.0  # to 1 it is no guidance, and needs nothing
        if family.guidance_needs_negative and scale > 1 and task.negative_prompt is None:
            raise UserError(
                f"Row {task.index} has a guidance scale but no negative prompt, and {checkpoint.pipeline_class} applies "
                "guidance only against one. Add --negative_prompt ' ', or remove guidance_scale."
            )


def _check_masks(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task]) -> None:
    """ZImage sends a prompt and its negative one, of another length, through one call."""
    name = config.optimization.attention_backend
    if checkpoint.family.name != "ZImage" or name not in optimizations.WITHOUT_MASK:
        return
    own = checkpoint.defaults.get("guidance_scale", ZIMAGE_GUIDANCE)
    for task in tasks:
        if (own if task.guidance_scale is None else task.guidance_scale) > 0:
            raise UserError(
                f"--attention_backend {name} takes no mask, which ZImage needs for the guidance of row {task.index}: the "
                "prompt and the negative one share a call and differ in length. Choose another, such as native, or give "
                "--guidance_scale 0 (a distilled checkpoint wants none)."
            )


def _check_steps(checkpoint: Checkpoint, tasks: Iterable[Task]) -> None:
    own = checkpoint.defaults.get("num_inference_steps", MAG_CACHE_STEPS)
    for task in tasks:
        steps = own if task.num_inference_steps is None else task.num_inference_steps
        if steps != MAG_CACHE_STEPS:
            raise UserError(
                f"Row {task.index} takes {steps} denoising steps, but --cache_type mag_cache holds for {MAG_CACHE_STEPS}. "
                f"Give --num_inference_steps {MAG_CACHE_STEPS}, or another cache."
            )


def _check_encode(checkpoint: Checkpoint, config: RunConfig) -> None:
    wanted = config.optimization
    if checkpoint.family.text_outputs:
        if wanted.encode == "inline" and wanted.embedding_cache is not None:
            raise UserError(
                "--embedding_cache keeps what --encode ahead makes; with --encode inline it would do nothing. Drop one."
            )
        return
    flag = "--encode ahead" if wanted.encode == "ahead" else "--embedding_cache" if wanted.embedding_cache else None
    if flag is not None:
        raise UserError(
            f"{flag}: the prompts of {checkpoint.pipeline_class} cannot be encoded ahead (they are encoded together with an "
            "image, or dglaunch does not know what its encode_prompt returns). Drop the flag."
        )


def _check_xdit(checkpoint: Checkpoint, config: RunConfig, topology: Topology, device: str) -> None:
    family, parallel = checkpoint.family, topology.parallel
    if family.xdit is None:
        edits = isinstance(config, EditingConfig)
        there = editing.xdit_families() if edits else xdit_families()
        raise UserError(
            f"--backend xdit has no {checkpoint.pipeline_class}{' for edit' if edits else ''}; it runs {', '.join(there)}. "
            "Use --backend diffusers, where each rank is a replica."
        )
    need("xfuser", "--backend xdit", "pip install 'dglaunch[xdit]'")
    if parallel.pipefusion_degree > 1:
        if device == "cpu":
            raise UserError("PipeFusion (DG_XDIT_PIPEFUSION_DEGREE) runs on GPUs only; unset it on a CPU.")
        if not family.xdit.pipefusion:
            raise UserError(
                f"xfuser has no PipeFusion for {family.name}; unset DG_XDIT_PIPEFUSION_DEGREE and use "
                "DG_XDIT_ULYSSES_DEGREE instead."
            )
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
    heads, ulysses = checkpoint.heads, parallel.ulysses_degree
    # ZImage's wrapper pads the heads.
    if heads is not None and heads % ulysses and family.name != "ZImage":
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"{family.name} here has {heads} attention heads, which DG_XDIT_ULYSSES_DEGREE={ulysses} does not divide. "
            f"Degrees that do: {', '.join(map(str, fitting))}."
        )


def _check_branches(tasks: Iterable[Task]) -> None:
    for task in tasks:
        if task.guidance_scale is not None and task.guidance_scale <= 1:
            raise UserError(
                f"Row {task.index} has the guidance scale {task.guidance_scale:g}: without guidance there is no second "
                "branch for DG_XDIT_USE_CFG_PARALLEL to put on other ranks. Raise it above 1, or unset the variable."
            )


def _check_split(checkpoint: Checkpoint, config: RunConfig, topology: Topology, tasks: Iterable[Task]) -> None:
    family, degree = checkpoint.family, topology.sequence_degree
    assert family.xdit is not None
    length = checkpoint.text_length(config.max_sequence_length)
    if family.name == "SD3" and length != family.max_sequence_length:
        raise UserError(
            f"xfuser's SD3 pipeline drops --max_sequence_length and always uses {family.max_sequence_length}; drop the flag."
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
        height, width = checkpoint.size("height", task.height), checkpoint.size("width", task.width)
        count = height // 16 if unit == "rows" else checkpoint.image_tokens(height, width) + task.input_tokens
        if count % degree and task.images:
            raise UserError(
                f"{task.row}: {width}x{height} with its input images is {count} tokens, which cannot be split evenly over "
                f"{degree} ranks (Ulysses x ring): the image would be wrong. Set another --height, choose another degree, "
                "or use --backend diffusers, where each rank is a replica."
            )
        if count % degree:
            raise UserError(
                f"{width}x{height} is {count} {unit}, which cannot be split evenly over {degree} ranks (Ulysses x ring): "
                f"the images would be wrong. The nearest heights: {_near_heights(height, degree)}."
            )


def _near_heights(height: int, degree: int) -> str:
    step = 16 * degree
    low = height // step * step
    return f"{low} or {low + step}" if low else str(step)
