"""Images/s over batch size and resolution, through dglaunch's own backend, on the checkpoint `tiny` or any other.

    python -m kernels_bench batch --plot batch.png
    python -m kernels_bench batch --device cuda --model_name black-forest-labs/FLUX.1-dev --sizes 512 1024

Batching pays where a forward pass is too small to fill the machine: small pictures, small models. Checked: every image
of every batch against the same prompt and seed alone.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kernels_bench import measure

SIZES = {"full": (512, 1024), "scaled": (64, 128, 256), "quick": (64,)}
BATCHES = {"full": (1, 2, 4, 8), "scaled": (1, 2, 4, 8, 16), "quick": (1, 2)}
WORDS = (("red", "green", "blue", "yellow", "white"), ("circle", "star", "square", "triangle", "heart", "cross"))
LIMITS = {"float32": 2 / 255, "bfloat16": 8 / 255}
"""Allowed difference from the image alone: of any pixel in float32, of the average pixel in bfloat16."""
COLUMNS = {
    "size": "{size}",
    "batch": "{batch}",
    "images/s": "{images_per_s[p50]:.4g} ({images_per_s[p20]:.4g}-{images_per_s[p80]:.4g})",
    "of the smallest": "{gain:.2f}x",
    "denoising": "{shares[denoise]:.0%}",
    "decoding": "{shares[decode]:.0%}",
    "difference": "{difference:.2g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench batch`."""

    repeats: int = 7
    """Timed repeats of each case; the cases take turns."""
    model_name: str = "tiny"
    """As dglaunch's."""
    sizes: tuple[int, ...] | None = None
    """Sides of the images in pixels. Default: 64 128 256 on a CPU, 512 1024 with --full or on a GPU."""
    batches: tuple[int, ...] | None = None
    """Batch sizes. Default: 1 to 16 on a CPU, 1 to 8 with --full or on a GPU."""
    num_inference_steps: int = 4
    """Denoising steps."""
    enable_vae_slicing: bool = False
    """As dglaunch's: decode the images of a batch one after the other."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """One process: the model is loaded once, sizes and batches take turns."""
    payload = options.shared() | {
        "model_name": options.model_name, "steps": options.num_inference_steps,
        "slicing": options.enable_vae_slicing,
        "sizes": SIZES[options.size] if options.sizes is None else options.sizes,
        "batches": BATCHES[options.size] if options.batches is None else options.batches,
    }  # fmt: skip
    rows = measure.in_process("kernels_bench.batch:work", payload, options)
    return rows, [
        f"{options.model_name}, {options.num_inference_steps} steps, {options.dtype}; prompts encoded and decoded within"
    ]


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """Load, check each batch against its images alone, then time batches of new prompts."""
    import random

    import torch

    from dglaunch.data.task import Batch

    backend, rng = load(payload, {"enable_vae_slicing": payload["slicing"]})[0], random.Random(payload["seed"])
    grid = [(side, batch) for side in payload["sizes"] for batch in payload["batches"]]
    differences = {cell: check(backend, tasks(rng, *cell, payload["steps"]), payload) for cell in grid}

    stages: dict[tuple[int, int], Counter[str]] = {cell: Counter() for cell in grid}

    def make(side: int, batch: int) -> None:
        before = Counter(backend.seconds)
        backend.generate(Batch(tasks(rng, side, batch, payload["steps"])))
        stages[side, batch].update({stage: took - before[stage] for stage, took in backend.seconds.items()})

    cases = {f"{side} {batch}": partial(make, side, batch) for side, batch in grid}
    wait = torch.cuda.synchronize if payload["device"] == "cuda" else lambda: None
    taken = measure.seconds(cases, lambda: (), payload["repeats"], payload["warm_up"], wait)
    speeds = {cell: measure.spread([cell[1] / s for s in taken[f"{cell[0]} {cell[1]}"]]) for cell in grid}
    return [row(cell, speeds, differences[cell], stages[cell]) for cell in grid]


def row(
    cell: tuple[int, int], speeds: dict[tuple[int, int], dict[str, float]], difference: float, seconds: "Counter[str]"
) -> measure.Row:
    """`shares`: of the backend's time by stage, warm-up included."""
    side, batch = cell
    shares = {stage: took / sum(seconds.values()) for stage, took in seconds.items()}
    smallest = min(b for s, b in speeds if s == side)
    gain = speeds[cell]["p50"] / speeds[side, smallest]["p50"]
    return {
        "name": f"{side}x{side}, batch {batch}", "size": f"{side}x{side}", "side": side, "batch": batch,
        "images_per_s": speeds[cell], "gain": gain, "difference": difference, "shares": shares,
    }  # fmt: skip


def load(
    payload: dict[str, Any], flags: dict[str, Any], cache_dir: str = "~/.cache/dglaunch", loras: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """The backend as a run of one rank with these optimizations and LoRAs has it, and what it says of itself."""
    from dataclasses import replace

    from dglaunch.backends import base
    from dglaunch.backends.registry import create
    from dglaunch.config import BackendConfig, OptimizationConfig, T2IConfig
    from dglaunch.distributed.channel import Channel
    from dglaunch.distributed.topology import Topology
    from dglaunch.models.checkpoint import resolve
    from dglaunch.models.lora import read_loras

    model = BackendConfig(model_name=payload["model_name"], device=payload["device"], cache_dir=Path(cache_dir))
    optimization = OptimizationConfig(**flags)
    config = T2IConfig(backend=model, optimization=optimization, prompt="unused", output_dir=Path("unused"))
    place = Topology()
    context = base.Context(
        config=config, checkpoint=replace(resolve(config.backend), loras=read_loras(loras)), topology=place,
        channel=Channel(place, payload["device"]),
        device=payload["device"], dtype=payload["dtype"],
    )  # fmt: skip
    backend = create(context)
    return backend, backend.load()


def tasks(rng: Any, side: int, batch: int, steps: int) -> tuple[Any, ...]:
    """New prompts and seeds."""
    from dglaunch.data.task import Task

    return tuple(
        Task(
            index=n, stem=str(n), prompt="a " + " ".join(map(rng.choice, WORDS)), seed=rng.randrange(2**31), height=side,
            width=side, num_inference_steps=steps,
        )
        for n in range(batch)
    )  # fmt: skip


def check(backend: Any, todo: tuple[Any, ...], payload: dict[str, Any]) -> float:
    """The largest difference of an image in the batch from the same image alone.

    Raises:
        WrongOutput: it is too large.
    """
    import numpy

    from dglaunch.backends.base import arrived
    from dglaunch.data.task import Batch

    together = [numpy.asarray(arrived(slot)) for slot in backend.generate(Batch(todo))]
    difference = 0.0
    for task, image in zip(todo, together):
        alone = numpy.asarray(arrived(backend.generate(Batch((task,)))[0])).astype(float)
        away = abs(measure.spoil(image, payload["damage"]).astype(float) - alone) / 255
        difference = max(difference, float(away.max() if payload["dtype"] == "float32" else away.mean()))
    what = f"a batch of {len(todo)} at {todo[0].height}x{todo[0].width} against its images alone"
    return measure.require(what, difference, LIMITS[payload["dtype"]])


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """A line for each size over the batch."""
    for size in dict.fromkeys(row["size"] for row in rows):
        of = [row for row in rows if row["size"] == size]
        axes.plot([row["batch"] for row in of], [row["images_per_s"]["p50"] for row in of], marker="o", label=size)
    axes.set(xlabel="batch size", ylabel="images/s", yscale="log")
    axes.set_xscale("log", base=2)
    axes.legend()
