"""`dglaunch tune t2i ... --search`: which optimizations make this model faster on this machine, and what each costs the images.

Each candidate (planning/candidates.py) is one start of the ordinary command under torchrun, in a folder of its own, with the
same prompts, seeds and steps: what is measured is what a user would run, and what one of them changes for its process or
needs in memory concerns no other. Speed is the median over the batches, which leaves the first one's warm-up out. Then pairs
of those that gained something. Finished candidates stand in search.json: the same command goes on with the others.
"""

import shlex
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from rich.table import Table

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.cli.children import last_error
from dglaunch.config import CALL, LOCAL, ROW, TUNING, XDIT_PREFIX, defaults, flags_that, settings
from dglaunch.data.task import LORA, SAMPLING, Batch, Record, Task
from dglaunch.environment import known_flags, variable_of
from dglaunch.errors import EXIT_DONE, DglaunchError, UserError
from dglaunch.files import read_bytes
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.lora import text_of
from dglaunch.output.differences import Comparison, compare
from dglaunch.output.ledger import FAILURES, RUN, OutputFolder, read_run
from dglaunch.output.lines import file_name_of
from dglaunch.output.ownership import refuse_to_replace, write_report
from dglaunch.output.tradeoff import Point as Mark
from dglaunch.output.tradeoff import Tradeoff, write_png
from dglaunch.planning.candidates import PLAIN, Candidate, pairs, reasons, singles
from dglaunch.planning.gpus import Gpu
from dglaunch.planning.job import Job
from dglaunch.planning.room import SPARE, fits
from dglaunch.planning.search import Found, Point, Trial
from dglaunch.planning.tuned import GAIN, describe
from dglaunch.run.report import duration
from dglaunch.system import torchrun_command, versions
from dglaunch.terminal import Terminal

NOTEBOOK = "search.json"
PICTURE = "search.png"
FOLDER = "search"
"""Of the images, a folder for each candidate, and of the prompts."""
BATCHES = 4
"""Of each replica, at least: one to warm up, and three."""
LEAST_IMAGES, MOST_COMPARED = 8, 16
MARKS = {">": "chosen", "*": "on the front", "=": "nothing beyond rounding"}
"""In the table."""
START = Callable[[Sequence[str], Mapping[str, str]], tuple[int, str]]
"""Runs a command line to its end and returns its exit code and what it said."""


# -- what is kept -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Notebook:
    """search.json: what is measured already, and what it all came to."""

    path: Path
    asked: Record
    """What the measurements hold for."""
    point: Point | None = None
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, asked: Record, anew: bool) -> Self:
        """Return what an earlier start has kept of the same search.

        Args:
            anew: forget it (--overwrite).

        Raises:
            UserError: it is the notebook of another search, or another file.
        """
        try:
            kept = strict_json.loads(read_bytes(path))
            found = cls._of(path, kept)
        except FileNotFoundError:
            return cls(path, asked)
        except (OSError, ValueError, TypeError, LookupError):
            raise UserError(
                f"{path} is there, and it is not what dglaunch tune --search writes. Choose another --output_dir, or move "
                "it away."
            ) from None
        if anew:
            return cls(path, asked)
        differing = [name for name in asked if found.asked.get(name) != asked[name]]
        if differing:
            raise UserError(
                f"{path} is of another search ({', '.join(differing)} differ). Choose another --output_dir, or give "
                "--overwrite to begin anew."
            )
        return found

    @classmethod
    def _of(cls, path: Path, kept: object) -> Self:
        """Raises ValueError, TypeError or LookupError if it is something else."""
        if not isinstance(kept, dict) or not isinstance(kept["asked"], dict) or not isinstance(kept["trials"], list):
            raise ValueError("it is no notebook")
        at = kept["point"]
        point = None
        if at is not None:
            variables = {str(name): str(value) for name, value in at["parallel"].items()}
            point = Point(parallel=variables, batch_size=int(at["batch_size"]))
        trials = [trial for record in kept["trials"] if not (trial := Trial.of(record)).ended]
        return cls(path, kept["asked"], point, trials)

    def write(self, **more: object) -> None:
        """Write it, with more that is there for readers only."""
        point = None if self.point is None else asdict(self.point)
        record = {"asked": self.asked, "point": point, "trials": [trial.record() for trial in self.trials]}
        write_report(self.path, "tune", record | more)


def notebook_of(job: Job, tasks: Sequence[Task], variables: Mapping[str, str]) -> Notebook:
    """Open the notebook in the output folder.

    Raises:
        UserError: it is of another search.
    """
    refuse_to_replace(job.config.output_dir / PICTURE)
    given = settings(job.config)
    installed = {name: version for name, version in versions().items() if name != "host"}
    asked: Record = {
        **{name: value for name, value in given.items() if name not in ("output_dir", "overwrite")},
        "tasks": Batch(tuple(tasks)).digest,
        "ranks": job.topology.world_size,
        "degrees": dict(variables),
        "device": job.machine.name,
        "dtype": job.machine.dtype,
        **{f"version of {name}": version for name, version in installed.items()},
    }
    return Notebook.open(job.config.output_dir / NOTEBOOK, asked, job.config.overwrite)


# -- the search ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Search:
    """A search measures the candidates one after the other."""

    job: Job
    """As planned with the degrees of the notebook's point; its tasks are of one kind."""
    words: Sequence[str]
    """The command's own flags, for the lines to copy."""
    environ: Mapping[str, str]
    start: START
    notebook: Notebook
    point: Point
    most: float
    """--max_difference."""
    gpu: Gpu | None
    """Whose memory counts, instead of this machine's."""
    terminal: Terminal
    candidates: dict[str, Candidate] = field(default_factory=dict)
    """Those that are tried, by their names; what else the notebook has does not count."""
    refused: list[Candidate] = field(default_factory=list)

    def run(self) -> int:
        """Measure what is not measured yet, and say what it comes to.

        Raises:
            DglaunchError: the plain run could not be measured.
        """
        try:
            self._measure_everything()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.stopped()) from None
        self._say()
        return EXIT_DONE

    def stopped(self) -> str:
        """Return the last words of a search that was stopped: what is known by then."""
        found, goes_on = self.found, "Start the same command again to go on."
        if not found.measured:
            return f"Stopped before anything was measured. {goes_on}"
        best = found.within(self.most)
        return (
            f"Stopped with {len(found.trials)} of {len(self.candidates)} measured. The best so far of those that move no image "
            f"by more than {self.most:g} of 255 ({best.name}, {self._in_short(best)}):\n    {self.command(best)}\n{goes_on}"
        )

    def _measure_everything(self) -> None:
        """Each by itself, then pairs of those that gained."""
        self._write_prompts()
        alone = singles(self.job)
        one_by_one = [Candidate(), *self._rebatched(), *self._possible(alone), Candidate(again=True)]
        self._measure_all(one_by_one, "optimizations one by one")
        known = {candidate.name for candidate in alone}
        together = pairs(self.job, self.found.worth_pairing(alone), known)
        self._measure_all(self._possible(together), "pairs of those that gained")

    @property
    def found(self) -> Found:
        return Found([trial for trial in self.notebook.trials if trial.name in self.candidates])

    @property
    def folder(self) -> Path:
        return self.job.config.output_dir / FOLDER

    @property
    def prompts(self) -> Path:
        return self.folder / f"{TEMPORARY}prompts.jsonl"

    def _rebatched(self) -> list[Candidate]:
        """The plain run in batches of another size, to see what rounding does to the images on this machine."""
        size = self.point.batch_size
        if not self.job.checkpoint.family.batch:
            return []
        return [Candidate(batch_size=size // 2 if size > 1 else 2)]

    def _possible(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        self.refused += [candidate for candidate in candidates if candidate.refused]
        return [candidate for candidate in candidates if not candidate.refused]

    def _write_prompts(self) -> None:
        """The same prompts and seeds for all, whatever happens to the user's file; with fewer prompts than are needed, from
        the front again with other seeds."""
        replicas = self.job.topology.num_replicas
        each = self.point.batch_size * replicas
        count = each * max(BATCHES, -(-LEAST_IMAGES // each))
        tasks = self.job.tasks
        rows = [_row(tasks[number % len(tasks)], number // len(tasks)) for number in range(count)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.prompts) as temporary:
            temporary.write_text("".join(strict_json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _measure_all(self, candidates: Sequence[Candidate], what: str) -> None:
        self.candidates |= {candidate.name: candidate for candidate in candidates}
        done = {trial.name for trial in self.notebook.trials}
        left = [candidate for candidate in candidates if candidate.name not in done]
        before = f"; {len(candidates) - len(left)} were measured before" if len(left) < len(candidates) else ""
        self.terminal.print(f"{what}: {len(left)} to measure{before}")
        pace = Pace(len(left))
        for candidate in left:
            self.terminal.print(f"{pace.head()}: {candidate.name} ...")
            trial = self.measure(candidate)
            pace.done += 1
            self.notebook.trials.append(trial)
            self.notebook.write()
            self.terminal.print(f"{pace.done} of {len(left)}: {candidate.name}: {trial.ended or self._in_short(trial)}")
            if candidate.name == PLAIN and trial.ended:
                raise DglaunchError(f"The run as given could not be measured: {trial.ended}")

    def _in_short(self, trial: Trial) -> str:
        return f"{self.found.gain(trial):.2f} times as fast, {trial.difference:.2f} of 255 away"

    # -- one candidate --------------------------------------------------------------------------------------------

    def measure(self, candidate: Candidate) -> Trial:
        """Start the command with a candidate's flags, and read what it left."""
        folder = self.folder / candidate.folder
        size = candidate.batch_size if candidate.batch_size is not None else self.point.batch_size
        words = ["t2i", *self._common(), *candidate.flags, "--batch_size", str(size), "--output_dir", str(folder)]
        command = torchrun_command(self.job.topology.world_size, "-m", "dglaunch", *words, "--overwrite")
        code, output = self.start(command, self._variables())
        trial = Trial(
            name=candidate.name,
            num_flags=len(candidate.settings),
            changes=candidate.changes,
            is_check=candidate.is_check,
        )
        run = read_run(OutputFolder(folder).file(RUN))
        if code or run is None:
            return replace(trial, ended=why(folder, code, output))
        reference = folder if candidate.name == PLAIN else self.folder / Candidate().folder
        comparison = compare(folder, reference, most=MOST_COMPARED)
        if comparison.not_compared:
            return replace(trial, ended=next(iter(comparison.not_compared.values())))
        return self._fitting(measured(trial, folder, run, comparison, self.job.topology.num_replicas, size))

    def _common(self) -> list[str]:
        """The flags of all: what concerns the model and its calls, wherever it was given; the rows have the rest."""
        config = self.job.config
        given, unset = settings(config), defaults(type(config))
        of_rows = flags_that(ROW, type(config))
        wanted = [name for name in flags_that(LOCAL | TUNING | CALL, type(config)) if name not in of_rows]
        words = [
            word
            for name in (*wanted, "stall_timeout")
            if given[name] != unset[name]
            for word in _words(name, given[name])
        ]
        return [*words, "--prompts_file", str(self.prompts)]

    def _variables(self) -> dict[str, str]:
        """The environment without what the flags say already."""
        own = set(map(variable_of, known_flags()))
        kept = {n: value for n, value in self.environ.items() if n not in own and not n.startswith(XDIT_PREFIX)}
        return kept | dict(self.point.parallel)

    def _fitting(self, trial: Trial) -> Trial:
        """What needs more memory than another GPU has (--gpu) does not count."""
        reason = "" if self.gpu is None else too_much(trial.peak_memory, self.gpu)
        return Trial(name=trial.name, ended=reason) if reason else trial

    # -- what it comes to -----------------------------------------------------------------------------------------

    def _say(self) -> None:
        found = self.found
        choices = {
            "the fastest that changes nothing beyond rounding": found.lossless,
            f"the fastest that moves no image by more than {self.most:g} of 255": found.within(self.most),
        }
        commands = {what: self.command(trial) for what, trial in choices.items()}
        picture = self.job.config.output_dir / PICTURE
        write_png(picture, self._tradeoff())
        not_tried = reasons(self.refused)
        self.notebook.write(
            front=[trial.name for trial in found.front],
            choices={what: {"name": trial.name, "command": commands[what]} for what, trial in choices.items()},
            max_difference=self.most,
            not_tried=[{"names": names, "reason": reason} for reason, names in not_tried.items()],
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.terminal.print(table(found, {trial.name for trial in choices.values()}))
        self.terminal.print(", ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items()))
        if found.noise > GAIN:
            self.terminal.print(
                f"The run as given was {found.noise:.2f} times as fast at one time as at another: this machine does other "
                "things, too. Gains up to that are not counted."
            )
        for trial in found.trials:
            for said in filter(None, (trial.ended, trial.note)):
                self.terminal.print(f"{trial.name}: {said}")
        for reason, names in not_tried.items():
            self.terminal.print(f"not tried: {', '.join(names)}. {reason}")
        for what, trial in choices.items():
            self.terminal.print(f"{what} ({trial.name}, {found.gain(trial):.2f} times as fast):\n    {commands[what]}")
        self.terminal.print(f"{self.notebook.path} and {picture}; the images are in {self.folder}")

    def command(self, trial: Trial) -> str:
        """Return the command line of a run with a candidate's flags, to copy."""
        variables = [
            f"{name}={value}" for name, value in self.point.parallel.items() if self.environ.get(name) != value
        ]
        words = [
            "dglaunch",
            "t2i",
            *self.words,
            *self.candidates[trial.name].flags,
            "--batch_size",
            str(self.point.batch_size),
        ]
        ranks = self.job.topology.world_size
        words += [*(["--num_gpus", str(ranks)] if ranks > 1 else []), "--output_dir", "out"]
        return " ".join([*variables, shlex.join(words)])

    def _tradeoff(self) -> Tradeoff:
        job, found = self.job, self.found
        front = {trial.name for trial in found.front}
        size = self.point.batch_size
        title = f"{job.config.backend.model_name}, {shape_of(job.checkpoint, job.tasks)}, {job.machine.dtype} on {job.machine.name}: "
        title += f"{describe(self.point.parallel)}, batches of {size}; {found.plain.num_compared} images compared"
        marks = [
            Mark(trial.name, trial.difference, found.gain(trial), kind_of(found, trial), trial.name in front)
            for trial in found.measured
        ]
        return Tradeoff(title=title, points=marks, limit=self.most)


def _words(name: str, value: object) -> list[str]:
    """A flag with its value, as a command line has it."""
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def _row(task: Task, repeat: int) -> Record:
    """A task as a row of a table."""
    values = {name: getattr(task, name) for name in ("prompt", *SAMPLING)}
    if task.lora is not None:
        values[LORA] = text_of(task.lora)
    return {name: value for name, value in values.items() if value is not None} | {"seed": task.seed + repeat}


def too_much(peak_memory: int, gpu: Gpu) -> str:
    """Say that something takes more memory than is planned for on a GPU; empty: it does not."""
    if fits(peak_memory, gpu.memory):
        return ""
    return f"{peak_memory / 2**30:.1f} GiB are more than {gpu.memory * SPARE / 2**30:.1f} of a GPU {gpu.name}"


def shape_of(checkpoint: Checkpoint, tasks: Sequence[Task]) -> str:
    """Return the size of tasks that are all of one kind."""
    return str(checkpoint.shape(tasks[0].height, tasks[0].width))


def measured(trial: Trial, folder: Path, run: Record, comparison: Comparison, replicas: int, size: int) -> Trial:
    """Return a trial with its numbers: the ledger has the seconds of each image's batch, run.json the memory."""
    records = OutputFolder(folder).records_by_id()
    batches = [
        (_number(record, "seconds"), _number(record, "batch_size"), _number(record, "num_inference_steps"))
        for record in records.values()
    ]
    an_image = statistics.median(seconds / images for seconds, images, _ in batches)
    most = max(images for _, images, _ in batches)
    worst = comparison.worst
    return replace(
        trial,
        images_per_s=replicas / an_image if an_image else 0.0,
        seconds_per_step=statistics.median(seconds / max(steps, 1) for seconds, _, steps in batches),
        peak_memory=int(_number(run, "peak_memory_bytes")),
        num_compared=len(comparison.images),
        greatest=comparison.greatest,
        difference=comparison.images[worst].mean if worst is not None else 0.0,
        psnr=comparison.psnr if comparison.greatest else None,
        ssim=comparison.ssim,
        worst=file_name_of(records[worst]) if worst is not None and comparison.greatest else "",
        note=f"ran out of memory at {size} images, measured at {most:.0f}" if most < size else "",
        ended="" if an_image else "its batches took no time that could be measured",
    )


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def why(folder: Path, code: int, output: str) -> str:
    """Say why a run came to nothing: by the last error that it printed, or by what failed."""
    failures = OutputFolder(folder).records(FAILURES) if folder.is_dir() else iter(())
    failed = next((str(failure.get("error")) for failure in failures), "")
    return last_error(output).removeprefix("dglaunch: ") or failed or f"it left with exit code {code}"


def kind_of(found: Found, trial: Trial) -> str:
    """Say in a word what a candidate does to the images."""
    if trial.name == PLAIN:
        return "plain"
    return "lossless" if found.is_lossless(trial) else "lossy"


def table(found: Found, chosen: set[str]) -> Table:
    """Return all that was measured, the fastest first, narrow enough for a log; the numbers are those of the picture."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", justify="right")
    shown.add_column("")
    shown.add_column("with", overflow="fold")
    for head in ("images/s", "times", "s/step", "GiB", "PSNR", "SSIM", "worst", "image"):
        shown.add_column(head, justify="right", no_wrap=True)
    front = {trial.name for trial in found.front}
    for number, trial in enumerate(found.measured, 1):
        holds = (trial.name in chosen, trial.name in front, kind_of(found, trial) != "lossy")
        shown.add_row(
            str(number),
            "".join(mark for mark, held in zip(MARKS, holds) if held),
            trial.name,
            f"{trial.images_per_s:.3g}",
            f"{found.gain(trial):.2f}",
            f"{trial.seconds_per_step:.2g}",
            f"{trial.peak_memory / 2**30:.1f}",
            f"{trial.psnr:.0f}" if trial.psnr is not None else "equal",
            f"{trial.ssim:.3f}",
            f"{trial.difference:.2f}",
            Path(trial.worst).stem,
        )
    return shown


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends what measures as Ctrl-C does: the run under way is stopped, and what is finished is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Pace:
    """How far a number of measurements is that take about as long as each other, and how long those that are left will take."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._begun = time.monotonic()

    def head(self) -> str:
        """Return which one comes next: 3 of 17, about 12 min left."""
        said = f"{self.done + 1} of {self.total}"
        if not self.done:
            return said
        each = (time.monotonic() - self._begun) / self.done
        return f"{said}, about {duration(each * (self.total - self.done))} left"
