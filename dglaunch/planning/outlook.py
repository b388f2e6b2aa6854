"""What a job will take on named GPUs: memory by stage, time as a range, the ways to split it, and what would help.

outlook = look_ahead(job, schedule, book, gpu)
outlook.fits, outlook.total, outlook.advice
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dglaunch.data.many import kinds_of
from dglaunch.data.task import Bucket
from dglaunch.errors import UserError
from dglaunch.models.figures import Figures
from dglaunch.models.schedulers import calls_of
from dglaunch.planning import estimate
from dglaunch.planning.changes import SAVING, Change, changed, layouts, sharing, with_change
from dglaunch.planning.estimate import Memory, memory_of
from dglaunch.planning.figures import FigureBook
from dglaunch.planning.gpus import Gpu
from dglaunch.planning.job import Job, Schedule
from dglaunch.planning.room import fits
from dglaunch.planning.sharing import shared
from dglaunch.planning.speed import NONE, Seconds, Span, Work, gain_of_compiling, seconds_of
from dglaunch.planning.unseen import not_in_time, with_loras

GIB, TERA = 2**30, 1e12
WORTH = 0.03
"""A gain below it is not advised."""
COMPILING, AHEAD = Change(optimization={"enable_compile": True}), Change(optimization={"encode": "ahead"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to put a job on its GPUs."""

    name: str
    num_replicas: int
    words: str = ""
    """How it is asked for."""
    memory: Memory | None = None
    images: int = 1
    """Of a batch."""
    fits: bool | None = None
    """None: unknown."""
    image: Span = NONE
    """Seconds until one image of a replica is there."""
    rate: Span = NONE
    """Images a second of all replicas."""
    likely: float = 0.0
    """Images a second that are likeliest: for comparing."""
    job: Span = NONE
    """Seconds of the whole job, its start included."""
    refused: str = ""
    """Why it cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of a job before it runs."""

    job: Job
    gpu: Gpu | None
    bucket: Bucket
    """The one that needs the most memory."""
    images: int
    """Of a batch of it."""
    figures: Figures | None
    memory: Memory | None
    seconds: Seconds | None
    """Of one such batch."""
    total: Span
    """Seconds of the longest share, with its start."""
    making: Span
    """And without it."""
    rate: Span
    """Images a second of all replicas, start-up left out."""
    layouts: Sequence[Layout]
    advice: Sequence[str]
    steps: int
    calls: int
    """Of the transformer, for an image of so many steps."""
    sent_a_step: int = 0
    """Bytes that a rank gives to the others of its replica in each step of a batch."""
    traced_with: Mapping[str, str] = field(default_factory=dict)
    """The versions of the packages that the figures are of."""

    @property
    def fits(self) -> bool | None:
        """Whether a batch fits; None if the memory, or what is needed, is not known."""
        room = self.job.machine.memory
        return None if self.memory is None or room is None else fits(self.memory.room(self.images), room)

    @property
    def recommended(self) -> Layout | None:
        """The layout with the most images a second, of those that fit."""
        fitting = [
            layout for layout in self.layouts if not layout.refused and layout.fits is not False and layout.likely
        ]
        return max(fitting, key=lambda layout: layout.likely, default=None)

    def as_json(self) -> dict[str, object]:
        """All of it, for `plan --json`."""
        return {
            "model": self.job.config.backend.model_name,
            "family": self.job.checkpoint.pipeline_class,
            "gpu": None if self.gpu is None else self.gpu.name,
            "dtype": self.job.machine.dtype,
            "world_size": self.job.topology.world_size,
            "shape": str(self._shape),
            "batch_size": self.images,
            "memory": self._memory_json(),
            "work": self._work_json(),
            "time": self._time_json(),
            "layouts": [self._layout_json(layout) for layout in self.layouts],
            "recommended": None if self.recommended is None else self.recommended.name,
            "advice": list(self.advice),
        }

    @property
    def _shape(self) -> object:
        return self.job.checkpoint.shape(self.bucket.height, self.bucket.width)

    def _memory_json(self) -> dict[str, object]:
        memory, room = self.memory, self.job.machine.memory
        if memory is None:
            return {"source": None, "weights_gib": None, "peak_gib": None, "peak_stage": None, "fits": None}
        return {
            "source": memory.source,
            "weights_gib": memory.weights / GIB,
            "peak_gib": memory.needed(self.images) / GIB,
            "workspace_gib": (memory.room(self.images) - memory.needed(self.images)) / GIB,
            "peak_stage": memory.peak_stage(self.images),
            "fits": self.fits,
            "left_gib": None if room is None else (room - memory.needed(self.images)) / GIB,
            "gpu_gib": None if room is None else room / GIB,
            "largest_batch": None if room is None else memory.most_images(room),
            "stages": {
                name: {
                    "weights_gib": stage.weights / GIB,
                    "fixed_gib": stage.fixed / GIB,
                    "image_gib": stage.image / GIB,
                    "peak_gib": stage.needed(self.images) / GIB,
                }
                for name, stage in memory.stages.items()
            },
            "components_gib": {}
            if self.figures is None
            else {name: size / GIB for name, size in self.figures.weights.items()},
        }

    def _work_json(self) -> dict[str, object]:
        if self.figures is None:
            return {"source": None, "step_tflop": None, "decode_tflop": None, "encode_tflop": None}
        return {
            "source": "traced",
            "traced_with": dict(self.traced_with),
            "encode_tflop": self.figures.encode.flops / TERA,
            "step_tflop": self.figures.denoise.flops / TERA,
            "decode_tflop": self.figures.decode.flops / TERA,
            "steps": self.steps,
            "calls": self.calls,
            "sent_mib_a_step": self.sent_a_step / 2**20,
        }

    def _time_json(self) -> dict[str, object]:
        if self.seconds is None:
            return {"seconds": None, "images_per_second": None, "basis": []}
        stages = {
            name: span_json(getattr(self.seconds, name))
            for name in ("load", "compiling", "encode", "denoise", "traffic", "decode")
        }
        return {
            "seconds": span_json(self.total),
            "images_per_second": span_json(self.rate),
            "batch": {"seconds": span_json(self.seconds.a_batch), "likely": self.seconds.likely},
            "stages": stages,
            "basis": list(self.seconds.basis),
        }

    def _layout_json(self, layout: Layout) -> dict[str, object]:
        if layout.refused:
            return {"name": layout.name, "refused": layout.refused}
        memory = layout.memory
        return {
            "name": layout.name,
            "words": layout.words,
            "replicas": layout.num_replicas,
            "batch_size": layout.images,
            "peak_gib": None if memory is None else memory.needed(layout.images) / GIB,
            "fits": layout.fits,
            "image_seconds": span_json(layout.image),
            "images_per_second": span_json(layout.rate),
            "seconds": span_json(layout.job),
        }


def span_json(span: Span) -> dict[str, float]:
    """Return a range for JSON."""
    return {"low": span.low, "high": span.high}


def look_ahead(
    job: Job, schedule: Schedule, book: FigureBook, gpu: Gpu | None, compare: bool = False
) -> Outlook | None:
    """Return what a job will take; None if it has nothing to do.

    Args:
        book: where the figures come from.
        gpu: what it runs on; None: not a GPU that is known.
        compare: whether the other ways to split it are looked at.
    """
    return None if not schedule.plan.sizes else _Looking(job, schedule, book, gpu).outlook(compare)


@dataclass(frozen=True, slots=True)
class PlannedPeak:
    """The peak of a run's largest batch, to be set beside what the run measures."""

    bucket: Bucket
    images: int
    num_bytes: int
    beside_weights: int

    def corrected(self, factor: float) -> "PlannedPeak":
        """Return it with so many times the memory beside the weights."""
        beside = int(self.beside_weights * factor)
        return replace(self, num_bytes=self.num_bytes - self.beside_weights + beside, beside_weights=beside)

    def factor(self, measured: int) -> float | None:
        """Return how many times what was planned the memory beside the weights was; None if that says nothing."""
        weights = self.num_bytes - self.beside_weights
        return (measured - weights) / self.beside_weights if self.beside_weights and measured > weights else None


def planned_peak(job: Job, schedule: Schedule, book: FigureBook) -> PlannedPeak | None:
    """Return the peak that a run's figures say; None if there are none, or nothing to do."""
    if not schedule.plan.sizes or not book.known:
        return None
    looking = _Looking(job, schedule, book, None)
    bucket, images = looking.largest
    if (memory := looking.memory(bucket)) is None or book(bucket) is None:
        return None
    stage = memory.stages[memory.peak_stage(images)]
    needed = memory.needed(images)
    return PlannedPeak(bucket, images, needed, needed - stage.weights)


class _Looking:
    """What an outlook is made of."""

    def __init__(self, job: Job, schedule: Schedule, book: FigureBook, gpu: Gpu | None) -> None:
        self.job, self.schedule, self.book, self.gpu = job, schedule, book, gpu
        self.optimization = job.config.optimization

    def outlook(self, compare: bool) -> Outlook:
        job = self.job
        bucket, images = self.largest
        figures = self.book(bucket)
        memory = self.memory(bucket)
        seconds = self.seconds(bucket, images)
        total, making = self.shares()
        num_images = self.schedule.plan.num_tasks
        outlook = Outlook(
            job=job, gpu=self.gpu, bucket=bucket, images=images, figures=figures, memory=memory, seconds=seconds,
            total=total, making=making, rate=_rate(num_images, making), steps=self.steps(bucket, figures),
            calls=self.calls(bucket, figures), traced_with=self.book.traced_with(bucket) if figures is not None else {},
            sent_a_step=self.work(bucket, images, figures).sent_bytes_a_step if figures is not None else 0,
            layouts=[self.layout(change) for change in layouts(job)] if compare else [], advice=[],
        )  # fmt: skip
        return replace(outlook, advice=list(self.advice(outlook)))

    @cached_property
    def largest(self) -> tuple[Bucket, int]:
        """The bucket whose batches need the most memory, and how many images they have."""
        longest: dict[Bucket, int] = {}
        for part in self.schedule.plan.parts:
            length = max(length for length, _ in part.lengths)
            longest[part.bucket] = max(longest.get(part.bucket, 0), length)

        def pixels(bucket: Bucket) -> int:
            inputs = sum(shape.area for shape in bucket.input_shapes)
            return longest[bucket] * (self.job.checkpoint.shape(bucket.height, bucket.width).area + inputs)

        bucket = max(longest, key=pixels)
        return bucket, longest[bucket]

    def memory(self, bucket: Bucket) -> Memory | None:
        job = self.job
        shape = job.checkpoint.shape(bucket.height, bucket.width)
        figures = self.book(bucket)
        return memory_of(
            job.checkpoint, job.config, job.topology, job.machine.dtype, shape, bucket.input_tokens, figures
        )

    def calls(self, bucket: Bucket, figures: Figures | None) -> int:
        """How often the transformer is called for an image, which some schedulers do twice a step."""
        return calls_of(self.job.checkpoint, self.job.config.backend, self.steps(bucket, figures))

    def steps(self, bucket: Bucket, figures: Figures | None) -> int:
        checkpoint = self.job.checkpoint
        default = checkpoint.default("num_inference_steps", figures.num_inference_steps if figures is not None else 0)
        steps = bucket.num_inference_steps or default or checkpoint.num_steps(None)
        return checkpoint.steps_computed(steps, bucket.roles, bucket.strength)

    # -- time --------------------------------------------------------------------------------------------------------

    def work(self, bucket: Bucket, images: int, figures: Figures) -> Work:
        """What a rank does for a batch of so many images."""
        work = replace(
            work_of(self.job.config.backend.model_name, figures, images, self.calls(bucket, figures)),
            overlapped=self.job.topology.parallel.ring_degree > 1,
            weights_bytes=sum(figures.weights.values()),
        )
        return shared(work, self.job, figures, bucket, self.book.text_tokens)

    def seconds(self, bucket: Bucket, images: int) -> Seconds | None:
        """A batch of so many images on one replica."""
        figures = self.book(bucket)
        if figures is None or self.gpu is None:
            return None
        work = self.work(bucket, images, figures)
        seconds = seconds_of(work, self.gpu, dtype=self.job.machine.dtype, compiled=self.optimization.enable_compile)
        if seconds is not None and self.job.checkpoint.loras:
            seconds = with_loras(seconds, self.num_lora_sets)
        return None if seconds is None else replace(seconds, basis=(*seconds.basis, *not_in_time(self.optimization)))

    @cached_property
    def num_lora_sets(self) -> int:
        """How many different sets of LoRAs the rows have."""
        return len({task.lora or () for task in kinds_of(self.job.makeable)})

    def shares(self) -> tuple[Span, Span]:
        """Seconds of the longest share with its start, and without it."""
        known: dict[tuple[Bucket, int], Seconds | None] = {}
        longest, start = NONE, NONE
        for share in self.schedule.plan.batches:
            making = NONE
            for key, count in (
                (((part.bucket, length), count)) for part in share.parts for length, count in part.lengths
            ):
                if key not in known:
                    known[key] = self.seconds(*key)
                seconds = known[key]
                if seconds is None:
                    return NONE, NONE
                making += seconds.a_batch.times(count)
                start = seconds.load + seconds.compiling
            longest = max(longest, making, key=lambda span: span.high)
        return longest + start, longest

    # -- layouts -----------------------------------------------------------------------------------------------------

    def layout(self, change: Change) -> Layout:
        """One way in which this many GPUs can share the job: its figures, or why it cannot be."""
        topology = replace(self.job.topology, parallel=change.parallel or self.job.topology.parallel)
        count = topology.num_replicas
        name = f"{count} replica{'s' if count > 1 else ''} of {change.name(self.job)}"
        try:
            other = self.of(changed(self.job, change))
        except UserError as error:
            return Layout(name=name, num_replicas=count, refused=str(error))
        bucket = self.largest[0]
        figures = other.book(bucket)
        memory = other.memory(bucket) if figures is not None else None
        images = other.images_of(memory)
        seconds = other.seconds(bucket, images)
        room = self.job.machine.memory
        batches = -(-self.schedule.plan.num_tasks // (images * count))
        return Layout(
            name=name,
            num_replicas=count,
            words=change.words,
            memory=memory,
            images=images,
            fits=None if memory is None or room is None else fits(memory.room(images), room),
            image=seconds.a_batch if seconds is not None else NONE,
            rate=_rate(images * count, seconds.a_batch) if seconds is not None else NONE,
            likely=images * count / seconds.likely if seconds is not None else 0.0,
            job=seconds.total(batches) if seconds is not None else NONE,
        )

    def of(self, other: Job) -> "_Looking":
        """The same batches, made by another layout; ranks that share nothing but the weights compute what one does alone."""
        ours, theirs = (replace(job.topology.parallel, shard_degree=1) for job in (self.job, other))
        book = self.book if ours == theirs else self.book.for_layout(other.topology.parallel)
        return _Looking(other, self.schedule, book, self.gpu)

    def images_of(self, memory: Memory | None) -> int:
        """The batch of this plan, or what of it fits."""
        room = self.job.machine.memory
        if memory is None or room is None:
            return self.largest[1]
        return max(min(self.largest[1], memory.most_images(room)), 1)

    # -- advice ------------------------------------------------------------------------------------------------------

    def advice(self, outlook: Outlook) -> Iterator[str]:
        """One line for each thing that would help, with how much."""
        if outlook.fits is False:
            yield from self.what_fits(outlook)
        elif outlook.seconds is not None:
            yield from self.what_is_faster(outlook)

    def what_fits(self, outlook: Outlook) -> Iterator[str]:
        """The flags with which one image fits, and what each costs."""
        room = self.job.machine.memory
        assert room is not None and outlook.memory is not None
        most = outlook.memory.most_images(room)
        if most:
            yield f"--batch_size {most}: so many images fit"
        fitting = [line for change in SAVING if (line := self.if_it_fits(change, outlook.memory)) is not None]
        yield from fitting
        shards: dict[str, str] = {}
        for change in sharing(self.job):
            way = change.backend["shard"]
            if way not in shards and (line := self.if_it_fits(change, outlook.memory)) is not None:
                shards[way] = line
        yield from shards.values()
        if not most and not fitting and not shards:
            yield "no flag makes one image fit; take a GPU with more memory, or a smaller model or size"

    def if_it_fits(self, change: Change, now: Memory) -> str | None:
        """A line about other flags if one image fits with them; None if not, or if it takes no less memory."""
        room = self.job.machine.memory
        memory = self.memory_with(change)
        if memory is None or room is None or not fits(memory.room(1), room) or memory.room(1) >= now.room(1):
            return None
        return f"{change.words}: {memory.needed(1) / GIB:.1f} GiB for one image ({memory.source}); {change.costs}"

    def memory_with(self, change: Change) -> Memory | None:
        """The memory of a batch with other flags; None if a run would be refused, or nothing is known of it."""
        changed = with_change(self.job, change)
        if changed is None:
            return None
        book = self.book.for_optimization(changed.config.optimization)
        bucket = self.largest[0]
        if book(bucket) is None:
            return None
        return _Looking(changed, self.schedule, book, self.gpu).memory(bucket)

    def what_is_faster(self, outlook: Outlook) -> Iterator[str]:
        """What would be done sooner, or leave more memory, of all that a run would take."""
        if with_change(self.job, COMPILING) is not None:
            yield f"{COMPILING.words}: about {gain_of_compiling():.2f} times as fast once it is compiled (published runs)"
        if self.optimization.encode == "inline" and outlook.memory is not None:
            ahead = self.memory_with(AHEAD)
            less = outlook.memory.weights - ahead.weights if ahead is not None else 0
            if less > 0:
                yield f"{AHEAD.words}: {less / GIB:.1f} GiB less while it denoises, and each prompt encoded once"
        if (larger := self.larger_batch(outlook)) is not None:
            yield larger
        slow = estimate.bottleneck(
            self.job.checkpoint, self.job.topology, self.schedule.plan, self.shares()[1].middle or 1.0
        )
        if slow is not None:
            yield slow

    def larger_batch(self, outlook: Outlook) -> str | None:
        """A line about a batch that makes more images a second, and fits."""
        seconds, images, room = outlook.seconds, outlook.images, self.job.machine.memory
        family = self.job.checkpoint.family
        if seconds is None or outlook.memory is None or room is None or not family.batch or family.masks_lengths:
            return None
        more = min(2 * images, outlook.memory.most_images(room))
        enough = self.schedule.plan.num_tasks >= more * self.job.topology.num_replicas
        larger = self.seconds(self.largest[0], more) if enough and more > images else None
        if larger is None or (gain := (seconds.likely / images) / (larger.likely / more) - 1) <= WORTH:
            return None
        return f"--batch_size {more}: about {gain:.0%} more images a second, and it fits"


def work_of(model: str, figures: Figures, images: int, steps: int) -> Work:
    """Return what one rank does for a batch, its start left out."""
    return Work(
        model=model,
        encode_tflop=images * figures.encode.flops / TERA,
        step_tflop=images * figures.denoise.flops / TERA,
        steps=steps,
        images=images,
        decode_tflop=images * figures.decode.flops / TERA,
        launches_a_step=figures.denoise.launches,
        sent_bytes_a_step=images * figures.denoise.sent_bytes,
    )


def _rate(images: int, seconds: Span) -> Span:
    return NONE if seconds.low <= 0 else Span(images / seconds.high, images / seconds.low)
