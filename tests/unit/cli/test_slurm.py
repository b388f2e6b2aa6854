"""Batch scripts: their text against golden files. What they do on a real Slurm: system/test_slurm.py.

GOLDEN=1 pytest tests/unit/cli/test_slurm.py        writes slurm/*.sbatch and golden/*.sbatch anew
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dglaunch.cli import slurm
from dglaunch.cli.main import main
from support.commands import ROOT, TESTS


def _scripts() -> list[Path]:
    return sorted([*(ROOT / "slurm").glob("*.sbatch"), *(TESTS / "unit" / "cli" / "golden").glob("*.sbatch")])


@pytest.mark.parametrize("script", _scripts(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shellcheck(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


GENERATED: dict[str, list[str]] = {
    "one_node": ["t2i", "--prompts_file", "my prompts.jsonl", "--seed", "7", "--gpus_per_node", "4"],
    "multi_node": [
        "t2i", "--backend", "xdit", "--model_name", "it's/here", "--prompts_file", "p.csv", "--output_dir", "/data/a b",
        "--nodes", "4", "--gpus_per_node", "8", "--partition", "long", "--venv", "/opt/my venv", "--sbatch=--account=me",
    ],
    "elastic": ["t2i", "--prompts_file", "p.txt", "--elastic", "--nodes", "6", "--partition", "spot"],
    "array": ["t2i", "--prompts_file", "p.txt", "--array", "--nodes", "6", "--time", "02:00:00"],
}  # fmt: skip


def _agrees(path: Path, text: str) -> None:
    if "GOLDEN" in os.environ:
        path.write_text(text)
    assert path.read_text() == text, f"{path} is not what the templates give; if that is meant: GOLDEN=1 writes it"


@pytest.mark.parametrize("name", slurm.EXAMPLES)
def test_the_folder_slurm_is_what_the_templates_give(name: str) -> None:
    _agrees(ROOT / "slurm" / f"{name}.sbatch", slurm.example(name))


@pytest.mark.parametrize("name", GENERATED)
def test_generated_scripts(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")
    if name == "multi_node":
        monkeypatch.setenv("DG_XDIT_ULYSSES_DEGREE", "2")
    assert main(["slurm", *GENERATED[name]]) == 0
    _agrees(TESTS / "unit" / "cli" / "golden" / f"{name}.sbatch", capsys.readouterr().out)


def test_an_environment_that_is_not_active_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """.venv/bin/dglaunch slurm ...: the script's `python` would be the system's."""
    monkeypatch.setattr(sys, "prefix", "/opt/its own")
    assert main(["slurm", "t2i", "--prompt", "x"]) == 0
    assert "\nVENV='/opt/its own' " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Name the command"),
        (["t2i"], "--prompts_file"),
        (["t2i", "--prompt", "x", "--nodes", "0"], "--nodes is 0"),
        (["t2i", "--prompt", "x", "--elastic"], "say how many there may be: --nodes 4"),
        (["t2i", "--prompt", "x", "--elastic", "--array", "--nodes", "2"], "drop one of them"),
        (["t2i", "--prompt", "x", "--num_gpus", "2"], "--gpus_per_node instead"),
        (["t2i", "--prompt", "x", "--num_nodes", "2", "--node_rank", "0"], "--nodes"),
    ],
)
def test_mistakes(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--job_name", "--partition", "--time", "--venv", "--sbatch"])
@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x1b", "\x85", "\u2028"])
def test_what_would_become_a_line_of_the_script_is_refused(
    flag: str, character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", "t2i", "--prompt", "x", f"{flag}=a{character}touch /tmp/owned"]) == 2
    told = capsys.readouterr()
    assert f"{flag} 'a" in told.err and "line break or another control character" in told.err
    assert not told.out and (character == "\n" or character not in told.err)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--job_name", "my job"], '#SBATCH --job-name="my job"'),
        (["--job_name", "a#b"], '#SBATCH --job-name="a#b"'),
        (["--job_name", 'it\'s "x" \\'], '#SBATCH --job-name="it\'s \\"x\\" \\\\"'),
        (["--partition", "gpu long"], '#SBATCH --partition="gpu long"'),
        (["--time", "1-00:00:00"], "#SBATCH --time=1-00:00:00"),
        (["--sbatch=--comment=two words"], '#SBATCH --comment="two words"'),
        (["--sbatch=--comment='two words'"], "#SBATCH --comment='two words'"),
        (["--sbatch=--account=me"], "#SBATCH --account=me"),
        (["--sbatch=-A me"], "#SBATCH -A me"),
        (["--sbatch=-J my job"], '#SBATCH -J "my job"'),
        (["--sbatch=--exclusive"], "#SBATCH --exclusive"),
        (["--sbatch=--gres=gpu:h100:8"], "#SBATCH --gres=gpu:h100:8"),
    ],
)
def test_spaces_behind_sbatch(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "t2i", "--prompt", "x", *words]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_a_token_stays_out_of_the_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_JOB_TOKEN", "s3cret")
    monkeypatch.setenv("DG_SEED", "7")
    assert main(["slurm", "t2i", "--prompt", "x"]) == 0
    script = capsys.readouterr().out
    assert "export DG_SEED=7" in script and "s3cret" not in script


def test_a_token_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_JOB_TOKEN", "")
    assert main(["plan", "t2i", "--backend", "fake", "--prompt", "x"]) == 2
    assert "DG_JOB_TOKEN is set to nothing" in capsys.readouterr().err
