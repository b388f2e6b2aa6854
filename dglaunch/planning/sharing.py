"""What --shard makes of a batch's work: how much of it each rank does, and what the ranks send each other.

work = shared(work, job, figures, bucket, text_tokens=128)
"""

from collections.abc import Mapping
from dataclasses import replace

from dglaunch.data.task import Bucket
from dglaunch.models.catalogue import known
from dglaunch.models.checkpoint import DTYPE_BYTES, Checkpoint
from dglaunch.models.figures import DENOISERS, Figures
from dglaunch.planning.estimate import ENCODED_TOGETHER
from dglaunch.planning.job import Job
from dglaunch.planning.speed import Work

SUMS = {"num_layers": 2, "num_single_layers": 1}
"""How often the ranks of --shard tensor add up all tokens in a block of the transformer, by what counts these blocks in its
configuration: after attention and after the feed-forward layers, or after both at once."""


def shared(work: Work, job: Job, figures: Figures, bucket: Bucket, text_tokens: int) -> Work:
    """Return the work of one rank where the ranks of a replica share the weights.

    Args:
        work: of a rank that has all of them.
        text_tokens: of a prompt that is not padded.
    """
    degree, way = job.topology.parallel.shard_degree, job.config.backend.shard
    if degree == 1:
        return work
    passes = passes_of(job.checkpoint, bucket)
    work = replace(work, sent_bytes_once=_encoders(figures.weights, job, work.images) * (degree - 1) // degree)
    if way == "fsdp":
        gathered = passes * gathered_a_pass(figures.weights, degree)
        return replace(work, sent_bytes_a_step=work.sent_bytes_a_step + gathered, overlapped=True)
    summed = passes * work.images * summed_a_pass(job, bucket, text_tokens)
    sent = 2 * summed * (degree - 1) // degree  # each part goes once to be added up, and once as the sum
    return replace(work, step_tflop=work.step_tflop / degree, sent_bytes_a_step=work.sent_bytes_a_step + sent)


def gathered_a_pass(parts: Mapping[str, int], degree: int) -> int:
    """Return the bytes of weights that a rank gets from the others in each pass of the transformer, under --shard fsdp."""
    return sum(size for name, size in parts.items() if name in DENOISERS) * (degree - 1) // degree


def summed_a_pass(job: Job, bucket: Bucket, text_tokens: int) -> int:
    """Return the bytes that the ranks add up for an image in each pass of the transformer, under --shard tensor."""
    checkpoint = job.checkpoint
    text = text_tokens if checkpoint.family.text_bucket else checkpoint.text_length(job.config.max_sequence_length)
    if (edit := checkpoint.family.edit) is not None:
        text += len(bucket.input_shapes) * edit.seen_tokens
    tokens = checkpoint.image_tokens(checkpoint.shape(bucket.height, bucket.width)) + bucket.input_tokens + text
    layers = {name: checkpoint.transformer.get(name) for name in SUMS}
    sums = sum(SUMS[name] * count for name, count in layers.items() if isinstance(count, int))
    return sums * tokens * (checkpoint.width_of_model or 0) * DTYPE_BYTES[job.machine.dtype]


def passes_of(checkpoint: Checkpoint, bucket: Bucket) -> int:
    """Return how often a step calls the transformer: guidance may do so twice, or once with twice as many images."""
    family, entry = checkpoint.family, known(checkpoint.source)
    usual = entry.defaults.get("cfg_passes") if entry is not None and not family.guidance_needs_negative else 1
    is_guided = bucket.has_negative or (usual == 2 and (bucket.guidance_scale is None or bucket.guidance_scale > 1))
    return 2 if is_guided and not family.guides_in_one_call else 1


def _encoders(parts: Mapping[str, int], job: Job, images: int) -> int:
    """Bytes of the text encoders, as often as a batch fetches them: prompts that are encoded ahead come several at a time."""
    size = sum(size for name, size in parts.items() if name.startswith("text_encoder"))
    ahead = job.checkpoint.encodes_ahead(job.config.optimization.encode)
    return size * images // ENCODED_TOGETHER if ahead else size
