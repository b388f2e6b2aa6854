"""How the tests start dglaunch: in this process, as a command, or under a real torchrun on gloo.

Layers, cheapest first: pure functions (config, tasks, plan, topology), the folder (writer), the loop with the fake
backend, real torchrun with the fake backend, real models. One torchrun serves many cases: see `worker.py`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would change a run: DG_* and torchrun's variables."""
    dropped = ("DG_", "RANK", "LOCAL_", "GROUP_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC", "SLURM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS / "sitecustomize_dir")])
    return kept | dict(extra or {})


@dataclass
class Ended:
    """A finished process."""

    code: int
    output: str


def start(
    arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None, nproc: int = 0
) -> "subprocess.Popen[str]":
    """`python -m dglaunch ARGUMENTS`, or the same under torchrun with `nproc` ranks, in a process group of its own."""
    words = [sys.executable, "-m", "dglaunch", *map(str, arguments)]
    if nproc:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc)]
        words = [sys.executable, *torchrun, *words[1:]]
    return subprocess.Popen(
        words, env=clean_environment(environment), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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


def dglaunch(*arguments: str | Path, nproc: int = 0, timeout: float = 240, **environment: str) -> Ended:
    """Run a command to its end."""
    return end(start(arguments, environment, nproc), timeout)


@dataclass
class Case:
    """One command of a batch that `launch` runs."""

    arguments: list[str]
    environment: dict[str, str]
    codes: list[int]
    """By rank."""
    collectives: list[dict[str, int]]
    calls: list[list[int]]
    """By rank: the number of prompts of each call of a pipeline."""
    output: str = ""


def launch(tmp_path: Path, nproc: int, commands: Sequence[tuple[Sequence[str | Path], dict[str, str]]]) -> list[Case]:
    """Run several commands one after the other in one torchrun: starting and importing costs 8 s, a case under one."""
    folder = tmp_path / f"launch{nproc}"
    folder.mkdir()
    cases = [Case(list(map(str, arguments)), dict(env), [], [], []) for arguments, env in commands]
    (folder / "cases.json").write_text(json.dumps([[case.arguments, case.environment] for case in cases]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc)]
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(TESTS / "worker.py"), str(folder)], env=clean_environment(), cwd=ROOT, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    ended = end(process, timeout=500)
    for rank in range(nproc):
        lines = (
            (folder / f"rank{rank}.jsonl").read_text().splitlines() if (folder / f"rank{rank}.jsonl").exists() else []
        )
        assert len(lines) == len(cases), f"rank {rank} ended after {len(lines)} of {len(cases)} cases:\n{ended.output}"
        for case, line in zip(cases, lines):
            told = json.loads(line)
            case.codes.append(told["code"])
            case.collectives.append(told["collectives"])
            case.calls.append(told["calls"])
            case.output = ended.output
    return cases


# -- what a run left ----------------------------------------------------------------------------------------------


def ledger(folder: Path, name: str = "metadata.jsonl") -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def images(folder: Path, pattern: str = "*.png") -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob(pattern))}


def difference(one: Path, other: Path) -> int:
    """Largest difference of a pixel (of 255) between two folders that must have the same files."""
    mine, theirs = images(one), images(other)
    assert mine.keys() == theirs.keys() and mine, f"{sorted(mine)} and {sorted(theirs)}"
    return max(int(np.abs(mine[name].astype(int) - theirs[name].astype(int)).max()) for name in mine)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in ("circle", "star", "square",
           "triangle", "heart", "cross")][:23]  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """23 prompts, a number that no batch size or world size divides."""
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random checkpoints, filled by `tiny_models.build(family, families / family)`."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that the loopback servers of the APIs accept, and nothing else that would change a run."""
    from api_servers import KEYS

    for name in [name for name in os.environ if name.startswith(("DG_", "OPENAI_", "GOOGLE_", "GEMINI_"))]:
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(keys: None) -> Iterator[Any]:
    """A server on loopback that speaks the image APIs."""
    from api_servers import ApiServer

    with ApiServer() as running:
        yield running
