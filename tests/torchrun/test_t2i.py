"""`t2i` on several ranks with the fake backend: shares, kills, memory, and that all ranks leave together."""

import json
import os
import random
import re
import threading
import time
from pathlib import Path

import pytest

from support.commands import dglaunch, run_process
from support.ranks import Command, World, launch, on_ranks
from support.results import PROMPTS, difference, images, ledger, run_json, write_jsonl

FAKE = ["t2i", "--backend", "fake"]


def rows(tmp_path: Path, *prompts: str) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in prompts])


def partly_failing(tmp_path: Path) -> list[str | Path]:
    table = rows(tmp_path, *PROMPTS[:11], "poison [raise]", *PROMPTS[12:])
    return [*FAKE, "--prompts_file", table, "--batch_size", "4", "--output_dir", tmp_path / "out"]


def test_num_gpus_starts_ranks_whose_exit_code_is_the_command_s(tmp_path: Path) -> None:
    """Also where torchrun stops a rank that leaves a moment after another: that is no failure of its own."""
    ended = run_process(*partly_failing(tmp_path), "--num_gpus", "2")
    assert ended.code == 3 and "FAILED" not in ended.output, ended.output
    assert len(images(tmp_path / "out")) == 22 and len(ledger(tmp_path / "out", "failures.jsonl")) == 1
    assert run_json(tmp_path / "out")["topology"]["world_size"] == 2


@pytest.mark.slow
def test_under_torchrun_all_ranks_leave_together(tmp_path: Path) -> None:
    ended = run_process(*partly_failing(tmp_path), nproc=2)
    assert ended.code == 1, ended.output  # torchrun's, whatever the ranks' own code was
    assert set(re.findall(r"exitcode\s*: (\d+)", ended.output)) == {"3"}
    times = [
        int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in re.findall(r"time\s*: \S+_(\d+):(\d+):(\d+)", ended.output)
    ]
    assert max(times) - min(times) <= 10
    assert len(images(tmp_path / "out")) == 22 and len(ledger(tmp_path / "out", "failures.jsonl")) == 1


def test_world_size_and_batch_size_change_nothing(tmp_path: Path, prompts: Path) -> None:
    command = [*FAKE, "--prompts_file", prompts, "--output_dir"]
    assert dglaunch(*command, tmp_path / "one", "--batch_size", "1").code == 0
    case = on_ranks(tmp_path, 4, *command, tmp_path / "four", "--batch_size", "3", "--shares", "static")
    assert case.codes == [0] * 4, case.output
    assert difference(tmp_path / "one", tmp_path / "four") == 0
    assert len(ledger(tmp_path / "four")) == 23
    assert {line["rank"] for line in ledger(tmp_path / "four")} == {0, 1, 2, 3}


def killed_and_resumed(tmp_path: Path, prompts: Path, reference: Path, number: int) -> None:
    """One run whose ranks are all SIGKILLed at a random moment, then finished on another world size."""
    chance = random.Random(number)
    out = tmp_path / f"kill{number}"
    arguments = [*FAKE, "--prompts_file", prompts, "--output_dir", out]
    world = World(tmp_path, chance.choice([1, 2, 4]), [*arguments, "--batch_size", str(chance.randint(1, 4))])
    limit = time.monotonic() + 60
    while not (out / "run.json").exists() and world.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 1.2))
    world.kill()
    batch_size, nproc = str(chance.randint(1, 8)), chance.choice([0, 3])
    if nproc:
        codes = on_ranks(tmp_path, nproc, *arguments, "--batch_size", batch_size).codes
        assert codes == [0] * nproc
    else:
        assert dglaunch(*arguments, "--batch_size", batch_size).code == 0
    assert difference(out, reference) == 0
    assert sorted(line["index"] for line in ledger(out)) == list(range(23))
    assert not [path for path in out.iterdir() if path.name.startswith(".dglaunch-")]


@pytest.fixture
def slow_prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "slow.jsonl", [{"prompt": f"{prompt} [sleep 0.08]"} for prompt in PROMPTS])


@pytest.fixture
def reference(tmp_path: Path, slow_prompts: Path) -> Path:
    assert dglaunch(*FAKE, "--prompts_file", slow_prompts, "--output_dir", tmp_path / "reference").code == 0
    return tmp_path / "reference"


def test_sigkill_at_any_moment_and_another_world_size(tmp_path: Path, slow_prompts: Path, reference: Path) -> None:
    for number in range(2):
        killed_and_resumed(tmp_path, slow_prompts, reference, number)


@pytest.mark.slow
def test_twenty_sigkills(tmp_path: Path, slow_prompts: Path, reference: Path) -> None:
    for number in range(20):
        killed_and_resumed(tmp_path, slow_prompts, reference, 100 + number)


def test_rank_0_reads_a_pipe_for_all_ranks(tmp_path: Path) -> None:
    """Two ranks on what are said to be two machines: more prompts than the store takes at once, then an unreadable pipe."""
    pipe, text = tmp_path / "pipe", "\n".join([*PROMPTS[:3], " " * (9 << 20), *PROMPTS[3:]])
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=(text,), daemon=True).start()
    command = [*FAKE, "--prompts_file", pipe, "--shares", "static", "--output_dir", tmp_path / "out"]
    unreadable = [*FAKE, "--prompts_file", "/dev/fd/97", "--output_dir", tmp_path / "none"]
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}
    world = World(tmp_path, 2, command, nodes=2, more=[(unreadable, {}), ([*command, "--layout", "genarena"], again)])
    world.wait()
    first, second, third = world.results()
    assert first.codes == [0, 0], first.output
    assert {line["rank"] for line in ledger(tmp_path / "out")} == {0, 1}
    assert [line["prompt"] for line in sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])] == PROMPTS
    assert second.codes == [2, 2] and second.output.count("dglaunch: ") == 1, second.output
    assert third.codes == [0, 0] and "23 are there already" in third.output, third.output


def test_all_ranks_understand_the_columns_of_a_folder_that_was_begun_before_alike(tmp_path: Path) -> None:
    """`Seed` was no seed to the dglaunch that began the folder: rank 0 looks, and two ranks on two machines go on with it."""
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt, "Seed": 7, "cfg": 3} for prompt in PROMPTS])
    command = [*FAKE, "--prompts_file", table, "--batch_size", "2", "--output_dir", tmp_path / "out"]
    assert dglaunch(*command, "--ignore_columns", "Seed", "cfg").code == 0
    run = run_json(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(json.dumps({name: run[name] for name in run if name != "columns"}))
    for number in range(0, 23, 3):
        (tmp_path / "out" / f"{number:06d}.png").unlink()
    world = World(tmp_path, 2, command, nodes=2, more=[([*command[:-1], tmp_path / "new"], {})])
    world.wait()
    old, new = world.results()
    assert old.codes == [0, 0] and "15 are there already" in old.output, old.output
    assert {line["seed"] for line in ledger(tmp_path / "out")} == set(range(23))
    assert new.codes == [2, 2] and new.output.count("cfg: rename it guidance_scale") == 1, new.output


def test_ranks_that_read_different_prompts_are_caught(tmp_path: Path) -> None:
    """Two ranks of one replica with different batches: xDiT would draw garbage without a word."""
    case = on_ranks(tmp_path, 2, "support.replica_checks:different_batches")
    assert case.output.count("CAUGHT ReplicaError Ranks [0, 1] of one replica") == 2, case.output


@pytest.mark.parametrize(("error", "code"), [("user_error", 2), ("key_error", 1)])
def test_what_fails_on_one_rank_ends_all_at_once(tmp_path: Path, error: str, code: int) -> None:
    """The others would wait for it until a time limit, and rank 0 alone tells a user's mistake."""
    case = on_ranks(tmp_path, 2, f"support.replica_checks:{error}_on_rank_1")
    assert case.codes == [code] * 2, case.output
    assert sorted(re.findall(r"BOTH (\d+)", case.output)) == ["0", "10"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """200 KB an image: gathered at the end, those of the second job would be 40 MB. Both are the same processes'."""
    commands: list[Command] = []
    for count in (40, 200):
        table = write_jsonl(tmp_path / f"{count}.jsonl", [{"prompt": "x", "width": 256, "height": 256}] * count)
        words = [*FAKE, "--prompts_file", table, "--batch_size", "4", "--output_dir", tmp_path / f"out{count}"]
        commands.append((words, {}))
    for case in launch(tmp_path, 2, commands):
        assert case.codes == [0, 0], case.output
    few, many = (int(run_json(tmp_path / f"out{count}")["peak_memory_bytes"]) for count in (40, 200))
    assert many - few < 15 * 2**20, f"{few / 2**20:.0f} MiB for 40 images, {many / 2**20:.0f} MiB for 200 more"
