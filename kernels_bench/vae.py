"""The VAE's decoder: whole batch, image by image (slicing), in tiles. Seconds, peak memory, difference from whole.

    python -m kernels_bench vae --full

FLUX.1's decoder with random weights (speed and memory do not depend on them; what tiling does to the picture does, so
its difference here is an upper mark, not a verdict). Each way has a process of its own, in this order: the peak memory
of the first decoding, the check, the times. Checked: each way against itself in float64 on a small latent, slicing
against whole. Memory on a CPU is the resident set's high-water mark above what was resident before.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

FLUX_VAE = {
    # black-forest-labs/FLUX.1-dev, vae/config.json
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True,
}  # fmt: skip
SHAPES = {
    # pixels, batch, widths of the decoder's blocks
    "full": (2048, 2, FLUX_VAE["block_out_channels"]),
    "scaled": (256, 2, FLUX_VAE["block_out_channels"]),
    "quick": (64, 2, (32, 32, 32, 32)),
}
WAYS = ("whole", "sliced", "tiled")
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}
"""Allowed |output - reference| / |reference| against float64, and of slicing against whole."""
COLUMNS = {
    "way": "{way}",
    "s": "{seconds[p50]:.3f} ({seconds[p20]:.3f}-{seconds[p80]:.3f})",
    "peak memory": "{peak_mib:.0f} MiB",
    "max difference from whole": "{max_difference:.2g}",
    "relative": "{relative_difference:.2g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench vae`."""

    repeats: int = 5
    """Timed repeats of each way."""
    warm_up: int = 1
    """Repeats before them that are not counted."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """A process for each way; the pictures are compared here."""
    import numpy

    pixels, batch, widths = SHAPES[options.size]
    rows = []
    with tempfile.TemporaryDirectory(prefix="kernels_bench-vae-") as folder:
        for way in WAYS:
            file = str(Path(folder, f"{way}.npy"))
            payload = options.shared() | {"way": way, "pixels": pixels, "batch": batch, "widths": widths, "file": file}
            rows.append(measure.in_process("kernels_bench.vae:work", payload, options))
            picture, whole = numpy.load(file), numpy.load(Path(folder, "whole.npy"))
            rows[-1]["max_difference"] = float(abs(picture - whole).max())
            rows[-1]["relative_difference"] = float(numpy.linalg.norm(picture - whole) / numpy.linalg.norm(whole))
    measure.require("sliced against whole", rows[1]["relative_difference"], LIMITS[options.dtype])
    return rows, [f"{batch} images of {pixels}x{pixels}, tiles of {pixels // 2}x{pixels // 2}, {options.dtype}"]


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> measure.Row:
    """One way: memory first, in a process that has not decoded yet, then the check, then the times."""
    import numpy
    import torch

    torch.manual_seed(payload["seed"])
    vae, device = build(payload), payload["device"]
    side = payload["pixels"] // 8

    def fresh() -> tuple[torch.Tensor]:
        return (torch.randn(payload["batch"], 16, side, side).to(device, getattr(torch, payload["dtype"])),)

    with torch.inference_mode():
        latents = fresh()[0]
        before = start_memory(device)
        picture = vae.decode(latents).sample
        peak = peak_memory(device) - before
        numpy.save(payload["file"], picture.float().cpu().numpy())
        del picture, latents
        error = against_float64(vae, payload)
        way, wait = payload["way"], torch.cuda.synchronize if device == "cuda" else lambda: None
        decode = {way: lambda latents: vae.decode(latents).sample}
        taken = measure.seconds(decode, fresh, payload["repeats"], payload["warm_up"], wait)[way]
    return {
        "name": way, "way": way, "pixels": payload["pixels"], "batch": payload["batch"], "dtype": payload["dtype"],
        "seconds": measure.spread(taken), "peak_mib": peak / 2**20, "error_against_float64": error,
    }  # fmt: skip


def build(payload: dict[str, Any]) -> Any:
    """The same seeded weights for each way, and tiles of half the picture's side."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**FLUX_VAE | {"block_out_channels": payload["widths"], "sample_size": payload["pixels"] // 2})
    vae = vae.to(payload["device"], getattr(torch, payload["dtype"])).eval()
    {"whole": lambda: None, "sliced": vae.enable_slicing, "tiled": vae.enable_tiling}[payload["way"]]()
    return vae


def against_float64(vae: Any, payload: dict[str, Any]) -> float:
    """The relative error of this way on a small latent, cut into tiles in the same proportion.

    Raises:
        WrongOutput: it is too large.
    """
    import torch

    exact = copy.deepcopy(vae).double()
    for each in (vae, exact):
        each.tile_latent_min_size, each.tile_sample_min_size = 4, 32
    latents = torch.randn(2, 16, 8, 8).to(payload["device"], getattr(torch, payload["dtype"]))
    expected = exact.decode(latents.double()).sample
    output = measure.spoil(vae.decode(latents).sample, payload["damage"]).double()
    half = payload["pixels"] // 2
    vae.tile_latent_min_size, vae.tile_sample_min_size = half // 8, half
    error = float((output - expected).norm() / expected.norm())
    return measure.require(f"{payload['way']} against float64", error, LIMITS[payload["dtype"]])


def start_memory(device: str) -> int:
    """Forget the peak so far; bytes in use now. (Linux: writing 5 to clear_refs resets VmHWM, see man 5 proc.)"""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak_memory(device: str) -> int:
    """Bytes of the peak since `start_memory`."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return status("VmHWM")


def status(field: str) -> int:
    """A field of /proc/self/status in bytes; it is given in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """Seconds as bars, the memory written on them."""
    measure.bars(axes, rows, "seconds", "seconds")
    for place, row in enumerate(rows):
        axes.text(0, place, f"  {row['peak_mib']:.0f} MiB", va="center", color="white")
