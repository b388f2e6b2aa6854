"""Arithmetic before the run: memory, time, and the batch size that `auto` chooses, each with its reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from dglaunch.backends.profiles import Profile
from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.data.task import BatchSize, Bucket
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import DTYPE_BYTES, Checkpoint
from dglaunch.models.shape import Shape
from dglaunch.planning.batches import Plan
from dglaunch.system import Machine

FULL_TOKENS = 8192
"""Image tokens in one forward pass of a GPU beyond which a larger batch gains next to nothing: at 1024x1024 (4096
tokens) a 12-20B model is compute-bound at batch 1 and batching gains 1-2 %, at 512x512 and below up to 3x."""
MAX_AUTO = 32
UNET_WIDTH = 1280
"""Of SDXL's widest level; U-Nets do not say theirs as transformers do."""
SPARE = 0.9
"""Share of the memory that is planned for; the rest is the allocator's and the driver's."""
ASSUMED_TFLOPS = 310.0
"""Sustained bf16 rate of an H100 in eager FLUX.1-dev (2.08 PFLOP in 6.7 s, as published); torch.compile: about 480."""

TAKEN_IN_MPIXELS = 240.0
"""Megapixels a second that one rank 0 takes in and writes: 234 PNGs of 1024x1024 and 1.5 MB, the median of `python -m
kernels_bench gather` with 4 ranks on 4 busy cores (kernels_bench/results/gather.jsonl, 2026-11-23)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on each rank's device."""

    weights: int
    image: int
    """For each image of a batch."""

    def needed(self, images: int) -> int:
        return self.weights + images * self.image


def memory_of(
    checkpoint: Checkpoint, config: RunConfig, topology: Topology, dtype: str, shape: Shape, inputs: int = 0
) -> Memory | None:
    """Return the weights, and what each image of the batch adds at its worst moment; None if the weights are not on this machine.
    `inputs` are the tokens of input images.

    Denoising holds about 12 tensors of tokens x width at once (hidden state, q, k, v, attention out, the MLP's 4x and
    its output), shared out by the sequence-parallel degree. Decoding holds about 1,024 channels at full resolution;
    with slicing one image is decoded at a time, with tiling one tile.
    """
    if not checkpoint.parameters:
        return None
    size = DTYPE_BYTES[dtype]
    weights = _weights(checkpoint, config.optimization, size)
    tokens = checkpoint.image_tokens(shape) + inputs + checkpoint.text_length(config.max_sequence_length)
    denoise = 12 * tokens * (checkpoint.width_of_model or UNET_WIDTH) * size // topology.sequence_degree
    height, width = shape.height, shape.width
    if config.optimization.enable_vae_tiling:
        height, width = min(height, 512), min(width, 512)
    decode = height * width * 1024 * size
    if config.optimization.enable_vae_slicing:
        weights, decode = weights + decode, 0
    return Memory(weights=weights, image=max(denoise, decode))


def _weights(checkpoint: Checkpoint, config: OptimizationConfig, size: int) -> int:
    """Bytes of the weights that are on the device together: text encoders that encode ahead are gone before the others
    come, and what is offloaded comes part by part."""
    stored = float(size)
    if config.quantization is not None:
        stored = {"int8": 1.0, "fp8": 1.0, "nf4": 0.56}[config.quantization]
    elif config.enable_layerwise_casting:
        stored = 1.0
    parts = {
        name: int(count * (min(stored, size) if name in ("transformer", "unet") else size))
        for name, count in checkpoint.parameters.items()
    }
    if config.enable_cpu_offload:
        return max(parts.values())
    if config.enable_group_offloading:
        parts = {name: count for name, count in parts.items() if name not in ("transformer", "unet")}
    texts = sum(count for name, count in parts.items() if name.startswith("text_encoder"))
    others = sum(parts.values()) - texts
    return max(texts, others) if checkpoint.encodes_ahead(config.encode) else texts + others


def chooser(
    profile: Profile, checkpoint: Checkpoint, config: RunConfig, topology: Topology, machine: Machine,
    limits: Mapping[Shape, int], tuned: Mapping[Shape, BatchSize],
) -> Callable[[Bucket], BatchSize]:  # fmt: skip
    """Return the function that says the batch size of each bucket: what the backend wants, else --batch_size, else what
    `tune` measured, else arithmetic; below a size that ran out of memory before (`limits`)."""
    fixed = profile.batch_size(config)

    def choose(bucket: Bucket) -> BatchSize:
        if fixed is not None:
            return fixed
        shape = checkpoint.shape(bucket.height, bucket.width)
        chosen = _given_or_auto(checkpoint, config, topology, machine, shape, bucket.input_tokens)
        if config.batch_size == "auto" and not bucket.input_tokens and checkpoint.family.batch:
            chosen = tuned.get(shape, chosen)
        limit = limits.get(shape)
        if limit is not None and chosen.size > limit:
            return BatchSize(limit, f"{limit + 1} or more ran out of memory at {shape} in an earlier start")
        return chosen

    return choose


def _given_or_auto(
    checkpoint: Checkpoint, config: RunConfig, topology: Topology, machine: Machine, shape: Shape, inputs: int
) -> BatchSize:
    if not checkpoint.family.batch:
        asked = f"not the {config.batch_size} asked for; " if config.batch_size not in (1, "auto") else ""
        return BatchSize(1, f"{asked}{checkpoint.family.name}: {checkpoint.family.batch_reason}")
    if config.batch_size != "auto":
        return BatchSize(config.batch_size, "as given")
    wanted = _by_tokens(checkpoint, topology, shape, inputs)
    memory = memory_of(checkpoint, config, topology, machine.dtype, shape, inputs)
    if memory is None or machine.memory is None:
        return BatchSize(wanted.size, wanted.reason + "; memory unknown before loading")
    fits = max(int((machine.memory * SPARE - memory.weights) // memory.image), 1)
    if fits < wanted.size:
        images = f"{fits} image{'s' if fits > 1 else ''} of {shape}"
        return BatchSize(fits, f"{machine.memory / 2**30:.0f} GiB hold the weights and {images}")
    return wanted


def _by_tokens(checkpoint: Checkpoint, topology: Topology, shape: Shape, inputs: int) -> BatchSize:
    """So many images that their tokens keep a GPU full."""
    tokens = checkpoint.image_tokens(shape) + inputs
    share = max(tokens // topology.sequence_degree, 1)
    wanted = min(max(FULL_TOKENS // share, 1), MAX_AUTO)
    with_inputs = " with its input images" if inputs else ""
    if wanted == MAX_AUTO:
        return BatchSize(wanted, f"{shape} is {tokens} tokens{with_inputs}: small, so the largest that auto takes")
    divided = f" on each of {topology.sequence_degree} ranks" if topology.sequence_degree > 1 else ""
    return BatchSize(
        wanted, f"{shape} is {tokens} tokens{with_inputs}, {share}{divided}; {FULL_TOKENS} keep a GPU full"
    )


def seconds_of(checkpoint: Checkpoint, config: RunConfig, topology: Topology, plan: Plan) -> float | None:
    """Wall seconds of a plan's longest share on H100s, start-up left out; None if the weights are not here."""
    length = checkpoint.text_length(config.max_sequence_length)

    @cache
    def image_tflop(height: int | None, width: int | None, steps: int | None, inputs: int) -> float | None:
        step = checkpoint.step_tflop(checkpoint.shape(height, width), length + inputs)
        return None if step is None else step * checkpoint.num_steps(steps)

    worst = 0.0
    for share in plan.batches:
        work = 0.0
        for batch in share:
            first = batch.tasks[0]
            image = image_tflop(first.height, first.width, first.num_inference_steps, first.input_tokens)
            if image is None:
                return None
            work += image * len(batch)
        worst = max(worst, work)
    return worst / (ASSUMED_TFLOPS * topology.replica_size)


def bottleneck(checkpoint: Checkpoint, topology: Topology, plan: Plan, seconds: float) -> str | None:
    """With --writer main: a sentence if the replicas make more than rank 0 can take in."""
    tasks = (task for share in plan.batches for batch in share for task in batch.tasks)
    shapes = (checkpoint.shape(task.height, task.width) for task in tasks)
    pixels = sum(shape.height * shape.width for shape in shapes)
    rate = pixels / 1e6 / seconds
    if topology.mode != "main" or topology.world_size == 1 or rate <= TAKEN_IN_MPIXELS:
        return None
    return (
        f"writing: {plan.num_tasks / seconds:,.0f} images/s are {rate / TAKEN_IN_MPIXELS:.1f} times what one rank 0 was measured to "
        f"take in ({TAKEN_IN_MPIXELS:.0f} megapixels/s); with --writer node or rank it is not the bottleneck"
    )
