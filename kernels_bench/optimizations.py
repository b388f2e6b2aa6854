"""Each optimization of dglaunch's table on and off: seconds, peak memory, difference in the image, time to compile.

    python -m kernels_bench optimizations --plot optimizations.png
    python -m kernels_bench optimizations --device cuda --model_name black-forest-labs/FLUX.1-dev --num_inference_steps 28

Every variant runs in a process of its own, in rounds that begin with another one each time. What the table says cannot
run here is listed with its reason. Checked: a variant makes the same images twice, and where the table says that the
images do not change, they are within 2 of 255 of the plain run's (in float32; in bfloat16 on average within 8).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

KERNELS = {"cpu": ("_native_math", "flex"), "cuda": ("_native_cudnn", "_flash_3", "flash", "sage")}
"""--attention_backend is measured with these."""
LIMITS = {"float32": 2 / 255, "bfloat16": 8 / 255}
COLUMNS = {
    "optimization": "{name}",
    "s a batch": "{seconds[p50]:.4g} ({seconds[p20]:.4g}-{seconds[p80]:.4g})",
    "of plain": "{ratio:.2f}",
    "peak memory": "{peak_mib:.0f} MiB",
    "compiling": "{compile_s:.0f} s",
    "max difference": "{difference:.2g}",
    "mean": "{mean_difference:.2g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench optimizations`."""

    repeats: int = 5
    """Timed batches of each process."""
    rounds: int = 2
    """Processes of each variant."""
    model_name: str = "tiny"
    """As dglaunch's."""
    side: int = 128
    """Height and width of the images."""
    batch_size: int = 4
    """Images of a batch."""
    num_inference_steps: int = 28
    """Denoising steps. (mag_cache holds for 28.)"""
    only: tuple[str, ...] = ()
    """Names of variants, as the table shows them; default is all."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """Rounds of processes; the plain one comes first of all, its images are the reference."""
    rows, wanted = variants(options)
    rounds = 1 if options.quick else options.rounds
    told: dict[str, list[measure.Row]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory(prefix="kernels_bench-") as scratch:
        shared = options.shared() | {
            "model_name": options.model_name, "side": options.side, "batch_size": options.batch_size,
            "steps": options.num_inference_steps, "reference": str(Path(scratch, "plain.npy")), "cache": scratch,
        }  # fmt: skip
        names = list(wanted)
        for turn in range(rounds):
            shift = 0 if turn == 0 else turn % len(names)
            for name in names[shift:] + names[:shift]:
                payload = shared | {"name": name, "flags": wanted[name][0], "same": wanted[name][1]}
                told[name].append(measure.in_process("kernels_bench.optimizations:work", payload, options))
    plain = measure.spread([s for row in told["plain"] for s in row["taken"]])["p50"]
    for name, each in told.items():
        seconds = measure.spread([s for row in each for s in row["taken"]])
        rows.append({
            "name": name, "seconds": seconds, "ratio": seconds["p50"] / plain, "effect": each[0]["effect"],
            "peak_mib": max(row["peak"] for row in each) / 2**20, "compile_s": each[0]["compile_s"],
            "compile_s_again": each[-1]["compile_s"], "difference": each[0]["difference"],
            "mean_difference": each[0]["mean_difference"],
        })  # fmt: skip
    return rows, [
        f"{options.model_name}, {options.batch_size} images of {options.side}x{options.side}, "
        f"{options.num_inference_steps} steps, {options.dtype}, {rounds} processes each; compiling: the first process's, "
        "of which later ones find a part in the cache"
    ]


def variants(options: Options) -> tuple[list[measure.Row], dict[str, tuple[dict[str, Any], bool]]]:
    """What cannot run here, as rows with the reason; and name -> flags, and whether the image must stay."""
    from dglaunch.backends.diffusers.checks import check_optimizations
    from dglaunch.config import BackendConfig, OptimizationConfig, T2IConfig
    from dglaunch.distributed.topology import Topology
    from dglaunch.errors import UserError
    from dglaunch.models import optimizations
    from dglaunch.models.checkpoint import resolve

    every: dict[str, tuple[dict[str, Any], bool]] = {"plain": ({}, True)}
    for row in optimizations.OPTIMIZATIONS:
        for value in KERNELS[options.device] if row.flag == "attention_backend" else (row.value or True,):
            name = row.name if row.value or value is True else f"{row.name} {value}"
            every[name] = ({row.flag: value}, not row.changes or "kernels" in row.changes)
    if options.quick:
        every = {name: every[name] for name in ("plain", "enable_vae_slicing", "enable_cpu_offload")}
    if options.only:
        every = {name: each for name, each in every.items() if name in ("plain", *options.only)}
    backend = BackendConfig(model_name=options.model_name, device=options.device)
    checkpoint = resolve(backend)
    rows: list[measure.Row] = []
    for name, (flags, _) in list(every.items()):
        config = T2IConfig(prompt="unused", backend=backend, optimization=OptimizationConfig(**flags))
        try:
            check_optimizations(checkpoint, config, Topology(), options.device, xdit=False)
        except UserError as refused:
            rows.append({"name": name, "not_run": str(refused)})
            del every[name]
    return rows, every


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> measure.Row:
    """Load, make the reference's images twice, then time batches of new prompts."""
    import random

    import numpy
    import torch

    from dglaunch.backends.base import arrived
    from dglaunch.data.task import Batch
    from dglaunch.run.loop import peak_memory
    from kernels_bench.batch import load, tasks

    rng = random.Random(payload["seed"])
    sizes = (payload["side"], payload["batch_size"], payload["steps"])
    first = Batch(tasks(random.Random(7), *sizes))
    backend, facts = load(payload, payload["flags"], payload["cache"])
    images, again = (
        numpy.stack([numpy.asarray(arrived(slot)).astype(float) / 255 for slot in backend.generate(first)])
        for _ in range(2)
    )
    measure.require(
        f"{payload['name']}, the same batch twice", _away(measure.spoil(again, payload["damage"]), images), 1e-9
    )
    reference = Path(payload["reference"])
    if payload["name"] == "plain" and not reference.exists():
        numpy.save(reference, images)
    difference = abs(images - numpy.load(reference))
    if payload["same"]:
        error = float(difference.max() if payload["dtype"] == "float32" else difference.mean())
        measure.require(f"{payload['name']} against plain", error, LIMITS[payload["dtype"]])
    wait = torch.cuda.synchronize if payload["device"] == "cuda" else lambda: None
    case = {"it": lambda batch: backend.generate(batch)}
    fresh = lambda: (Batch(tasks(rng, *sizes)),)  # noqa: E731
    taken = measure.seconds(case, fresh, payload["repeats"], payload["warm_up"], wait)["it"]
    return {
        "taken": taken, "peak": peak_memory(payload["device"]), "compile_s": backend.seconds.get("compile", 0.0),
        "difference": float(difference.max()), "mean_difference": float(difference.mean()),
        "effect": ", ".join(facts.effects.get(flag, "") for flag in payload["flags"]),
    }  # fmt: skip


def _away(one: Any, other: Any) -> float:
    return float(abs(one - other).max())


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """Seconds as bars, the memory written on them."""
    measure.bars(axes, rows, "seconds", "seconds a batch")
    for place, row in enumerate(rows):
        axes.text(0, place, f"  {row['peak_mib']:.0f} MiB", va="center", color="white")
