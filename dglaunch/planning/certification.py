"""What a certificate of a model on a machine consists of: the runs that must give the same images, and the limits.

    cases(job, ranks, splits)       # the reference first: one rank, one image at a time, prompts encoded in each batch
    predict(job)                    # memory and time as planned, to be set beside what was measured
    limits.broken_by(comparison)    # sentences about what is outside

Each case is one start of the same job, with the same prompts and seeds, that differs from the reference in one thing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dglaunch.config import OWN_DEGREES, XDIT_PREFIX, ParallelConfig
from dglaunch.distributed.topology import splits
from dglaunch.errors import UserError
from dglaunch.output.differences import SEEN, Comparison, Difference
from dglaunch.planning.figures import book_of, in_another_process
from dglaunch.planning.gpus import gpu_of
from dglaunch.planning.job import Job
from dglaunch.planning.outlook import look_ahead
from dglaunch.planning.tuned import describe

REFERENCE = "reference"
ONE_BY_ONE = ("--batch_size", "1", "--encode", "inline")
DRAIN, KILL = "drain", "kill"
LARGEST_DIFFERENCE = 2
"""Of 255, of any pixel in float32: what another order of the same sums was measured to do."""
LARGEST_MEAN = 8.0
"""Of 255, of the average pixel of an image in bfloat16 and float16, whose rounding sends single pixels far away: what
kernels_bench allows there. It tells another picture from rounding; in float32 smaller mistakes are seen, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to run the job."""

    name: str
    shows: str
    """What is right if its images are the reference's, as the end of a sentence."""
    ranks: int = 1
    words: tuple[str, ...] = ONE_BY_ONE
    """Flags beside the user's."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """DG_XDIT_* degrees, or those of --shard and --parallel."""
    stopped_by: str = ""
    """DRAIN or KILL: it is stopped in the middle and started again."""
    refused: str = ""
    """Why it cannot be run here."""


def cases(job: Job, ranks: int, degrees: Mapping[str, str]) -> list[Case]:
    """Return all that is to be run, the reference first, and what is left out with its reason.

    Args:
        job: as one rank does it by default.
        ranks: of this machine.
        degrees: the variables with degrees that the user has set: then these splits are the only ones.
    """
    return [
        Case(name=REFERENCE, shows="one rank, one image at a time, prompts encoded in each batch"),
        Case(name="again", shows="the same command draws the same images twice"),
        *_batches(job),
        Case(
            name="encode ahead",
            shows="prompts encoded ahead of the first batch are those encoded in each",
            words=("--batch_size", "1", "--encode", "ahead"),
        ),
        _replicas(ranks),
        Case(name="as by default", shows="all ranks with the batch size and encoding that t2i chooses", ranks=ranks, words=()),
        *_splits(job, ranks, degrees),
        Case(name="resume after SIGTERM", shows="a run that was asked to stop goes on", ranks=ranks, stopped_by=DRAIN),
        Case(name="resume after SIGKILL", shows="a run that was killed goes on", ranks=ranks, stopped_by=KILL),
    ]  # fmt: skip


def _batches(job: Job) -> list[Case]:
    """Two images in one forward pass, and as many as `auto` takes here."""
    plan = job.schedule((), {}, {}, job.machine.memory).plan
    chosen = max(plan.sizes.values(), key=lambda size: size.size)
    largest = min(chosen.size, plan.num_tasks)
    why = "" if job.checkpoint.family.batch else f"{job.checkpoint.family.name}: {job.checkpoint.family.batch_reason}"
    too_few = "" if largest > 2 else f"--batch_size auto takes {largest} here: {chosen.reason}"
    return [
        _batch("batch 2", 2, why),
        _batch("largest batch", largest, why or too_few),
    ]


def _batch(name: str, size: int, refused: str) -> Case:
    return Case(
        name=name,
        shows=f"images that share a forward pass, {size} at a time, do not change each other",
        words=("--batch_size", str(size), "--encode", "inline"),
        refused=refused,
    )


def _replicas(ranks: int) -> Case:
    return Case(
        name=f"{ranks} replicas" if ranks > 1 else "replicas",
        shows="who draws an image does not change it",
        ranks=ranks,
        refused="" if ranks > 1 else "there is one rank here; --num_gpus says how many there are",
    )


SHARED = (
    ("--shard", "fsdp", "shard_degree", "hold one model together"),
    ("--shard", "tensor", "shard_degree", "hold one model together"),
    ("--parallel", "context", "context_degree", "share images"),
)
"""How diffusers itself shares a model or an image: the flag, its value, whose degree it is, and what the ranks do."""


def _splits(job: Job, ranks: int, degrees: Mapping[str, str]) -> list[Case]:
    """One image on several ranks, in each way that multiplies to a part of the world."""
    if ranks == 1:
        return [Case(name="splits", shows="several ranks share an image", refused="there is one rank here")]
    of_xdit = {name: degree for name, degree in degrees.items() if name.startswith(XDIT_PREFIX)}
    xdit = [of_xdit] if of_xdit else [] if degrees else [_variables(split) for split in splits(ranks)]
    split_by_xdit = [
        _split(job, ranks, describe(variables), ("--backend", "xdit"), variables, "share images") for variables in xdit
    ]
    own = degrees or dict.fromkeys(OWN_DEGREES.values(), str(ranks))
    return split_by_xdit + [
        _split(job, ranks, f"{way} {own[name]}", (flag, way), {name: own[name]}, does)
        for flag, way, degree, does in SHARED
        if (name := OWN_DEGREES[degree]) in own
    ]


def _split(job: Job, ranks: int, name: str, way: tuple[str, ...], variables: Mapping[str, str], does: str) -> Case:
    backend, batch = job.config.backend.backend, "2" if job.checkpoint.family.batch else "1"
    return Case(
        name=name,
        shows=f"ranks that {does}, {batch} images at a time, draw what one rank does",
        ranks=ranks,
        words=(*way, "--batch_size", batch, "--encode", "inline"),
        variables=variables,
        refused="" if backend == "diffusers" else f"--backend {backend} splits no image",
    )


def _variables(split: ParallelConfig) -> dict[str, str]:
    degrees = {"ULYSSES_DEGREE": split.ulysses_degree, "RING_DEGREE": split.ring_degree}
    several = {XDIT_PREFIX + name: str(degree) for name, degree in degrees.items() if degree > 1}
    return several | ({f"{XDIT_PREFIX}USE_CFG_PARALLEL": "1"} if split.use_cfg_parallel else {})


# -- memory and time ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What `plan` says of a job before it runs."""

    memory: int | None = None
    """Bytes of a rank's device at its peak."""
    seconds: float | None = None
    """From the first batch to the last."""
    basis: str = ""
    """What these are made of."""


def predict(job: Job) -> Predicted:
    """Return what `plan` says of a job; nothing for a backend without a model. The one place that asks the estimates."""
    if not job.profile.has_estimates:
        return Predicted()
    # On a CPU there is nothing to set a GPU's figures beside, so nothing is traced for it.
    book = book_of(job, in_another_process(job.config) if job.device == "cuda" else None)
    schedule = job.schedule((), {}, {}, job.machine.memory, figures=book)
    outlook = look_ahead(job, schedule, book, gpu_of(job.machine))
    if outlook is None or outlook.memory is None:
        return Predicted()
    known = outlook.seconds is not None
    return Predicted(
        memory=outlook.memory.needed(outlook.images),
        seconds=outlook.making.middle if known else None,
        basis="; ".join(outlook.seconds.basis) if outlook.seconds is not None else f"memory: {outlook.memory.source}",
    )


# -- limits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far an image may be from the reference's; None: as far as it likes."""

    max_difference: float | None
    """Of 255, of any channel of any pixel."""
    max_mean: float | None
    """Of 255, on average over an image."""
    max_share: float | None
    """The part of an image's pixels that may differ by more than SEEN."""

    def broken_by(self, comparison: Comparison) -> list[str]:
        """Return a sentence about each limit that an image is outside of, with the image that is furthest out; and about
        images that could not be compared."""
        broken = [f"image {_name(task)}: {reason}" for task, reason in comparison.not_compared.items()]
        for name, limit, told in (
            ("greatest", self.max_difference, "a pixel differs by {:g} of 255, the limit is {:g}"),
            ("mean", self.max_mean, "its pixels differ by {:.3g} of 255 on average, the limit is {:g}"),
            ("share", self.max_share, f"{{:.2%}} of its pixels differ by more than {SEEN}, the limit is {{:.2%}}"),
        ):
            task, value = _furthest(comparison.images, name)
            if limit is not None and value > limit:
                broken.append(f"image {_name(task)}: {told.format(value, limit)}")
        return broken


def _furthest(images: Mapping[tuple[int, int], Difference], name: str) -> tuple[tuple[int, int], float]:
    values = {task: float(getattr(image, name)) for task, image in images.items()}
    task = max(values, key=lambda task: values[task], default=(0, 0))
    return task, values.get(task, 0.0)


def _name(task: tuple[int, int]) -> str:
    index, sample = task
    return f"{index}, sample {sample}" if sample else str(index)


def limits_for(dtype: str, given: Limits) -> Limits:
    """Return the limits that were given; where none was, those of the weights' type."""
    if given != Limits(max_difference=None, max_mean=None, max_share=None):
        return given
    if dtype == "float32":
        return Limits(max_difference=LARGEST_DIFFERENCE, max_mean=None, max_share=None)
    return Limits(max_difference=None, max_mean=LARGEST_MEAN, max_share=None)


def chosen(found: Sequence[Case], words: Sequence[str]) -> list[Case]:
    """Return the reference and the cases that have one of these words in their names; all, where there are no words.

    Raises:
        UserError: a word is in no name.
    """
    if unknown := [word for word in words if not any(word in case.name for case in found)]:
        names = ", ".join(case.name for case in found)
        raise UserError(
            f"No case has one of the words {', '.join(unknown)} in its name. --cases takes words of these: {names}."
        )
    return [case for case in found if not words or case.name == REFERENCE or any(word in case.name for word in words)]
