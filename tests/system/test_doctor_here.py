"""doctor as a command: this machine as it is (it imports all that is installed, 10 s), and with a torch that is broken in each
way a package can be, and stubs for the packages that import it."""

import os
from pathlib import Path

import pytest

from dglaunch.cli.probes import PACKAGES
from support.commands import ROOT, Ended, run_process


def run(path: Path | None = None, **variables: str) -> Ended:
    """`dglaunch doctor` with a folder before everything else on PYTHONPATH."""
    places = {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])} if path is not None else {}
    return run_process("doctor", **variables, **places)


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder for a torch that is broken, with the packages that import it, and those that take long by themselves."""
    for name in (each.module for each in PACKAGES if each.torch):
        package(tmp_path, name, "import torch\ndef __getattr__(name): return None")
    package(tmp_path, "openai", "")
    return tmp_path


def test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(DG_CACHE_DIR="/nowhere/at/all")
    assert ended.code == 0 and "t2i can run here." in ended.output, ended.output
    for name in (
        "torch",
        "CUDA",
        "diffusers",
        "xfuser",
        "flash-attn",
        "sageattention",
        "xformers",
        "torchvision",
        "pyarrow",
    ):
        assert name in ended.output
    for name in ("openai", "google-genai", "disk, hub cache", "Slurm", "host name", "/nowhere/at/all"):
        assert name in ended.output


def test_a_torch_that_does_not_import(broken: Path) -> None:
    package(broken, "torch", "raise ImportError('libcudart.so.12: cannot open [shared] object file')")
    ended = run(broken)
    assert ended.code == 1 and "cannot open [shared] object file" in ended.output, ended.output
    assert "mend torch first" in ended.output and "t2i cannot run here: torch" in ended.output
    assert "Traceback" not in ended.output


def test_a_torch_that_kills_the_process(broken: Path) -> None:
    package(broken, "torch", "import os; os.kill(os.getpid(), 11)")
    ended = run(broken)
    assert ended.code == 1 and "importing it ends the process with signal 11" in ended.output, ended.output
