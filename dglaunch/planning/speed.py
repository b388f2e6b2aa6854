"""From work to time on a named GPU: a range, and what it rests on.

    seconds = seconds_of(Work(model="FLUX.1-dev", step_tflop=74.4, steps=28, decode_tflop=10.5), find_gpu("H100"))
    seconds.a_batch         # Span(low=5.1, high=7.9): of encoding, denoising and decoding
    seconds.basis           # ("FLUX.1-dev on an H100 SXM, eager: 27 to 41 % of its peak in 5 published runs", ...)

A step takes as long as its arithmetic or as starting its kernels, whichever is longer: the host starts the next kernel
while the GPU works on the last. Arithmetic is work over the GPU's peak times the share of the peak that public runs of
plain diffusers reached (planning/measurements.py).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dglaunch.planning.gpus import GPUS, Gpu, gpus_of_memory
from dglaunch.planning.measurements import MEASUREMENTS, Run

SAME_MODEL, SAME_GPU, OTHER_MODE, OTHER_GPU = 1.1, 1.2, 1.25, 1.8
"""By how much a range is wider than what was published, each way: where this model was timed on this GPU; other models;
only compiled, or only eager; other GPUs alone. The last is how far off a line through the other GPUs' runs is: 1.2 times for
an A100 and an L40S, 1.7 for an L20 and an H100, 1.8 for an A10 (of which only a run in float16 is published)."""
MOST = 0.95
"""No range claims more of a GPU's peak."""
DISK = (0.5, 7.0)
"""GB/s at which weights come: a SATA disk or a busy file system, and a fast NVMe disk."""
START = (7.0, 25.0)
"""Seconds until torch, diffusers and transformers are imported and the ranks have met: 7 on an idle machine with a warm
file cache; the rest is a guess for cold ones and shared file systems."""
COMPILING = (9.6, 67.4)
"""Seconds of torch.compile before the first step: FLUX.1-dev's blocks alone and as a whole, on an H100 (PyTorch's "torch.compile
and Diffusers", 2026-05-11)."""
LINK_SHARE = (0.5, 0.9)
"""Share of a link's data sheet that collectives get: two H100s measured 380 of 450 GB/s point to point (NVIDIA/nccl#1264);
all-to-all of small messages gets less."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range: seconds, or a share."""

    low: float
    high: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Span":
        return Span(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        """Halfway between the ends as factors, as deviations of times are."""
        return math.sqrt(self.low * self.high)

    def __str__(self) -> str:
        """With two digits, as it has no more: "8.1 to 17"."""
        return " to ".join(dict.fromkeys(_two_digits(value) for value in (self.low, self.high)))


def _two_digits(value: float) -> str:
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


NONE = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one rank does for one batch."""

    model: str = ""
    """The hub's name of it, with or without its owner; a name that has no published run is as good as none."""
    encode_tflop: float = 0.0
    step_tflop: float
    """Of the whole batch, and of both passes where guidance runs the model twice."""
    steps: int
    decode_tflop: float = 0.0
    images: int = 1
    """Of the batch."""
    launches_a_step: int = 0
    """Operations of the model that start a kernel, in all passes of one step, whatever the batch; 0 leaves them out."""
    sent_bytes_a_step: int = 0
    """That this rank sends to the others of its replica."""
    sent_bytes_once: int = 0
    """And besides, in each batch: to encode its prompts."""
    overlapped: bool = False
    """Whether sending goes on beside the arithmetic, as the ring's does, and that of blocks of weights before they run."""
    weights_bytes: int = 0
    """That this rank reads at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long it takes, stage by stage."""

    load: Span = NONE
    """Start and loading, once a run."""
    compiling: Span = NONE
    """torch.compile, once for each shape."""
    encode: Span = NONE
    denoise: Span = NONE
    traffic: Span = NONE
    """Between the ranks of a replica, as far as the arithmetic waits for it."""
    decode: Span = NONE
    likely: float
    """Seconds a batch that the published runs make likeliest, within `a_batch`: for comparing layouts. It has no more digits
    than its range, so that is what to show."""
    basis: tuple[str, ...]
    """What this rests on, a sentence each."""

    @property
    def a_batch(self) -> Span:
        return self.encode + self.denoise + self.traffic + self.decode

    def total(self, batches: int = 1) -> Span:
        """Return a run of so many batches on this rank, one after the other, with its start."""
        return self.load + self.compiling + self.a_batch.times(batches)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a GPU's peak that a model reaches."""

    range: Span
    likely: float
    basis: str


# -- shares of the peak -------------------------------------------------------------------------------------------


def share_of_peak(gpu: Gpu, model: str, compiled: bool, runs: Sequence[Run] = MEASUREMENTS) -> Share:
    """Return the share of its bfloat16 peak that a GPU reaches, from what is published: this model on this GPU, else other
    models on it, else the same GPU compiled (or not) and the usual gain of compiling, else other GPUs."""
    mode = "with torch.compile" if compiled else "eager"
    name, model = gpu.same_compute or gpu.name, model.rpartition("/")[2]
    here = [run for run in _fitted(runs) if run.gpu == name]
    alike = [run for run in here if run.compiled == compiled]
    where = f"on one {name}" + (f", which computes as fast as the {gpu.name}" if gpu.same_compute else "")
    if same := [run for run in alike if run.model == model]:
        return _share(same, SAME_MODEL, 1.0, f"{model} {where}, {mode}")
    if alike:
        models = ", ".join(dict.fromkeys(run.model for run in alike))
        return _share(alike, SAME_GPU, 1.0, f"{models} {where}, {mode}")
    if here:
        gain = gain_of_compiling(runs)
        published = "only runs without torch.compile" if compiled else "only runs with torch.compile"
        text = f"{published} {where}; it gains {gain:.2f} times elsewhere"
        return _share(here, OTHER_MODE, gain if compiled else 1 / gain, text)
    likely = _on_line(gpu, compiled, runs)
    text = f"no run on the {gpu.name} is published; by those on other GPUs about {likely:.0%} of its peak, {mode}"
    return Share(Span(likely / OTHER_GPU, min(likely * OTHER_GPU, MOST)), likely, text)


def _share(runs: Sequence[Run], margin: float, factor: float, text: str) -> Share:
    """The range that these runs span, with a margin, and in words what they are."""
    shares = [_reached(run) * factor for run in runs]
    span = Span(min(shares) / margin, min(max(shares) * margin, MOST))
    several = len({run.model for run in runs}) > 1
    published = ", ".join(dict.fromkeys(_figure(run, several) for run in runs))
    percent = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))
    return Share(span, min(_mean(shares), MOST), f"{text}: published {published}, which is {percent} of its peak")


def _figure(run: Run, several: bool) -> str:
    """One published figure in words, with its model if there are several."""
    steps = f"{run.steps} step{'s' if run.steps > 1 else ''}"
    return f"{run.seconds:g} s ({run.model}, {steps})" if several else f"{run.seconds:g} s ({steps})"


def _fitted(runs: Iterable[Run]) -> list[Run]:
    """The runs that say something about arithmetic."""
    return [run for run in runs if run.plain and not run.launch_bound]


def _peak(name: str) -> float:
    return next(gpu.peaks["bfloat16"] for gpu in GPUS if gpu.name == name)


def _reached(run: Run) -> float:
    return run.rate / _peak(run.gpu)


def _mean(values: Iterable[float]) -> float:
    """The geometric mean, as times deviate by factors."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _by_gpu(runs: Sequence[Run], compiled: bool) -> dict[str, float]:
    """The mean share on each GPU that has a run."""
    fitted = [run for run in _fitted(runs) if run.compiled == compiled]
    return {gpu: _mean(_reached(run) for run in fitted if run.gpu == gpu) for gpu in {run.gpu for run in fitted}}


def gain_of_compiling(runs: Sequence[Run] = MEASUREMENTS) -> float:
    """Return how many times faster torch.compile makes a model, by the GPUs and models that were timed both ways."""
    fitted = _fitted(runs)
    pairs = [
        compiled.rate / eager.rate
        for compiled in fitted
        for eager in fitted
        if compiled.compiled and not eager.compiled and compiled.setup[:3] == eager.setup[:3]
    ]
    return _mean(pairs)


def _on_line(gpu: Gpu, compiled: bool, runs: Sequence[Run]) -> float:
    """The share by a line through the GPUs' means, both axes logarithmic: the higher a peak, the smaller the part of it
    that is reached, since memory and host do not grow with it. Not above the best that any GPU reached."""
    means = _by_gpu(runs, compiled)
    points = [(math.log(_peak(name)), math.log(share)) for name, share in means.items()]
    x0, y0 = (sum(values) / len(points) for values in zip(*points))
    spread = sum((x - x0) ** 2 for x, _ in points)
    slope = sum((x - x0) * (y - y0) for x, y in points) / spread if spread else 0.0
    return min(math.exp(y0 + slope * (math.log(gpu.peaks["bfloat16"]) - x0)), max(means.values()))


def launch_seconds(compiled: bool, runs: Sequence[Run] = MEASUREMENTS) -> Span:
    """Return the time that the host takes for each kernel that a model would start uncompiled, by the runs in which it is
    what the GPU waits for: about 40 microseconds from Python, half of it compiled, where fewer kernels are left."""
    bound = [run.seconds / run.steps / run.launches for run in runs if run.launch_bound and run.compiled == compiled]
    return Span(min(bound), max(bound))


# -- seconds ------------------------------------------------------------------------------------------------------


def seconds_of(
    work: Work, gpu: Gpu, *, dtype: str = "bfloat16", compiled: bool = False, runs: Sequence[Run] = MEASUREMENTS
) -> Seconds | None:
    """Return how long a GPU takes for the work of a batch; None if of the GPU only a memory is known that no listed GPU has.

    Args:
        dtype: type of the weights and of the arithmetic.
        compiled: whether torch.compile is on.
        runs: published runs to fit to.
    """
    if not gpu.known:
        return _over(gpus_of_memory(gpu.memory), work, gpu, dtype, compiled, runs)
    share = share_of_peak(gpu, work.model, compiled, runs)
    peak = gpu.peaks[dtype]
    basis = [share.basis]
    if dtype == "float32":
        basis.append("float32: the same share of its peak without tensor cores is assumed; no run is published")

    def of(tflop: float) -> Span:
        return Span(tflop / (peak * share.range.high), tflop / (peak * share.range.low))

    step, likely = of(work.step_tflop), work.step_tflop / (peak * share.likely)
    if work.launches_a_step:
        starting = launch_seconds(compiled, runs).times(work.launches_a_step)
        if starting.middle > likely:
            count = f"{work.launches_a_step:,}"
            basis.append(f"a step is bound by starting its {count} kernels: a larger batch costs little")
        step = Span(max(step.low, starting.low), max(step.high, starting.high))
        likely = max(likely, starting.middle)
    denoise = step.times(work.steps)
    traffic = _traffic(work, gpu, denoise)
    ends = (work.encode_tflop + work.decode_tflop) / (peak * share.likely)
    return Seconds(
        load=_load(work),
        compiling=Span(*COMPILING) if compiled else NONE,
        encode=of(work.encode_tflop),
        denoise=denoise,
        traffic=traffic,
        decode=of(work.decode_tflop),
        likely=work.steps * likely + ends + traffic.middle,
        basis=tuple(basis),
    )


def _load(work: Work) -> Span:
    if not work.weights_bytes:
        return NONE
    size = work.weights_bytes / 1e9
    return Span(*START) + Span(size / DISK[1], size / DISK[0])


def _traffic(work: Work, gpu: Gpu, denoise: Span) -> Span:
    """What a rank sends, over its link; beside the arithmetic perhaps only what takes longer than that is waited for."""
    num_bytes = work.sent_bytes_a_step * work.steps + work.sent_bytes_once
    if not num_bytes or not gpu.link:
        return NONE
    size = num_bytes / 1e9 / gpu.link
    least = size / LINK_SHARE[1]
    return Span(max(least - denoise.low, 0.0) if work.overlapped else least, size / LINK_SHARE[0])


def _over(
    alike: Sequence[Gpu], work: Work, gpu: Gpu, dtype: str, compiled: bool, runs: Sequence[Run]
) -> Seconds | None:
    """From the fastest to the slowest GPU of this memory."""
    found = [
        seconds for each in alike if (seconds := seconds_of(work, each, dtype=dtype, compiled=compiled, runs=runs))
    ]
    if not found:
        return None
    fastest = min(found, key=lambda seconds: seconds.a_batch.low)
    slowest = max(found, key=lambda seconds: seconds.a_batch.high)

    def between(stage: str) -> Span:
        return Span(getattr(fastest, stage).low, getattr(slowest, stage).high)

    names = ", ".join(each.name for each in alike)
    return Seconds(
        load=between("load"), compiling=between("compiling"), encode=between("encode"), denoise=between("denoise"),
        traffic=between("traffic"), decode=between("decode"), likely=math.sqrt(fastest.likely * slowest.likely),
        basis=(f"a GPU with {gpu.name} may be any of {names}: from the fastest of them to the slowest",),
    )  # fmt: skip
