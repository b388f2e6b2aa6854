"""Options of a local model that cannot take effect, or would be wrong, are refused here before anything is loaded.

Each of these was seen to go wrong later, slowly or in silence; each message names the numbers and what would work.
"""

import difflib
import importlib.util
from collections.abc import Iterable
from typing import NoReturn

from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.data.masked_edits import size_problem
from dglaunch.data.prompt_inputs import strength_problem
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import InputError, MissingPackage, UserError
from dglaunch.models.checkpoint import DTYPE_BYTES, Checkpoint
from dglaunch.models.controlnet import check_controlnet
from dglaunch.models.families import families_taking, xdit_families_taking
from dglaunch.models.optimizations import (
    ATTENTION,
    CACHE_FLAGS,
    PINNED,
    WITHOUT_MASK,
    WITHOUT_RING,
    XFUSER_ATTENTION,
    Optimization,
    asked,
)
from dglaunch.models.schedulers import calls_of
from dglaunch.models.unlisted import Unsaid
from dglaunch.system import host_memory

GIVEN = ("prompt", "generator")
"""What every call of a pipeline is given."""
MAG_CACHE_STEPS = 28
"""Denoising steps for which MagCache's published ratios hold."""


# -- optimizations ------------------------------------------------------------------------------------------------


def check_optimizations(
    checkpoint: Checkpoint,
    config: RunConfig,
    topology: Topology,
    device: str,
    xdit: bool,
    capability: tuple[int, int] | None = None,
    here: bool = True,
) -> None:
    """Refuse optimizations that cannot take effect.

    Args:
        xdit: whether xfuser runs the model.
        capability: the GPU's compute capability; None: a plan for GPUs that are not known.
        here: whether it is this machine that will run it, so that its packages and its host memory count.

    Raises:
        UserError: with the row's reason and what to do instead.
    """
    wanted, rows = config.optimization, asked(config.optimization)
    for row in rows:
        if xdit:
            _check_with_xdit(row, checkpoint)
        elif row.only_xdit:
            _refuse_without_xdit(row, checkpoint.family.name)
        _check_family(row, checkpoint, xdit)
        for other in rows:
            if other.name in row.excludes:
                raise UserError(f"--{row.name} and --{other.name} do not go together; drop one of them.")
        _check_machine(row, config, device, capability, here)
    if wanted.attention_backend is not None:
        _check_attention(wanted.attention_backend, xdit, device)
        if xdit and topology.parallel.ring_degree > 1 and wanted.attention_backend.upper() in WITHOUT_RING:
            raise UserError(
                f"--attention_backend {wanted.attention_backend} cannot be merged over a ring (DG_XDIT_RING_DEGREE); take "
                "another, or use DG_XDIT_ULYSSES_DEGREE."
            )
    if wanted.enable_group_offloading and here:
        _check_pinned(checkpoint, topology, config.backend.torch_dtype or "bfloat16")
    _check_cache_flags(wanted)
    if wanted.compile_scope == "whole" and not wanted.enable_compile:
        raise UserError("--compile_scope does nothing without --enable_compile; add it, or drop --compile_scope.")
    if wanted.enable_compile and wanted.compile_scope == "regional" and not _may_take("enable_compile", checkpoint):
        raise UserError(
            f"{checkpoint.family.name} does not name its repeated blocks, so --enable_compile cannot compile them alone; "
            "add --compile_scope whole."
        )


def _may_take(optimization: str, checkpoint: Checkpoint) -> bool:
    """Whether the family was measured to work with it, or nobody measured: then the loaded modules decide."""
    takes = checkpoint.family.takes
    return takes is None or optimization in takes


def _refuse_without_xdit(row: Optimization, family: str) -> NoReturn:
    fitting = xdit_families_taking(row.name)
    if family not in fitting:
        raise UserError(f"--{row.name} is xfuser's, for {' and '.join(fitting)}; {family} does not take it. Drop it.")
    raise UserError(f"--{row.name} is xfuser's, for --backend xdit; take {row.only_xdit}, or --backend xdit.")


def _check_with_xdit(row: Optimization, checkpoint: Checkpoint) -> None:
    family = checkpoint.family
    if row.xdit:
        raise UserError(
            f"--{row.name} does not go with --backend xdit: {row.xdit}. Drop it, or use --backend diffusers."
        )
    fitting = xdit_families_taking(row.name)
    if fitting and (family.xdit is None or row.name not in family.xdit.takes):
        raise UserError(
            f"--{row.name} reaches xfuser's transformer for {', '.join(fitting)} only, not for {family.name}. Drop it, or "
            "use --backend diffusers."
        )


def _check_family(row: Optimization, checkpoint: Checkpoint, xdit: bool) -> None:
    fitting = families_taking(row.name)
    by_engine = xdit and row.flag == "attention_backend"  # xfuser's processors ask its own dispatcher
    regional = row.flag == "enable_compile"  # has its own check: compiled as a whole it works with every family
    if fitting and not by_engine and not regional and not _may_take(row.name, checkpoint):
        raise UserError(
            f"--{row.name} does nothing or fails with {checkpoint.family.name}; it works with {', '.join(fitting)}. Drop it."
        )


def _check_machine(
    row: Optimization, config: RunConfig, device: str, capability: tuple[int, int] | None, here: bool
) -> None:
    """Packages, the GPU and its generation, the type of the weights."""
    if row.gpu and device == "cpu":
        raise UserError(f"--{row.name} runs on GPUs only ({row.gpu}); drop it on a CPU.")
    dtype = config.backend.torch_dtype or ("bfloat16" if device == "cuda" else "float32")
    if row.dtypes and dtype not in row.dtypes:
        raise UserError(
            f"--{row.name} does nothing or fails with weights in {dtype}; drop it, or give --torch_dtype {row.dtypes[0]}."
        )
    if row.uncompiled and device == "cuda" and not config.optimization.enable_compile:
        raise UserError(
            f"--{row.name} needs --enable_compile on a GPU: {row.uncompiled}. Add it, or drop --{row.name}."
        )
    if here and row.package is not None and not _found(row.package[0]):
        raise MissingPackage(row.package[0], f"--{row.name}", row.package[1])
    if device == "cuda" and capability is not None and capability < row.capability:
        needed, have = (".".join(map(str, each)) for each in (row.capability, capability))
        raise UserError(
            f"--{row.name} needs compute capability {needed} (8.0: A100, 8.9: L40S and RTX 4090, 9.0: H100); this GPU "
            f"has {have}. Drop it."
        )


def _check_pinned(checkpoint: Checkpoint, topology: Topology, dtype: str) -> None:
    weights = (
        sum(n for name, n in checkpoint.parameters.items() if name in ("transformer", "unet")) * DTYPE_BYTES[dtype]
    )
    needed, have = weights * PINNED * topology.local_world_size, host_memory()
    if needed > have:
        raise UserError(
            f"--enable_group_offloading would lock {needed / 2**30:,.0f} GiB of host memory for {topology.local_world_size} "
            f"ranks ({PINNED:g} times the transformer for each), and this machine has {have / 2**30:,.0f} GiB. Start fewer "
            "ranks a machine, or use --enable_cpu_offload or --quantization."
        )


def _found(module: str) -> bool:
    """Without importing it; a module inside a package that is not there counts as missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _check_attention(name: str, xdit: bool, device: str) -> None:
    table, whose = (XFUSER_ATTENTION, "xfuser") if xdit else (ATTENTION, "diffusers")
    row = table.get(name.upper() if xdit else name)
    if row is None:
        near = difflib.get_close_matches(name.upper() if xdit else name, table, n=3, cutoff=0.0)
        raise UserError(f"--attention_backend {name} is none of {whose}'s names; the nearest: {', '.join(near)}.")
    module, install, gpu = row
    if module and not _found(module):
        raise MissingPackage(module, f"--attention_backend {name}", install)
    if gpu and device == "cpu":
        fitting = [n for n, (needs, _, on_gpu) in table.items() if not needs and not on_gpu]
        raise UserError(f"--attention_backend {name} runs on GPUs only; on a CPU there are {', '.join(fitting)}.")


def _check_cache_flags(config: OptimizationConfig) -> None:
    takes = CACHE_FLAGS.get(config.cache_type or "", {})
    for flag in ("cache_threshold", "cache_interval", "cache_warmup"):
        if getattr(config, flag) is not None and flag not in takes:
            fitting = [name for name, flags in CACHE_FLAGS.items() if flag in flags]
            now = f"--cache_type {config.cache_type} does not take it" if config.cache_type else "there is no cache"
            raise UserError(f"--{flag} would do nothing: {now}; it belongs to {', '.join(fitting)}.")


# -- the pipeline -------------------------------------------------------------------------------------------------


def check_draws(checkpoint: Checkpoint) -> None:
    """Refuse a pipeline without a row of which the call shows that it makes no images of prompts alone."""
    takes, own = checkpoint.takes, checkpoint.own is not None
    if takes is None or own:  # one of the user's own is told what its call must take: loading.py
        return
    needed = [name for name, default in takes.items() if default is Unsaid.REQUIRED and name not in GIVEN]
    missing = [name for name in GIVEN if name not in takes]
    if "num_frames" in takes:
        why = "it draws videos (num_frames)"
    elif missing:
        why = f"its call takes no {' and no '.join(missing)}"
    elif needed:
        why = f"its call needs {', '.join(needed)}"
    else:
        return
    raise UserError(
        f"{checkpoint.source} is a {checkpoint.pipeline_class}, which draws no images of prompts and seeds alone: {why}. Choose a "
        "text-to-image checkpoint."
    )


# -- rows ---------------------------------------------------------------------------------------------------------


def check_guidance(checkpoint: Checkpoint, tasks: Iterable[Task]) -> None:
    """Refuse guidance that nothing is applied against."""
    family = checkpoint.family
    for task in tasks:
        scale = task.guidance_scale or 0.0  # to 1 it is no guidance, and needs nothing
        if family.guidance_needs_negative and scale > 1 and task.negative_prompt is None:
            raise UserError(
                f"Row {task.index} has a guidance scale but no negative prompt, and {checkpoint.pipeline_class} applies "
                "guidance only against one. Add --negative_prompt ' ', or remove guidance_scale."
            )


def check_schedule(checkpoint: Checkpoint, tasks: Iterable[Task]) -> None:
    """Refuse steps for which the pipeline's own schedule of guidance scales does not hold."""
    steps = checkpoint.family.schedule_steps
    if steps is None or "guidance_scale" in checkpoint.defaults:
        return
    for task in tasks:
        if task.guidance_scale is None and checkpoint.num_steps(task.num_inference_steps) != steps:
            raise UserError(
                f"Row {task.index} takes {task.num_inference_steps} denoising steps, but the guidance of "
                f"{checkpoint.pipeline_class} without --guidance_scale is a schedule of {steps} steps. Add --guidance_scale, or "
                f"give --num_inference_steps {steps}."
            )


def check_text_length(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse a --max_sequence_length that the pipeline would refuse at its first call."""
    family, length = checkpoint.family, checkpoint.text_length(config.max_sequence_length)
    if family.max_sequence_limit is not None and length > family.max_sequence_limit:
        raise UserError(
            f"--max_sequence_length {length} is more than {checkpoint.pipeline_class} takes: {family.max_sequence_limit}. "
            "Give that or less, or drop the flag."
        )


def check_masks(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task]) -> None:
    """Refuse an attention kernel without masks where a prompt goes with its negative one, of another length, through one
    call (Z-Image)."""
    masked, name = checkpoint.family.masked_guidance, config.optimization.attention_backend
    if masked is None or name not in WITHOUT_MASK:
        return
    default = checkpoint.defaults.get("guidance_scale", masked)
    for task in tasks:
        scale = task.guidance_scale if task.guidance_scale is not None else default
        if isinstance(scale, int | float) and scale > 0:
            raise UserError(
                f"--attention_backend {name} takes no mask, which {checkpoint.family.name} needs for the guidance of row "
                f"{task.index}: the prompt and the negative one share a call and differ in length. Choose another, such as "
                "native, or give --guidance_scale 0 (a distilled checkpoint wants none)."
            )


def check_cache_steps(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task]) -> None:
    """Refuse MagCache where its published ratios do not hold."""
    if config.optimization.cache_type != "mag_cache":
        return
    for task in tasks:
        steps = task.num_inference_steps
        if steps is None:
            steps = checkpoint.default("num_inference_steps", MAG_CACHE_STEPS)
        if steps != MAG_CACHE_STEPS:
            raise UserError(
                f"Row {task.index} takes {steps} denoising steps, but --cache_type mag_cache holds for {MAG_CACHE_STEPS}. "
                f"Give --num_inference_steps {MAG_CACHE_STEPS}, or another cache."
            )


COUNTING_CACHES = ("taylor_seer", "faster_cache", "pab", "mag_cache", "cache_dit")
"""Caches that go by the number of the step, which they count by the transformer's calls."""


def check_cache_calls(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse a cache that counts steps with a scheduler that calls the transformer more often: it would take one step for
    two, and reuse what another half of the same step has computed."""
    cache = config.optimization.cache_type
    steps = checkpoint.num_steps(None)
    calls = calls_of(checkpoint, config.backend, steps) if cache in COUNTING_CACHES else steps
    if calls != steps:
        raise UserError(
            f"--cache_type {cache} counts the transformer's calls as steps, and this scheduler calls it {calls} times in "
            f"{steps} steps: the cache would be used at the wrong ones. Choose another --scheduler, or --cache_type "
            "first_block_cache, which compares and does not count."
        )


def check_inputs(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task]) -> None:
    """Refuse what is not right for rows with input images.

    Raises:
        UserError: with the rows or the flag.
    """
    check_controlnet(checkpoint, config.backend)
    drawn = [task for task in tasks if task.roles]
    if drawn and config.optimization.cache_type is not None:
        raise UserError(
            f"--cache_type {config.optimization.cache_type} was not measured with input images, whose pipelines skip steps and do "
            "not tell a cache which branch they compute. Drop it."
        )
    if steered := next((task for task in drawn if task.control is not None and task.lora), None):
        raise UserError(
            f"Row {steered.index} has both a control image and a LoRA, which was not measured together. Give the row one of "
            'them (a column lora with "" leaves them out), or drop --lora.'
        )
    problems = [
        f"row {task.index}: {problem}"
        for task in drawn
        for problem in (strength_problem(checkpoint, task), size_problem(checkpoint, task))
        if problem
    ]
    if problems:
        raise InputError(config.rows_from, list(dict.fromkeys(problems)))


def check_encode(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse to encode prompts ahead where that cannot be done, and a cache for what is not."""
    wanted = config.optimization
    if checkpoint.family.text_outputs:
        if wanted.encode == "inline" and wanted.embedding_cache is not None:
            raise UserError(
                "--embedding_cache keeps what --encode ahead makes; with --encode inline it would do nothing. Drop one."
            )
        return
    flag = None
    if wanted.encode == "ahead":
        flag = "--encode ahead"
    elif wanted.embedding_cache is not None:
        flag = "--embedding_cache"
    if flag is not None:
        raise UserError(
            f"{flag}: the prompts of {checkpoint.pipeline_class} cannot be encoded ahead (they are encoded together with an "
            "image, or dglaunch does not know what its encode_prompt returns). Drop the flag."
        )
