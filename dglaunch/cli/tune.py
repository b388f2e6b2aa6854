"""`dglaunch tune t2i ...`: batch size x parallel configuration on the real model, measured; `--batch_size auto` uses it.

    dglaunch tune t2i --model_name black-forest-labs/FLUX.1-dev --prompts_file prompts.jsonl --num_gpus 8 --output_dir tuned

Each parallel configuration is one start of torchrun on this machine, as a user would start the run (`dglaunch tune-rank`,
which is no command for users). Within it batch sizes double until the throughput stops gaining or the memory ends. What was
best is remembered in --cache_dir for (model, GPU, type of the weights, size, optimizations, degrees of a replica). With
--gpu, only what fits that GPU's memory counts. With --search, the optimizations come next (cli/search.py).
"""

import io
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.backends.base import Backend
from dglaunch.backends.profiles import profile_of
from dglaunch.cli.children import default_ranks, last_error
from dglaunch.cli.flags import job_of, parse, read_flags, without
from dglaunch.cli.own_flags import TuneFlags
from dglaunch.cli.search import Pace, Search, notebook_of, shape_of, sigterm_as_interrupt, too_much
from dglaunch.config import XDIT_PREFIX, RunConfig, T2IConfig, refuse_far_output
from dglaunch.data.images import open_image
from dglaunch.data.tables import shown
from dglaunch.data.task import Batch, Record, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import EXIT_DONE, DglaunchError, UserError
from dglaunch.files import is_stream
from dglaunch.output.ownership import WRITTEN_BY, refuse_to_replace, write_report
from dglaunch.planning.batches import into_buckets
from dglaunch.planning.gpus import Gpu, find_gpu
from dglaunch.planning.job import Job, prepare
from dglaunch.planning.search import Point
from dglaunch.planning.tuned import GAIN, Measured, describe, remember, sweet_spot
from dglaunch.system import torchrun_command, versions
from dglaunch.terminal import Terminal

LARGEST = 64
REPEATS = 3
"""Timed batches of each size, after one that is not counted."""
TERMINATION_S = 40
"""torchrun kills its workers 30 s after it was asked to stop."""
DEGREES = (1, 2, 4, 8)


# -- the command --------------------------------------------------------------------------------------------------


def tune(words: list[str], environ: Mapping[str, str]) -> int:
    """Measure batch sizes and parallel configurations (`dglaunch tune t2i [flags of t2i]`).

    Raises:
        UserError: it was started under torchrun, for another command, or the flags do not hold.
    """
    job, rest = job_of(words)
    if job is None:
        raise UserError("tune measures t2i only: dglaunch tune t2i [flags of t2i].")
    if "RANK" in environ:
        raise UserError("tune starts torchrun itself, once for each configuration; start it without, with --num_gpus.")
    asked = read_flags(T2IConfig, TuneFlags, rest, environ, "tune t2i")
    config, origins = asked.config, asked.origins
    gpu = None if asked.own.gpu is None else find_gpu(asked.own.gpu)
    profile = profile_of(config.backend.backend)
    if not profile.can_tune or config.debug or config.batch_size != "auto":
        raise UserError(
            "tune chooses the batch size on this machine's ranks; drop --batch_size, --debug and remote backends."
        )
    if any(map(is_stream, config.tables)):
        raise UserError(
            f"tune reads the prompts once for each configuration, and {shown(config.tables)} can be read once. Save them to a "
            "file first, and name that."
        )
    refuse_far_output(config, "tune")
    for file in reports_in(config.output_dir):
        refuse_to_replace(file)
    config.output_dir.mkdir(parents=True, exist_ok=True)  # if it cannot be made, that is told before hours of measuring
    ranks = config.num_gpus or default_ranks()
    of_ranks = without(asked.words, "num_gpus", "output_dir")
    sweep = Sweep(config, configurations(config, origins, environ, ranks), of_ranks, environ, ranks, gpu, Terminal())
    typed = ["dglaunch", *words]
    with sigterm_as_interrupt():
        if (most := asked.own.wanted) is not None:
            return _search(sweep, origins, typed, most)
        sweep.run(typed)
        return EXIT_DONE


def reports_in(folder: Path) -> tuple[Path, Path]:
    """Return what tune writes into its folder: the figures, and their picture."""
    return folder / "tune.json", folder / "tune.png"


def _search(sweep: "Sweep", origins: Mapping[str, str], asked: list[str], most: float) -> int:
    """Measure batch sizes and parallel configurations, unless an earlier start did, then the optimizations at the best."""
    variables = {name: value for name, value in sweep.environ.items() if name.startswith(XDIT_PREFIX)}
    job = prepare(sweep.config, origins, sweep.parallel[0], sweep.ranks)
    tasks = commonest(job)
    notebook = notebook_of(job, tasks, variables)
    if notebook.point is None:
        notebook.point = sweep.run(asked)
        notebook.write()
    job = replace(prepare(sweep.config, origins, notebook.point.parallel, sweep.ranks), tasks=tasks)
    words = [word for word in sweep.words if word != "--overwrite"]
    return Search(
        job=job, words=words, environ=sweep.environ, start=_run, notebook=notebook, point=notebook.point, most=most,
        gpu=sweep.gpu, terminal=sweep.terminal,
    ).run()  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep measures batch sizes in each parallel configuration."""

    config: T2IConfig
    parallel: Sequence[dict[str, str]]
    """The DG_XDIT_* variables of each."""
    words: Sequence[str]
    """The flags of the job."""
    environ: Mapping[str, str]
    ranks: int
    gpu: Gpu | None
    terminal: Terminal

    def run(self, asked: Sequence[str]) -> Point:
        """Measure, write down and show, and return the best.

        Args:
            asked: the command line, for the record.

        Raises:
            DglaunchError: nothing could be measured.
        """
        config, terminal = self.config, self.terminal
        rows, machine = self._rows()
        if not any(row.images_per_s for row in rows):
            raise DglaunchError(f"Nothing could be measured: {rows[-1].ended if rows else 'no configuration fits'}.")
        best, reason = sweet_spot(rows)
        record = {
            "model": config.backend.model_name, "ranks": self.ranks, **machine, "rows": [asdict(row) for row in rows],
            "sweet_spot": asdict(best), "reason": reason, "command": asked,
            "versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        report, picture = reports_in(config.output_dir)
        write_report(report, "tune", record)
        show(terminal, rows, best, reason)
        terminal.print(f"{report}{_plot(picture, rows, record)}")
        self._remember(machine, rows)
        chosen = next(variables for variables in self.parallel if describe(variables) == best.parallel)
        return Point(parallel=chosen, batch_size=best.batch_size)

    def _rows(self) -> tuple[list[Measured], Record]:
        rows: list[Measured] = []
        machine: Record = {}
        pace, ranks = Pace(len(self.parallel)), f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        try:
            for variables in self.parallel:
                self.terminal.print(f"{pace.head()}: {describe(variables)} on {ranks} ...")
                self._measure(variables, rows, machine)
                pace.done += 1
        except KeyboardInterrupt:
            raise KeyboardInterrupt(stopped(rows, pace)) from None
        return rows, machine

    def _measure(self, variables: Mapping[str, str], rows: list[Measured], machine: Record) -> None:
        """Add what one configuration came to, also where it is stopped in the middle."""
        found: list[Measured] = []
        try:
            machine |= _measure(self.words, self.environ, variables, self.ranks, found)
        finally:
            rows += found if self.gpu is None else fitting(found, self.gpu)

    def _remember(self, machine: Record, rows: Sequence[Measured]) -> None:
        device = machine["device"]
        if self.gpu is not None and self.gpu.machine.name != device:
            self.terminal.print(
                f"Not remembered: it was measured on {device}, for the memory of a GPU {self.gpu.name}."
            )
            return
        remember(self.config, machine, rows)
        self.terminal.print(
            f"--batch_size auto uses it from now on for {device}, {machine['dtype']}, {machine['shape']}."
        )


def stopped(rows: Sequence[Measured], pace: Pace) -> str:
    """Return the last words of a sweep that was stopped: what is known by then."""
    measured = [row for row in rows if row.images_per_s]
    said = f"Stopped with {pace.done} of {pace.total} configurations measured."
    if measured:
        best, _ = sweet_spot(measured)
        said += f" Best so far: {best.parallel}, batch {best.batch_size}: {best.images_per_s:.4g} images/s."
    return f"{said} The same command begins again."


def fitting(rows: Sequence[Measured], gpu: Gpu) -> list[Measured]:
    """Return what was measured, without the batches that need more memory than another GPU has (--gpu)."""
    return [
        replace(row, images_per_s=0.0, ended=reason) if (reason := too_much(row.peak_memory, gpu)) else row
        for row in rows
    ]


def configurations(
    config: RunConfig, origins: Mapping[str, str], environ: Mapping[str, str], ranks: int
) -> list[dict[str, str]]:
    """The DG_XDIT_* variables of each start: what is set, or with xdit all Ulysses degrees (and CFG) that the rules allow.

    Raises:
        UserError: none holds; it says why the first does not.
    """
    given = {name: value for name, value in environ.items() if name.startswith(XDIT_PREFIX)}
    wanted = [given]
    if config.backend.backend == "xdit" and not given:
        wanted = [
            {f"{XDIT_PREFIX}ULYSSES_DEGREE": str(degree)} | ({f"{XDIT_PREFIX}USE_CFG_PARALLEL": "1"} if cfg else {})
            for cfg in (False, True)
            for degree in DEGREES
            if ranks % (degree * (1 + cfg)) == 0
        ]
    fitting, refusals = [], []
    for variables in wanted:
        try:
            prepare(config, origins, variables, ranks)
            fitting.append(variables)
        except UserError as error:
            refusals.append(error)
    if not fitting:
        raise refusals[0]
    return fitting


def _measure(
    words: Sequence[str], environ: Mapping[str, str], parallel: Mapping[str, str], ranks: int, rows: list[Measured]
) -> Record:
    """One start of torchrun; whatever it wrote before it ended, or was stopped, is added to the rows.

    Returns:
        What it says of the machine.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(XDIT_PREFIX)} | dict(parallel)
    with tempfile.TemporaryDirectory(prefix="dglaunch-tune-") as folder:
        measured = Path(folder, "rows.jsonl")
        command = torchrun_command(ranks, "-m", "dglaunch", "tune-rank", str(measured), *words, "--output_dir", folder)
        machine: Record = {}
        try:
            code, output = _run(command, kept)
        finally:
            if measured.exists():
                machine, *lines = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()] or [
                    {}
                ]
                rows += [Measured(parallel=describe(parallel), **line) for line in lines]
    if code and not (rows and rows[-1].ended):
        size = 2 * rows[-1].batch_size if rows else 1
        why = last_error(output).removeprefix("dglaunch: ")
        rows.append(Measured(parallel=describe(parallel), batch_size=size, ended=f"torchrun left with {code}: {why}"))
    return machine


def _run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Its exit code and output. Torchrun's workers are in sessions of their own: it alone can end them, so it is asked."""
    with subprocess.Popen(
        command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:  # Ctrl-C too: torchrun and its ranks must not stay behind
            process.terminate()
            process.wait(TERMINATION_S)
            raise
    return process.returncode, output


# -- inside torchrun ----------------------------------------------------------------------------------------------


def measure_rank(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Measure on one rank: load the model once, then run one batch size after the other. Rank 0 writes a line for each into
    the file that the second word names; the words after it are the job's flags."""
    from dglaunch.backends import base
    from dglaunch.backends.registry import create

    measured = Path(words[1])
    config, origins = parse(T2IConfig, words[2:], environ, "tune")
    job = prepare(config, origins, environ)
    topology, channel = job.topology, Channel(job.topology, job.device)
    tasks = commonest(job)
    shape = shape_of(job.checkpoint, tasks)
    if topology.is_main:
        _append(measured, {"device": job.machine.name, "dtype": job.machine.dtype, "shape": shape})
    context = base.Context(
        config=config, checkpoint=job.checkpoint, topology=topology, channel=channel, device=job.device,
        dtype=job.machine.dtype, batches=[_batch(tasks, LARGEST, topology)],
    )  # fmt: skip
    backend = create(context)
    backend.load()
    best, size = 0.0, 1
    try:
        while size <= LARGEST:
            row = _one_size(backend, channel, job, _batch(tasks, size, topology))
            if topology.is_main:
                _append(measured, {name: value for name, value in asdict(row).items() if name != "parallel"})
            if row.ended or row.images_per_s < GAIN * best or not job.checkpoint.family.batch:
                break
            best, size = max(best, row.images_per_s), 2 * size
    finally:
        backend.close()
    return EXIT_DONE


def commonest(job: Job) -> Sequence[Task]:
    """Return the tasks that may share a batch with the most others: their size is what is measured."""
    bucket_of = job.profile.buckets(job.config, job.target, job.tasks)
    return max(into_buckets(job.makeable, bucket_of).values(), key=len)


def _batch(tasks: Sequence[Task], size: int, topology: Topology) -> Batch:
    """As many of the prompts as wanted, from the front again where there are too few; each replica has its own seeds."""
    first = topology.replica * size
    return Batch(tuple(replace(tasks[n % len(tasks)], index=first + n, sample=0, seed=first + n) for n in range(size)))


def _one_size(backend: Backend, channel: Channel, job: Job, batch: Batch) -> Measured:
    """A batch to warm up and REPEATS that count, on all replicas at once; the slowest counts. An error on any rank ends
    the row: all ranks come back from it, or torchrun ends them."""
    from dglaunch.run.loop import peak_memory

    failure, seconds = "", 0.0
    if job.device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    for repeat in range(1 + REPEATS):
        channel.all_of_world(None)
        start = time.perf_counter()
        try:
            backend.generate(batch)
        except Exception as error:  # of one batch: it ends this row of the table on all ranks
            failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        if any(channel.all_of_world(failure)):
            break
        seconds += (time.perf_counter() - start) if repeat else 0.0
    everyone = channel.all_of_world((failure, seconds / REPEATS, peak_memory(job.device)))
    failures = [text for text, _, _ in everyone if text]
    if failures:
        return Measured(parallel="", batch_size=len(batch), ended=failures[0])
    slowest = max(taken for _, taken, _ in everyone)
    return Measured(
        parallel="",
        batch_size=len(batch),
        images_per_s=len(batch) * job.topology.num_replicas / slowest,
        seconds_per_image=slowest / len(batch),
        peak_memory=max(peak for _, _, peak in everyone),
    )


def _append(path: Path, line: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(strict_json.dumps(line) + "\n")


# -- what it comes to ---------------------------------------------------------------------------------------------


def show(terminal: Terminal, rows: Sequence[Measured], best: Measured, reason: str) -> None:
    table = Table("parallel", "batch", "images/s", "s an image", "peak memory", "")
    for row in rows:
        numbers = (
            (f"{row.images_per_s:.4g}", f"{row.seconds_per_image:.4g}", f"{row.peak_memory / 2**30:.2f} GiB")
            if row.images_per_s
            else ("-", "-", "-")
        )
        table.add_row(row.parallel, str(row.batch_size), *numbers, "<- sweet spot" if row is best else row.ended)
    terminal.print(table)
    terminal.print(f"Sweet spot: {best.parallel}, batch {best.batch_size}: {best.images_per_s:.4g} images/s; {reason}.")


def _plot(path: Path, rows: Sequence[Measured], record: Mapping[str, object]) -> str:
    """Images a second over the batch, a line for each configuration; says what was written."""
    from dglaunch.output.encode import encode

    try:
        import matplotlib
    except ImportError:
        return "; no tune.png without matplotlib: pip install 'dglaunch[bench]'"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(row.parallel for row in rows):
        line = [row for row in rows if row.parallel == name and row.images_per_s]
        axes.plot([row.batch_size for row in line], [row.images_per_s for row in line], marker="o", label=name)
    axes.set(xlabel="batch size", ylabel=f"images/s on {record['ranks']} ranks", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.legend()
    figure.suptitle(f"{record['model']}, {record['shape']}, {record['dtype']}: {record['device']}", fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    pyplot.close(figure)
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(open_image(drawn.getvalue()), "png", {WRITTEN_BY: "tune"}))
    return f" and {path}"
