"""What dglaunch prints: texts of others as they are, on streams that lack characters or readers."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from dglaunch.streams import Stream, readable, say
from support.commands import ROOT, clean_environment, dglaunch
from support.results import ledger, write_jsonl

ESCAPES = {
    "\x1b]52;c;aGk=\x07": r"\x1b]52;c;aGk=\x07",
    "\x1b[2J": r"\x1b[2J",
    "\u202etxt.exe\u202c": r"\u202etxt.exe\u202c",
    "a\rb\x7f\x9b": r"a\rb\x7f\x9b",
    "caf\udce9": r"caf\udce9",
    "\u2028\u200b\ufeff": r"\u2028\u200b\ufeff",
    "two\nlines\tin all": "two\nlines\tin all",
    "ein Bär 🐻, 三只猫\u3000\xa0é": "ein Bär 🐻, 三只猫\u3000\xa0é",
}


@pytest.mark.parametrize("text", ESCAPES)
def test_what_a_terminal_would_obey_or_hide_is_an_escape(text: str) -> None:
    assert readable(text) == ESCAPES[text]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_encoding_of_a_stream_ends_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """PYTHONIOENCODING=ascii: the folder's name could not be printed, and the command ended in a traceback."""
    out, said, told = tmp_path / "三只猫", io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(told, encoding=encoding, errors="strict"))
    assert main(["t2i", "--backend", "fake", "--prompt", "a", "--output_dir", str(out)]) == 0
    assert main(["gallery", str(out)]) == 0
    assert rb"\u4e09\u53ea\u732b" in said.getvalue() and rb"\u4e09\u53ea\u732b" in told.getvalue()


@pytest.mark.parametrize("words", [["--help"], ["t2i", "--help"]])
def test_a_reader_that_has_enough_ends_a_command_quietly(words: list[str]) -> None:
    """`dglaunch --help | head -1`; the help of t2i is longer than a pipe's buffer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dglaunch", *words], env=clean_environment(), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_stream_without_a_reader_costs_no_image(tmp_path: Path) -> None:
    """`dglaunch t2i ... 2>&1 | head`: rich would end the process at the first line after head has left."""
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"[item error] {n}" if n % 2 else f"{n}"} for n in range(8)])
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dglaunch", *words], env=clean_environment(), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 3
    assert len(ledger(tmp_path / "out")) == 4 and len(ledger(tmp_path / "out", "failures.jsonl")) == 4


def test_a_log_on_a_full_disk_costs_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", full)
        assert main(["t2i", "--backend", "fake", "--prompt", "a", "--output_dir", str(tmp_path / "out")]) == 0
    assert dglaunch("verify", tmp_path / "out").code == 0


def test_an_answer_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert main(["--help"]) == 1
    assert "stdout cannot be written: No space left on device" in capsys.readouterr().err


def test_errors_show_escapes_of_what_was_typed(tmp_path: Path) -> None:
    ended = dglaunch("verify", tmp_path / "\x1b]0;owned\x07[/b]")
    assert ended.code == 2
    assert r"\x1b]0;owned\x07[/b]" in ended.output and "\x1b" not in ended.output


ESCAPE = "\x1b]0;owned\x07\u202e"


@pytest.mark.parametrize(
    "words",
    [
        ["t2i", f"--no_such{ESCAPE}", "x"], ["t2i", "--prompt", "x", f"-{ESCAPE}"], ["t2i", "--seed", ESCAPE],
        ["edit", "--output_format", ESCAPE], ["plan", "t2i", f"--{ESCAPE}"], ["slurm", "--nodes", ESCAPE, "t2i"],
        ["slurm", "t2i", "--seed", ESCAPE], ["verify", "a", ESCAPE], ["gallery", "a", "--thumbnails", ESCAPE],
        ["tune", "t2i", "--seed", ESCAPE],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_words_that_are_no_flags_are_shown_with_escapes(words: list[str]) -> None:
    ended = dglaunch(*words)
    assert ended.code == 2 and r"\x1b]0;owned\x07" in ended.output, ended.output
    assert ended.output.replace("\n", "").isprintable(), ended.output


def test_a_batch_script_is_handed_over_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes into a file: an escape there would name another folder."""
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding="ascii", errors="backslashreplace"))
    Stream(error=False).hand_over("cd 三只猫\u200d caf\udce9\n")
    assert stdout.getvalue() == "cd 三只猫\u200d caf".encode() + b"\xe9\n"


def test_a_closed_stream_is_nobodys_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("to nobody", error=True)
    assert main(["--version"]) == 0


def test_brackets_of_folders_names_and_errors_reach_the_terminal(tmp_path: Path) -> None:
    """They were rich's markup: a closing tag ended the command in a traceback, an opening one was swallowed."""
    out = tmp_path / "runs[v3]" / "[/INST]"
    table = write_jsonl(
        tmp_path / "p.jsonl", [{"prompt": "[item error]", "name": "a[b]\u202e"}, {"prompt": "b", "name": "b"}]
    )
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", out, "--output_name_column", "name"]
    ended = dglaunch(*words)
    assert (
        ended.code == 3
        and r"image a[b]\u202e.png failed" in ended.output
        and f"Partly failed: 1 of 2 made, in {out}" in ended.output
    )
    shutil.copy(out / "b.png", out / "bad[red]\x1b[31m.png")
    told = dglaunch("verify", out).output
    assert r"bad[red]\x1b[31m.png has no ledger line (left alone)" in told
    assert str(out) in dglaunch("gallery", out).output
