"""Words, variables and paths as shells and people hand them on: what is meant is done, else told before a model is loaded."""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from dglaunch import EditingConfig, OptimizationConfig, T2IConfig
from dglaunch.cli.main import COMMANDS, TOOLS
from dglaunch.config import BackendConfig
from dglaunch.errors import DglaunchError, UserError
from dglaunch.files import at_home
from support.commands import dglaunch
from support.edit_images import picture
from support.results import ledger, run_json, write_jsonl

FAKE = ("--backend", "fake")


def said(*words: str | Path, code: int = 2, cwd: Path, **environment: str) -> str:
    ended = dglaunch(*words, cwd=cwd, **environment)
    assert ended.code == code and "Traceback" not in ended.output, ended.output
    return " ".join(re.sub(r"[│|]", " ", ended.output).split())


# -- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["None", "--ar 16:9", "--ar", "-- a -- b", "-1", "--seed 5", "True", "a=b", "~"])
def test_a_prompt_is_what_was_typed(tmp_path: Path, text: str) -> None:
    said("t2i", *FAKE, "--prompt", text, "--negative_prompt", text, "--output_dir", "out", code=0, cwd=tmp_path)
    (line,) = ledger(tmp_path / "out")
    assert (line["prompt"], line["negative_prompt"]) == (text, text)


def test_a_flag_without_its_text_is_told(tmp_path: Path) -> None:
    assert "--prompt needs a value: text" in said("t2i", *FAKE, "--prompt", "--seed", "5", cwd=tmp_path)


# -- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("t2i", "--prompt", "x", "--output_dir", ""),
        ("t2i", "--prompt", "x", "--output_dir="),
        ("t2i", "--prompts_file", ""),
        ("t2i", "--prompt", "x", "--cache_dir", ""),
        ("t2i", "--prompt", "x", "--embedding_cache", ""),
        ("edit", "--input", ""),
        ("verify", ""),
        ("merge", "a", "--output_dir", ""),
        ("slurm", "t2i", "--prompt", "x", "--output_dir", ""),
    ],
)
def test_an_empty_path_is_an_unset_variable_not_this_folder(tmp_path: Path, words: tuple[str, ...]) -> None:
    text = said(*words, cwd=tmp_path, COLUMNS="400")
    assert "a variable of the shell that is not set" in text and not list(tmp_path.iterdir())


def test_an_empty_path_of_several_is_told(tmp_path: Path) -> None:
    assert "['a', '']" in said("merge", "a", "", "--output_dir", "b", cwd=tmp_path)


def test_an_empty_path_from_a_variable_is_told(tmp_path: Path) -> None:
    assert "DG_OUTPUT_DIR='' is not a path" in said("t2i", *FAKE, "--prompt", "x", cwd=tmp_path, DG_OUTPUT_DIR="")


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    environment = {"HOME": str(home)}
    picture(1).save(home / "a.png")
    write_jsonl(home / "p.jsonl", [{"prompt": "a cat"}])
    write_jsonl(home / "t.jsonl", [{"input_images": "~/a.png", "instruction": "x"}])
    said("t2i", *FAKE, "--prompts_file=~/p.jsonl", "--output_dir=~/one", code=0, cwd=here, **environment)
    said("t2i", *FAKE, "--prompt", "x", code=0, cwd=here, DG_OUTPUT_DIR="~/two", **environment)
    edit = (
        "edit",
        *FAKE,
        "--model_type",
        "flux1_kontext",
        "--input",
        "~/t.jsonl",
        "--output_dir",
        "~/three",
        "--gallery",
    )
    said(*edit, code=0, cwd=here, **environment)
    assert [len(ledger(home / name)) for name in ("one", "two", "three")] == [1, 1, 1]
    assert ledger(home / "three")[0]["input_images"] == ["~/a.png"]
    assert run_json(home / "three")["config"]["input"]["value"] == str(home / "t.jsonl")
    assert "a.png" in (home / "three" / "gallery.html").read_text(encoding="utf-8")
    for words in (("verify", "~/one"), ("status", "~/two"), ("gallery", "~/one", "--contact_sheet=~/s.png")):
        said(*words, code=0, cwd=here, **environment)
    said("merge", "~/one", "--output_dir=~/four", code=0, cwd=here, **environment)
    assert (home / "s.png").exists() and len(ledger(home / "four")) == 1
    assert not list(here.iterdir())


def test_a_tilde_in_a_slurm_script(tmp_path: Path) -> None:
    words = ("slurm", "t2i", "--venv=~/venv", "--output_dir=~/out", "--prompts_file=~/p.jsonl")
    script = said(*words, code=0, cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert f"VENV={tmp_path}/home/venv" in script and f"OUTPUT_DIR={tmp_path}/home/out" in script


def test_a_tilde_in_a_model_name(tmp_path: Path) -> None:
    (tmp_path / "flux").mkdir()
    words = ("plan", "t2i", "--prompt", "x", "--model_name", "~/flux")
    assert f"{tmp_path}/flux has no model_index.json" in said(*words, cwd=tmp_path, HOME=str(tmp_path))


def test_a_tilde_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = T2IConfig(
        prompts_file=Path("~/p.jsonl"),
        output_dir=Path("~/out"),
        optimization=OptimizationConfig(embedding_cache=Path("~/texts")),
    )
    assert (config.prompts_file, config.output_dir) == (tmp_path / "p.jsonl", tmp_path / "out")
    assert config.optimization.embedding_cache == tmp_path / "texts"
    assert EditingConfig(input=Path("~/t.csv")).input == tmp_path / "t.csv"
    assert config.backend.cache == tmp_path / ".cache/dglaunch"


def test_a_name_that_begins_with_a_tilde_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors call their backups so."""
    assert at_home(Path("~a.png")) == Path("~a.png")
    assert at_home(Path("b/~")) == Path("b/~")


def test_no_home_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", no_user)
    monkeypatch.delenv("HOME")
    for words in (("--output_dir", "out"), ("--output_dir", "~/out")):
        text = said("t2i", *FAKE, "--prompt", "x", *words, cwd=tmp_path)
        assert "there is none here" in text and "Set HOME" in text
    said("t2i", *FAKE, "--prompt", "x", "--output_dir", "o", "--cache_dir", "c", code=0, cwd=tmp_path)
    with pytest.raises(UserError, match="Set HOME"):
        _ = BackendConfig().cache
    monkeypatch.setenv("HOME", "")  # the folder would be the root of the disk
    with pytest.raises(UserError, match="Set HOME"):
        _ = BackendConfig().cache


def no_user(_uid: int) -> object:
    raise KeyError("this user has no name")


# -- the rest of the environment ----------------------------------------------------------------------------------

ALONE: dict[str, tuple[Mapping[str, str], str]] = {
    "a rank alone": ({"RANK": "0"}, "WORLD_SIZE and MASTER_ADDR and MASTER_PORT are not"),
    "no port": ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not"),
    "no address": ({"RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR and MASTER_PORT are not"),
    "a rank beyond the last": (
        {"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        "RANK is below WORLD_SIZE",
    ),
    "another rank alone": ({"RANK": "3"}, "WORLD_SIZE and MASTER_ADDR and MASTER_PORT are not"),
    "a rank that is none": ({"RANK": ""}, "WORLD_SIZE and"),
    "a rank that is a word": (
        {"RANK": "first", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        "RANK=first: torchrun's variables are whole numbers",
    ),
    "no number": (
        {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        "WORLD_SIZE=two: torchrun's variables are whole numbers",
    ),
}


@pytest.mark.parametrize("what", ALONE)
def test_a_rank_without_its_companions_is_told(tmp_path: Path, what: str) -> None:
    variables, expected = ALONE[what]
    text = said("t2i", *FAKE, "--prompt", "x", cwd=tmp_path, **variables)
    assert expected in text and "nset" in text


def test_a_rank_alone_is_told_where_torchrun_is_asked_for_too(tmp_path: Path) -> None:
    text = said("t2i", *FAKE, "--prompt", "x", "--num_gpus", "2", cwd=tmp_path, RANK="0")
    assert "WORLD_SIZE and MASTER_ADDR and MASTER_PORT are not" in text


def test_an_unknown_command_names_all_that_there_are(tmp_path: Path) -> None:
    text = said("slum", cwd=tmp_path)
    assert all(name in text for name in [*COMMANDS, *TOOLS]) and "The nearest is slurm" in text


@pytest.mark.parametrize(
    ("words", "variable", "shown"),
    [((), "1", True), ((), "on", True), ((), "0", False), (("--debug",), "0", True), (("--no-debug",), "1", False)],
)
def test_a_variable_shows_tracebacks_as_the_flag_does(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, shown: bool
) -> None:
    def breaks_off(_words: list[str], _environ: Mapping[str, str]) -> int:
        raise DglaunchError("it broke off")

    monkeypatch.setattr("dglaunch.cli.main.command_of", lambda _words: breaks_off)
    ended = dglaunch("t2i", "--prompt", "x", *words, DG_DEBUG=variable)
    assert ended.code == 1 and "it broke off" in ended.output
    assert ("Traceback" in ended.output) == shown, ended.output


# -- pipes as prompts ---------------------------------------------------------------------------------------------


def test_prompts_from_a_named_pipe_are_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "prompts"
    os.mkfifo(fifo)
    for _ in range(2):  # the second start finds all done
        writer = threading.Thread(target=fifo.write_bytes, args=(b"a\nb\n",), daemon=True)
        writer.start()
        said("t2i", *FAKE, "--prompts_file", "prompts", "--output_dir", "out", code=0, cwd=tmp_path)
        writer.join(5)
    assert sorted(line["prompt"] for line in ledger(tmp_path / "out")) == ["a", "b"]
    assert run_json(tmp_path / "out")["num_skipped"] == 2


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_prompts_from_this_process_s_input(tmp_path: Path, name: str) -> None:
    before = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, b'{"prompt": "a"}\n')
    os.close(writing)
    try:
        os.dup2(reading, 0)
        said("t2i", *FAKE, "--prompts_file", name, "--output_dir", "out", code=0, cwd=tmp_path)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reading)
    assert [line["prompt"] for line in ledger(tmp_path / "out")] == ["a"]


@pytest.mark.parametrize("started_again", [False, True])
def test_what_came_out_of_a_pipe_is_kept_for_the_next_start(tmp_path: Path, started_again: bool) -> None:
    """The pipe of a start that torchrun repeats is not opened again: it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    words = ["t2i", *FAKE, "--prompts_file", "pipe", "--output_dir", "out"]
    for text in (b"a\nb\n", b"a\nb\nc\n"):
        threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text,), daemon=True).start()
        said(*words, code=0, cwd=tmp_path)
    (tmp_path / "out" / "000001.png").unlink()
    variables = {"TORCHELASTIC_RESTART_COUNT": "1"} if started_again else {}
    if not started_again:
        threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"",), daemon=True).start()
    text = said(*words, code=0, cwd=tmp_path, **variables)
    assert "as pipe gave them to an earlier start" in text and len(ledger(tmp_path / "out")) == 3
    assert (tmp_path / "out" / ".dglaunch-aside" / ".dglaunch.prompts").read_bytes() == b"a\nb\n"


def test_a_file_that_is_not_open_here_is_no_pipe(tmp_path: Path) -> None:
    text = said("t2i", *FAKE, "--prompts_file", "/dev/fd/98765", cwd=tmp_path)
    assert "/dev/fd/98765 cannot be read" in text and "--prompts_file -" in text


def test_a_plan_for_several_ranks_reads_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a\nb\n",), daemon=True).start()
    words = ["plan", "t2i", *FAKE, "--prompts_file", "pipe", "--world_size", "2"]
    assert "2 images" in said(*words, code=0, cwd=tmp_path) and not (tmp_path / "outputs").exists()


def test_tune_reads_no_pipe(tmp_path: Path) -> None:
    assert "can be read once" in said("tune", "t2i", "--prompts_file", "-", cwd=tmp_path)


def test_a_table_of_edits_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    text = said("edit", *FAKE, "--input", "t.csv", cwd=tmp_path)
    assert "is no regular file; save what comes out of it to one first" in text
