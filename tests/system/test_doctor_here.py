"""doctor as a command: this machine as it is (with `make soak` it imports all that is installed, 17 s of CPU; else stubs for the
packages that import torch), and with a torch that is broken in each way a package can be."""

import os
from pathlib import Path

import pytest

from dglaunch.cli.probes import PACKAGES
from support.commands import ROOT, Ended, run_process
from support.selection import rarely


def run(path: Path | None = None, **variables: str) -> Ended:
    """`dglaunch doctor` with a folder before everything else on PYTHONPATH."""
    places = {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])} if path is not None else {}
    return run_process("doctor", **variables, **places)


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder with packages that import torch and do nothing else, and one in place of openai, which takes long by itself."""
    for name in (each.module for each in PACKAGES if each.torch):
        package(tmp_path, name, "import torch\ndef __getattr__(name): return None")
    package(tmp_path, "openai", "")
    return tmp_path


@pytest.mark.parametrize("packages", rarely(["stubs", "installed"], ["installed"]))
def test_here(stubs: Path, packages: str) -> None:
    ended = run(stubs if packages == "stubs" else None, DG_CACHE_DIR="/nowhere/at/all")
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


def test_a_torch_that_does_not_import(stubs: Path) -> None:
    package(stubs, "torch", "raise ImportError('libcudart.so.12: cannot open [shared] object file')")
    ended = run(stubs)
    assert ended.code == 1 and "cannot open [shared] object file" in ended.output, ended.output
    assert "mend torch first" in ended.output and "t2i cannot run here: torch" in ended.output
    assert "Traceback" not in ended.output


def test_a_torch_that_kills_the_process(stubs: Path) -> None:
    package(stubs, "torch", "import os; os.kill(os.getpid(), 11)")
    ended = run(stubs)
    assert ended.code == 1 and "importing it ends the process with signal 11" in ended.output, ended.output
