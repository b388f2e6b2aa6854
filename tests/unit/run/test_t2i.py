"""The command as a user runs it, with the fake backend: failures, resume, signals, many ranks. Real torchrun on gloo."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import clean_environment, dglaunch, end, kill_group, start
from support.results import PROMPTS, difference, images, ledger, run_json, write_jsonl

FAKE = ["t2i", "--backend", "fake"]


def rows(tmp_path: Path, *prompts: str) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in prompts])


def test_one_poisoned_prompt_spares_the_rest(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:11], "poison [raise]", *PROMPTS[12:]]
    ended = dglaunch(
        *FAKE, "--prompts_file", rows(tmp_path, *prompts), "--batch_size", "8", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 3, ended.output
    assert len(images(tmp_path / "out")) == 22
    (failure,) = ledger(tmp_path / "out", "failures.jsonl")
    assert (failure["index"], failure["rank"], failure["prompt"]) == (11, 0, "poison [raise]")
    assert failure["error"] == "RuntimeError: a poisoned prompt, as asked"
    told = run_json(tmp_path / "out")
    assert (told["num_ok"], told["num_failed"], told["num_skipped"], told["outcome"]) == (22, 1, 0, "failed")
    assert "run one by one" in told["events"][0]


def test_under_torchrun_all_ranks_leave_together(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:11], "poison [raise]", *PROMPTS[12:]]
    ended = dglaunch(
        *FAKE,
        "--prompts_file",
        rows(tmp_path, *prompts),
        "--batch_size",
        "4",
        "--output_dir",
        tmp_path / "out",
        nproc=4,
    )
    assert ended.code == 1, ended.output  # torchrun's, whatever the ranks' own code was
    assert set(re.findall(r"exitcode\s*: (\d+)", ended.output)) == {"3"}
    times = [
        int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in re.findall(r"time\s*: \S+_(\d+):(\d+):(\d+)", ended.output)
    ]
    assert max(times) - min(times) <= 10
    assert len(images(tmp_path / "out")) == 22 and len(ledger(tmp_path / "out", "failures.jsonl")) == 1


def test_an_item_error_concerns_one_item_and_is_not_tried_again(tmp_path: Path) -> None:
    ended = dglaunch(
        *FAKE,
        "--prompts_file",
        rows(tmp_path, "a", "b [item error]", "c"),
        "--batch_size",
        "3",
        "--output_dir",
        tmp_path / "out",
    )
    assert ended.code == 3, ended.output
    assert sorted(images(tmp_path / "out")) == ["000000.png", "000002.png"]
    assert run_json(tmp_path / "out")["events"] == []
    assert all(line["batch_size"] == 3 for line in ledger(tmp_path / "out"))


def test_out_of_memory_halves_the_batch_and_remembers(tmp_path: Path) -> None:
    prompts = [f"{n} [oom 3]" for n in range(16)]
    ended = dglaunch(
        *FAKE, "--prompts_file", rows(tmp_path, *prompts), "--batch_size", "8", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 0, ended.output
    told = run_json(tmp_path / "out")
    assert len(told["events"]) == 2, "8 -> 4 -> 2, once for the run, not once for each batch"
    assert {line["batch_size"] for line in ledger(tmp_path / "out")} == {2}


def test_an_image_that_does_not_fit_alone_is_a_failure(tmp_path: Path) -> None:
    ended = dglaunch(
        *FAKE, "--prompts_file", rows(tmp_path, "a [oom 0]", "b"), "--batch_size", "2", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 3, ended.output
    assert sorted(images(tmp_path / "out")) == ["000001.png"]


def test_a_failure_at_the_end_counts_as_time_of_the_run(tmp_path: Path) -> None:
    """Else it would be inside of the pipeline for longer than the run took."""
    rows = [{"prompt": "a cat"}, {"prompt": "[sleep 0.5] [item error]"}]
    command = [*FAKE, "--prompts_file", write_jsonl(tmp_path / "p.jsonl", rows), "--output_dir", tmp_path / "out"]
    assert dglaunch(*command, "--batch_size", "1").code == 3
    run = run_json(tmp_path / "out")
    assert run["wall_s"] >= 0.5 and run["pipeline_share"] <= 1


def test_half_a_character_is_a_bad_row(tmp_path: Path) -> None:
    """A cut emoji is valid JSON, and no file can hold it."""
    table = tmp_path / "p.jsonl"
    table.write_text('{"prompt": "ok"}\n{"prompt": "a \\ud83d cat"}\n{"prompt": "\\ud83d\\ude00", "note": "\\uDC00"}\n')
    ended = dglaunch(*FAKE, "--prompts_file", table, "--output_dir", tmp_path / "out")
    assert ended.code == 2 and "2 bad rows" in ended.output and "lone surrogate" in ended.output
    assert not (tmp_path / "out").exists()


def test_a_prompt_too_long_for_a_jpegs_text_is_made(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "\u957f" * 12_000}, {"prompt": "short"}])
    command = [*FAKE, "--prompts_file", table, "--output_dir", tmp_path / "out", "--output_format", "jpg"]
    assert dglaunch(*command).code == 0
    assert {line["index"]: len(line["prompt"]) for line in ledger(tmp_path / "out")} == {0: 12_000, 1: 5}


def test_a_node_does_not_write_beside_a_run_as_one_world(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "[sleep 1]"}] * 20)
    command = [*FAKE, "--prompts_file", table, "--output_dir", tmp_path / "out", "--batch_size", "1"]
    process = start(command)
    try:
        while not (tmp_path / "out" / "metadata.jsonl").exists():
            time.sleep(0.05)
        ended = dglaunch(*command, "--node_rank", "1", "--num_nodes", "2")
        assert ended.code == 2 and "Another dglaunch is writing" in ended.output
    finally:
        kill_group(process)


def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path) -> None:
    ended = dglaunch(*FAKE, "--prompt", "x", "--seed", str(2**63), "--output_dir", tmp_path / "out")
    assert ended.code == 2 and "--seed is 9223372036854775808" in ended.output


def test_a_drained_run_is_not_inside_for_longer_than_it_took(tmp_path: Path) -> None:
    rows = [{"prompt": "one"}, {"prompt": "[interrupt] [sleep 1] two"}]
    command = [*FAKE, "--prompts_file", write_jsonl(tmp_path / "p.jsonl", rows), "--output_dir", tmp_path / "out"]
    assert dglaunch(*command, "--batch_size", "1").code == 130
    assert run_json(tmp_path / "out")["pipeline_share"] <= 1


def test_world_size_and_batch_size_change_nothing(tmp_path: Path, prompts: Path) -> None:
    for name, nproc, batch in (("one", 0, 1), ("four", 4, 3)):
        ended = dglaunch(
            *FAKE, "--prompts_file", prompts, "--batch_size", str(batch), "--output_dir", tmp_path / name, nproc=nproc
        )
        assert ended.code == 0, ended.output
    assert difference(tmp_path / "one", tmp_path / "four") == 0
    assert len(ledger(tmp_path / "four")) == 23
    assert {line["rank"] for line in ledger(tmp_path / "four")} == {0, 1, 2, 3}


def killed_and_resumed(tmp_path: Path, prompts: Path, reference: Path, number: int) -> None:
    """One run that is SIGKILLed at a random moment, ranks and torchrun together, then finished on another world size."""
    chance = random.Random(number)
    out = tmp_path / f"kill{number}"
    arguments = [*FAKE, "--prompts_file", prompts, "--output_dir", out]
    process = start([*arguments, "--batch_size", str(chance.randint(1, 4))], nproc=chance.choice([1, 2, 4]))
    limit = time.monotonic() + 60
    while not (out / "run.json").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 4))
    kill_group(process)
    process.communicate()
    ended = dglaunch(*arguments, "--batch_size", str(chance.randint(1, 8)), nproc=chance.choice([0, 3]))
    assert ended.code == 0, ended.output
    assert difference(out, reference) == 0
    assert sorted(line["index"] for line in ledger(out)) == list(range(23))
    assert not [path for path in out.iterdir() if path.name.startswith(".dglaunch-")]


@pytest.fixture
def slow_prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "slow.jsonl", [{"prompt": f"{prompt} [sleep 0.15]"} for prompt in PROMPTS])


@pytest.fixture
def reference(tmp_path: Path, slow_prompts: Path) -> Path:
    assert dglaunch(*FAKE, "--prompts_file", slow_prompts, "--output_dir", tmp_path / "reference").code == 0
    return tmp_path / "reference"


def test_sigkill_at_any_moment_and_another_world_size(tmp_path: Path, slow_prompts: Path, reference: Path) -> None:
    for number in range(3):
        killed_and_resumed(tmp_path, slow_prompts, reference, number)


@pytest.mark.slow
def test_twenty_sigkills(tmp_path: Path, slow_prompts: Path, reference: Path) -> None:
    for number in range(20):
        killed_and_resumed(tmp_path, slow_prompts, reference, 100 + number)


def test_a_killed_image_is_never_torn(tmp_path: Path) -> None:
    """SIGKILL from within, while images are on their way: whatever lies there decodes."""
    prompts = [f"{n}" for n in range(10)] + ["x [kill]"]
    ended = dglaunch(
        *FAKE, "--prompts_file", rows(tmp_path, *prompts), "--batch_size", "1", "--output_dir", tmp_path / "out"
    )
    assert ended.code == -signal.SIGKILL
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()
    assert len(ledger(tmp_path / "out")) <= len(images(tmp_path / "out")) <= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_next_start_resumes(tmp_path: Path, number: signal.Signals) -> None:
    path = rows(tmp_path, *[f"{n} [sleep 0.3]" for n in range(12)])
    arguments = [*FAKE, "--prompts_file", path, "--batch_size", "1", "--output_dir", tmp_path / "out"]
    process = start(arguments)
    while not ledger(tmp_path / "out"):
        time.sleep(0.05)
    process.send_signal(number)
    ended = end(process, 30)
    assert ended.code == 130, ended.output
    told = run_json(tmp_path / "out")
    assert told["outcome"] == "drained" and 0 < told["num_ok"] < 12
    assert len(images(tmp_path / "out")) == told["num_ok"]
    again = dglaunch(*arguments)
    assert again.code == 0 and run_json(tmp_path / "out")["num_skipped"] == told["num_ok"], again.output
    assert len(ledger(tmp_path / "out")) == 12


def test_nothing_left_to_do_needs_no_model(tmp_path: Path, prompts: Path) -> None:
    arguments = [*FAKE, "--prompts_file", prompts, "--output_dir", tmp_path / "out"]
    assert dglaunch(*arguments).code == 0
    again = dglaunch(*arguments)
    told = run_json(tmp_path / "out")
    assert (again.code, told["num_ok"], told["num_skipped"], told["outcome"]) == (0, 0, 23, "done"), again.output


def test_independent_nodes_share_the_work(tmp_path: Path, prompts: Path) -> None:
    arguments = [*FAKE, "--prompts_file", prompts, "--output_dir", tmp_path / "out", "--num_nodes", "3"]
    for node in (2, 0, 1):
        ended = dglaunch(*arguments, "--node_rank", str(node))
        assert ended.code == 0, ended.output
    assert [line["index"] for line in ledger(tmp_path / "out")] == list(range(23))
    parts = [ledger(tmp_path / "out", f"metadata-node{node}of3.jsonl") for node in range(3)]
    assert sum(map(len, parts)) == 23 and all(len(part) in (7, 8) for part in parts)


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_the_file_says_what_made_it(tmp_path: Path, output_format: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "ein Bär 🐻", "seed": 7, "note": "kept", "key": "clash"}])
    ended = dglaunch(*FAKE, "--prompts_file", path, "--output_dir", tmp_path / "out", "--output_format", output_format)
    assert ended.code == 0, ended.output
    image = Image.open(tmp_path / "out" / f"000000.{output_format}")
    if output_format == "png":
        assert (image.text["prompt"], image.text["seed"], image.text["model"]) == ("ein Bär 🐻", "7", "tiny")
        assert json.loads(image.text["settings"])["num_inference_steps"] == 1
    else:
        assert json.loads(image.getexif()[0x010E])["prompt"] == "ein Bär 🐻"
    (line,) = ledger(tmp_path / "out")
    assert (line["note"], line["row_key"], line["prompt"]) == ("kept", "clash", "ein Bär 🐻")


def test_debug_is_one_process_with_a_traceback(tmp_path: Path) -> None:
    ended = dglaunch(
        *FAKE,
        "--debug",
        "--prompts_file",
        rows(tmp_path, "a", "b [raise]"),
        "--batch_size",
        "1",
        "--output_dir",
        tmp_path / "out",
    )
    assert "Traceback" in ended.output and "a poisoned prompt" in ended.output and ended.code != 0
    assert list(images(tmp_path / "out")) == ["000000.png"]


def test_num_gpus_starts_torchrun(tmp_path: Path, prompts: Path) -> None:
    ended = dglaunch(*FAKE, "--num_gpus", "2", "--prompts_file", prompts, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    assert run_json(tmp_path / "out")["topology"]["world_size"] == 2


def test_ranks_that_read_different_prompts_are_caught(tmp_path: Path) -> None:
    """Two ranks of one replica with different batches: xDiT would draw garbage without a word."""
    code = (
        "import os, sys, threading; from pathlib import Path\n"
        "from dglaunch import plan, run, topology, backends, models, config, gather, watch\n"
        "from dglaunch.data.prompts import Task\n"
        "place = topology.Topology(rank=int(os.environ['RANK']), world_size=2, local_world_size=2, distributed=True,\n"
        "                          parallel=config.ParallelConfig(ulysses_degree=2))\n"
        "channel = topology.Channel(place, 'cpu')\n"
        "context = backends.Context(config=config.T2IConfig(prompt='x'), topology=place, channel=channel, device='cpu',\n"
        "    checkpoint=models.Checkpoint('fake', 'fake', models.OTHER, {}, {}, False), dtype='float32')\n"
        "w = watch.Watch(place, 0, threading.Event())\n"
        "loop = run.Loop(context, None, None, gather.Gather(place, channel, print, w), w)\n"
        "batch = plan.Batch((Task(index=0, prompt='a', seed=place.rank, stem='0'),))\n"
        "try: loop._should_leave(batch)\n"
        "except Exception as error: print(f'CAUGHT {type(error).__name__} {error}', flush=True)\n"
        "topology.leave()\n"
    )
    script = tmp_path / "ranks.py"
    script.write_text(code)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    ended = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert ended.stdout.count("CAUGHT ReplicaError Ranks [0, 1] of one replica") == 2, ended.stdout + ended.stderr


@pytest.mark.parametrize(("error", "codes"), [("errors.UserError('no weights')", "2 2"), ("KeyError('w')", "1 1")])
def test_what_fails_on_one_rank_ends_all_at_once(tmp_path: Path, error: str, codes: str) -> None:
    """The others would wait for it until a time limit, and rank 0 alone tells a user's mistake."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os\n"
        "from dglaunch import errors, topology\n"
        "say = lambda line: os.write(1, (line + chr(10)).encode())\n"
        "place = topology.Topology(rank=int(os.environ['RANK']), world_size=2, local_world_size=2, distributed=True)\n"
        "channel = topology.Channel(place, 'cpu')\n"
        "say(f'BOTH {channel.together(lambda: place.rank * 10)}')\n"
        "def load():\n"
        f"    if place.rank == 1: raise {error}\n"
        "try: channel.together(load)\n"
        "except errors.DglaunchError as error: say(f'CODE {error.exit_code}')\n"
        "except KeyError as error: say('CODE 1')\n"
        "topology.leave()\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    ended = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, timeout=120)
    told = ended.stdout.split()
    assert sorted(told[n + 1] for n, word in enumerate(told) if word == "BOTH") == ["0", "10"], ended.stderr
    assert " ".join(told[n + 1] for n, word in enumerate(told) if word == "CODE") == codes, ended.stdout + ended.stderr


def rank_0_memory(tmp_path: Path, count: int) -> int:
    path = write_jsonl(tmp_path / f"m{count}.jsonl", [{"prompt": "x", "width": 256, "height": 256}] * count)
    out = tmp_path / f"memory{count}"
    ended = dglaunch(*FAKE, "--prompts_file", path, "--batch_size", "4", "--output_dir", out, nproc=2)
    assert ended.code == 0, ended.output
    return run_json(out)["peak_memory_bytes"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """200 KB an image: gathered at the end, 800 more would be 160 MB."""
    few, many = rank_0_memory(tmp_path, 200), rank_0_memory(tmp_path, 1000)
    assert many - few < 40 * 2**20, f"{few / 2**20:.0f} MiB for 200 images, {many / 2**20:.0f} MiB for 1,000"


def test_plan_prints_what_the_run_does(tmp_path: Path, prompts: Path) -> None:
    ended = dglaunch(
        "plan",
        *FAKE,
        "--prompts_file",
        prompts,
        "--batch_size",
        "4",
        "--world_size",
        "4",
        "--output_dir",
        tmp_path / "out",
    )
    assert ended.code == 0, ended.output
    assert "4 replicas of one rank" in ended.output and "23 images in 8 batches" in ended.output
    assert not (tmp_path / "out").exists()


def test_plan_of_many_prompts_for_many_ranks_is_quick_and_small(tmp_path: Path) -> None:
    """A short form of the million (make soak): 100,000 prompts for 1,024 ranks."""
    seconds, gib = plan_of(tmp_path, 100_000)
    assert seconds < 20 and gib < 1


@pytest.mark.slow
def test_plan_of_a_million_prompts(tmp_path: Path) -> None:
    seconds, gib = plan_of(tmp_path, 1_000_000)
    print(f"\nplan of 1,000,000 prompts for 1,024 ranks: {seconds:.1f} s, {gib:.2f} GiB")
    assert seconds < 20 and gib < 2


def plan_of(tmp_path: Path, count: int) -> tuple[float, float]:
    path = tmp_path / "many.jsonl"
    with path.open("w") as lines:
        for number in range(count):
            lines.write(json.dumps({"prompt": f"a photo of thing number {number} in a landscape, detailed"}) + "\n")
    script = (
        "import resource, sys; from dglaunch.__main__ import main; code = main(sys.argv[1:])\n"
        "print('MEMORY', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    words = ["plan", "t2i", "--model_name", "tiny", "--prompts_file", str(path), "--world_size", "1024"]
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], env=clean_environment(), capture_output=True, text=True
    )
    seconds = time.monotonic() - began
    assert ended.returncode == 0 and "1024 replicas" in ended.stdout and f"{count:,} images" in ended.stdout, (
        ended.stderr
    )
    return seconds, int(re.search(r"MEMORY (\d+)", ended.stdout)[1]) / 2**20  # type: ignore[index]


def test_resume_of_many_ledger_lines_takes_seconds(tmp_path: Path) -> None:
    from dglaunch.data.task import Task
    from dglaunch.output.writer import Writer

    todo = [Task(index=n, prompt=f"p{n}", seed=n, stem=f"{n:06d}") for n in range(100_000)]
    with (tmp_path / "metadata.jsonl").open("w") as lines:
        for task in todo:
            line = {
                "file_name": f"{task.stem}.png",
                "index": task.index,
                "sample": 0,
                **task.content(),
                "key": task.key,
                "bytes": 1,
            }
            lines.write(json.dumps(line) + "\n")
    for task in todo[:-1]:
        (tmp_path / f"{task.stem}.png").write_bytes(b"x")
    began = time.monotonic()
    writer = Writer(tmp_path)
    found = writer.open({}, todo, "png", overwrite=False)
    seconds = time.monotonic() - began
    writer.close()
    assert len(found.done) == 99_999 and seconds < 20


def test_one_seed_one_noise() -> None:
    """The fake's pictures differ by seed and by prompt, or the comparisons above could not fail."""
    from dglaunch.backends.fake import draw
    from dglaunch.data.task import Task

    one, two, three = (Task(index=0, prompt=p, seed=s, stem="0") for p, s in (("a", 1), ("a", 2), ("b", 1)))
    assert np.abs(np.asarray(draw(one)).astype(int) - np.asarray(draw(two))).max() > 10
    assert np.abs(np.asarray(draw(one)).astype(int) - np.asarray(draw(three))).max() > 0
