"""One process by itself, without torchrun: stopped, killed, and looked at while it runs."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.cli.main import main
from support.commands import dglaunch
from support.processes import until
from support.ranks import World, run_forked
from support.results import images, ledger, run_json, write_jsonl


def words(folder: Path, *prompts: str) -> list[str | Path]:
    table = write_jsonl(folder / "rows.jsonl", [{"prompt": prompt} for prompt in prompts])
    return ["t2i", "--backend", "fake", "--prompts_file", table, "--batch_size", "1", "--output_dir", folder / "out"]


def in_the_middle(folder: Path, arguments: list[str | Path], made: int) -> World:
    """A process that is at work and has made some images."""
    world = World(folder, 1, arguments, distributed=False)
    until(lambda: len(ledger(folder / "out")) >= made or world.poll() is not None)
    assert world.poll() is None, world.output()
    return world


def test_a_node_does_not_write_beside_a_run_as_one_world(tmp_path: Path) -> None:
    command = words(tmp_path, *["[sleep 1]"] * 20)
    world = in_the_middle(tmp_path, command, 0)
    until((tmp_path / "out" / "metadata.jsonl").exists)
    ended = dglaunch(*command, "--node_rank", "1", "--num_nodes", "2")
    assert ended.code == 2 and "Another dglaunch is writing" in ended.output
    world.kill()


def test_a_killed_image_is_never_torn(tmp_path: Path) -> None:
    """SIGKILL from within, while images are on their way: whatever lies there decodes."""
    ended = run_forked(tmp_path, *words(tmp_path, *[f"{n}" for n in range(10)], "x [kill]"))
    assert ended.code == -signal.SIGKILL
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()
    assert len(ledger(tmp_path / "out")) <= len(images(tmp_path / "out")) <= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_next_start_resumes(tmp_path: Path, number: signal.Signals) -> None:
    arguments = words(tmp_path, *[f"{n} [sleep 0.1]" for n in range(12)])
    world = in_the_middle(tmp_path, arguments, 1)
    os.kill(world.pids[0], number)
    world.wait(30)
    assert world.codes() == [130], world.output()
    told = run_json(tmp_path / "out")
    assert told["outcome"] == "drained" and 0 < told["num_ok"] < 12
    assert len(images(tmp_path / "out")) == told["num_ok"]
    again = dglaunch(*arguments)
    assert again.code == 0 and run_json(tmp_path / "out")["num_skipped"] == told["num_ok"], again.output
    assert len(ledger(tmp_path / "out")) == 12


def test_status_while_the_job_runs_and_after_it_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    world = in_the_middle(tmp_path, words(tmp_path, *[f"{n} [sleep 0.3]" for n in range(60)]), 3)
    assert main(["status", str(out)]) == 1
    told = capsys.readouterr().out
    assert "running now" in told and "of 60 images done" in told and "images/s" in told
    assert main(["verify", str(out)]) == 2
    assert "is writing to" in capsys.readouterr().err
    world.kill()
    assert main(["status", str(out)]) == 130
    assert "killed (it says running" in capsys.readouterr().out
