"""Servers that people run themselves, with the real `openai` client: the routes of vLLM-Omni, SGLang and LocalAI as their
sources define them (support/own_servers.py), one server and several."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.cli.main import main
from support.api_servers import KEY, ApiServer
from support.edit_images import png
from support.own_servers import colour
from support.remote_runs import edits_of, rows_of
from support.results import difference, ledger, run_json, write_jsonl
from support.selection import rarely

MODEL = "qwen-image"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def words(servers: list[ApiServer], rows: Path, out: Path, *more: Any) -> list[str]:
    command = ["edit", "--input", rows] if rows.stem == "edits" else ["t2i", "--prompts_file", rows]
    bases = [word for server in servers for word in ("--api_base", server.openai)]
    model = [] if "--model_name" in more else ["--model_name", MODEL]
    given = [*command, "--backend", "openai", *model, "--output_dir", out, *bases, "--retry_delay", "0.02"]
    return [str(word) for word in (*given, *more)]


def pixels(out: Path) -> dict[tuple[int, int], tuple[int, ...]]:
    return {
        (line["index"], line["sample"]): Image.open(out / line["file_name"]).convert("RGB").getpixel((1, 1))
        for line in ledger(out)
    }


@pytest.mark.parametrize("style", rarely(["vllm-omni", "sglang", "localai"], {"localai"}))
def test_each_server_gets_what_it_takes_and_no_key(tmp_path: Path, style: str) -> None:
    row = {"width": 48, "height": 32, "num_inference_steps": 9, "guidance_scale": 2.5, "negative_prompt": "rain"}
    rows = rows_of(tmp_path, ["a", "b"], **row)
    with ApiServer(style=style) as server:
        assert main(words([server], rows, tmp_path / "out", "--seed", "7")) == 0
    sent = {body["prompt"]: body["raw"] for body in server.bodies}
    assert sent["b"] == {
        "model": MODEL, "prompt": "b", "n": 1, "size": "48x32", "width": 48, "height": 32, "seed": 8,
        "num_inference_steps": 9, "true_cfg_scale": 2.5, "negative_prompt": "rain", "response_format": "b64_json",
    }  # fmt: skip
    assert set(server.keys) == {None}
    for line in ledger(tmp_path / "out"):
        assert line["seed_sent"] is True and line["seed"] == 7 + line["index"] and line["api_server"] == server.openai
        assert (line["width"], line["height"]) == (48, 32) and "revised_prompt" not in line
        assert pixels(tmp_path / "out")[line["index"], 0] == colour(sent[line["prompt"]], [], line["seed"])


def test_each_sample_is_a_request_with_a_seed_of_its_own(tmp_path: Path) -> None:
    rows, samples = rows_of(tmp_path, ["a", "b"]), ["--num_images_per_prompt", "3"]
    with ApiServer(style="sglang") as server:
        assert main(words([server], rows, tmp_path / "one", *samples)) == 0
        assert sorted(body["raw"]["seed"] for body in server.bodies) == [0, 1, 2, 3, 4, 5]
        assert {body["raw"]["n"] for body in server.bodies} == {1}
        assert main(words([server], rows, tmp_path / "lists", *samples, "--batch_size", "3")) == 0
        assert sorted(body["raw"]["seed"] for body in server.bodies[6:]) == [[0, 1, 2], [3, 4, 5]]
    assert len(set(pixels(tmp_path / "one").values())) == 6
    assert difference(tmp_path / "one", tmp_path / "lists") == 0


def test_an_edit_sends_the_same_as_fields_of_its_form(tmp_path: Path) -> None:
    rows, given = edits_of(tmp_path, ["a", "b"], 2, num_inference_steps=9, guidance_scale=2.5, negative_prompt="rain")
    with ApiServer(style="sglang") as server:
        assert (
            main(
                words(
                    [server], rows, tmp_path / "out", "--api_extra", "scheduler=euler", "--num_images_per_prompt", "2"
                )
            )
            == 0
        )
    assert {body["raw"]["seed"] for body in server.bodies} == {"0", "1", "2", "3"}
    for body in server.bodies:
        fields = {"num_inference_steps": "9", "true_cfg_scale": "2.5", "negative_prompt": "rain", "scheduler": "euler"}
        assert fields.items() <= body["raw"].items() and body["images"] == given[body["prompt"]]
    assert len(set(pixels(tmp_path / "out").values())) == 4


def test_the_guidance_scale_has_its_usual_name_for_other_models(tmp_path: Path) -> None:
    with ApiServer(style="vllm-omni", models=("flux",)) as server:
        rows = rows_of(tmp_path, ["a"], guidance_scale=2.5)
        assert main(words([server], rows, tmp_path / "out", "--model_name", "flux")) == 0
    assert server.bodies[0]["raw"]["guidance_scale"] == 2.5 and "true_cfg_scale" not in server.bodies[0]["raw"]


def test_extra_fields_are_json_and_part_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, extra = (
        rows_of(tmp_path, ["a"]),
        ["--api_extra", "step=20", "--api_extra", 'lora={"name": "x"}', "--api_extra", "scheduler=euler"],
    )
    with ApiServer(style="localai") as server:
        assert main(words([server], rows, tmp_path / "out", *extra)) == 0
        assert {"step": 20, "lora": {"name": "x"}, "scheduler": "euler"}.items() <= server.bodies[0]["raw"].items()
        assert main(words([server], rows, tmp_path / "out", "--api_extra", "step=21")) == 2
        assert "api_extra" in capsys.readouterr().err
        assert main(words([server], rows, tmp_path / "new", "--api_extra", "seed=1")) == 2
        assert "--api_extra seed=...: dglaunch sets it itself" in capsys.readouterr().err
        assert main(words([server], rows, tmp_path / "new", "--api_extra", "seed")) == 2
        assert "is no KEY=VALUE" in capsys.readouterr().err
    assert server.num_requests == 1


@pytest.mark.parametrize("style", rarely(["sglang", "localai"], {"localai"}))
def test_addresses_in_answers_may_be_relative(tmp_path: Path, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.backends.api import openai

    monkeypatch.setattr(openai, "_of_own_model", lambda *_: {"response_format": "url", "seed": 1})
    with ApiServer(style=style) as server:
        assert main(words([server], rows_of(tmp_path, ["a"]), tmp_path / "out")) == 0
    assert server.bodies[0]["raw"]["response_format"] == "url" and list(server.stored)
    assert Image.open(tmp_path / "out" / "000000.png").size == ((64, 64) if style == "sglang" else (48, 48))


def test_a_model_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tmp_path, [f"{n}" for n in range(20)])
    with ApiServer(style="vllm-omni", models=("Qwen/Qwen-Image", "flux")) as server:
        assert main(words([server], rows, tmp_path / "out")) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"at {server.openai} has no model qwen-image" in told and "It has Qwen/Qwen-Image, flux." in told
    assert server.num_requests <= 5


def test_what_a_server_finds_wrong_is_told_in_its_words(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "num_inference_steps": 300}, {"prompt": "b"}])
    with ApiServer(style="vllm-omni") as server:
        assert main(words([server], rows, tmp_path / "out")) == 3
    (failure,) = ledger(tmp_path / "out", "failures.jsonl")
    assert failure["error"] == "body.num_inference_steps: should be less than or equal to 200"


def test_a_key_goes_along_where_there_is_one_and_is_asked_for_where_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer(style="vllm-omni") as server:
        server.key = KEY
        assert main(words([server], rows_of(tmp_path, ["a"]), tmp_path / "out")) == 2
        assert "wants a key. Set OPENAI_API_KEY" in capsys.readouterr().err and server.num_requests == 0
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main(words([server], rows_of(tmp_path, ["a"]), tmp_path / "out")) == 0
    assert server.keys == [KEY]


# -- several ------------------------------------------------------------------------------------------------------


def test_of_two_servers_one_dies_half_way_and_all_images_come(tmp_path: Path) -> None:
    """Every image as with one server and another number of requests at a time; the ledger says who made it."""
    rows = rows_of(tmp_path, [f"prompt {n}" for n in range(100)])
    with ApiServer(0.005, "vllm-omni") as good, ApiServer(0.005, "sglang") as bad:
        bad.dies_after = 25
        assert main(words([bad, good], rows, tmp_path / "out", "--num_processes", "3")) == 0
        assert good.paid.total() + bad.paid.total() == 100 and bad.paid.total() <= 28
        assert good.highest <= 3 and bad.highest <= 3
    with ApiServer(0.0, "vllm-omni") as alone:
        assert main(words([alone], rows, tmp_path / "again", "--num_processes", "7")) == 0
    assert difference(tmp_path / "out", tmp_path / "again") == 0
    lines = ledger(tmp_path / "out")
    assert sorted(line["seed"] for line in lines) == list(range(100)) and all(line["seed_sent"] for line in lines)
    makers = [line["api_server"] for line in lines]
    assert makers.count(bad.openai) == bad.paid.total() and makers.count(good.openai) == good.paid.total()
    assert any(f"{bad.openai} is set aside" in event for event in run_json(tmp_path / "out")["events"])


def test_a_server_that_is_not_there_is_no_hindrance_while_another_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer(style="sglang") as gone:
        pass
    with ApiServer(style="sglang") as server:
        assert main(words([gone, server], rows_of(tmp_path, ["a", "b"]), tmp_path / "out")) == 0
        assert server.paid.total() == 2
    assert main(words([gone, server], rows_of(tmp_path, ["a"]), tmp_path / "none")) == 2
    assert f"cannot be reached at {gone.openai}, {server.openai}" in capsys.readouterr().err


def test_a_machine_that_is_off_is_known_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dglaunch.backends.api.openai.CONNECT_S", 0.1)
    with socket.socket() as deaf, contextlib.ExitStack() as open_ones:  # a full queue: nothing is answered at all
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):
            waiting = open_ones.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        base = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        assert main(words([], rows_of(tmp_path, ["a"]), tmp_path / "out", "--api_base", base)) == 2
    assert f"cannot be reached at {base}: no connection within 0.1 s" in capsys.readouterr().err


def test_each_server_has_a_limiter_of_its_own(tmp_path: Path) -> None:
    with ApiServer(0.01, "vllm-omni") as narrow, ApiServer(0.01, "vllm-omni") as wide:
        narrow.most = 1
        rows = rows_of(tmp_path, [f"{n}" for n in range(30)])
        assert main(words([narrow, wide], rows, tmp_path / "out", "--api_max_retries", "30")) == 0
    told = run_json(tmp_path / "out")
    assert narrow.paid.total() + wide.paid.total() == 30 and min(narrow.paid.total(), wide.paid.total()) > 0
    assert told["usage"]["slow_downs"] > 0 and not any(wide.openai in event for event in told["events"])


def test_the_variable_names_several_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiServer(0.02, style="sglang") as one, ApiServer(0.02, style="sglang") as two:
        monkeypatch.setenv("DG_API_BASE", f"{one.openai} {two.openai}")
        monkeypatch.setenv("DG_API_EXTRA", '\'lora={"name": "a b"}\' step=3')
        assert main(words([], rows_of(tmp_path, [f"{n}" for n in range(8)]), tmp_path / "out")) == 0
    assert one.paid.total() and two.paid.total()
    assert one.bodies[0]["raw"]["lora"] == {"name": "a b"} and one.bodies[0]["raw"]["step"] == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["api_extra"]


def test_a_mask_of_another_size_and_other_bad_rows_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a.png", (64, 64)), ("mask.png", (64, 64)), ("small.png", (32, 32))):
        (tmp_path / name).write_bytes(png(1, size))
    Image.new("RGB", (64, 64)).save(tmp_path / "mask.jpg")
    masks = ["mask.png", "small.png", "mask.jpg", None, "nowhere.png"]
    rows = [{"input_images": "a.png", "instruction": f"{mask}", "mask": mask} for mask in masks]
    path = write_jsonl(tmp_path / "edits.jsonl", rows)
    with ApiServer(style="sglang") as server:
        assert main(words([server], path, tmp_path / "out")) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "has 2 bad rows" in told and server.num_requests == 0
        assert "line 2: the mask small.png is 32x32, and the first image a.png 64x64" in told
        assert "line 3: the mask mask.jpg is no PNG" in told
        assert main(words([server], path, tmp_path / "out", "--filter_rows", "0,3,4")) == 3
    assert {body["prompt"]: body["mask"] for body in server.bodies} == {"mask.png": png(1, (64, 64)), "None": None}
    assert "mask nowhere.png there is no file" in ledger(tmp_path / "out", "failures.jsonl")[0]["error"]
    line = next(line for line in ledger(tmp_path / "out") if line["index"] == 0)
    assert line["mask"] == "mask.png" and len(line["mask_sha256"]) == 64
