"""What a job of 10^4 to 10^7 rows costs beside the model: seconds and peak memory of each part, old way and new.

    python -m kernels_bench scale                              # 10^4, 10^5, 10^6
    python -m kernels_bench scale --rows 10000 100000 1000000 10000000 --plot scale.png   # all; an hour, 20 GB of names
    python -m kernels_bench scale --rows 10000000 --parts plan # the aims are of ten million
    python -m kernels_bench scale --rows 10000000 --parts resume status --kept /big/disk   # the second time nothing is made

A part is a function of a folder that has the table, in a process of its own (PARTS); "before" is the way of the versions
before columns, measured up to MOST_BEFORE rows. Seconds are of the part alone, as are those of CPU (its helpers' too), which say more
where others use the machine; memory is the process's peak less what its imports took.
"""

import importlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure

WORLD = 64
"""Replicas that are planned for."""
MOST_BEFORE = 100_000
"""Rows up to which the way before columns is measured, too."""
MOST_ROWS = 10_000_000
"""What the aims are of."""
AT_ONCE = 100_000
COLUMNS = {
    "part": "{part}",
    "rows": "{rows:,}",
    "way": "{way}",
    "seconds": "{seconds[p50]:.3g} ({seconds[p20]:.3g}-{seconds[p80]:.3g})",
    "CPU s": "{cpu_s[p50]:.3g}",
    "us a row": "{us_a_row[p50]:.3g}",
    "MB": "{megabytes[p50]:.0f}",
    "aim": "{aim}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench scale`. No device is used."""

    repeats: int = 3
    """Processes of each case."""
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Rows of the table (--quick: the first only)."""
    parts: tuple[str, ...] = ()
    """Which parts; default: all."""
    folder: Path | None = None
    """Where tables and results lie meanwhile. Default: the system's folder for temporary files."""
    kept: Path | None = None
    """Where they stay for the next time instead: ten million results take long to make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One row of PARTS."""

    run: str
    """module:function of what is measured, called with the folder and the number of rows."""
    aim: str
    """What it should be at ten million rows."""
    aim_s: float | None = None
    """Its seconds, for the plot."""
    before: str | None = None
    """The same in the way before; None: there is none to compare with."""
    images: int | None = None
    """Images that it makes, whatever the number of rows; then a row's microseconds are an image's. None: all rows are looked at."""
    prepare: str | None = None
    """module:function that makes what the part needs beside the table, in a process of its own, once for each number of rows."""


PARTS: Mapping[str, Part] = {
    "read": Part(
        run="kernels_bench.scale:read", before="kernels_bench.scale:read_by_row", aim="1 us a row: a million a second",
        aim_s=10,
    ),
    "plan": Part(
        run="kernels_bench.scale:plan", before="kernels_bench.scale:plan_by_row",
        aim="60 s and 1 GB beside the mapped file, 64 replicas", aim_s=60,
    ),
    "image": Part(run="kernels_bench.scale:image", images=2_000, aim="as at 10^4: an image costs the same in any job"),
    "resume": Part(
        run="kernels_bench.scale_ledger:resume", before="kernels_bench.scale_ledger:resume_by_line",
        prepare="kernels_bench.scale_ledger:make_results", aim="60 s and 1 GB", aim_s=60,
    ),
    "resume again": Part(
        run="kernels_bench.scale_ledger:resume_again", prepare="kernels_bench.scale_ledger:look_at_results",
        aim="60 s and 1 GB", aim_s=60,
    ),
    "status": Part(run="kernels_bench.scale_ledger:status", prepare="kernels_bench.scale_ledger:look_at_results", aim=""),
    "verify": Part(run="kernels_bench.scale_ledger:verify", prepare="kernels_bench.scale_ledger:make_results", aim=""),
}  # fmt: skip


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    rows: list[measure.Row] = []
    names = options.parts or tuple(PARTS)
    if unknown := set(names) - set(PARTS):
        raise measure.BenchError(f"there is no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    for count in options.rows[:1] if options.quick else options.rows:
        with _place(options, count) as folder:
            payload = {"folder": folder, "rows": count, "damage": options.damage}
            if any(PARTS[name].prepare is None for name in names):
                measure.in_process("kernels_bench.scale:make_table", payload, options)
            for name in names:
                part = PARTS[name]
                if part.prepare is not None:
                    measure.in_process(part.prepare, payload, options)
                ways = {"now": part.run} | ({"before": part.before} if part.before and count <= MOST_BEFORE else {})
                rows += measured(name, part, ways, payload, options)
    return rows, [
        f"a table in Parquet: prompts of 70 letters, a seed and a style; plan: --backend fake, {WORLD} replicas"
    ]


@contextmanager
def _place(options: Options, count: int) -> Iterator[str]:
    """A folder for the table and the results of so many rows."""
    if options.kept is None:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as folder:
            yield folder
        return
    kept = options.kept / str(count)
    kept.mkdir(parents=True, exist_ok=True)
    yield str(kept)


def measured(
    name: str, part: Part, ways: Mapping[str, str], payload: Mapping[str, Any], options: Options
) -> Iterator[measure.Row]:
    """The ways take turns, each time in a new process."""
    count = part.images or payload["rows"]
    payload = {**payload, "count": count}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, target in ways.items():
            found[way].append(measure.in_process("kernels_bench.scale:in_part", {"target": target, **payload}, options))
    for way, runs in found.items():
        seconds = [each["seconds"] for each in runs]
        yield {
            "name": f"{name}, {payload['rows']:,} rows, {way}", "part": name, "rows": payload["rows"], "way": way, "aim": part.aim,
            "seconds": measure.spread(seconds), "us_a_row": measure.spread([each / count * 1e6 for each in seconds]),
            "cpu_s": measure.spread([each["cpu_s"] for each in runs]),
            "megabytes": measure.spread([each["megabytes"] for each in runs]),
        }  # fmt: skip


# -- in a child -------------------------------------------------------------------------------------------------------


def in_part(payload: Mapping[str, Any]) -> dict[str, float]:
    """Measure one part: it imports what it needs, then yields, and is measured from there on; it yields how many rows it came upon,
    with its own seconds where not all that it does is meant."""
    module, _, function = payload["target"].partition(":")
    part: Callable[[Path, int], Iterator[int | tuple[int, float]]] = getattr(importlib.import_module(module), function)
    steps = part(Path(payload["folder"]), payload["count"])
    next(steps)
    before, cpu, start = _peak(), _cpu(), time.perf_counter()
    ended = next(steps)
    seconds, cpu = time.perf_counter() - start, _cpu() - cpu
    count, seconds = ended if isinstance(ended, tuple) else (ended, seconds)
    measure.require(f"{function}, rows", abs(float(count + bool(payload["damage"]) - payload["count"])), 0.0)
    return {"seconds": seconds, "cpu_s": cpu, "megabytes": (_peak() - before) / 1e6}


def _cpu() -> float:
    """Seconds of CPU of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def _peak() -> float:
    """Bytes that this process has had of its own at most; pages of files that it maps are not counted."""
    mapped = 1024 * sum(int(line.split()[1]) for line in _status() if line.startswith("RssFile"))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - mapped)


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def make_table(payload: Mapping[str, Any]) -> None:
    """Write the table of a number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(payload["folder"], "rows.parquet")
    if path.exists():  # kept
        return
    schema = pa.schema([("prompt", pa.string()), ("seed", pa.int64()), ("style", pa.string())])
    styles = ["oil", "ink", "photo", "clay"]
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, payload["rows"], AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, payload["rows"]))
            prompts = [f"a photograph of a red fox number {n} in the snow, highly detailed, 35mm" for n in numbers]
            columns = {"prompt": prompts, "seed": list(numbers), "style": [styles[n % 4] for n in numbers]}
            writer.write_table(pa.table(columns, schema))


def _import_arrow() -> None:
    """What every start imports is not what grows with the rows."""
    for name in ("pyarrow.compute", "pyarrow.parquet", "dglaunch.data.large_table"):
        importlib.import_module(name)


@contextmanager
def row_by_row() -> Iterator[None]:
    """No table is large: all are read as before there were columns."""
    from dglaunch.data import tables

    before = tables.LARGE_ROWS, tables.LARGE_BYTES
    tables.LARGE_ROWS = tables.LARGE_BYTES = 1 << 62
    try:
        yield
    finally:
        tables.LARGE_ROWS, tables.LARGE_BYTES = before


def read(folder: Path, rows: int) -> Iterator[int]:
    """Read and check the table."""
    from dglaunch.config import T2IConfig
    from dglaunch.data.prompts import read_prompts
    from dglaunch.distributed.topology import Topology
    from dglaunch.planning.node_table import rows_in_columns

    _import_arrow()
    config = T2IConfig(prompts_file=folder / "rows.parquet", num_images_per_prompt=1)
    yield 0
    tasks = read_prompts(config, large=rows_in_columns(Topology()))
    yield len(tasks)


def read_by_row(folder: Path, rows: int) -> Iterator[int]:
    """The same, row by row."""
    with row_by_row():
        yield from read(folder, rows)


def plan(folder: Path, rows: int) -> Iterator[int]:
    """From the command line to all batches of all replicas."""
    from dglaunch.cli.own_flags import PlanFlags
    from dglaunch.cli.plan import job_to_plan, schedule_to_plan
    from dglaunch.planning.figures import book_of, in_this_process

    _import_arrow()
    words = ["plan", "t2i", "--backend", "fake", "--prompts_file", str(folder / "rows.parquet")]
    yield 0
    job, _ = job_to_plan(PlanFlags, [*words, "--output_dir", str(folder / "out"), "--world_size", str(WORLD)], {})
    schedule, _ = schedule_to_plan(job, book_of(job, in_this_process(job.checkpoint, job.config)))
    yield schedule.plan.num_tasks


def plan_by_row(folder: Path, rows: int) -> Iterator[int]:
    """The same, row by row."""
    with row_by_row():
        yield from plan(folder, rows)


def image(folder: Path, count: int) -> Iterator[int | tuple[int, float]]:
    """Images drawn from all over the table, by a backend that costs next to nothing; start-up left out."""
    import dglaunch

    _import_arrow()
    yield 0
    with tempfile.TemporaryDirectory(dir=folder) as out:
        ended = dglaunch.t2i(
            dglaunch.T2IConfig(
                prompts_file=folder / "rows.parquet", shuffle_seed=1, limit=count, batch_size=8, output_dir=Path(out),
                backend=dglaunch.BackendConfig(backend="fake"),
            )
        )  # fmt: skip
        yield ended.counts.num_ok, json.loads(Path(out, "run.json").read_bytes())["wall_s"]


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """Seconds over rows, a line for each part and way, and a star of its color where it should be at ten million."""
    lines: dict[str, list[measure.Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['part']}, {row['way']}", []).append(row)
    for name, points in lines.items():
        seconds = [row["seconds"]["p50"] for row in points]
        (line,) = axes.plot([row["rows"] for row in points], seconds, "o-", label=name)
        aim = PARTS[points[0]["part"]].aim_s
        if aim is not None and points[0]["way"] == "now":
            axes.plot([MOST_ROWS], [aim], "*", markersize=12, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds")
    axes.legend()
