"""How the tests start dglaunch: in this process as a rule, and as a process of its own where that is the point.

    dglaunch("t2i", "--backend", "fake", ...)              in this process, in milliseconds
    run_process("t2i", ..., nproc=2)                       `python -m dglaunch`, under a real torchrun if there are ranks
    process = start([...], nproc=2); ...; end(process)     the same, to do something to it meanwhile

Importing torch takes a process 3 s and a model's libraries 8 s, so only signals, kills, exit codes of torchrun and the
like are asked of processes. Real ranks without torchrun: see `support.ranks`.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from support.exit_codes import Main, exit_code

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would change a run: DG_* and torchrun's variables."""
    dropped = ("DG_", "RANK", "LOCAL_", "GROUP_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC", "SLURM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    kept["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, TESTS, SUPPORT / "sitecustomize_dir")))
    return kept | dict(extra or {})


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    output: str


# -- in this process ----------------------------------------------------------------------------------------------


def dglaunch(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> Ended:
    """Run a command in this process: its exit code and what it printed are those that a shell would see."""
    from dglaunch.cli.main import main

    return in_process(main, *arguments, cwd=cwd, **environment)


def in_process(main: Main, *arguments: str | Path, cwd: Path = ROOT, **environment: str) -> Ended:
    """The same with the `main` of any program."""
    words, said = list(map(str, arguments)), io.StringIO()
    with (
        inside(cwd, clean_environment(environment)),
        mock.patch.object(sys, "argv", ["dglaunch", *words]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = exit_code(main, words)
    return Ended(code, said.getvalue())


@contextlib.contextmanager
def inside(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """This process in another working directory and environment; both come back, whatever the command did to them."""
    before, where = dict(os.environ), Path.cwd()
    os.chdir(folder)
    _replace_environment(environment)
    try:
        yield
    finally:
        os.chdir(where)
        _replace_environment(before)


def _replace_environment(wanted: Mapping[str, str]) -> None:
    """Variable by variable: a moment without HOME or PATH would be seen by the threads of other tests' servers."""
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


# -- as a process of its own --------------------------------------------------------------------------------------


def start(
    arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None, nproc: int = 0
) -> "subprocess.Popen[str]":
    """`python -m dglaunch ARGUMENTS`, or the same under torchrun with `nproc` ranks, in a process group of its own."""
    launcher = [*TORCHRUN, str(nproc)] if nproc else [sys.executable]
    return start_words([*launcher, "-m", "dglaunch", *arguments], environment)


def start_words(words: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Any command, in the root of the repository and a clean environment, with Ctrl-C as in a terminal: a shell that runs the
    tests in the background has them ignore it."""
    return subprocess.Popen(
        [*map(str, words)], env=clean_environment(environment), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end(process: "subprocess.Popen[str]", timeout: float = 240) -> Ended:
    """Wait for it; what still runs after the time limit is killed, with all that it started."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        output, _ = process.communicate()
        pytest.fail(f"still running after {timeout} s:\n{output}")
    return Ended(process.returncode, output)


def run_process(*arguments: str | Path, nproc: int = 0, timeout: float = 240, **environment: str) -> Ended:
    """Run a command as a process of its own, to its end."""
    return end(start(arguments, environment, nproc), timeout)


def run_module(name: str, *arguments: str | Path, timeout: float = 240, **environment: str) -> Ended:
    """`python -m NAME ARGUMENTS`, to its end."""
    return end(start_words([sys.executable, "-m", name, *arguments], environment), timeout)


def kill_group(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the process and everything it started; torchrun's workers have sessions of their own."""
    for pid in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes whose chain of parents leads to `pid`, read from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found
