"""What --parallel and --shard cannot do with a model, or with other flags, is refused here before anything is loaded."""

import math
from collections.abc import Sequence

from dglaunch.config import RunConfig
from dglaunch.data.many import kinds_of, texts_of
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, token_lengths
from dglaunch.models.families import families_shared_by
from dglaunch.models.figures import DENOISERS
from dglaunch.models.optimizations import asked

BESIDE = ("enable_vae_slicing", "enable_vae_tiling", "enable_channels_last", "enable_tf32")
"""Optimizations that do not touch what is shared."""
REASONS = {
    "cache_type": "each rank sees another part of the image or holds another part of the weights, and a cache was not "
    "measured there",
    "quantization": "the library packs the weights in its own way, which cannot be cut into parts",
    "enable_layerwise_casting": "it changes the type of each layer's weights while they are gathered",
    "enable_fuse_qkv": "it makes new weights, which the plan does not name",
    "enable_cpu_offload": "weights would be moved while other ranks wait for them",
    "enable_group_offloading": "weights would be moved while other ranks wait for them",
}
"""Why the others do not go with it, by flag."""
UNMEASURED = "nobody measured the two together"
TEMPLATE_TOKENS = 5
"""That QwenImage's chat template leaves behind each prompt: no text is shorter."""


def check_sharing(checkpoint: Checkpoint, config: RunConfig, topology: Topology, tasks: Sequence[Task]) -> None:
    """Refuse what the ranks of a replica cannot share.

    Raises:
        UserError: with the reason and what to do instead.
    """
    ways = [("parallel", config.backend.parallel), ("shard", config.backend.shard)]
    for flag, way in ways:
        if way is not None:
            _check_family(checkpoint, flag, way)
            _check_weights(checkpoint, flag, way)
            _check_flags(config, f"--{flag} {way}")
    if config.backend.shard == "tensor":
        _check_tensor(checkpoint, config, topology.parallel.shard_degree)
    if config.backend.parallel == "context":
        _check_lengths(checkpoint, config, topology.parallel.context_degree, tasks)


def _check_family(checkpoint: Checkpoint, flag: str, way: str) -> None:
    if way in checkpoint.family.shares:
        return
    reason = "nobody measured it there" if way == "fsdp" else "diffusers has no plan for its transformer"
    name = checkpoint.family.name if checkpoint.family.shares else checkpoint.pipeline_class
    others = f"; --shard fsdp goes with {name}" if "fsdp" in checkpoint.family.shares else ""
    raise UserError(
        f"--{flag} {way} does not go with {name}: {reason}. It goes with {', '.join(families_shared_by(way))}{others}. Drop it."
    )


def _check_weights(checkpoint: Checkpoint, flag: str, way: str) -> None:
    """Refuse what is loaded in another way than a checkpoint's own folder is."""
    if checkpoint.loras:
        reason = (
            "nobody measured it here"
            if flag == "parallel"
            else "each rank holds parts of the weights, and a LoRA is for whole ones"
        )
        raise UserError(
            f"--lora does not go with --{flag} {way}: {reason}. Fuse it into the checkpoint, or drop one of them."
        )
    if checkpoint.own is not None:
        raise UserError(
            f"--{flag} {way} does not go with a pipeline of your own ({checkpoint.own.name}): {UNMEASURED}. Drop one of them."
        )
    if flag == "shard":
        _check_stored(checkpoint, way)


def _check_stored(checkpoint: Checkpoint, way: str) -> None:
    """Each rank reads its part of the transformer from the checkpoint's own folder: weights that were given apart would be
    passed over in silence, and packed ones cannot be cut."""
    for part, weights in checkpoint.weight_files.items():
        if part in DENOISERS:
            raise UserError(
                f"--{weights.flag} {weights.path} does not go with --shard {way}: each rank reads its part of the {part} from the "
                "folder of --model_name. Put the weights there (save_pretrained), or drop one of them."
            )
    for part in checkpoint.components:
        if (method := checkpoint.quantized_by(part)) is not None:
            raise UserError(
                f"--shard {way} does not go with a {part} that {method} has quantised: its packed weights cannot be cut into parts. "
                "Take weights that are not quantised, or drop --shard."
            )


def _check_flags(config: RunConfig, given: str) -> None:
    for row in asked(config.optimization):
        if row.flag not in BESIDE:
            raise UserError(
                f"--{row.name} does not go with {given}: {REASONS.get(row.flag, UNMEASURED)}. Drop one of them."
            )
    if config.optimization.embedding_cache is not None and given.startswith("--shard"):
        raise UserError(
            f"--embedding_cache does not go with {given}: the ranks encode each prompt together, and one that found it in the "
            "cache would leave the others waiting. Drop one of them."
        )


def _check_tensor(checkpoint: Checkpoint, config: RunConfig, degree: int) -> None:
    if config.backend.parallel is not None:
        raise UserError(
            "--shard tensor does not go with --parallel context: diffusers applies one of the two to a transformer. Use "
            "--shard fsdp with --parallel context, or drop one of them."
        )
    heads = checkpoint.heads
    if heads is not None and heads % degree:
        fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise UserError(
            f"--shard tensor gives each rank some of the {heads} attention heads, which DG_SHARD_DEGREE={degree} does not "
            f"divide. Degrees that do: {fitting}; --shard fsdp takes any."
        )


def _check_lengths(checkpoint: Checkpoint, config: RunConfig, degree: int, tasks: Sequence[Task]) -> None:
    """Each rank needs a token of the text and of the image."""
    shapes = {(task.height, task.width) for task in kinds_of(tasks)}
    for shape in (checkpoint.shape(*sides) for sides in shapes):
        if (tokens := checkpoint.image_tokens(shape)) < degree:
            raise UserError(
                f"{shape} is {tokens} tokens, too few for the {degree} ranks of DG_PARALLEL_DEGREE. Lower it, or raise the size."
            )
    if checkpoint.family.text_bucket and not config.edits and degree > TEMPLATE_TOKENS:
        _check_shortest_text(checkpoint, config, degree, tasks)
    length = checkpoint.text_length(config.max_sequence_length)
    if not checkpoint.family.text_bucket and length < degree:
        raise UserError(
            f"A text of {length} tokens is too short for the {degree} ranks of DG_PARALLEL_DEGREE. Give --max_sequence_length "
            f"{degree} or more."
        )


def _check_shortest_text(checkpoint: Checkpoint, config: RunConfig, degree: int, tasks: Sequence[Task]) -> None:
    if checkpoint.not_here is not None:
        return
    texts = sorted(set(texts_of(tasks)))
    shortest = min(token_lengths(checkpoint, texts, config.backend), default=math.inf)
    if shortest + TEMPLATE_TOKENS < degree:
        raise UserError(
            f"A prompt or negative prompt has {shortest:g} tokens, with its template {shortest + TEMPLATE_TOKENS:g}: too few for the "
            f"{degree} ranks of DG_PARALLEL_DEGREE. Write more, or lower the degree."
        )
