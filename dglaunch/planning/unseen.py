"""What of a job's flags and LoRAs its time does not know, said beside it, with what others published of it.

for sentence in not_in_time(job.config.optimization): ...      # "as without --quantization fp8 (...): ..."
seconds = with_loras(seconds, num_sets=3)                      # a wider range
"""

from collections.abc import Sequence
from dataclasses import replace

from dglaunch.config import OptimizationConfig
from dglaunch.models.optimizations import Optimization, asked
from dglaunch.planning.measurements import MEASUREMENTS, Run
from dglaunch.planning.speed import Seconds, Span

IN_TIME = ("enable_compile", "enable_vae_slicing", "enable_vae_tiling", "enable_fuse_qkv")
"""Optimizations whose work is traced or fitted to published runs."""
PUBLISHED_AS = {"cache_type first_block_cache": "first-block cache 0.15", "quantization fp8": "torchao"}
"""What planning/measurements.py calls some of the others."""
SLOWEST_LORA = 1 / 0.56
"""How many times as long rows of different LoRAs took as rows without any: docs/lora.md, on a CPU."""


def not_in_time(config: OptimizationConfig, runs: Sequence[Run] = MEASUREMENTS) -> list[str]:
    """Return a sentence for each optimization that a time does not know."""
    return [_sentence(row, config, runs) for row in asked(config) if row.flag not in IN_TIME]


def _sentence(row: Optimization, config: OptimizationConfig, runs: Sequence[Run]) -> str:
    value = getattr(config, row.flag)
    words = f"--{row.flag}" if value is True else f"--{row.flag} {value}"
    known = "; ".join(_published(PUBLISHED_AS[row.name], runs)) if row.name in PUBLISHED_AS else ""
    return f"as without {words} ({row.does}): {known or 'no run with it is published'}"


def _published(name: str, runs: Sequence[Run]) -> list[str]:
    """How many times as fast runs with something were as the same source's without it."""
    pairs = [
        (run, plain)
        for run in runs
        for plain in runs
        if run.on == (name,) and not plain.on and plain.dtype == "bfloat16"
        and (run.source, run.gpu, run.model, run.size, run.steps)
        == (plain.source, plain.gpu, plain.model, plain.size, plain.steps)
    ]  # fmt: skip
    return [
        f"{plain.seconds / run.seconds:.2g} times as fast is published of {run.model} on one {run.gpu} ({name}, {run.source})"
        for run, plain in pairs
    ]


def with_loras(seconds: Seconds, num_sets: int) -> Seconds:
    """Return the time of batches with LoRAs: from nothing beside a wide network's own work to what was measured on a narrow one.

    Args:
        num_sets: different ones of the job, for each of which torch.compile begins anew.
    """
    said = (
        f"LoRAs: as without them to {SLOWEST_LORA:.1f} times as long to denoise, which a narrow network took on a CPU "
        "(docs/lora.md); not measured on a GPU"
    )
    compiled = seconds.compiling.high > 0 and num_sets > 1
    return replace(
        seconds,
        denoise=Span(seconds.denoise.low, seconds.denoise.high * SLOWEST_LORA),
        compiling=seconds.compiling.times(num_sets) if compiled else seconds.compiling,
        basis=(*seconds.basis, said + (f"; each of the {num_sets} sets of them is compiled" if compiled else "")),
    )
