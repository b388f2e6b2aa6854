"""Arithmetic before the run: memory, time, and the batch size that `auto` chooses, each with its reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dglaunch.backends.profiles import Profile
from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.data.task import BatchSize, Bucket
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import DTYPE_BYTES, Checkpoint
from dglaunch.models.figures import DENOISERS, STAGES, BlockSizes, Figures
from dglaunch.models.shape import Shape
from dglaunch.planning.batches import Plan
from dglaunch.planning.room import fits, room_of
from dglaunch.system import Machine

FULL_TOKENS = 8192
"""Image tokens in one forward pass of a GPU beyond which a larger batch gains next to nothing: at 1024x1024 (4096
tokens) a 12-20B model is compute-bound at batch 1 and batching gains 1-2 %, at 512x512 and below up to 3x."""
MASKED_TOKENS = 4096
"""The same for families whose attention is masked where prompts differ in length: at 1024x1024 a batch of two Qwen-Images took a third
longer an image than one by one (an H100, kernels_bench/results/true_size.jsonl)."""
MAX_AUTO = 32
UNET_WIDTH = 1280
"""Of SDXL's widest level; U-Nets do not say theirs as transformers do."""
ENCODED_TOGETHER = 8
"""Prompts in one forward pass of the text encoders where they are encoded ahead."""

TAKEN_IN_MPIXELS = 240.0
"""Megapixels a second that one rank 0 takes in and writes: 234 PNGs of 1024x1024 and 1.5 MB, the median of `python -m
kernels_bench gather` with 4 ranks on 4 busy cores (kernels_bench/results/gather.jsonl, 2026-11-23)."""

FiguresOf = Callable[[Bucket], Figures | None]
"""What a trace found of the batches of a bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """What is on each rank's device during one stage."""

    weights: int
    fixed: int
    """Bytes beside the weights, whatever the batch."""
    image: int
    """And for each image of it."""
    moment: int = 0
    """Bytes at a moment when there is nothing of the images yet but what goes from block to block."""

    def needed(self, images: int) -> int:
        return self.weights + self.fixed + max(self.moment, images * self.image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on each rank's device, stage by stage."""

    stages: Mapping[str, StageMemory]
    source: str
    """traced (the real classes on fake tensors), or formula."""

    def needed(self, images: int) -> int:
        """Return the bytes at the worst moment of a batch of so many images."""
        return max(stage.needed(images) for stage in self.stages.values())

    def room(self, images: int) -> int:
        """Return the bytes that a batch of so many images wants to find, with the workspaces of libraries."""
        return max(self._room(name, images) for name in self.stages)

    def _room(self, name: str, images: int) -> int:
        stage = self.stages[name]
        return room_of(name, stage.weights, stage.needed(images) - stage.weights)

    def peak_stage(self, images: int) -> str:
        """Return the stage of that moment."""
        return max(self.stages, key=lambda name: self.stages[name].needed(images))

    @property
    def weights(self) -> int:
        """What is there while it denoises."""
        return self.stages["denoise"].weights

    def most_images(self, memory: int) -> int:
        """Return how many images of a batch fit a GPU of this memory; 0 if not even one does."""
        return max((images for images in range(MAX_AUTO + 1) if fits(self.room(images), memory)), default=0)


def memory_of(
    checkpoint: Checkpoint, config: RunConfig, topology: Topology, dtype: str, shape: Shape, inputs: int = 0,
    figures: Figures | None = None,
) -> Memory | None:  # fmt: skip
    """Return what a batch needs at each stage; None if nothing is known of the model.

    Args:
        inputs: tokens of input images.
        figures: what a trace found; without them it is a formula.
    """
    if figures is None:
        return _by_formula(checkpoint, config, topology, dtype, shape, inputs)
    whole = dict(figures.weights)
    exact = True
    if config.optimization.quantization is not None:
        exact = False
        share = STORED[config.optimization.quantization] / DTYPE_BYTES[dtype]
        whole |= {name: int(whole[name] * share) for name in whole if name in DENOISERS}
    whole |= {name: size for name, size in checkpoint.stored.items() if name in whole}
    whole = _with_loras(whole, checkpoint)
    here = on_each_rank(whole, checkpoint, config, topology, figures.block_sizes)
    fetched = fetched_in(whole, config, topology, figures.block_sizes)
    exact = exact and config.backend.shard is None
    ahead = checkpoint.encodes_ahead(config.optimization.encode)
    stages = {}
    for name in STAGES:
        stage = _stage_memory(figures, name, _resident(here, name, config.optimization, ahead), ahead)
        stages[name] = _with_fetched(stage, fetched.get(name))
    exact = exact and not (config.optimization.enable_cpu_offload or config.optimization.enable_group_offloading)
    return Memory(stages=stages, source="traced" if exact else "formula over traced parts")


def _stage_memory(figures: Figures, name: str, weights: int, ahead: bool) -> StageMemory:
    """Prompts that are encoded ahead come in chunks, whatever the batch."""
    cost = figures.stage(name)
    if name == "encode" and ahead:
        return StageMemory(weights=weights, fixed=cost.peak(ENCODED_TOGETHER), image=0)
    return StageMemory(weights=weights, fixed=cost.fixed_bytes, image=cost.image_bytes)


def _with_fetched(stage: StageMemory, fetched: BlockSizes | None) -> StageMemory:
    """A stage with the weights that FSDP has whole meanwhile. Nothing is computed at the moment when a block is fetched; prompts
    that are encoded ahead have all of theirs in `fixed`, and only then."""
    if fetched is None:
        return stage
    if not stage.image:
        return replace(stage, fixed=fetched.whole + max(stage.fixed, fetched.fetching))
    return replace(stage, fixed=fetched.whole + stage.fixed, moment=fetched.fetching)


def _resident(parts: Mapping[str, int], stage: str, config: OptimizationConfig, ahead: bool) -> int:
    """Bytes of the weights that are on the device during a stage."""
    texts = {name: size for name, size in parts.items() if name.startswith("text_encoder")}
    others = {name: size for name, size in parts.items() if name not in texts}
    denoisers = {name: size for name, size in others.items() if name in DENOISERS}
    if config.enable_cpu_offload:  # one network at a time
        alone = {"encode": texts, "denoise": denoisers, "decode": {"vae": parts.get("vae", 0)}}
        return max(alone[stage].values(), default=0)
    if config.enable_group_offloading:  # of the transformer a layer or two at a time
        others = {name: size for name, size in others.items() if name not in denoisers}
    if ahead:
        return sum(texts.values()) if stage == "encode" else sum(others.values())
    return sum(texts.values()) + sum(others.values())


def _with_loras(parts: dict[str, int], checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of each part of the pipeline, with what LoRAs add to it; those are not quantized."""
    return {
        name: size + (checkpoint.loras.num_bytes(name) if name in DENOISERS or name.startswith("text_encoder") else 0)
        for name, size in parts.items()
    }


FETCHED = 0.4
"""Share of a network's weights that FSDP has whole on each rank where its blocks are not known: of the known models' transformers up
to 0.19, of their large text encoders 0.13 (Mistral) to 0.4."""


def on_each_rank(
    parts: Mapping[str, int], checkpoint: Checkpoint, config: RunConfig, topology: Topology,
    block_sizes: Mapping[str, BlockSizes],
) -> dict[str, int]:  # fmt: skip
    """Return the bytes of each component that a rank keeps where --shard shares the weights: the text encoders' go by FSDP."""
    degree = topology.parallel.shard_degree

    def here(name: str, size: int) -> int:
        if degree == 1 or not name.startswith((*DENOISERS, "text_encoder")):
            return size
        if config.backend.shard == "tensor" and name in DENOISERS:
            whole = int(size * checkpoint.family.whole_under_tensor)
        else:
            whole = block_sizes[name].tables if name in block_sizes else 0
        return whole + (size - whole) // degree

    return {name: here(name, size) for name, size in parts.items()}


def fetched_in(
    parts: Mapping[str, int], config: RunConfig, topology: Topology, block_sizes: Mapping[str, BlockSizes]
) -> dict[str, BlockSizes]:
    """Return by stage the network of which FSDP has most whole on each rank, beside the rank's part."""
    if topology.parallel.shard_degree == 1:
        return {}
    networks = {"encode": [name for name in parts if name.startswith("text_encoder")]}
    if config.backend.shard == "fsdp":
        networks["denoise"] = [name for name in parts if name in DENOISERS]

    def sizes(name: str) -> BlockSizes:
        unknown = BlockSizes(largest=0, outside=int(FETCHED * parts[name]), tables=0)
        return block_sizes.get(name, unknown)

    return {
        stage: max(map(sizes, names), key=lambda each: each.whole + each.fetching)
        for stage, names in networks.items()
        if names
    }


STORED = {"int8": 1.0, "fp8": 1.0, "nf4": 0.56}
"""Bytes of a weight of the transformer once it is quantized, its scales included."""


def _by_formula(
    checkpoint: Checkpoint, config: RunConfig, topology: Topology, dtype: str, shape: Shape, inputs: int
) -> Memory | None:
    """Where nothing could be traced. Denoising holds about 12 tensors of tokens x width at once (hidden state, q, k, v,
    attention out, the MLP's 4x and its output), shared out by the sequence-parallel degree. Decoding holds about 1,024
    channels at full resolution; with slicing one image is decoded at a time, with tiling one tile."""
    if not checkpoint.parameters:
        return None
    size, optimization = DTYPE_BYTES[dtype], config.optimization
    stored = STORED.get(optimization.quantization or "", 1.0 if optimization.enable_layerwise_casting else float(size))
    parts = {
        name: int(count * (min(stored, size) if name in DENOISERS else size))
        for name, count in checkpoint.parameters.items()
    } | dict(checkpoint.stored)
    parts = _with_loras(parts, checkpoint)
    fetched = fetched_in(parts, config, topology, {})
    parts = on_each_rank(parts, checkpoint, config, topology, {})
    ahead = checkpoint.encodes_ahead(optimization.encode)
    tokens = checkpoint.image_tokens(shape) + inputs + checkpoint.text_length(config.max_sequence_length)
    denoise = 12 * tokens * (checkpoint.width_of_model or UNET_WIDTH) * size // topology.sequence_degree
    height, width = shape.height, shape.width
    if optimization.enable_vae_tiling:
        height, width = min(height, 512), min(width, 512)
    decode = height * width * 1024 * size
    once = decode if optimization.enable_vae_slicing else 0
    each = {"encode": (0, 0), "denoise": (0, denoise), "decode": (once, decode - once)}
    stages = {}
    for name, (fixed, image) in each.items():
        stage = StageMemory(weights=_resident(parts, name, optimization, ahead), fixed=fixed, image=image)
        stages[name] = _with_fetched(stage, fetched.get(name))
    return Memory(stages=stages, source="formula")


def chooser(
    profile: Profile, checkpoint: Checkpoint, config: RunConfig, topology: Topology, machine: Machine,
    limits: Mapping[Shape, int], tuned: Mapping[Shape, BatchSize], figures: FiguresOf = lambda _: None,
) -> Callable[[Bucket], BatchSize]:  # fmt: skip
    """Return the function that says the batch size of each bucket: what the backend wants, else --batch_size, else what
    `tune` measured, else arithmetic; below a size that ran out of memory before (`limits`)."""
    fixed = profile.batch_size(config)

    def choose(bucket: Bucket) -> BatchSize:
        if fixed is not None:
            return fixed
        shape = checkpoint.shape(bucket.height, bucket.width)
        chosen = _given_or_auto(checkpoint, config, topology, machine, shape, bucket, figures)
        if config.batch_size == "auto" and not bucket.input_tokens and checkpoint.family.batch:
            chosen = tuned.get(shape, chosen)
        limit = limits.get(shape)
        if limit is not None and chosen.size > limit:
            return BatchSize(limit, f"{limit + 1} or more ran out of memory at {shape} in an earlier start")
        return chosen

    return choose


def _given_or_auto(
    checkpoint: Checkpoint, config: RunConfig, topology: Topology, machine: Machine, shape: Shape, bucket: Bucket,
    figures: FiguresOf,
) -> BatchSize:  # fmt: skip
    inputs = bucket.input_tokens
    if not checkpoint.family.batch:
        asked = f"not the {config.batch_size} asked for; " if config.batch_size not in (1, "auto") else ""
        return BatchSize(1, f"{asked}{checkpoint.family.name}: {checkpoint.family.batch_reason}")
    if config.batch_size != "auto":
        return BatchSize(config.batch_size, "as given")
    wanted = _by_tokens(checkpoint, topology, shape, inputs)
    if machine.memory is None:
        return BatchSize(wanted.size, wanted.reason + "; memory unknown before loading")
    memory = memory_of(checkpoint, config, topology, machine.dtype, shape, inputs, figures(bucket))
    if memory is None:
        return BatchSize(wanted.size, wanted.reason + "; memory unknown before loading")
    most, gib = memory.most_images(machine.memory), machine.memory / 2**30
    if not most:
        needed = memory.needed(1) / 2**30
        return BatchSize(1, f"one image of {shape} takes {needed:.1f} GiB ({memory.source}), and there are {gib:.0f}")
    if most < wanted.size:
        images = f"{most} image{'s' if most > 1 else ''} of {shape}"
        return BatchSize(most, f"{gib:.0f} GiB hold the weights and {images}")
    return wanted


def _by_tokens(checkpoint: Checkpoint, topology: Topology, shape: Shape, inputs: int) -> BatchSize:
    """So many images that their tokens keep a GPU full."""
    tokens = checkpoint.image_tokens(shape) + inputs
    share = max(tokens // topology.sequence_degree, 1)
    full = MASKED_TOKENS if checkpoint.family.masks_lengths else FULL_TOKENS
    wanted = min(max(full // share, 1), MAX_AUTO)
    with_inputs = " with its input images" if inputs else ""
    if wanted == MAX_AUTO:
        return BatchSize(wanted, f"{shape} is {tokens} tokens{with_inputs}: small, so the largest that auto takes")
    divided = f", {share} on each of {topology.sequence_degree} ranks" if topology.sequence_degree > 1 else ""
    masked = ", as prompts of different lengths mask the attention" if checkpoint.family.masks_lengths else ""
    return BatchSize(wanted, f"{shape} is {tokens} tokens{with_inputs}{divided}; {full} keep a GPU full{masked}")


def bottleneck(checkpoint: Checkpoint, topology: Topology, plan: Plan, seconds: float) -> str | None:
    """With --writer main: a sentence if the replicas make more than rank 0 can take in."""
    shapes = ((checkpoint.shape(part.bucket.height, part.bucket.width), len(part.tasks)) for part in plan.parts)
    pixels = sum(shape.height * shape.width * count for shape, count in shapes)
    rate = pixels / 1e6 / seconds
    if topology.mode != "main" or topology.world_size == 1 or rate <= TAKEN_IN_MPIXELS:
        return None
    return (
        f"writing: {plan.num_tasks / seconds:,.0f} images/s are {rate / TAKEN_IN_MPIXELS:.1f} times what one rank 0 was measured to "
        f"take in ({TAKEN_IN_MPIXELS:.0f} megapixels/s); with --writer node or rank it is not the bottleneck"
    )
