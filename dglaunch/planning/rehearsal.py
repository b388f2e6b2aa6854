"""What of a job is rehearsed: which of its batches, with which of its flags, and what is to be said of the rest."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dglaunch.backends.base import Context
from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models import schedulers
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import GUIDED
from dglaunch.models.lora import NO_LORAS
from dglaunch.planning.differing import differing
from dglaunch.planning.job import Job, Schedule
from dglaunch.planning.room import room_of
from dglaunch.simulation.rank import Setting

if TYPE_CHECKING:
    from dglaunch.simulation.replica import ReplicaReport

NUM_STEPS = 2
"""Of a rehearsal: the first denoising step may prepare what the others use."""
UNSEEN = {
    "quantization": "the weights are packed by libraries that need a GPU",
    "enable_cpu_offload": "memory then depends on when a network is moved",
    "enable_group_offloading": "memory then depends on when a layer is moved",
}
"""Flags with which what a rehearsal says of memory would be wrong."""
LEFT_OUT = ("attention_backend", "cache_type", "enable_compile", "enable_channels_last", "enable_tf32")
"""Flags of which fake tensors on a host show nothing, or that need values; images and memory are about the same without."""
CANNOT_SEE = (
    "values (a wrong mask, a prompt that is cut, an image that is not a number), mixtures of half types, NCCL's buffers and "
    "hangs, what cuBLAS takes and how much cuDNN does, fragmentation, the CUDA context, offloads, quantization, compiled kernels"
)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A job as it is rehearsed."""

    context: Context
    """Of the first replica's first rank, with the batches to make."""
    setting: Setting
    notes: list[str]
    """What is left out or taken for granted."""


def to_rehearse(job: Job, schedule: Schedule) -> Rehearsed:
    """Choose what of a job is rehearsed.

    Raises:
        UserError: there is nothing to make.
    """
    batches = [batch for share in schedule.plan.batches for batch in share]
    chosen, num_kinds = differing(batches, schedule.bucket_of, _pixels(job))
    if not chosen:
        raise UserError("There is nothing to rehearse: no row of the table can be made.")
    notes = []
    if num_kinds > len(chosen):
        notes.append(f"the {len(chosen)} largest of {num_kinds} different batches are rehearsed")
    config, left_out = _without_unseen(job.config)
    if left_out:
        notes.append(f"left out, as no rehearsal shows it: {', '.join(f'--{flag}' for flag in left_out)}")
    for part, weights in job.checkpoint.weight_files.items():
        notes.append(
            f"the {part} is taken as its class has it, in the type of the run, and not as {weights.path} stores it"
        )
    if schedulers.chosen(job.config.backend, job.checkpoint) is not None:
        notes.append("the checkpoint's own scheduler is rehearsed: another one's steps take what its steps take")
    own_tokenizers = job.checkpoint.not_here is None
    text_tokens = job.checkpoint.text_length(config.max_sequence_length)
    if not own_tokenizers:
        notes.append(f"there is no tokenizer here, so that every prompt is taken to fill its {text_tokens} tokens")
    own_steps = job.checkpoint.family.schedule_steps
    if own_steps is not None and any(task.guidance_scale is None for batch in chosen for task in batch.tasks):
        notes.append(
            f"with a guidance scale of {GUIDED:g}, which costs the same: the pipeline's own guidance is a schedule of {own_steps} steps, "
            f"and {NUM_STEPS} are rehearsed"
        )
    # Only as tensors can images be fake.
    checkpoint = replace(job.checkpoint, family=replace(job.checkpoint.family, tensor_output=True), loras=NO_LORAS)
    if job.checkpoint.loras:
        added = sum(file.num_bytes("transformer") for file in job.checkpoint.loras.files) / 2**20
        notes.append(f"left out: --lora, which adds {added:,.0f} MiB to the transformer of each rank")
    context = Context(
        config=config,
        checkpoint=checkpoint,
        topology=replace(
            job.topology, distributed=job.config.backend.backend == "xdit" or job.topology.replica_size > 1
        ),
        channel=Channel(Topology(), "cpu"),
        device="cpu",
        dtype=job.machine.dtype,
        batches=[_shortened(batch, checkpoint) for batch in chosen],
    )
    return Rehearsed(context, Setting(text_tokens=text_tokens, own_tokenizers=own_tokenizers), notes)


def room_for(found: "ReplicaReport") -> int:
    """Return the bytes that a rank wants to find at its worst moment, workspaces included, by the rule of a plan."""
    weights = sum(found.weights.values())
    stages = [each for batch in found.batches for each in batch.stages.items()]
    return max([found.ahead or 0, *(room_of(name, weights, stage.peak_bytes) for name, stage in stages)])


def check(job: Job) -> None:
    """Refuse what a rehearsal cannot show.

    Raises:
        UserError: with what to do instead.
    """
    if not job.profile.has_estimates:
        raise UserError(
            f"--backend {job.config.backend.backend} runs no model here that could be rehearsed; use diffusers or xdit."
        )
    if job.device == "cpu":
        raise UserError(
            "A rehearsal needs to know for which GPU: --gpu H100, or its memory, --gpu 80GiB (dglaunch plan lists them)."
        )
    for flag, reason in UNSEEN.items():
        if getattr(job.config.optimization, flag) not in (None, False):
            raise UserError(f"--{flag} cannot be rehearsed: {reason}. Drop it here; dglaunch plan estimates it.")


def _without_unseen(config: RunConfig) -> tuple[RunConfig, list[str]]:
    wanted, plain = config.optimization, OptimizationConfig()
    left_out = [flag for flag in LEFT_OUT if getattr(wanted, flag) != getattr(plain, flag)]
    seen = replace(wanted, embedding_cache=None, **{flag: getattr(plain, flag) for flag in left_out})
    return replace(config, optimization=seen, debug=False), left_out


def _pixels(job: Job) -> Callable[[Task], int]:
    return lambda task: job.checkpoint.shape(task.height, task.width).area


def _shortened(batch: Batch, checkpoint: Checkpoint) -> Batch:
    guidance = checkpoint.family.guidance_of
    return Batch(
        tuple(
            replace(task, num_inference_steps=NUM_STEPS, guidance_scale=guidance(task.guidance_scale, NUM_STEPS))
            for task in batch.tasks
        )
    )
