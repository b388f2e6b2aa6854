"""What lies in the current folder is not taken for a package."""

import subprocess
import sys
from pathlib import Path

import pytest

from dglaunch.cli import probes
from dglaunch.search_path import without_current_folder
from dglaunch.system import torchrun_command
from support.commands import clean_environment

NAMES = ("openai", "diffusers", "torch", "tyro", "rich", "PIL", "numpy", "flash_attn")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's scripts, named as the packages that they use."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            "from pathlib import Path\nPath('imported').touch()\nraise SystemExit(9)\n"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_users_scripts_are_not_imported(folder: Path) -> None:
    words = [sys.executable, "-m", "dglaunch", "t2i", "--backend", "fake", "--prompt", "x", "--output_dir", "out"]
    ended = subprocess.run(words, env=clean_environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "out" / "000000.png").exists() and not (folder / "imported").exists()


def test_doctor_does_not_run_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("")
    found = probes.probe({"fine": "import jinja2", "not installed": "import flash_attn", "shadowed": "import rich"})
    assert (found["fine"].error, found["shadowed"].error) == ("", "")
    assert "No module named 'flash_attn'" in found["not installed"].error and not (folder / "imported").exists()


def test_torchrun_that_dglaunch_starts_does_not_either() -> None:
    assert torchrun_command(2, "-m", "dglaunch")[1] == "-P"


def test_only_the_current_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    path = ["", str(other), str(here), str(tmp_path / "link"), "/usr/lib/python3"]
    assert without_current_folder(path) == [str(other), "/usr/lib/python3"]
    (installed := tmp_path / "site-packages").mkdir()
    monkeypatch.chdir(installed)
    assert without_current_folder([str(installed)]) == [str(installed)]  # someone who looks around there
