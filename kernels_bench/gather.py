"""How many finished images rank 0 takes in: dglaunch's own gather and writer, fed with encoded bytes at full speed.

    python -m kernels_bench gather                              # 2 and 4 ranks, 1.5 MB an image, --writer main and rank
    python -m kernels_bench gather --folder /scratch/somewhere  # on the file system that the job will use

Real torchrun on one machine, gloo over the loopback device. Rank 0 makes no images; each other rank hashes and sends
its images as a replica's leader does, as fast as they are taken. With `main` rank 0 writes files and ledger; with `rank`
each rank writes its own and rank 0 is told. A repeat ends when the last leader has said its last word. There is no fsync
in dglaunch, so a disk slower than the page cache shows only with more images than fit there. The other ranks share the
machine's cores with rank 0; its processor time says what a machine of its own would allow.
"""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

SIZES = {"full": (1_500_000, 100), "scaled": (1_500_000, 50), "quick": (50_000, 4)}
"""Bytes of an image (a PNG of 1024x1024), images that each rank sends in a repeat."""
WRITERS = ("main", "rank")
COLUMNS = {
    "writer": "{writer}",
    "ranks": "{ranks}",
    "images/s": "{images_per_s[p50]:.4g} ({images_per_s[p20]:.4g}-{images_per_s[p80]:.4g})",
    "MB/s": "{mb_per_s[p50]:.4g}",
    "rank 0's CPU ms an image": "{cpu_ms[p50]:.3g} ({cpu_ms[p20]:.3g}-{cpu_ms[p80]:.3g})",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench gather`. The CPU's work with --device cuda too."""

    repeats: int = 9
    """Timed repeats of each case; the cases take turns."""
    ranks: tuple[int, ...] = (2, 4)
    """Numbers of ranks, rank 0 among them (--quick: the first only)."""
    folder: Path | None = None
    """Where the images are written, and removed. Default: a temporary folder."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """A torchrun for each number of ranks; in it the writers take turns."""
    rows: list[measure.Row] = []
    size, images = SIZES[options.size]
    with tempfile.TemporaryDirectory(prefix="kernels_bench-", dir=options.folder) as folder:
        for ranks in options.ranks[:1] if options.quick else options.ranks:
            payload = options.shared() | {"size": size, "images": images, "folder": folder}
            rows += measure.in_process("kernels_bench.gather:work", payload, options, ranks=ranks, timeout=1200)
        words = ["stat", "-f", "-c", "%T", folder]
        kind = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    return rows, [f"{images} images of {size / 1e6:g} MB from each rank but 0 a repeat, gloo, to {kind}"]


# -- in the children ------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """On each rank: check what arrives in one repeat, then time both writers in turns."""
    import torch.distributed as dist

    from dglaunch.distributed.channel import Channel
    from dglaunch.distributed.topology import Topology

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    try:
        place = {"rank": rank, "local_rank": rank, "world_size": ranks, "local_world_size": ranks, "distributed": True}
        topologies = {writer: Topology(**place, mode=writer) for writer in WRITERS}  # type: ignore[arg-type]
        channel = Channel(topologies["main"], "cpu")
        taken: dict[str, list[tuple[float, float]]] = {writer: [] for writer in WRITERS}
        for turn in range(-payload["warm_up"] - 1, payload["repeats"]):
            for writer in WRITERS[turn % 2 :] + WRITERS[: turn % 2]:
                seconds = repeat(payload, topologies[writer], channel, turn, check=turn < 0)
                if turn >= 0:
                    taken[writer].append(seconds)
    finally:
        dist.destroy_process_group()
    count = payload["images"] * (ranks - 1)
    return [row(writer, ranks, payload["size"], count, times) for writer, times in taken.items()]


def row(writer: str, ranks: int, size: int, count: int, taken: list[tuple[float, float]]) -> measure.Row:
    return {
        "name": f"{writer}, {ranks} ranks", "writer": writer, "ranks": ranks, "bytes": size, "images": count,
        "images_per_s": measure.spread([count / wall for wall, _ in taken]),
        "mb_per_s": measure.spread([count * size / 1e6 / wall for wall, _ in taken]),
        "cpu_ms": measure.spread([cpu * 1e3 / count for _, cpu in taken]),
    }  # fmt: skip


def repeat(payload: dict[str, Any], place: Any, channel: Any, turn: int, check: bool) -> tuple[float, float]:
    """All images once, into a new folder: seconds on the wall and of this process."""
    from dglaunch.output.writer import Writer
    from dglaunch.run.collect import Collector
    from dglaunch.run.report import LeaderReport
    from dglaunch.run.watchdog import PeerWatch, StallWatch

    folder = Path(payload["folder"], f"{place.mode}{turn}")
    count = 0 if place.is_main else payload["images"]
    results = [
        (n, os.urandom(payload["size"]))
        for n in range(place.rank * payload["images"], place.rank * payload["images"] + count)
    ]
    writer = Writer(folder, *place.ledger_suffix)
    for first in (True, False):  # rank 0 takes the folder first
        if place.writes and place.is_main == first:
            writer.begin(writer.open({}, [], "png", overwrite=False), [])
        channel.all_of_world(None)
    with StallWatch(place, 0, threading.Event()) as watch:
        start, began = time.perf_counter(), time.process_time()
        peers = PeerWatch(watch, channel.attempt)
        collector = Collector(
            place, channel, lambda result: None if result.written else writer.write(result), watch, peers
        )
        assert collector.sender is not None
        for number, data in results:
            collector.sender.send(finished(number, data))
        collector.close(LeaderReport(time.time(), 0.0))
        taken = time.perf_counter() - start, time.process_time() - began
    if not place.is_main:
        writer.close()
    channel.all_of_world(None)
    wrong = 0.0
    if place.is_main:
        writer.join([])
        writer.close()
        wrong = share_wrong(folder, (place.world_size - 1) * payload["images"], payload["damage"]) if check else 0.0
        shutil.rmtree(folder)
    measure.require("gather, share of the images", channel.broadcast(wrong), 0.0)
    return taken


def finished(number: int, data: bytes) -> Any:
    """A result as dglaunch's loop makes it."""
    from dglaunch.data.task import Result
    from dglaunch.output import encode as images

    record = {
        "index": number, "sample": 0, "prompt": "a red fox in the snow, photographed at dawn with a long lens" * 4,
        "seed": number, "width": 1024, "height": 1024, "num_inference_steps": 28, "guidance_scale": 3.5, "key": "0" * 16,
        "sha256": images.sha256(data), "rank": 1, "node": 0, "batch_size": 1, "seconds": 6.7, "time": "2026-11-23T00:00:00",
    }  # fmt: skip
    return Result(task_id=(number, 0), file_name=f"{number:06d}.png", record=record, data=data)


def share_wrong(folder: Path, count: int, damage: bool) -> float:
    """Of the images that should be there, those without a line or whose file has not the sha256 of its line."""
    from dglaunch.output import encode as images
    from dglaunch.output.lines import read_lines

    lines = [line for _, line in read_lines(folder / "metadata.jsonl")]
    if damage:
        (folder / lines[0]["file_name"]).write_bytes(b"spoilt")
    right = {
        line["index"] for line in lines if images.sha256((folder / line["file_name"]).read_bytes()) == line["sha256"]
    }
    return 1.0 if len(lines) != count else 1 - len(right) / count


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "images_per_s", "images/s that arrive")
