"""What is said last: of a run that was stopped, by itself, on ranks and under --num_gpus, and of one that partly failed."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dglaunch.cli.agent import run_ranks
from support.commands import dglaunch, end, start
from support.processes import until
from support.redone import is_right, redo
from support.results import ledger, run_json, write_jsonl

FD_SETSIZE = 1024


def words_of(folder: Path, prompts: list[str], *words: str) -> list[str | Path]:
    table = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    base = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", folder / "out", "--batch_size", "1"]
    return [*base, *words]


def test_the_last_words_of_a_stopped_run(tmp_path: Path) -> None:
    words = words_of(tmp_path, ["a", "b", "c [interrupt] [sleep 9]", "d"])
    ended = dglaunch(*words)
    assert ended.code == 130 and run_json(tmp_path / "out")["outcome"] == "drained"
    assert ended.output.count("Stopped") == 1 and f"What is there is in {tmp_path / 'out'}" in ended.output
    assert ended.output.splitlines()[-1] == "Stopped: 2 of 4 made. Start the same command again to go on."
    ended = dglaunch(*words)
    assert ended.output.splitlines()[-1] == "Stopped: 2 of 4 made. Start the same command again to go on."


def test_a_signal_is_seen_by_a_process_that_has_many_files_open(tmp_path: Path) -> None:
    """Its own descriptors are beyond those that select() can ask for, so that nothing was watched any more."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most < 2 * FD_SETSIZE:
        pytest.skip(f"only {most} files may be open at once here")
    with ExitStack() as opened:
        for _ in range(FD_SETSIZE):
            opened.enter_context(open(os.devnull, "rb"))
        ended = dglaunch(*words_of(tmp_path, ["a", "b [interrupt] [sleep 9]", "c"]))
    assert ended.code == 130 and ended.output.splitlines()[-1].startswith("Stopped: 1 of 3 made.")


def test_what_partly_failed(tmp_path: Path) -> None:
    ended = dglaunch(*words_of(tmp_path, ["a", "b [item error]", "c"]))
    assert ended.code == 3 and f"Partly failed: 2 of 3 made, in {tmp_path / 'out'}" in ended.output
    ended = dglaunch(*words_of(tmp_path, ["a", "b [item error]", "c"], "--limit", "1"))
    assert ended.code == 0 and f"Done: 1 of 1 made, in {tmp_path / 'out'}" in ended.output


def test_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dglaunch.planning.job.prepare", interrupted)
    ended = dglaunch("t2i", "--prompt", "a")
    assert (ended.code, ended.output) == (130, "Stopped. Start the same command again to go on.\n")
    assert dglaunch("t2i", "--prompt", "a", RANK="1", WORLD_SIZE="2", MASTER_ADDR="x", MASTER_PORT="1").output == ""


def test_a_stopped_redo_goes_on_with_what_it_had_chosen(tmp_path: Path) -> None:
    """Also where its own images would not be chosen any more, and where nothing is changed about them."""
    out = tmp_path / "out"
    words = words_of(tmp_path, [f"{n} [sleep 0.2]" for n in range(4)])
    assert dglaunch(*words).code == 0
    with _stopped_after(2):
        ended = dglaunch("redo", out, "--filter_rows", "seed > 0", "--set", "seed=0")
    assert ended.code == 130 and "Stopped: 2 of 3 made." in ended.output.splitlines()[-1]
    assert [line["seed"] for line in ledger(out)[:4]] == [0, 1, 2, 3], (
        "in the order in which they were made, until the end"
    )
    noted = dglaunch("verify", out)
    assert noted.code == 0 and "a dglaunch redo was stopped before its end" in noted.output
    assert (
        "1 image in 1 batch to make; 2 are there already"
        in redo(out, "--filter_rows", "seed > 0", "--set", "seed=0").output
    )
    assert [line["seed"] for line in ledger(out)] == [0, 0, 0, 0] and is_right(out, 4)
    with _stopped_after(1):
        assert dglaunch("redo", out, "--filter_rows", "1,2").code == 130
    assert "1 image in 1 batch to make; 1 are there already" in redo(out, "--filter_rows", "1,2").output
    assert [line["seed"] for line in ledger(out)] == [0, 1, 2, 0] and is_right(out, 4)


@contextmanager
def _stopped_after(count: int) -> Iterator[None]:
    """SIGTERM, once so many images are written."""
    from dglaunch.output.writer import Writer

    written, write = [], Writer.write

    def counted(self: Writer, result: Any) -> None:
        write(self, result)
        written.append(result)
        if len(written) == count:
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(Writer, "write", counted):
        yield


# -- --num_gpus ---------------------------------------------------------------------------------------------------


def _failed(*codes: int) -> Exception:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    return ChildFailedError("dglaunch", {n: ProcessFailure(n, 1, code, "") for n, code in enumerate(codes)})


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (None, 0, ""),
        ("signal", 130, ""),
        ((3,), 3, ""),
        ((2, 2), 2, ""),
        ((130, 3), 3, ""),
        ((3, -15), 3, ""),
        ((-15, -15), 1, "Signal 15"),
        ((-9, 130), 1, "Signal 9"),
        ((1,), 1, "exitcode  : 1"),
    ],
)
def test_the_exit_code_is_that_of_the_ranks(
    capsys: pytest.CaptureFixture[str], ended: tuple[int, ...] | str | None, code: int, said: str
) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException

    error = SignalException("", signal.SIGINT) if isinstance(ended, str) else None if ended is None else _failed(*ended)
    with mock.patch("torch.distributed.run.run", side_effect=error) as started:
        assert run_ranks(2, ["t2i", "--prompt", "a"]) == code
    (options,) = started.call_args.args
    assert (options.nproc_per_node, options.standalone, options.training_script) == ("2", True, "dglaunch")
    assert options.training_script_args == ["t2i", "--prompt", "a"]
    output = "".join(capsys.readouterr())
    assert said in output and bool(output) == bool(said)


@pytest.mark.slow
def test_ctrl_c_under_num_gpus(tmp_path: Path) -> None:
    process = start(words_of(tmp_path, ["a [sleep 0.3]"] * 40, "--num_gpus", "2"))
    until(lambda: len(ledger(tmp_path / "out")) >= 6 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    made = len(ledger(tmp_path / "out"))
    assert ended.code == 130 and "Traceback" not in ended.output, ended.output
    assert ended.output.splitlines()[-1] == f"Stopped: {made} of 40 made. Start the same command again to go on."
