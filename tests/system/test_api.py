"""The API backends against real HTTP servers on loopback, with the official SDK clients, in this process: `t2i`, and what
both commands share. What only `edit` has is in test_api_edit.py, processes and ranks in torchrun/test_api.py.

Layers, cheapest first: what is refused before anything is sent, whole runs.
"""

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.backends.api.profile import ApiProfile
from dglaunch.cli.main import main
from dglaunch.config import BackendConfig, RemoteConfig, T2IConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.output.encode import decode_description
from dglaunch.run import loop
from support.api_servers import KEY, RETRY_AFTER_S, ApiServer, colour_of
from support.remote_runs import MODELS, assert_no_key, assert_right_images, rows_of, wait_for, words
from support.results import ledger, run_json

# -- refused before anything is sent ------------------------------------------------------------------------------

REFUSED: list[tuple[str, list[str], dict[str, Any], str]] = [
    (
        "openai",
        ["--torch_dtype", "float16", "--enable_vae_tiling"],
        {},
        "--torch_dtype, --enable_vae_tiling would do nothing",
    ),
    ("openai", ["--device", "cpu"], {}, "--device would do nothing"),
    ("openai", ["--encode", "ahead", "--embedding_cache", "e"], {}, "--encode, --embedding_cache would do nothing"),
    ("openai", ["--max_sequence_length", "64"], {}, "--max_sequence_length would do nothing"),
    ("openai", ["--on_long_prompt", "fail"], {}, "--on_long_prompt would do nothing"),
    ("openai", ["--num_inference_steps", "4"], {}, "takes no num_inference_steps"),
    ("google_genai", [], {"negative_prompt": "rain"}, "takes no negative_prompt"),
    ("openai", ["--width", "1024"], {}, "width and height together"),
    ("openai", [], {"width": 512, "height": 512}, "makes 1024x1024, 1536x1024, 1024x1536"),
    ("openai", ["--model_name", "gpt-image-2"], {"width": 1000, "height": 1000}, "multiples of 16"),
    ("google_genai", [], {"width": 512, "height": 512}, "makes 1024x1024, 832x1248"),
    ("google_genai", [], {"seed": 2**40}, "takes seeds up to 2147483647"),
    ("openai", ["--batch_size", "11"], {}, "at most 10 images"),
    ("openai", ["--model_name", "tiny"], {}, "needs --model_name"),
    ("openai", ["--num_processes", "0"], {}, "--num_processes is 0"),
    ("openai", ["--api_base", f"http://user:{KEY}@host/v1"], {}, "holds a user name"),
    ("openai", ["--api_base", "host/v1"], {}, "must be an address"),
]


@pytest.mark.parametrize(("backend", "flags", "columns", "said"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, flags: list[str],
    columns: dict[str, Any], said: str,
) -> None:  # fmt: skip
    rows = rows_of(tmp_path, ["a"], **columns)
    assert main(words(server, backend, rows, tmp_path / "out", *flags)) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and KEY not in told
    assert server.num_requests == 0 and not (tmp_path / "out").exists()


def test_flags_of_the_api_do_nothing_for_a_local_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--timeout", "600", "--max_requests", "3"]  # the first one is the default, and still given
    assert main(["t2i", "--backend", "fake", "--prompt", "a", "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert "--timeout, --max_requests would do nothing" in capsys.readouterr().err


def check_job(config: T2IConfig, topology: Topology) -> None:
    profile = ApiProfile()
    profile.check(config, profile.resolve(config, topology), topology, [])


def test_more_ranks_than_requests_at_a_time_are_refused() -> None:
    config = T2IConfig(
        backend=BackendConfig(backend="openai", model_name="m"), remote=RemoteConfig(max_global_workers=3), prompt="a"
    )
    with pytest.raises(UserError, match="3 with 4 ranks"):
        check_job(config, Topology(world_size=4))


def test_a_plan_needs_no_key_and_sends_nothing(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    rows = rows_of(tmp_path, ["a", "b"], num_images_per_prompt=12)
    assert main(["plan", *words(server, "openai", rows, tmp_path / "out")]) == 0
    assert "24 images in 4 batches" in capsys.readouterr().out  # 12 samples are 6 + 6, as the API makes 10 at most
    assert main(words(server, "openai", rows, tmp_path / "out")) == 2
    assert "Set OPENAI_API_KEY" in capsys.readouterr().err and server.num_requests == 0


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", MODELS)
def test_every_trouble_ends_as_an_image_or_as_a_line(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    kinds = ["", "[429]", "[500]", "[timeout]", "[drop]", "[truncated]", "[text]"]
    good = [f"prompt {n} {kinds[n % len(kinds)]}" for n in range(28)]
    bad = ["one [refused]", "two [always 500]", "three [always text]", "four [always truncated]"]
    out = tmp_path / "out"
    flags = ["--num_processes", "6", "--timeout", "4", "--api_max_retries", "2"]
    assert main(words(server, backend, rows_of(tmp_path, good + bad), out, *flags)) == 3
    assert_right_images(out, good)
    reasons = {line["prompt"]: line["error"] for line in ledger(out, "failures.jsonl")}
    assert set(reasons) == set(bad)
    assert ("safety system" if backend == "openai" else "not this") in reasons[bad[0]]
    assert "HTTP 500" in reasons[bad[1]] and "tried 3 times" in reasons[bad[1]] and "damaged" in reasons[bad[3]]
    assert [server.asked[prompt] for prompt in bad] == [1, 3, 3, 3]
    assert all(server.paid[prompt] == 1 for prompt in good)
    assert server.highest <= 6
    told = run_json(out)
    assert told["usage"]["requests"] == server.num_requests and told["usage"]["retries"] > 0
    total = {"openai": "total_tokens", "google_genai": "total_token_count"}[backend]
    assert told["usage"][total] >= 110 * len(good)
    captured = capsys.readouterr()
    assert_no_key(out, captured.out, captured.err)


def test_a_wrong_key_ends_the_run_once_before_anything_is_paid(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "sk-wrong-0123456789abcdefghijkl"
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    monkeypatch.setenv("GEMINI_API_KEY", wrong)
    for backend in MODELS:
        assert main(words(server, backend, rows_of(tmp_path, ["a", "b"]), tmp_path / backend)) == 2
        told = capsys.readouterr().err
        assert told.count("does not accept the key") == 1 and "Traceback" not in told and wrong[:10] not in told
    assert server.num_requests == 0


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_can_get_past_ends_the_run_with_what_came(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    rows, out = rows_of(tmp_path, [f"{n}" for n in range(40)]), tmp_path / "out"
    assert main(words(server, "openai", rows, out, "--max_requests", "10")) == 130
    server.deny = status
    assert main(words(server, "openai", rows, out, "--num_processes", "4")) == 2
    assert "dglaunch: the OpenAI images API" in capsys.readouterr().err
    assert server.num_requests <= 10 + 4 and len(ledger(out)) == 10 and not ledger(out, "failures.jsonl")
    server.deny = None
    assert main(words(server, "openai", rows, out)) == 0
    assert set(server.paid.values()) == {1}


def test_an_unreachable_server_ends_the_run_at_the_start(
    keys: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer() as server:
        pass
    for backend in MODELS:
        assert main(words(server, backend, rows_of(tmp_path, ["a"]), tmp_path / backend)) == 2
        assert "cannot be reached at http://127.0.0.1" in capsys.readouterr().err


def test_concurrency_falls_when_told_to_slow_down_and_the_report_says_so(server: ApiServer, tmp_path: Path) -> None:
    server.latency, server.most = 0.01, 3
    prompts, out = [f"{n}" for n in range(80)], tmp_path / "out"
    flags = ["--num_processes", "12", "--api_max_retries", "30"]
    assert main(words(server, "openai", rows_of(tmp_path, prompts), out, *flags)) == 0
    assert_right_images(out, prompts)
    told = run_json(out)
    assert told["usage"]["slow_downs"] > 0
    assert any("asked to slow down: 12 -> 6 requests at a time" in event for event in told["events"])
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize("backend", MODELS)
def test_a_server_that_names_a_pause_gets_it(server: ApiServer, tmp_path: Path, backend: str) -> None:
    prompts, out = [f"{n}{' [429]' * (n == 3)}" for n in range(12)], tmp_path / "out"
    flags = ["--num_processes", "4", "--retry_delay", "0.001"]
    assert main(words(server, backend, rows_of(tmp_path, prompts), out, *flags)) == 0
    assert_right_images(out, prompts)
    told, again = server.asked_at["3 [429]"]
    assert again - told >= RETRY_AFTER_S


def test_concurrency_rises_again_when_the_server_has_room(server: ApiServer, tmp_path: Path) -> None:
    prompts, out = [f"{n}{' [429]' * (n == 0)}" for n in range(100)], tmp_path / "out"
    assert main(words(server, "openai", rows_of(tmp_path, prompts), out, "--num_processes", "8")) == 0
    changes = [event.split(" s ")[1] for event in run_json(out)["events"]]
    assert changes == ["the server asked to slow down: 8 -> 4 requests at a time", "back to 8 requests at a time"]


def test_max_requests_is_a_brake_and_the_next_start_goes_on(server: ApiServer, tmp_path: Path) -> None:
    prompts, out = [f"{n}" for n in range(25)], tmp_path / "out"
    command = words(server, "google_genai", rows_of(tmp_path, prompts), out, "--max_requests", "10")
    assert [main(command), server.num_requests] == [130, 10]
    assert any("--max_requests (10) is used up" in event for event in run_json(out)["events"])
    assert [main(command), server.num_requests] == [130, 20]
    assert [main(command), server.num_requests] == [0, 25]
    assert_right_images(out, prompts)


def test_max_cost_counts_what_the_answers_say(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = [f"{n}" for n in range(30)], tmp_path / "out"
    server.usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cost": 0.5}
    command = words(server, "openai", rows_of(tmp_path, prompts), out, "--num_processes", "2", "--max_cost", "5")
    assert main(command) == 130
    assert 5.0 <= run_json(out)["usage"]["cost"] <= 5.5  # what was under way came in
    server.usage = None
    assert main(command) == 2
    assert "do not report a cost" in capsys.readouterr().err


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1.0])
def test_a_cost_that_is_no_amount_is_none(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: float
) -> None:
    """NaN was added up, and --max_cost never reached; run.json was no JSON."""
    prompts, out = [f"{n}" for n in range(30)], tmp_path / "out"
    server.usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cost": cost}
    words_of_run = words(server, "openai", rows_of(tmp_path, prompts), out, "--num_processes", "2")
    assert main([*words_of_run, "--max_cost", "5"]) == 2
    assert "do not report a cost" in capsys.readouterr().err
    assert server.num_requests <= 4 and "cost" not in run_json(out)["usage"]


def test_samples_of_a_row_come_in_one_request_and_only_what_lacks_is_asked_again(
    server: ApiServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = words(server, "openai", rows_of(tmp_path, ["a", "b [truncated]"]), out, "--num_images_per_prompt", "4")
    assert main(command) == 0
    assert sorted((body["prompt"], body["n"]) for body in server.bodies) == [
        ("a", 4),
        ("b [truncated]", 1),
        ("b [truncated]", 4),
    ]
    (out / "000000_02.png").unlink()
    assert main(command) == 0
    assert server.bodies[-1]["n"] == 1 and server.paid == {"a": 5, "b [truncated]": 4}
    assert len(ledger(out)) == 8


def test_answers_with_addresses(server: ApiServer, tmp_path: Path) -> None:
    server.as_address = True
    assert main(words(server, "openai", rows_of(tmp_path, ["a", "b"]), tmp_path / "out")) == 0
    assert_right_images(tmp_path / "out", ["a", "b"])


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_every_output_format_carries_its_text(server: ApiServer, tmp_path: Path, output_format: str) -> None:
    out = tmp_path / "out"
    command = words(server, "openai", rows_of(tmp_path, ["a", "b [truncated]"]), out, "--output_format", output_format)
    assert main(command) == 0
    for line in ledger(out):
        image = Image.open(out / line["file_name"])
        assert decode_description(image)["index"] == line["index"]  # type: ignore[index]
        assert (image.width, image.height) == (line["width"], line["height"]) == (32, 32)
        near = np.abs(np.asarray(image.convert("RGB"))[3, 3].astype(int) - colour_of(line["prompt"]))
        assert near.max() <= (0 if output_format == "png" else 6)


def test_sizes_and_seeds_reach_the_api_where_it_has_them_and_the_ledger_says_where_not(
    server: ApiServer, tmp_path: Path
) -> None:
    assert main(words(server, "openai", rows_of(tmp_path, ["a"], width=1536, height=1024), tmp_path / "o")) == 0
    assert server.bodies[-1]["raw"] == {"model": "gpt-image-1.5", "n": 1, "prompt": "a", "size": "1536x1024"}
    assert ledger(tmp_path / "o")[0]["seed_sent"] is False and "not sent" in run_json(tmp_path / "o")["choices"]["seed"]
    assert (
        main(words(server, "google_genai", rows_of(tmp_path, ["a"], width=1344, height=768, seed=7), tmp_path / "g"))
        == 0
    )
    sent = server.bodies[-1]["raw"]["generationConfig"]
    assert (
        sent["seed"] == 7 and sent["imageConfig"] == {"aspectRatio": "16:9"} and sent["responseModalities"] == ["IMAGE"]
    )
    assert ledger(tmp_path / "g")[0]["seed_sent"] is True
    flags = ["--model_name", "imagen-4.0-generate-001", "--num_images_per_prompt", "3", "--negative_prompt", "rain"]
    assert (
        main(words(server, "google_genai", rows_of(tmp_path, ["a"], width=2816, height=1536), tmp_path / "i", *flags))
        == 0
    )
    sent = server.bodies[-1]["raw"]["parameters"]
    assert {
        "sampleCount": 3,
        "aspectRatio": "16:9",
        "sampleImageSize": "2K",
        "negativePrompt": "rain",
    }.items() <= sent.items()
    assert len(ledger(tmp_path / "i")) == 3


def test_a_stopped_run_waits_for_its_requests_but_not_for_ever(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LAST_BATCHES_S", {False: 1.0})
    out, prompts = tmp_path / "out", ["a", "b", "c [always timeout]"]
    threading.Thread(
        target=lambda: (wait_for(lambda: len(ledger(out)) == 2), os.kill(os.getpid(), signal.SIGTERM))
    ).start()
    assert main(words(server, "openai", rows_of(tmp_path, prompts), out, "--num_processes", "3")) == 130
    assert any("had no answer in time" in event for event in run_json(out)["events"])
    assert_right_images(out, prompts[:2])
