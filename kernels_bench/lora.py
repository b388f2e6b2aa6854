"""What mixing LoRAs costs: images/s of a table with eight LoRAs shuffled, the same sorted, and the same without LoRA.

    python -m kernels_bench lora --plot lora.png
    python -m kernels_bench lora --device cuda --model_name black-forest-labs/FLUX.1-dev --rank 16

Shuffled, the rows of a batch have different LoRAs, which each layer applies row by row; sorted, each batch has one; one by
one, no rows share a batch, as they would have to without mixing. Checked: every image of a mixture against the same row
alone.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kernels_bench import batch as batches
from kernels_bench import measure

SIDES = {"full": 1024, "scaled": 64, "quick": 64}
NUM_LORAS = 8
COLUMNS = {
    "rows": "{name}",
    "batch": "{batch}",
    "images/s": "{images_per_s[p50]:.4g} ({images_per_s[p20]:.4g}-{images_per_s[p80]:.4g})",
    "of no LoRA": "{share:.0%}",
    "difference": "{difference:.2g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench lora`."""

    repeats: int = 7
    """Timed repeats of each case; the cases take turns."""
    model_name: str = "tiny"
    """As dglaunch's."""
    rank: int = 16
    """Of the LoRAs, which are random and have every linear layer of the transformer's blocks."""
    batch: int = 8
    """Images in a batch; as many LoRAs."""
    num_inference_steps: int = 4
    """Denoising steps."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """One process: the model is loaded twice, with and without LoRAs, and the cases take turns."""
    payload = options.shared() | {
        "model_name": options.model_name, "steps": options.num_inference_steps, "side": SIDES[options.size],
        "rank": options.rank, "batch": 2 if options.quick else options.batch,
    }  # fmt: skip
    rows = measure.in_process("kernels_bench.lora:work", payload, options)
    return rows, [
        f"{options.model_name}, {options.num_inference_steps} steps, {options.dtype}; {NUM_LORAS} LoRAs of rank {options.rank}; "
        "a table of as many batches as LoRAs"
    ]


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """Load, check a mixture against its images alone, then time whole tables."""
    import random

    import torch

    rng = random.Random(payload["seed"])
    plain = batches.load(payload, {"encode": "inline"})[0]
    with tempfile.TemporaryDirectory(prefix="kernels_bench-lora-") as folder:
        words = write_loras(plain.pipeline.transformer, Path(folder), payload["rank"], payload["seed"])
        mixed = batches.load(payload, {"encode": "inline"}, loras=words)[0]
    size = payload["batch"]
    rows = batches.tasks(rng, payload["side"], size * NUM_LORAS, payload["steps"])
    uses = mixed.context.checkpoint.loras.all
    tables = {
        "no LoRA": (plain, cut(rows, size)),
        "sorted": (mixed, cut(with_loras(rows, [uses[n // size] for n in range(len(rows))]), size)),
        "shuffled": (mixed, cut(shuffled := with_loras(rows, [uses[n % NUM_LORAS] for n in range(len(rows))]), size)),
        "shuffled, one by one": (mixed, cut(shuffled, 1)),
    }
    difference = batches.check(mixed, tables["shuffled"][1][0].tasks, payload)
    cases = {name: partial(make, backend, table) for name, (backend, table) in tables.items()}
    wait = torch.cuda.synchronize if payload["device"] == "cuda" else lambda: None
    taken = measure.seconds(cases, lambda: (), payload["repeats"], payload["warm_up"], wait)
    speeds = {name: measure.spread([len(rows) / seconds for seconds in taken[name]]) for name in tables}
    return [
        {
            "name": name, "batch": len(tables[name][1][0]), "images_per_s": speed, "difference": difference,
            "share": speed["p50"] / speeds["no LoRA"]["p50"],
        }
        for name, speed in speeds.items()
    ]  # fmt: skip


def write_loras(network: Any, folder: Path, rank: int, seed: int) -> tuple[str, ...]:
    """Write random LoRAs of all linear layers in a transformer's blocks, and return what names them."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: module.weight.shape
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
    files = [folder / f"lora{number}.safetensors" for number in range(NUM_LORAS)]
    for file in files:
        tensors = {}
        for name, (rows, columns) in layers.items():
            tensors[f"transformer.{name}.lora_A.weight"] = (
                torch.randn(rank, columns, generator=generator) / columns**0.5
            )
            tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
        save_file(tensors, file)
    return tuple(map(str, files))


def with_loras(rows: Any, uses: Any) -> list[Any]:
    """Give each row one."""
    from dataclasses import replace

    return [replace(row, lora=(use,)) for row, use in zip(rows, uses)]


def cut(rows: Any, size: int) -> list[Any]:
    """Batches of rows, in their order."""
    from dglaunch.data.task import Batch

    return [Batch(tuple(rows[start : start + size])) for start in range(0, len(rows), size)]


def make(backend: Any, table: list[Any]) -> None:
    for batch in table:
        backend.generate(batch)


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """A bar for each order of the rows."""
    axes.barh([row["name"] for row in rows], [row["images_per_s"]["p50"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="images/s")
