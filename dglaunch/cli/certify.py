"""`dglaunch certify --model_name M`: does this machine draw the same images in every way in which it can run this model?

    dglaunch certify --model_name black-forest-labs/FLUX.1-dev --num_gpus 8 --output_dir certificate

The reference is one rank with plain diffusers, one image at a time. Against it: several replicas, larger batches, every
split that the model allows, prompts ahead, a run that was stopped or killed and went on. Each case is one start of the
ordinary command (`torchrun ... -m dglaunch t2i ...`) in a folder of its own, by this process, which loads no model. So a
case is exactly what a user would run and can be repeated alone; memory and time are its own; a case that crashes, hangs or
is killed costs no other; and 1, 2 or 8 ranks need no common world. The price is a load of the model for each case.

It is for one machine. Started under torchrun, rank 0 does all this with as many ranks as torchrun has, and the others leave
at once. Finished cases are kept in certify.json: the same command goes on where it was stopped, and tries once more what
broke off.
"""

import contextlib
import hashlib
import math
import os
import platform
import shlex
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from rich.table import Table

from dglaunch.backends.profiles import profile_of
from dglaunch.cli import children
from dglaunch.cli.flags import DEFAULT, job_of, named, parse, read_flags, without
from dglaunch.cli.own_flags import CertifyFlags
from dglaunch.config import COMMANDS, OWN_DEGREES, XDIT_PREFIX, RunConfig, refuse_far_output
from dglaunch.data.tables import shown
from dglaunch.data.task import Record
from dglaunch.distributed.topology import check_world
from dglaunch.errors import EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, DglaunchError, UserError
from dglaunch.files import is_stream
from dglaunch.output.certificate import (
    CASES,
    HEAD,
    Certificate,
    Result,
    begin_log,
    read,
    refuse_others,
    table_of,
    write_page,
)
from dglaunch.output.differences import compare
from dglaunch.output.ledger import OutputFolder, Part
from dglaunch.planning.certification import (
    DRAIN,
    REFERENCE,
    Case,
    Limits,
    Predicted,
    cases,
    chosen,
    limits_for,
    predict,
)
from dglaunch.planning.job import Job, prepare
from dglaunch.run.signals import stopping
from dglaunch.system import host_memory, versions
from dglaunch.terminal import Terminal

PROMPTS, NUM_PROMPTS = "certify_prompts.jsonl", 8
"""Of different lengths, in words that `tiny` knows, too."""
IMAGES_A_RANK = 2
"""At least, so that a run can be stopped between two of them."""
SHOWN = ("case", "greatest", "mean", "images/s", "GiB a rank (plan)", "verdict")
"""Of the table's columns those for which a terminal has room; the page has all."""
TRIES = 3
"""To stop a run in the middle before it ends by itself."""
POLL_S = 0.02
ENDS_S = 90.0
"""A run that was asked to stop finishes its denoising step; torchrun ends its ranks after 30 s."""


class Stopped(Exception):
    """A signal has asked certify itself to stop."""


SET_FOR_EACH = ("num_gpus", "output_dir")
"""Flags that it sets for each case."""
CHOSEN = ("batch_size", "encode", "shard", "parallel", "debug", "overwrite", "layout", "num_nodes", "node_rank")
"""Flags that are not taken, as the cases differ in them or they would do nothing here."""


# -- the command --------------------------------------------------------------------------------------------------


def certify(words: list[str], environ: Mapping[str, str]) -> int:
    """Compare all ways to run a model on this machine (`dglaunch certify [t2i or edit] [flags of that command]`).

    Raises:
        UserError: the flags do not hold, or the output folder has something else.
        DglaunchError: the reference could not be made.
    """
    ranks_of_torchrun = _under_torchrun(environ)
    if ranks_of_torchrun and environ["RANK"] != "0":
        return EXIT_DONE
    job, rest = job_of(words)
    setup = Setup.of(job or "t2i", rest, environ, ranks_of_torchrun)
    stop = threading.Event()
    with stopping(stop):
        run = Certification(setup, Terminal(), stop)
        try:
            with contextlib.closing(OutputFolder(setup.folder).lock(Part())):
                return run.make()
        except Stopped:
            run.terminal.print(f"Stopped. The same command goes on with {setup.folder}.")
            return EXIT_DRAINED


def _limits(own: CertifyFlags) -> Limits:
    return Limits(max_difference=own.max_difference, max_mean=own.max_mean, max_share=own.max_share)


def _under_torchrun(environ: Mapping[str, str]) -> int:
    """How many ranks torchrun has started on this one machine; 0 without it."""
    if "RANK" not in environ:
        return 0
    check_world(environ)
    here = environ.get("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"])
    if here != environ["WORLD_SIZE"]:
        raise UserError(
            f"certify is for one machine, and torchrun has started {here} of {environ['WORLD_SIZE']} ranks on this one. Start "
            "dglaunch certify --num_gpus N on each machine, without torchrun."
        )
    return int(here)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was asked for."""

    command: str
    """t2i or edit."""
    words: tuple[str, ...]
    """The flags that every case has."""
    environ: Mapping[str, str]
    """Of every case, without degrees."""
    degrees: Mapping[str, str]
    """The variables with degrees that are set: DG_XDIT_*, and those of --shard and --parallel."""
    ranks: int
    folder: Path
    own: CertifyFlags

    @classmethod
    def of(cls, command: str, words: Sequence[str], environ: Mapping[str, str], ranks_of_torchrun: int) -> "Setup":
        """Return what the command line and the environment ask for.

        Raises:
            UserError: with the remedy.
        """
        otherwise = _with_prompts if command == "t2i" else lambda _: ()
        asked = read_flags(COMMANDS[command], CertifyFlags, words, environ, "certify", otherwise)
        config = asked.config
        refuse_far_output(config, "certify")
        _refuse(config, asked.origins, ranks_of_torchrun)
        ranks = ranks_of_torchrun or config.num_gpus or children.default_ranks()
        given = without(asked.words, *SET_FOR_EACH)
        if config.num_images_per_prompt is None and config.tables == (_prompts(),):
            samples = math.ceil(IMAGES_A_RANK * ranks / NUM_PROMPTS)
            given += ["--num_images_per_prompt", str(samples)]
        degrees = {
            name: value
            for name, value in environ.items()
            if name.startswith(XDIT_PREFIX) or name in OWN_DEGREES.values()
        }
        return cls(
            command=command,
            words=tuple(given),
            environ={name: value for name, value in environ.items() if name not in {"DG_NUM_GPUS", *degrees}},
            degrees=degrees,
            ranks=ranks,
            folder=config.output_dir,
            own=asked.own,
        )

    def words_of(self, case: Case, folder: Path) -> list[str]:
        """Return the command line of a case."""
        return [self.command, *self.words, *case.words, "--output_dir", str(folder)]

    def job_of(self, case: Case, folder: Path) -> Job:
        """Return the job of a case.

        Raises:
            UserError: it cannot be run here.
        """
        variables = dict(self.environ) | dict(case.variables)
        words = self.words_of(case, folder)[1:]
        config, origins = parse(COMMANDS[self.command], words, variables, "certify")
        return prepare(config, origins, variables, case.ranks)


def _refuse(config: RunConfig, origins: Mapping[str, str], ranks_of_torchrun: int) -> None:
    """Refuse what the cases differ in, and another number of ranks than torchrun's."""
    for name in CHOSEN:
        if origins[name] != DEFAULT:
            given = named(name, origins[name])
            raise UserError(f"certify chooses --{name} itself, for each case; drop {given}.")
    if not profile_of(config.backend.backend).can_tune:
        raise UserError(
            f"certify runs a model on this machine, and --backend {config.backend.backend} asks another; drop it."
        )
    if any(map(is_stream, config.tables)):
        raise UserError(
            f"certify reads the table for each case, and {shown(config.tables)} can be read once; give a file."
        )
    if config.backend.backend == "xdit":
        raise UserError(
            "certify runs plain diffusers and every split of xDiT's that the model allows; drop --backend xdit."
        )
    if ranks_of_torchrun and config.num_gpus not in (None, ranks_of_torchrun):
        raise UserError(
            f"--num_gpus {config.num_gpus} under torchrun, which started {ranks_of_torchrun} ranks on this machine; drop "
            "--num_gpus."
        )


def _prompts() -> Path:
    """The prompts that are drawn where the user names none."""
    return Path(str(resources.files("dglaunch.cli"))) / PROMPTS


def _with_prompts(given: Collection[str]) -> list[str]:
    return [] if {"prompt", "prompts_file"} & set(given) else ["--prompts_file", str(_prompts())]


# -- the cases ----------------------------------------------------------------------------------------------------


class Certification:
    """A Certification runs the cases that are not finished yet, and says what they come to."""

    def __init__(self, setup: Setup, terminal: Terminal, stop: threading.Event) -> None:
        self.setup = setup
        self.terminal = terminal
        self.stop = stop
        self.folder = setup.folder
        self.job = setup.job_of(Case(name=REFERENCE, shows="", words=()), self.folder / CASES / REFERENCE)
        """As one rank does it by default."""
        self.all_cases = cases(self.job, setup.ranks, setup.degrees)
        self.cases = chosen(self.all_cases, setup.own.words)
        self.limits = limits_for(self.job.machine.dtype, _limits(setup.own))
        self.certificate = self._begun()

    def _begun(self) -> Certificate:
        """The certificate of an earlier start, or a new one.

        Raises:
            UserError: the folder has another one.
        """
        asked = self._asked()
        found = read(self.folder)
        if found is not None and found.asked != asked:
            differing = [name for name in asked if found.asked.get(name) != asked[name]]
            raise UserError(
                f"{self.folder} holds another certificate ({', '.join(differing)} differ). Choose another --output_dir, or "
                "remove it."
            )
        refuse_others(self.folder, [_empty_result(case) for case in self.all_cases])
        certificate = found if found is not None else Certificate(asked=asked)
        basis = predict(self.job).basis
        certificate.about |= {"hardware": _hardware(self.job), "limits": asdict(self.limits), "plan": basis}
        return certificate

    def _asked(self) -> Record:
        keys = "".join(task.key for task in self.job.tasks)
        return {
            "model": self.job.config.backend.model_name,
            "device": self.job.machine.name,
            "dtype": self.job.machine.dtype,
            "ranks": self.setup.ranks,
            "command": ["dglaunch", "certify", self.setup.command, *self.setup.words],
            "degrees": dict(self.setup.degrees),
            "tasks": hashlib.sha256(keys.encode()).hexdigest()[:16],
            "versions": dict(versions()),
        }

    def make(self) -> int:
        """Run what is not finished, or broke off, and return the exit code.

        Raises:
            DglaunchError: the reference could not be made.
            Stopped: a signal came.
        """
        results = [result for result in self.certificate.results if not result.failed]
        finished = {result.name for result in results}
        self.certificate.results = results
        self.certificate.write(self.folder)
        for case in self.cases:
            if case.name not in finished:
                self.terminal.print(f"{case.name}: {case.shows} ...")
                results.append(self._judged(self._result(case)))
                self.certificate.write(self.folder)
                self.terminal.print(f"{case.name}: {results[-1].verdict}")
        order = {case.name: number for number, case in enumerate(self.all_cases)}
        results.sort(key=lambda result: order.get(result.name, len(order)))
        self.certificate.about |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "outside": [result.name for result in map(self._judged, results) if result.is_wrong],
        }
        self.certificate.write(self.folder)
        return self._say(write_page(self.folder, self.certificate, REFERENCE))

    def _judged(self, result: Result) -> Result:
        """A result with what of it is outside of this start's limits."""
        result.outside = self.limits.broken_by(result.comparison) if result.comparison is not None else []
        return result

    def _say(self, page: Path) -> int:
        table = Table(*SHOWN, box=None, padding=(0, 2, 0, 0))
        for row in table_of(self.certificate.results):
            table.add_row(*(cell for name, cell in zip(HEAD, row) if name in SHOWN))
        self.terminal.print(table)
        for result in self.certificate.results:
            for text in [result.refused, result.failed, *result.outside]:
                if text:
                    self.terminal.print(f"{result.name}: {text}")
        self.terminal.print(f"{self.folder / 'certify.json'} and {page}")
        return EXIT_ITEMS_FAILED if self.certificate.about["outside"] else EXIT_DONE

    def _result(self, case: Case) -> Result:
        """Run a case and compare its images with the reference's."""
        result = _empty_result(case)
        folder = self.folder / result.folder
        try:
            predicted = predict(self.setup.job_of(case, folder)) if not case.refused else Predicted()
        except UserError as error:
            result.refused = str(error)
        if result.refused and case.name == REFERENCE:
            raise UserError(f"The reference cannot be made: {result.refused}")
        if result.refused:
            return result
        result.command = _typed(case, self.setup.words_of(case, folder))
        result.planned_memory, result.planned_seconds = predicted.memory, predicted.seconds
        self._run(case, result, folder)
        if result.failed and case.name == REFERENCE:
            raise DglaunchError(
                f"The reference could not be made: {result.failed}. {self.folder / result.log} has all it said."
            )
        if not (result.failed or result.refused):
            result.comparison = compare(folder, self.folder / CASES / REFERENCE) if case.name != REFERENCE else None
            _measure(result, folder)
        return result

    def _run(self, case: Case, result: Result, folder: Path) -> None:
        """Start it, to its end; one that is to be stopped in the middle is started once more."""
        begin_log(self.folder, result)
        words = self.setup.words_of(case, folder)
        if case.stopped_by:
            if self._stopped_in_the_middle(case, result, folder, words):
                self._to_the_end(case, result, words)
        else:
            self._to_the_end(case, result, _anew(words, folder))

    def _stopped_in_the_middle(self, case: Case, result: Result, folder: Path, words: Sequence[str]) -> bool:
        """Start a run, stop it once it has made an image, and tell whether some are still missing."""
        total = len(self.job.makeable)
        for _ in range(TRIES):
            self._stop_after_an_image(case, result, self._start(case, result, _anew(words, folder)), folder)
            if result.failed:
                return False
            if (made := _made(folder)) < total:
                result.notes.append(f"Stopped with {made} of {total} images, then started again.")
                return True
        result.refused = "it ended before it could be stopped; give more prompts or more --num_inference_steps"
        return False

    def _stop_after_an_image(self, case: Case, result: Result, child: children.Child, folder: Path) -> None:
        code = self._wait(child, lambda: _made(folder) > 0)
        if code is not None:
            self._note_exit(result, code)
            return
        child.stop() if case.stopped_by == DRAIN else child.kill()
        limit = time.monotonic() + ENDS_S
        if self._wait(child, lambda: time.monotonic() > limit) is None:
            child.kill()
            result.failed = f"it did not end within {ENDS_S:.0f} s after SIGTERM"

    def _to_the_end(self, case: Case, result: Result, words: Sequence[str]) -> None:
        code = self._wait(self._start(case, result, words), lambda: False)
        assert code is not None
        self._note_exit(result, code)

    def _note_exit(self, result: Result, code: int) -> None:
        if code:
            said = children.last_words(self.folder / result.log)
            result.failed = f"it left with exit code {code}" + (f": {said}" if said else "")

    def _start(self, case: Case, result: Result, words: Sequence[str]) -> children.Child:
        return children.start(
            case.ranks, words, dict(self.setup.environ) | dict(case.variables), self.folder / result.log
        )

    def _wait(self, child: children.Child, condition: Callable[[], bool]) -> int | None:
        """Until the child ends (its exit code) or something is true (None).

        Raises:
            Stopped: certify itself is to stop; the child has ended.
        """
        try:
            while (code := child.poll()) is None:
                if self.stop.is_set():
                    child.stop()
                    limit = time.monotonic() + ENDS_S
                    while child.poll() is None and time.monotonic() < limit:
                        time.sleep(POLL_S)
                    raise Stopped
                if condition():
                    return None
                time.sleep(POLL_S)
            return code
        except BaseException:
            if child.poll() is None:
                child.kill()
            raise


def _empty_result(case: Case) -> Result:
    return Result(name=case.name, shows=case.shows, ranks=case.ranks, refused=case.refused)


def _anew(words: Sequence[str], folder: Path) -> list[str]:
    """The command line of a run that goes on with nothing of a start before."""
    return [*words, "--overwrite"] if folder.exists() else list(words)


def _made(folder: Path) -> int:
    return len(OutputFolder(folder).records_by_id()) if folder.is_dir() else 0


def _measure(result: Result, folder: Path) -> None:
    """What run.json says of the run."""
    run = next(iter(OutputFolder(folder).runs().values()), {})

    def number(name: str) -> float | None:
        value = run.get(name)
        return float(value) if isinstance(value, int | float) else None

    share, peak, events = number("pipeline_share"), number("peak_memory_bytes"), run.get("events")
    result.images_per_s, result.seconds = number("images_per_s"), number("wall_s")
    result.idle = round(max(1 - share, 0.0), 4) if share is not None else None
    result.peak_memory = int(peak) if peak else None
    result.notes += [str(event) for event in events] if isinstance(events, list) else []


def _typed(case: Case, words: Sequence[str]) -> str:
    """The command line of a case as a user would type it."""
    variables = [f"{name}={value}" for name, value in case.variables.items()]
    launcher = ["torchrun", "--nproc_per_node", str(case.ranks), "-m", "dglaunch"] if case.ranks > 1 else ["dglaunch"]
    return " ".join([*variables, shlex.join([*launcher, *words])])


def _hardware(job: Job) -> Record:
    memory = job.machine.memory
    return {
        "device": job.machine.name,
        "device memory": f"{memory / 2**30:.1f} GiB" if memory is not None and job.device == "cuda" else "the host's",
        "host": platform.platform(),
        "cores": os.cpu_count(),
        "host memory": f"{host_memory() / 2**30:.1f} GiB",
    }
