"""FLUX.1-dev's true size on one GPU: what each optimization brings, and whether batch sizes, halving and overlap hold.

    make gpu                                             # python -m kernels_bench true_size --device cuda, and tests/gpu
    python -m kernels_bench true_size --quick            # the same lines at toy size on a CPU, int8 in the place of fp8

**This has not been run on a GPU yet**: every line but the GPU's own kernels and memory has run at toy size on a CPU.

The weights are seeded random numbers made on the device (12B transformer, T5-XXL's size), 1024x1024, 28 steps. Speed and
memory are those of the real model; PSNR says how far an optimization leads from eager *on random weights*, which a
cache's threshold and an image's look depend on, so pictures of the real checkpoint must be looked at besides.

Parts: `speed` (eager, compiled, fp8, fp8 and cache, each in a process of its own: s an image, MFU of a measured matrix
product, PSNR, peak memory), `batch` (the size that `auto` takes runs without out of memory; the largest that fits; the
estimate beside the measured peak), `halving` (twice that size through a run: it ends with all images), `idle` (share of
the time, over the images of a run, in which no kernel is on the GPU).
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

COLUMNS = {
    "what": "{name}",
    "s an image": "{seconds[p50]:.4g} ({seconds[p20]:.4g}-{seconds[p80]:.4g})",
    "MFU": "{mfu}",
    "PSNR to eager": "{psnr}",
    "peak memory": "{peak_gib:.2f} GiB",
    "compiling": "{compile_s:.0f} s",
}
PARTS = ("speed", "batch", "halving", "idle")
FEW_STEPS = 2
"""Denoising steps where only memory is asked for, which does not depend on them."""
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"enable_compile": True},
    "fp8, compiled": {"enable_compile": True, "quantization": "fp8"},
    "fp8, compiled, cache": {"enable_compile": True, "quantization": "fp8", "cache_type": "first_block_cache"},
}
WORDS = ("red", "green", "blue", "circle", "star", "square")


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench true_size`."""

    repeats: int = 5
    """Timed images of each variant; one more warms up."""
    parts: tuple[str, ...] = PARTS
    """Which of speed, batch, halving, idle."""
    cache_threshold: float = 1.0
    """Of first_block_cache. On random weights it takes one near 1 until anything is skipped."""
    images: int = 4
    """Images of the run that is profiled, after one that is not."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """Each part in processes of its own."""
    size = "full" if options.device == "cuda" else "toy"
    with tempfile.TemporaryDirectory(prefix="kernels_bench-") as scratch:
        payload = options.shared() | {"size": size, "scratch": scratch, "images": options.images}
        rows: list[measure.Row] = []
        measure.in_process("kernels_bench.true_size:prepare", payload, options)
        if "speed" in options.parts:
            rows += speed(payload, options)
        if "batch" in options.parts:
            rows += measure.in_process("kernels_bench.true_size:batch_sizes", payload, options)
        fits = next((row["fits"] for row in rows if "fits" in row), 2)
        for part in ("halving", "idle"):
            if part in options.parts:
                rows += measure.in_process(f"kernels_bench.true_size:{part}", payload | {"fits": fits}, options)
    notes = [f"FLUX.1-dev at {size} size, seeded random weights, {options.dtype}; PSNR is on random weights"]
    notes += [f"{row['name']}: {row['said']}" for row in rows if row.get("said")]
    return rows, notes + ([] if size == "full" else ["a toy: it shows that every line runs, not how fast anything is"])


def speed(payload: dict[str, Any], options: Options) -> list[measure.Row]:
    """The variants, eager first: its images are the reference. One that fails is told, and the others go on."""
    rows: list[measure.Row] = []
    for name, flags in VARIANTS.items():
        flags = flags | ({"cache_threshold": options.cache_threshold} if "cache_type" in flags else {})
        if options.device == "cpu" and flags.get("quantization") == "fp8":
            name, flags = name.replace("fp8", "int8"), flags | {"quantization": "int8"}
        try:
            rows.append(
                measure.in_process("kernels_bench.true_size:variant", payload | {"name": name, "flags": flags}, options)
            )
        except measure.WrongOutput:
            raise
        except measure.BenchError as error:
            rows.append({"name": name, "not_run": str(error).strip().splitlines()[-1][:300]})
    return rows


# -- in the children ------------------------------------------------------------------------------------------------


def prepare(payload: dict[str, Any]) -> None:
    from kernels_bench.seeded import write_checkpoint

    write_checkpoint(Path(payload["scratch"], "flux"), payload["size"])


def tasks(payload: dict[str, Any], count: int, **given: int) -> tuple[Any, ...]:
    """The same prompts and seeds for every variant."""
    from dglaunch.data.task import Task

    return tuple(
        Task(
            index=n,
            stem=f"{n:06d}",
            prompt=f"a {WORDS[n % 3]} {WORDS[3 + n // 3 % 3]}",
            seed=payload["seed"] + n,
            **(_size(payload) | given),
        )
        for n in range(count)
    )


def _size(payload: dict[str, Any]) -> dict[str, int]:
    from kernels_bench.seeded import SIZES

    defaults = SIZES[payload["size"]]["defaults"]
    return {name: defaults[name] for name in ("height", "width", "num_inference_steps")}


def variant(payload: dict[str, Any]) -> measure.Row:
    """One image after the other: seconds, against the peak of this device in this process."""
    import time

    import numpy

    from dglaunch.backends.base import arrived
    from dglaunch.data.task import Batch
    from kernels_bench import seeded

    batches = [Batch((task,)) for task in tasks(payload, payload["repeats"] + 1)]
    cuda, scratch = payload["device"] == "cuda", Path(payload["scratch"])
    backend = seeded.backend(scratch / "flux", payload["device"], payload["dtype"], batches, **payload["flags"])
    taken, images = [], []
    for batch in batches:
        start = time.perf_counter()
        (image,) = map(arrived, backend.generate(batch) or ())
        taken.append(time.perf_counter() - start)
        images.append(numpy.asarray(image))
    eager = scratch / "eager.npy"
    if payload["name"] == "eager":
        numpy.save(eager, numpy.stack(images))
    psnr = _psnr(numpy.stack(images), numpy.load(eager))
    peak, peak_flops = _peak_bytes(cuda), matmul_flops(payload)
    flops = _flops(backend.context, payload)
    seconds = measure.spread(taken[1:])
    return {
        "name": payload["name"], "seconds": seconds, "psnr": f"{psnr:.1f} dB" if math.isfinite(psnr) else "equal",
        "mfu": f"{flops / seconds['p50'] / peak_flops:.1%}", "peak_gib": peak / 2**30, "tflop_an_image": flops / 1e12,
        "matmul_tflops": peak_flops / 1e12, "compile_s": backend.seconds.get("compile", 0.0), "said": "",
        "stages": backend.seconds,
    }  # fmt: skip


def _flops(context: Any, payload: dict[str, Any]) -> float:
    """Of the denoising of one image, as `plan` counts it."""
    from dglaunch.config import ParallelConfig
    from dglaunch.data.task import Bucket
    from dglaunch.planning.figures import USUAL_PROMPT, request_of
    from dglaunch.simulation.trace import trace

    size = _size(payload)
    bucket = Bucket(height=size["height"], width=size["width"])
    checkpoint, config = context.checkpoint, context.config
    request = request_of(checkpoint, config, ParallelConfig(), context.dtype, bucket, USUAL_PROMPT)
    return trace(checkpoint, config, request).denoise.flops * size["num_inference_steps"]


def matmul_flops(payload: dict[str, Any]) -> float:
    """Operations a second of a large matrix product in the type of the weights: what the MFU is a share of."""
    import torch

    side = 8192 if payload["device"] == "cuda" else 256
    left, right = (torch.randn(side, side).to(payload["device"], getattr(torch, payload["dtype"])) for _ in range(2))
    wait = torch.cuda.synchronize if payload["device"] == "cuda" else lambda: None
    (taken,) = measure.seconds({"matmul": lambda: left @ right}, lambda: (), 10, 3, wait).values()
    return 2 * side**3 / measure.spread(taken)["p50"]


def _psnr(images: Any, reference: Any) -> float:
    """In dB, of all images together."""
    from dglaunch.output.differences import psnr_of

    return psnr_of(float(((images.astype(float) - reference.astype(float)) ** 2).mean()))


def _peak_bytes(cuda: bool) -> int:
    from dglaunch.run.loop import peak_memory

    return peak_memory("cuda" if cuda else "cpu")


def batch_sizes(payload: dict[str, Any]) -> list[measure.Row]:
    """What `auto` takes must run; then sizes double until the memory ends."""
    import time

    import torch

    from dglaunch.backends.profiles import Profile
    from dglaunch.config import BackendConfig, T2IConfig
    from dglaunch.data.task import Batch, plain_bucket
    from dglaunch.distributed.topology import Topology
    from dglaunch.models.shape import Shape
    from dglaunch.planning import estimate
    from dglaunch.system import Machine
    from kernels_bench import seeded

    cuda, scratch = payload["device"] == "cuda", Path(payload["scratch"])
    seeded.SeededFlux.fits = None if cuda else 6
    largest = 64 if cuda else 16
    everything = tasks(payload, largest, num_inference_steps=FEW_STEPS)
    backend = seeded.backend(scratch / "flux", payload["device"], payload["dtype"], [Batch(everything)])
    checkpoint = backend.context.checkpoint
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
    machine = Machine(name="here", memory=memory, dtype=payload["dtype"])
    config = T2IConfig(backend=BackendConfig(model_name=checkpoint.source), prompt="unused", output_dir=Path("unused"))
    choose = estimate.chooser(Profile(), checkpoint, config, Topology(), machine, {}, {})
    auto = choose(plain_bucket(everything[0]))
    size = _size(payload)
    shape = Shape(size["height"], size["width"])
    planned = estimate.memory_of(checkpoint, config, Topology(), payload["dtype"], shape)
    rows, fits, count = [], 0, 1
    for count in sorted({auto.size, *(2**n for n in range(7) if 2**n <= largest)}):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            backend.generate(Batch(everything[:count]))
        except torch.OutOfMemoryError:
            break
        took, fits = time.perf_counter() - start, count
        said = f"estimated {planned.needed(count) / 2**30:.2f} GiB" if planned else ""
        rows.append(_plain(f"batch of {count}, {FEW_STEPS} steps", took / count, _peak_bytes(cuda), said))
    chosen = f"auto takes {auto.size} ({auto.reason}); the largest that was run is {fits}"
    if auto.size > fits and (cuda or auto.size <= 6):
        raise measure.WrongOutput(f"auto takes {auto.size}, but {fits} fit")
    rows[-1] |= {"fits": fits, "said": f"{rows[-1]['said']}; {chosen}; {count} did not fit" if count > fits else chosen}
    return rows


def _plain(name: str, seconds: float, peak: int, said: str) -> measure.Row:
    return {
        "name": name, "seconds": measure.spread([seconds]), "psnr": "", "mfu": "", "peak_gib": peak / 2**30,
        "compile_s": 0.0, "said": said,
    }  # fmt: skip


def _run(payload: dict[str, Any], name: str, images: int, batch_size: int, steps: int) -> Any:
    """`dglaunch t2i` in this process, with what `seeded.install` put into it; its run.json."""
    import json

    from dglaunch.cli.main import main

    scratch = Path(payload["scratch"])
    prompts = scratch / f"{name}.jsonl"
    rows = [{"prompt": task.prompt, "seed": task.seed, "steps": steps} for task in tasks(payload, images)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "t2i",
        "--model_name",
        str(scratch / "flux"),
        "--prompts_file",
        str(prompts),
        "--batch_size",
        str(batch_size),
    ]
    words += ["--device", payload["device"], "--torch_dtype", payload["dtype"], "--output_dir", str(scratch / name)]
    code = main(words)
    run = json.loads((scratch / name / "run.json").read_text())
    if code or run["num_ok"] != images:
        raise measure.BenchError(
            f"the run {name} left with {code}: {run['num_ok']} of {images} images, {run['events']}"
        )
    return run


def halving(payload: dict[str, Any]) -> list[measure.Row]:
    """Twice what fits: the run halves it, remembers that, and makes every image.

    Raises:
        WrongOutput: it never ran out of memory, so that nothing was shown.
    """
    from kernels_bench import seeded

    fits, cuda = payload["fits"], payload["device"] == "cuda"
    seeded.install(payload["seed"], None if cuda else fits)
    run = _run(payload, "halving", 2 * fits + 1, 2 * fits + 1, FEW_STEPS)
    events = [event for event in run["events"] if "ran out of memory" in event]
    if not events:
        raise measure.WrongOutput(f"a batch of {2 * fits + 1} was to run out of memory and did not: {run['events']}")
    seconds = run["wall_s"] / run["num_ok"]
    return [
        _plain("halving", seconds, run["peak_memory_bytes"], f"all {run['num_ok']} images made; {'; '.join(events)}")
    ]


def idle(payload: dict[str, Any]) -> list[measure.Row]:
    """The share of the time, from the first kernel of a run's first image to the last of its last one, in which the GPU
    (here: the CPU) had none: encoding, sending and the next batch are to be beside the denoising."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from kernels_bench import seeded

    cuda, calls = payload["device"] == "cuda", 0
    profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
    generate = seeded.SeededFlux.generate

    def profiled(self: Any, batch: Any) -> Any:
        """The profiler begins with the second image, when all is warm, and ends with the last."""
        nonlocal calls
        calls += 1
        if calls == 2:
            profiler.start()
        made = generate(self, batch)
        if calls == payload["images"] + 1:
            if cuda:
                torch.cuda.synchronize()
            profiler.stop()
        return made

    seeded.install(payload["seed"])
    seeded.SeededFlux.generate = profiled  # type: ignore[method-assign]
    run = _run(payload, "idle", payload["images"] + 1, 1, _size(payload)["num_inference_steps"])
    device = "CUDA" if cuda else "CPU"
    events = [event for event in profiler.profiler.kineto_results.events() if device in str(event.device_type())]
    share, longest = idle_share(sorted((event.start_ns(), event.end_ns()) for event in events))
    said = f"{share:.2%} of the time over {payload['images']} images, the longest gap {longest * 1e3:.1f} ms"
    row = _plain("idle", run["wall_s"] / run["num_ok"], run["peak_memory_bytes"], said)
    return [row | {"idle_share": share, "longest_gap_s": longest}]


def idle_share(spans: list[tuple[int, int]]) -> tuple[float, float]:
    """Of sorted (start, end) in nanoseconds: the share of the whole that none covers, and the longest gap in seconds."""
    free, longest, end = 0, 0, spans[0][1]
    for start, stop in spans:
        gap = max(start - end, 0)
        free, longest, end = free + gap, max(longest, gap), max(end, stop)
    return free / max(end - spans[0][0], 1), longest / 1e9


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """Seconds an image as bars, the memory written on them."""
    measure.bars(axes, rows, "seconds", "seconds an image")
    for place, row in enumerate(rows):
        axes.text(0, place, f"  {row['peak_gib']:.1f} GiB", va="center", color="white")
