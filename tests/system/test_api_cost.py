"""What runs of an API cost, with the official SDK clients against a server on loopback: counted from the tokens that answers
report, limited by --max_cost, added up over starts."""

import json
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.api_servers import ApiServer
from support.remote_runs import assert_right_images, rows_of, words
from support.results import ledger, run_json

USAGE = {
    "input_tokens": 20, "input_tokens_details": {"text_tokens": 20, "image_tokens": 0}, "output_tokens": 196,
    "total_tokens": 216,
}  # fmt: skip
EACH = (20 * 5 + 196 * 30) / 1e6
"""Dollars of an answer with these."""
CHEAP = ["--model_name", "gpt-image-2", "--quality", "low", "--width", "1024", "--height", "1024"]


def test_max_cost_is_never_passed_and_the_next_start_goes_on_and_adds_up(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.usage, server.latency = USAGE, 0.01
    prompts, out = [f"{n}" for n in range(20)], tmp_path / "out"
    command = words(
        server, "openai", rows_of(tmp_path, prompts), out, *CHEAP, "--num_processes", "6", "--max_cost", "0.05"
    )
    assert main(command) == 130
    first = run_json(out)
    assert server.num_requests == len(ledger(out)) == 8, "a ninth might cost more than is left"
    assert first["usage"]["cost"] == pytest.approx(8 * EACH, abs=1e-6) and "cost_before" not in first
    assert all(line["cost_usd"] == pytest.approx(EACH, abs=1e-6) for line in ledger(out))
    assert any("might go beyond this rank's part of --max_cost (0.05)" in event for event in first["events"])
    assert main(command) == 130 and main(command) == 0
    assert_right_images(out, prompts)
    last = run_json(out)
    assert last["cost_before"] == pytest.approx(16 * EACH, abs=1e-5)
    assert set(server.paid.values()) == {1}
    assert f"${4 * EACH:.4f} in this start, ${20 * EACH:.4f} in all" in " ".join(capsys.readouterr().err.split())


def test_a_start_that_was_killed_has_cost_what_its_images_did(server: ApiServer, tmp_path: Path) -> None:
    server.usage = USAGE
    prompts, out = [f"{n}" for n in range(6)], tmp_path / "out"
    command = words(server, "openai", rows_of(tmp_path, prompts), out, *CHEAP)
    assert main([*command, "--max_requests", "4"]) == 130
    killed = {name: value for name, value in run_json(out).items() if name != "usage"} | {"outcome": "running"}
    (out / "run.json").write_text(json.dumps(killed))
    assert main(command) == 0
    assert run_json(out)["cost_before"] == pytest.approx(4 * EACH, abs=1e-5)
    assert main([*command, "--overwrite"]) == 0 and "cost_before" not in run_json(out)


def test_an_answer_that_never_came_may_have_been_billed(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.usage = USAGE
    rows = rows_of(tmp_path, ["a", "b [timeout]", "c [500]"])
    assert main(words(server, "openai", rows, tmp_path / "out", *CHEAP, "--timeout", "0.5", "--max_cost", "1")) == 0
    usage = run_json(tmp_path / "out")["usage"]
    assert usage["cost"] == pytest.approx(3 * EACH, abs=1e-6)
    assert EACH < usage["cost_of_lost_answers"] < 2 * EACH, "one request: a server that answers 500 bills nothing"
    assert "more for requests whose answers" in " ".join(capsys.readouterr().err.split())


def test_gemini_s_tokens_have_a_price(server: ApiServer, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["a", "b"])
    assert main(words(server, "google_genai", rows, tmp_path / "out", "--max_cost", "1")) == 0
    assert run_json(tmp_path / "out")["usage"]["cost"] == pytest.approx(2 * (10 * 0.3 + 100 * 30) / 1e6)


def test_a_limit_below_one_image_sends_nothing(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out", *CHEAP, "--max_cost", "0.005")
    assert main(command) == 2
    assert "less than one image may cost, which is up to $0.0062" in capsys.readouterr().err
    assert server.num_requests == 0 and not server.got and not (tmp_path / "out").exists()
