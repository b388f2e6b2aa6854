"""What all benches share: a process of its own, checks before timing, interleaved repeats, quantiles, the record.

    rows, notes = module.run(options)      # plain values; a row with `not_run` says why something has no number
    -> one line appended to results/<bench>.jsonl, a table, a plot, and as the last line of stdout the same JSON

A bench module has `Options`, `run`, `COLUMNS` (heading -> format of a row's values) and `plot`. This module imports
neither torch nor diffusers: what is measured runs in children (`in_process`).
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "dglaunch", "torch", "diffusers", "transformers", "accelerate", "xfuser", "peft", "yunchang", "numpy", "pillow", "triton",
    "flash-attn", "sageattention", "xformers", "kernels",
)  # fmt: skip
WIDTH = 130
"""Least width of a table; on a narrower terminal or in a log it wraps rather than lose digits."""
QUANTILES = {"p20": 0.2, "p50": 0.5, "p80": 0.8}
NOT_CARRIED = ("DG_", "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC", "SLURM_", "PET_")
"""Variables that would change what a child does."""

Row = dict[str, Any]


class BenchError(Exception):
    """A bench could not be run; nothing is recorded."""


class WrongOutput(BenchError):
    """An output differs from its reference: its time would mean nothing."""


@dataclass(kw_only=True, slots=True)
class Options:
    """What every bench takes."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    full: bool = False
    """The real shapes on a CPU too (a GPU always gets them)."""
    quick: bool = False
    """The smallest shapes and two repeats: shows that the bench works, not how fast anything is."""
    repeats: int = 15
    """Timed repeats of each case; the cases take turns."""
    warm_up: int = 2
    """Repeats before them that are not counted."""
    threads: int = 1
    """OMP_NUM_THREADS of each process that is measured."""
    seed: int | None = None
    """Of the random inputs. Default: another one in each run, recorded with it."""
    plot: Path | None = None
    """Draw the result into this PNG (needs matplotlib: pip install 'dglaunch[bench]')."""
    results: Path = RESULTS
    """Folder whose <bench>.jsonl gets the new line."""
    damage: bool = False
    """Spoil every output before its check: shows that the check can fail. Ends with exit code 1, records nothing."""

    def __post_init__(self) -> None:
        if self.seed is None:
            self.seed = time.time_ns() % 2**31
        if self.quick:
            self.repeats, self.warm_up = min(self.repeats, 2), min(self.warm_up, 1)

    @property
    def size(self) -> Literal["quick", "scaled", "full"]:
        """Which column of a bench's table of shapes to use."""
        if self.quick:
            return "quick"
        return "full" if self.full or self.device == "cuda" else "scaled"

    @property
    def dtype(self) -> str:
        """As dglaunch chooses it."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def shared(self) -> dict[str, Any]:
        """What the children of all benches are told."""
        names = ("device", "dtype", "repeats", "warm_up", "threads", "seed", "damage")
        return {name: getattr(self, name) for name in names}


# -- a process of its own -------------------------------------------------------------------------------------------


def in_process(target: str, payload: Any, options: Options, ranks: int = 0, timeout: float = 3600) -> Any:
    """Call `module:function` with a JSON payload in a fresh process, or in `ranks` processes under torchrun.

    Raises:
        WrongOutput: the child's check refused an output.
        BenchError: the child failed.
    """
    with tempfile.TemporaryDirectory(prefix="kernels_bench-") as folder:
        given, told = Path(folder, "payload.json"), Path(folder, "result.json")
        given.write_text(json.dumps(payload))
        words = [*python(ranks), "-m", "kernels_bench.child", target, str(given), str(told)]
        ended = run_command(words, environment(options), timeout)
        if not told.exists() or ended.returncode:
            raise BenchError(f"{target} failed with exit code {ended.returncode}:\n{ended.stdout[-4000:]}")
        result = json.loads(told.read_text())
    if "wrong" in result:
        raise WrongOutput(result["wrong"])
    return result["ok"]


def python(ranks: int = 0) -> list[str]:
    """The interpreter, under torchrun where ranks are wanted."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [sys.executable, *(torchrun if ranks else [])]


def environment(options: Options, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what would change a child, and with its number of threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_CARRIED)}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    kept |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | dict(extra or {})


def run_command(words: Sequence[str], env: Mapping[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run to the end, output kept; what it started is killed with it when its time is over."""
    process = subprocess.Popen(
        words,
        env=dict(env),
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, 9)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise BenchError(f"still running after {timeout} s: {' '.join(words)}") from None
        raise
    return subprocess.CompletedProcess(words, process.returncode, output)


# -- checks and times -----------------------------------------------------------------------------------------------


def require(what: str, error: float, limit: float) -> float:
    """The error, if it is within its limit (NaN is not).

    Raises:
        WrongOutput: otherwise.
    """
    if not error <= limit:
        raise WrongOutput(f"{what}: the output differs from the reference by {error:.3g}, allowed is {limit:.3g}")
    return error


def spoil(array: Any, damage: bool) -> Any:
    """The array itself, or with --damage a copy whose first sixteenth is zero, as if one head or rank were missing."""
    if not damage:
        return array
    copy = array.clone().contiguous() if hasattr(array, "clone") else array.copy()
    copy.reshape(-1)[: max(1, math.prod(copy.shape) // 16)] = 0
    return copy


def seconds(
    cases: Mapping[str, Callable[..., Any]], fresh: Callable[[], tuple[Any, ...]], repeats: int, warm_up: int,
    wait: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Wall seconds of each case on fresh inputs.

    The cases take turns and each round begins with another one, so that what else this machine does meanwhile
    falls on all of them.

    Args:
        cases: by name; called with what `fresh` returns.
        fresh: new random inputs, made outside of the timing.
        repeats: counted rounds.
        warm_up: rounds before them.
        wait: returns when the device has finished (torch.cuda.synchronize).
    """
    names = list(cases)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            inputs = fresh()
            wait()
            start = time.perf_counter()
            output = cases[name](*inputs)
            wait()
            took = time.perf_counter() - start
            del output
            if turn >= warm_up:
                taken[name].append(took)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80 (linear between neighbours), and how many values they are of."""
    ordered = sorted(values)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return {name: quantile(share) for name, share in QUANTILES.items()} | {"n": len(ordered)}


# -- the record -----------------------------------------------------------------------------------------------------


def main(bench: str, module: ModuleType, words: Sequence[str]) -> int:
    """Parse the flags, measure, record, show."""
    import tyro

    options = tyro.cli(module.Options, args=list(words), prog=f"python -m kernels_bench {bench}")
    began, load = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
    try:
        rows, notes = module.run(options)
    except BenchError as error:
        print(f"kernels_bench {bench}: {error}\nNothing was recorded.", file=sys.stderr)
        return 1
    record = {
        "bench": bench, "date": began, "hardware": hardware(load), "command": f"python -m kernels_bench {' '.join([bench, *words])}",
        **commit(), "versions": versions(), "options": json.loads(json.dumps(asdict(options), default=str)),
        "rows": rows, "notes": notes,
    }  # fmt: skip
    append(options.results / f"{bench}.jsonl", record)
    show(module.COLUMNS, record)
    if options.plot is not None:
        draw(module.plot, record, options.plot)
    print(json.dumps(record), flush=True)
    return 0


def append(path: Path, record: Row) -> None:
    """One more line; what is there is never touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def hardware(load_before: float) -> Row:
    """What it ran on, and how busy it was: without the second a CPU figure says little."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: Row = {"cpu": cpu if cpu else platform.processor(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
    found["load_average"] = {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)}
    if shutil.which("nvidia-smi"):
        words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found["gpus"] = subprocess.run(words, capture_output=True, text=True).stdout.strip().splitlines()
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> Row:
    """The commit, whether the tree differed from it (results aside, which each run appends to), and the product's tree.

    A rebase gives a commit another name; the name of dglaunch's tree stays.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":(exclude)kernels_bench/results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dglaunch_tree": git("rev-parse", "HEAD:dglaunch"),
        "uncommitted": bool(changed),
    }


def versions() -> Row:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show(columns: Mapping[str, str], record: Row) -> None:
    """The table for people; below it what has no number, with the reason."""
    from rich.console import Console
    from rich.table import Table

    hardware = record["hardware"]
    name = ", ".join(hardware["gpus"]) if hardware.get("gpus") else f"{hardware['cpu']}, {hardware['cores']} cores"
    console = Console(soft_wrap=True)
    console.width = max(console.width, WIDTH)
    title = f"{record['bench']} on {name}, load {hardware['load_average']['before']}; p50 (p20-p80)"
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, no_wrap=True)
    for row in record["rows"]:
        if "not_run" not in row:
            table.add_row(*(form.format(**row) for form in columns.values()))
    console.print(table)
    for row in record["rows"]:
        if "not_run" in row:
            console.print(f"not run: {row['name']}: {row['not_run']}", markup=False, highlight=False)
    for note in record["notes"]:
        console.print(note, markup=False, highlight=False)


def draw(plot: Callable[[Any, list[Row]], None], record: Row, path: Path) -> None:
    """One figure of the rows that have numbers, with where and when in its corner."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'dglaunch[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    plot(axes, [row for row in record["rows"] if "not_run" not in row])
    hardware = record["hardware"]
    where = hardware.get("gpus") or [f"{hardware['cpu']}, load {hardware['load_average']['before']}"]
    figure.suptitle(f"{record['bench']}: {where[0]}, {record['date'][:10]}, {record['commit'][:8]}", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def bars(axes: Any, rows: Sequence[Row], key: str, label: str) -> None:
    """Horizontal bars of a spread, with p20-p80 as whiskers."""
    middle = [row[key]["p50"] for row in rows]
    whiskers = [
        [m - row[key]["p20"] for m, row in zip(middle, rows)],
        [row[key]["p80"] - m for m, row in zip(middle, rows)],
    ]
    axes.barh([row["name"] for row in rows], middle, xerr=[[max(w, 0) for w in side] for side in whiskers], capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(label)
