"""The API backends as processes: killed and resumed, stopped by a signal, without torch, on several ranks."""

import signal
import time
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.api_servers import KEYS, ApiServer
from support.commands import end, kill_group, run_module, start
from support.ranks import launch, on_ranks
from support.remote_runs import assert_no_key, assert_right_images, edits_of, rows_of, wait_for, words
from support.results import ledger, run_json


@pytest.mark.parametrize(
    ("backend", "count"),
    [
        pytest.param("openai", 0, marks=pytest.mark.slow),
        ("google_genai", 3),
        pytest.param("openai", 1, marks=pytest.mark.slow),
        pytest.param("google_genai", 0, marks=pytest.mark.slow),
        pytest.param("google_genai", 1, marks=pytest.mark.slow),
        pytest.param("openai", 3, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_nothing_is_paid_twice(server: ApiServer, tmp_path: Path, backend: str, count: int) -> None:
    """Rows with every kind of trouble among them; `count` input images, or prompts alone."""
    kinds = ["", "", "[429]", "[500]", "[drop]", "[truncated]", "[text]", "", "", "[refused]"]
    prompts = [f"prompt {n} {kinds[n % len(kinds)] if n % 40 else '[timeout]'}" for n in range(100)]
    good = [prompt for prompt in prompts if "refused" not in prompt]
    out = tmp_path / "out"
    rows, given = edits_of(tmp_path, prompts, count) if count else (rows_of(tmp_path, prompts), {})
    flags = ["--num_processes", "16", "--max_global_workers", "16", "--timeout", "5"]
    command = words(server, backend, rows, out, *flags)
    server.hold_after = 40
    process = start(command, KEYS)
    try:
        # All that was paid is written, and what is under way waits in the server: killed now, it is never paid.
        wait_for(lambda: len(ledger(out)) >= 40 and len(ledger(out)) == server.paid.total())
    finally:
        kill_group(process)
        process.communicate()
    time.sleep(0.3)
    server.release.set()
    done = server.paid.total()
    assert 40 <= done < len(good) and process.returncode == -signal.SIGKILL
    second = end(start(command, KEYS))
    assert second.code == 3, second.output
    assert_right_images(out, good, given)
    assert all(line["prompt"].startswith(f"prompt {line['index']} ") for line in ledger(out))
    assert {line["prompt"] for line in ledger(out, "failures.jsonl")} == set(prompts) - set(good)
    assert all(server.paid[prompt] == 1 for prompt in good) and server.paid.total() == len(good)
    assert server.highest <= 16
    told = run_json(out)
    assert (told["num_ok"], told["num_failed"], told["num_skipped"]) == (len(good) - done, 10, done)
    assert_no_key(out, second.output)


def test_sigterm_takes_what_is_under_way_and_the_next_start_pays_for_the_rest_only(
    server: ApiServer, tmp_path: Path
) -> None:
    server.latency = 0.3
    prompts, out = [f"{n}" for n in range(24)], tmp_path / "out"
    command = words(server, "google_genai", rows_of(tmp_path, prompts), out)
    process = start(command, KEYS)
    wait_for(lambda: server.paid.total() >= 4)
    process.send_signal(signal.SIGTERM)
    ended = end(process, 60)
    assert ended.code == 130, ended.output
    assert 4 <= len(ledger(out)) < 24 and len(ledger(out)) == server.paid.total()
    assert run_json(out)["outcome"] == "drained"
    server.latency = 0.0
    assert main(command) == 0
    assert_right_images(out, prompts)
    assert set(server.paid.values()) == {1}


def test_runs_where_torch_cannot_be_imported(server: ApiServer, tmp_path: Path) -> None:
    ended = run_module(
        "support.without_torch", *words(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out"), **KEYS
    )
    assert ended.code == 0, ended.output
    assert_right_images(tmp_path / "out", ["a"])


def test_four_ranks_share_the_rows_and_the_ceiling(server: ApiServer, tmp_path: Path) -> None:
    server.latency = 0.05
    prompts = [f"{n}" for n in range(60)]
    flags = ["--num_processes", "4", "--max_global_workers", "6", "--shares", "static"]
    edits, given = edits_of(tmp_path, [f"edit {n}" for n in range(60)], 3)
    runs = [(rows_of(tmp_path, prompts), "openai"), (edits, "google_genai")]
    commands = [(words(server, backend, rows, tmp_path / backend, *flags), {}) for rows, backend in runs]
    cases = launch(tmp_path, 4, commands)
    assert [case.codes for case in cases] == [[0] * 4, [0] * 4], cases[0].output
    assert_right_images(tmp_path / "openai", prompts)
    assert_right_images(tmp_path / "google_genai", list(given), given)
    assert server.highest <= 6 and set(server.paid.values()) == {1}
    for out in (tmp_path / "openai", tmp_path / "google_genai"):
        assert run_json(out)["usage"]["requests"] == 60
        assert set(run_json(out)["images_by_rank"]) == {"0", "1", "2", "3"}
        assert_no_key(out, cases[0].output)


def test_a_wrong_key_is_told_once_whatever_the_number_of_ranks(server: ApiServer, tmp_path: Path) -> None:
    command = words(server, "openai", rows_of(tmp_path, ["a", "b"]), tmp_path / "out")
    ended = on_ranks(tmp_path, 2, *command, **{**KEYS, "OPENAI_API_KEY": "sk-wrong-0123456789abcdefghijkl"})
    assert ended.codes == [2, 2] and server.num_requests == 0
    assert ended.output.count("does not accept the key") == 1 and "sk-wrong" not in ended.output
