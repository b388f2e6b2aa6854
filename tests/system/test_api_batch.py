"""Batch mode (--api_batch) with the official SDK clients against the server on loopback, which counts what is ordered.

Layers, cheapest first: what is refused before anything is sent, whole runs, runs that are stopped and killed.
"""

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dglaunch.backends.api import batch_api
from dglaunch.backends.api.batch_api import BatchLimits
from dglaunch.cli.main import main
from dglaunch.output.batch_jobs import jobs_of
from dglaunch.output.ledger import OutputFolder
from support.api_servers import ApiServer
from support.edit_images import png
from support.killed import KILLED, killed_after
from support.remote_runs import assert_no_key, assert_right_images, edits_of, rows_of, wait_for, words
from support.results import ledger, run_json, write_jsonl
from support.selection import rarely

BACKENDS = ["openai", "google_genai"]


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests a job, and two jobs at a time."""
    for backend in BACKENDS:
        monkeypatch.setitem(batch_api.LIMITS, backend, BatchLimits(requests=3, num_bytes=2_000_000, jobs=2))


def command(server: ApiServer, backend: str, rows: Path, out: Path, *more: Any) -> list[str]:
    return words(server, backend, rows, out, "--api_batch", *more)


def failures(out: Path) -> list[dict[str, Any]]:
    path = out / "failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_ordered_once(server: ApiServer, prompts: list[str]) -> None:
    """Each prompt once, and once more for each job that ended without answering it; paid once all the same."""
    assert dict(server.batches.ordered) == {prompt: 1 + server.batches.unanswered[prompt] for prompt in prompts}
    assert dict(server.paid) == dict.fromkeys(prompts, 1)


def no_records(out: Path) -> bool:
    return not list(out.glob(".dglaunch-job-*"))


# -- refused before anything is sent ------------------------------------------------------------------------------

REFUSED: list[tuple[str, list[str], str]] = [
    ("openai", ["--api_base", "http://127.0.0.1:9/v1"], "orders jobs from one server"),
    ("openai", ["--num_processes", "8"], "--num_processes would do nothing"),
    ("openai", ["--max_global_workers", "8"], "--max_global_workers would do nothing"),
    ("openai", ["--max_cost", "3"], "--max_cost cannot be kept with --api_batch"),
    ("openai", ["--node_rank", "0", "--num_nodes", "2"], "one process orders and takes everything"),
    ("google_genai", ["--api_project", "mine"], "Cloud Storage"),
]


@pytest.mark.parametrize(("backend", "flags", "said"), REFUSED)
def test_what_a_batch_cannot_do_is_refused_before_anything_is_sent(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend: str,
    flags: list[str], said: str,
) -> None:  # fmt: skip
    if "--api_project" in flags:
        monkeypatch.delenv("GEMINI_API_KEY")
    given = command(server, backend, rows_of(tmp_path, ["a"]), tmp_path / "out", *flags)
    assert main(given) == 2
    assert said in capsys.readouterr().err
    assert not server.num_requests and not server.batches.files and not server.got


def test_cancelling_is_for_batch_mode(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out", "--api_batch_cancel")) == 2
    assert "goes with --api_batch" in capsys.readouterr().err


def test_rows_larger_than_a_batch_file_are_told_all_at_once(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch_api.LIMITS, "openai", BatchLimits(requests=3, num_bytes=5_000, jobs=2))
    (tmp_path / "large.png").write_bytes(png(300))
    rows = [{"instruction": prompt, "input_images": "large.png"} for prompt in "ab"]
    assert main(command(server, "openai", write_jsonl(tmp_path / "edits.jsonl", rows), tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "2 bad rows" in said and "a batch file holds 5,000" in said
    assert not server.batches.files


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_is_ordered_as_jobs_and_all_comes(
    server: ApiServer, tmp_path: Path, small_jobs: None, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = [f"number {n}" for n in range(8)], tmp_path / "out"
    given = command(server, backend, rows_of(tmp_path, [*prompts, "no [refused]"]), out)
    assert main(given) == 3
    assert_right_images(out, prompts)
    assert [len(job.answers) + len(job.errors) for job in server.batches.jobs.values()] == [3, 3, 3]
    assert all(
        line["api_job"] == f"{'batches/' * (backend != 'openai')}batch_{line['index'] // 3}" for line in ledger(out)
    )
    assert [(line["index"], "safety system" in line["error"]) for line in failures(out)] == [(8, True)]
    said = capsys.readouterr()
    assert "ordered batch job" in said.err and "half the price" in said.err
    assert_no_key(out, said.out, said.err)
    assert run_json(out)["usage"]["requests"] == 9 and no_records(out)
    assert main(["verify", str(out)]) == 1  # one image is missing
    assert main(given) == 3  # what failed is ordered again, and nothing else
    assert server.batches.ordered == {**dict.fromkeys(prompts, 1), "no [refused]": 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_edits_go_with_their_images(server: ApiServer, tmp_path: Path, backend: str) -> None:
    prompts = ["redder", "bluer", "greener"]
    rows, images = edits_of(tmp_path, prompts, 2)
    assert main(command(server, backend, rows, tmp_path / "out")) == 0
    assert_right_images(tmp_path / "out", prompts, images)


def test_a_mask_goes_along(server: ApiServer, tmp_path: Path) -> None:
    for name in ("a.png", "mask.png"):
        (tmp_path / name).write_bytes(png(64))
    rows = write_jsonl(tmp_path / "edits.jsonl", [{"instruction": "x", "input_images": "a.png", "mask": "mask.png"}])
    assert main(command(server, "openai", rows, tmp_path / "out")) == 0
    assert server.bodies[-1]["mask"] == png(64)


OPTIONS = {
    "openai": ["--model_name", "gpt-image-2.6-flare", "--quality", "low", "--api_extra", "complexity=high"],
    "google_genai": [
        *(
            "--model_name",
            "gemini-3-pro-image",
            "--image_config",
            "aspect_ratio=16:9",
            "--image_config",
            "image_size=2K",
        ),
        *("--safety_settings", "HARM_CATEGORY_HARASSMENT=BLOCK_ONLY_HIGH", "--system_instruction", "be bold"),
        *("--api_extra", "cachedContent=x", "--seed", "7"),
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_line_asks_what_a_request_asks(server: ApiServer, tmp_path: Path, backend: str) -> None:
    """The bodies in a batch file are ours; those of single requests the SDK's."""
    rows = rows_of(tmp_path, ["a fox"])
    sent = []
    for out, more in (("one", []), ("two", ["--api_batch"])):
        assert main(words(server, backend, rows, tmp_path / out, *OPTIONS[backend], *more)) == 0
        sent.append(server.bodies[-1]["raw"])
    assert sent[0] == sent[1]


def test_samples_go_together_and_what_is_missing_is_asked_for_again(server: ApiServer, tmp_path: Path) -> None:
    given = command(
        server, "openai", rows_of(tmp_path, ["a [one only]"]), tmp_path / "out", "--num_images_per_prompt", "3"
    )
    assert main(given) == 0
    assert len(ledger(tmp_path / "out")) == 3 and [body["n"] for body in server.bodies] == [3, 2]


@pytest.mark.parametrize("backend", rarely(BACKENDS, ["openai"]))
def test_a_draft_in_a_batch_is_not_the_image(server: ApiServer, tmp_path: Path, backend: str) -> None:
    prompt = "a [draft]" if backend == "google_genai" else "a [rewritten]"
    assert main(command(server, backend, rows_of(tmp_path, [prompt]), tmp_path / "out")) == 0
    assert_right_images(tmp_path / "out", [prompt])
    assert {"answer_text", "revised_prompt"} & ledger(tmp_path / "out")[0].keys()


TROUBLE = [(trouble, backend) for trouble in ("drop", "500", "503", "429", "fail", "expire") for backend in BACKENDS]
OFTEN = {("drop", "openai"), ("429", "openai"), ("fail", "openai"), ("expire", "openai"), ("500", "google_genai"), ("expire", "google_genai")}  # fmt: skip


@pytest.mark.parametrize(("trouble", "backend"), rarely(TROUBLE, set(TROUBLE) - OFTEN))
def test_trouble_with_an_order_costs_nothing_twice(
    server: ApiServer, tmp_path: Path, small_jobs: None, backend: str, trouble: str
) -> None:
    prompts, out = [f"number {n}" for n in range(5)], tmp_path / "out"
    server.batches.trouble += ["", trouble]
    server.batches.lists_after = 0.1
    assert main(command(server, backend, rows_of(tmp_path, prompts), out)) == 0
    assert_right_images(out, prompts)
    assert_ordered_once(server, prompts)
    assert no_records(out)


def test_a_line_that_the_api_cannot_read_is_that_items_failure(server: ApiServer, tmp_path: Path) -> None:
    server.batches.trouble.append("bad line")
    assert main(command(server, "openai", rows_of(tmp_path, ["a", "b", "c"]), tmp_path / "out")) == 3
    assert [(line["prompt"], line["error"]) for line in failures(tmp_path / "out")] == [
        ("a", "Invalid value in this line")
    ]
    assert_right_images(tmp_path / "out", ["b", "c"])


def test_a_job_that_always_fails_ends_as_its_items_failures(server: ApiServer, tmp_path: Path) -> None:
    server.batches.trouble += ["fail"] * 9
    given = command(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out", "--api_max_retries", "2")
    assert main(given) == 3
    assert [line["error"] for line in failures(tmp_path / "out")] == [
        "Enqueued token limit reached for this model (tried 3 times)"
    ]
    assert len(server.batches.jobs) == 3


def test_an_account_without_money_ends_the_run_after_what_there_is_was_taken(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(server, "google_genai", rows_of(tmp_path, ["a", "b [limited]", "c"]), out)) == 2
    assert_right_images(out, ["a", "c"])
    assert "PUP_LIMITED_DISABLED" in capsys.readouterr().err
    assert (
        main(command(server, "google_genai", rows_of(tmp_path, ["a", "b [limited]", "c"]), out)) == 0
    )  # the next start


def test_max_requests_orders_so_many(server: ApiServer, tmp_path: Path, small_jobs: None) -> None:
    prompts, out = [f"number {n}" for n in range(7)], tmp_path / "out"
    given = command(server, "openai", rows_of(tmp_path, prompts), out, "--max_requests", "5")
    assert main(given) == 130 and server.batches.ordered.total() == 5
    assert main(given) == 0
    assert_ordered_once(server, prompts)


# -- stopped, and taken up ----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(server: ApiServer, tmp_path: Path, small_jobs: None) -> Iterator[tuple[list[str], Path]]:
    """The table and the folder of a run that was stopped with Ctrl-C while two jobs of three were under way."""
    prompts, out = [f"number {n}" for n in range(8)], tmp_path / "out"
    server.batches.latency = 600.0
    rows = rows_of(tmp_path, prompts)

    def stop() -> None:
        wait_for(lambda: [job.state for job in jobs_of(OutputFolder(out))] == ["validating"] * 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert main(command(server, "openai", rows, out)) == 130
    yield prompts, out


def test_ctrl_c_leaves_the_jobs_running_and_another_machine_takes_them(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = stopped
    assert "they go on and are paid for" in str(run_json(out)["events"]) and not ledger(out)
    capsys.readouterr()
    assert main(["status", str(out)]) == 130
    said = capsys.readouterr().out
    assert "batch job batch_0 (openai): validating when it was last looked at, 3 images to come" in said
    assert "batch_1" in said and "batch_2" not in said
    there = tmp_path / "there"
    shutil.copytree(out, there)
    server.batches.go_on()
    assert main(command(server, "openai", tmp_path / "rows.jsonl", there)) == 0
    assert_right_images(there, prompts)
    assert_ordered_once(server, prompts)
    assert no_records(there)


REFUSED_LATER: list[tuple[list[str], str]] = [
    (["--no_api_batch"], "With --api_batch the same command takes them"),
    (["--overwrite"], "Without --overwrite the same command takes them"),
    (["--quality", "low"], "quality: None -> 'low'"),
    (["--model_name", "gpt-image-2"], "model_name: 'gpt-image-1.5' -> 'gpt-image-2'"),
    (["--backend", "fake"], "waits for 6 images of 2 batch jobs (batch_0, batch_1)"),
]


def test_no_start_orders_what_is_ordered_already(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = stopped
    before = server.batches.ordered.copy()
    for flags, said in REFUSED_LATER:
        given = command(server, "openai", tmp_path / "rows.jsonl", out, *flags)
        if flags[1:] == ["fake"]:
            given = [
                "t2i",
                "--backend",
                "fake",
                "--prompts_file",
                str(tmp_path / "rows.jsonl"),
                "--output_dir",
                str(out),
            ]
        capsys.readouterr()
        assert main(given) == 2, flags
        assert said in capsys.readouterr().err, flags
    assert main(["merge", str(out), "--output_dir", str(tmp_path / "merged")]) == 2
    assert server.batches.ordered == before


def test_cancelling_takes_what_was_made_and_orders_nothing(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path
) -> None:
    prompts, out = stopped
    given = command(server, "openai", tmp_path / "rows.jsonl", out)
    server.batches.stop_after = 2
    server.batches.go_on()
    assert main([*given, "--api_batch_cancel"]) == 130
    assert "2 batch jobs cancelled" in str(run_json(out)["events"])
    assert server.batches.ordered.total() == 6 and no_records(out)
    made = len(ledger(out))
    server.batches.stop_after = None
    assert main(given) == 0
    assert_right_images(out, prompts)
    assert_ordered_once(server, prompts)
    assert made == 6 - server.batches.unanswered.total()


def test_the_key_of_another_account_orders_nothing_again(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = stopped
    server.batches.jobs.clear()
    assert main(command(server, "openai", tmp_path / "rows.jsonl", out)) == 2
    assert "the key of another account" in capsys.readouterr().err
    assert server.batches.ordered.total() == 6


def test_answers_that_are_gone_are_asked_for_again(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path
) -> None:
    prompts, out = stopped
    server.batches.go_on()
    wait_for(lambda: {"out-batch_0", "out-batch_1"} <= server.batches.files.keys())
    del server.batches.files["out-batch_0"]
    server.batches.files["out-batch_1"] = b"no json\n" + server.batches.files["out-batch_1"]
    assert main(command(server, "openai", tmp_path / "rows.jsonl", out)) == 0
    assert_right_images(out, prompts)
    assert "are gone" in str(run_json(out)["events"])


def test_rows_that_changed_meanwhile_are_ordered_as_they_are_now(
    server: ApiServer, stopped: tuple[list[str], Path], tmp_path: Path
) -> None:
    prompts, out = stopped
    server.batches.go_on()
    prompts[1] = "another"
    assert main(command(server, "openai", rows_of(tmp_path, prompts), out)) == 0
    assert_right_images(out, prompts)
    assert server.batches.ordered["another"] == 1 and server.batches.ordered[prompts[0]] == 1
    assert no_records(out)


def test_redo_orders_only_what_is_made_anew(server: ApiServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(server, "google_genai", rows_of(tmp_path, ["a", "b"]), out)) == 0
    assert (
        main(["redo", str(out), "--filter_rows", "1", "--seed_offset", "5", "--set", f"api_base={server.google}"]) == 0
    )
    assert server.batches.ordered == {"a": 1, "b": 2}
    assert [line["seed"] for line in ledger(out) if line["prompt"] == "b"][-1] == 6


# -- killed -------------------------------------------------------------------------------------------------------


def kill_and_resume(
    server: ApiServer, folder: Path, backend: str, kills: int, draw: random.Random, *trouble: str
) -> None:
    """A job of 14 images that is killed so often, and then left alone."""
    prompts, out = [f"{folder.name} {n}" for n in range(14)], folder / "out"
    given = command(server, backend, rows_of(folder, prompts), out)
    server.batches.trouble[:] = list(trouble)
    for _ in range(kills):
        if "late" not in server.batches.trouble and draw.random() < 0.4:
            server.batches.trouble.append("late")
        if (code := killed_after(draw.uniform(0.1, 1.2), *given)) != KILLED:
            assert code == 0
    assert main(given) == 0
    assert_right_images(out, prompts)
    assert_ordered_once(server, prompts)
    assert no_records(out) and not list(out.glob("*.tmp"))
    for counter in (server.batches.ordered, server.batches.unanswered, server.paid):
        counter.clear()


def prepared(server: ApiServer) -> None:
    """What a fork need not import for itself; a job that takes a while, and a list that shows a new one late."""
    import openai  # noqa: F401

    server.batches.latency, server.batches.pace, server.batches.lists_after = 0.1, 0.02, 0.15


@pytest.mark.parametrize(
    ("backend", "trouble"), rarely([("openai", "expire"), ("google_genai", "late")], {("google_genai", "late")})
)
def test_killed_at_some_moments_nothing_is_ordered_twice(
    server: ApiServer, tmp_path: Path, small_jobs: None, backend: str, trouble: str
) -> None:
    prepared(server)
    kill_and_resume(server, tmp_path, backend, 3, random.Random(), trouble)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_50_random_moments_nothing_is_ordered_twice(
    server: ApiServer, tmp_path: Path, small_jobs: None, backend: str
) -> None:
    """Some of them between an order and its answer, which the server holds back; some jobs expire when they are half done."""
    prepared(server)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_and_resume(server, folder, backend, 5, draw, *["expire", "late", "drop", ""][number % 4 :])
