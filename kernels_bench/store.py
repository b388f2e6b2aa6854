"""How results are kept: a file for each image against WebDataset and Parquet shards, with the fake backend as the model.

    python -m kernels_bench store                               # 2,000 images of 64x64, the stores in turns
    python -m kernels_bench store --side 512 --num_images 400   # larger ones, whose encoding outweighs the rest
    python -m kernels_bench store --folder /scratch/somewhere   # on the file system that the job will use

A whole job in one process each time, from its first batch to its last shard, closed: files are written without asking the
disk, shards are brought to it once a second and at their ends. Then images are read at random, each once, by one thread.
"""

import random
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

STORES = ("files", "webdataset", "parquet")
COLUMNS = {
    "store": "{store}",
    "images/s made": "{made[p50]:.4g} ({made[p20]:.4g}-{made[p80]:.4g})",
    "CPU ms an image": "{cpu_ms[p50]:.3g} ({cpu_ms[p20]:.3g}-{cpu_ms[p80]:.3g})",
    "images/s read at random": "{read[p50]:.4g}",
    "files": "{num_files}",
    "MB": "{mb:.4g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench store`. No device is used."""

    repeats: int = 5
    """Timed jobs of each store; they take turns."""
    warm_up: int = 1
    """Jobs before them that are checked but not counted."""
    num_images: int = 2000
    """Images of a job (--quick: 20)."""
    side: int = 64
    """Pixels; 64x64 are 12 kB."""
    shard_size: int = 10
    """Megabytes of a shard, so that there are several."""
    folder: Path | None = None
    """Where the images are written, and removed. Default: a temporary folder."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    count = 20 if options.quick else options.num_images
    with tempfile.TemporaryDirectory(prefix="kernels_bench-", dir=options.folder) as folder:
        payload = options.shared() | {"count": count, "side": options.side, "shard_size": options.shard_size}
        rows = measure.in_process("kernels_bench.store:work", payload | {"folder": folder}, options)
        words = ["stat", "-f", "-c", "%T", folder]
        kind = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    return rows, [f"{count:,} images of {options.side}x{options.side}, shards of {options.shard_size} MB, to {kind}"]


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """All stores in turns."""
    found: dict[str, list[dict[str, float]]] = {store: [] for store in STORES}
    for turn in range(-payload["warm_up"], payload["repeats"]):
        for store in STORES[turn % 3 :] + STORES[: turn % 3]:
            told = job(payload, store, Path(payload["folder"], "out"))
            if turn >= 0:
                found[store].append(told)
    return [
        {"name": store, "store": store, "num_files": int(told[0]["num_files"]), "mb": told[0]["bytes"] / 1e6}
        | {name: measure.spread([each[name] for each in told]) for name in ("made", "cpu_ms", "read")}
        for store, told in found.items()
    ]


def job(payload: dict[str, Any], store: str, out: Path) -> dict[str, float]:
    """Make the images, then read each; every one must be as its ledger line says."""
    from dglaunch.planning.job import prepare
    from dglaunch.run.runner import run as run_job
    from dglaunch.terminal import Terminal

    count = payload["count"]
    prepared = prepare(config_of(payload, store, out), {}, {})
    begun, used = time.perf_counter(), cpu_seconds()
    run_job(prepared, Terminal(quiet=True))
    made, used = count / (time.perf_counter() - begun), cpu_seconds() - used
    begun = time.perf_counter()
    right = read_all(out, payload["damage"])
    read = count / (time.perf_counter() - begun)
    measure.require(f"{store}, share of the images that are as their line says", 1 - right / count, 0)
    files = [path for path in out.rglob("*") if path.is_file()]
    told = {"num_files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    shutil.rmtree(out)
    return told | {"made": made, "cpu_ms": 1e3 * used / count, "read": read}


def config_of(payload: dict[str, Any], store: str, out: Path) -> Any:
    import dglaunch

    sized = {"shard_size": payload["shard_size"]} if store != "files" else {}
    return dglaunch.T2IConfig(
        backend=dglaunch.BackendConfig(backend="fake"), prompts=[f"prompt {n}" for n in range(payload["count"])],
        height=payload["side"], width=payload["side"], output_dir=out, store=store, **sized,
    )  # fmt: skip


def read_all(out: Path, damage: bool) -> int:
    """How many images, read in a random order, have the hash of their line."""
    import hashlib

    from dglaunch.output.images import image_of
    from dglaunch.output.ledger import OutputFolder

    records = list(OutputFolder(out).records())
    random.shuffle(records)
    images = [(image_of(out, record), record["sha256"]) for record in records]
    return sum(hashlib.sha256(image.read() + b"!" * damage).hexdigest() == digest for image, digest in images if image)


def cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "made", "images/s made")
