"""Prompts are rewritten before the images are made: by a chat server, with the real SDK, and the fake backend.

A local language model is in torchrun/test_rewriting.py.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dglaunch.data.rewriting import cleaned
from dglaunch.run import pulse
from support.chat_server import MODEL, ChatServer, rewritten
from support.commands import Ended, dglaunch
from support.results import ledger, run_json, write_jsonl

pytest.importorskip("openai")
PROMPTS = [f"a {color} fox" for color in ("red", "green", "blue", "white", "grey")]


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def run(
    chat: ChatServer | None,
    folder: Path,
    *words: str | Path,
    prompts: list[str] | None = None,
    command: str = "t2i",
    **variables: str,
) -> Ended:
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts or PROMPTS])
    asked = ["--rewrite_prompts", MODEL, "--rewrite_api_base", chat.address] if chat is not None else []
    return dglaunch(
        *command.split(),
        "--backend",
        "fake",
        "--prompts_file",
        table,
        *asked,
        "--output_dir",
        folder / "out",
        *words,
        **variables,
    )


def texts(folder: Path) -> dict[str, str]:
    return {line["prompt"]: line["rewritten_prompt"] for line in ledger(folder / "out")}


def test_both_prompts_are_in_the_ledger_in_the_image_and_in_the_gallery(chat: ChatServer, tmp_path: Path) -> None:
    assert run(chat, tmp_path, "--num_images_per_prompt", "2", "--gallery").code == 0
    assert texts(tmp_path) == {prompt: rewritten(prompt) for prompt in PROMPTS}
    assert set(chat.asked.values()) == {1}, "both samples of a row share what was rewritten"
    assert chat.bodies[0]["messages"][0]["content"].startswith("You rewrite prompts for a text-to-image model.")
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(rewritten(prompt) in page for prompt in PROMPTS) and "rewritten to" in page
    assert dglaunch("verify", tmp_path / "out").code == 0


def test_the_image_is_drawn_from_the_rewritten_prompt(chat: ChatServer, tmp_path: Path) -> None:
    """The fake backend obeys markers in what it is given."""
    ended = run(chat, tmp_path, prompts=["a [item error]", "b"])
    assert ended.code == 3
    (failed,) = ledger(tmp_path / "out", "failures.jsonl")
    assert failed["rewritten_prompt"] == rewritten("a [item error]") and failed["prompt"] == "a [item error]"


def test_a_start_goes_on_with_what_was_rewritten(chat: ChatServer, tmp_path: Path) -> None:
    chat.fails_after = 3
    ended = run(chat, tmp_path)
    assert (
        ended.code == 2
        and "does not let this key use writer" in ended.output
        and "the quota is used up" in ended.output
    )
    assert not ledger(tmp_path / "out")
    chat.fails_after = None
    assert run(chat, tmp_path).code == 0
    assert texts(tmp_path) == {prompt: rewritten(prompt) for prompt in PROMPTS}
    asked = chat.asked.copy()
    assert run(chat, tmp_path).code == 0 and chat.asked == asked
    (tmp_path / "out" / "000000.png").unlink()
    assert run(chat, tmp_path).code == 0 and chat.asked == asked, "it is in the file"
    assert run(chat, tmp_path, "--overwrite").code == 0 and chat.asked == {prompt: n + 1 for prompt, n in asked.items()}


def test_a_signal_stops_it_in_order_and_the_same_command_goes_on(chat: ChatServer, tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(40)]
    chat.on_request = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 20 else None
    ended = run(chat, tmp_path, prompts=prompts)
    assert ended.code == 130 and "Stopped: 0 of 40 made. Start the same command again to go on." in ended.output
    assert run_json(tmp_path / "out")["outcome"] == "drained"
    kept = (tmp_path / "out" / "rewritten.jsonl").read_text().splitlines()
    assert 8 <= len(kept) < 40
    chat.on_request = None
    assert run(chat, tmp_path, prompts=prompts).code == 0
    assert texts(tmp_path) == {prompt: rewritten(prompt) for prompt in prompts}
    again = {line["prompt"] for line in map(json.loads, kept) if chat.asked[line["prompt"]] != 1}
    assert not again, "what was kept is asked once; what was under way may be asked again"


def test_a_job_says_that_it_runs_while_its_prompts_are_rewritten(
    chat: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many prompts that takes hours, in which `status --watch` would know of no run."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    said: set[tuple[str, float]] = set()

    def look(number: int) -> None:
        for _ in range(50 if number == len(PROMPTS) else 0):
            time.sleep(0.01)
            said.add((run_json(tmp_path / "out")["outcome"], (tmp_path / "out" / "run.json").stat().st_mtime))

    chat.on_request = look
    assert run(chat, tmp_path).code == 0
    assert {outcome for outcome, _ in said} == {"running"} and len(said) > 2
    assert run_json(tmp_path / "out")["outcome"] == "done"


def test_a_torn_line_of_a_killed_start_is_passed_over(chat: ChatServer, tmp_path: Path) -> None:
    assert run(chat, tmp_path).code == 0
    kept = tmp_path / "out" / "rewritten.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])
    for image in (tmp_path / "out").glob("*.png"):
        image.unlink()
    assert run(chat, tmp_path).code == 0
    assert chat.asked.total() == len(PROMPTS) + 1


def test_another_instruction_is_another_job_and_another_address_is_not(chat: ChatServer, tmp_path: Path) -> None:
    instruction = tmp_path / "how.txt"
    instruction.write_text("Say more.")
    assert run(chat, tmp_path, "--rewrite_instruction", instruction).code == 0
    assert chat.bodies[0]["messages"][0]["content"] == "Say more."
    assert run_json(tmp_path / "out")["settings"]["rewriting"]["model"] == MODEL
    with ChatServer() as other:
        assert run(other, tmp_path, "--rewrite_instruction", instruction).code == 0 and not other.asked
    instruction.write_text("Say less.")
    ended = run(chat, tmp_path, "--rewrite_instruction", instruction)
    assert (
        ended.code == 2 and "holds the results of another job" in ended.output and "instruction_sha256" in ended.output
    )
    assert run(None, tmp_path).code == 2


def test_the_next_job_takes_it_from_the_file(chat: ChatServer, tmp_path: Path) -> None:
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    for folder in (one, other, third):
        folder.mkdir()
    assert run(chat, one).code == 0
    file, asked = one / "out" / "rewritten.jsonl", chat.asked.copy()
    more = run(chat, other, "--rewritten_prompts", file, prompts=[*PROMPTS, "a cat"])
    assert more.code == 0 and chat.asked == asked + type(asked)({"a cat": 1})
    assert run(None, third, "--rewritten_prompts", file).code == 0
    assert texts(third) == texts(one) and chat.asked.total() == len(PROMPTS) + 1
    lacks = run(None, third, "--rewritten_prompts", file, "--overwrite", prompts=["a dog", "a red fox"])
    assert lacks.code == 2 and "lacks 1 of the job's prompts" in lacks.output and "'a dog'" in lacks.output


def test_by_each_image_s_seed(chat: ChatServer, tmp_path: Path) -> None:
    assert run(chat, tmp_path, "--rewrite_temperature", "0.7", "--num_images_per_prompt", "2", prompts=["a"]).code == 0
    assert [line["rewritten_prompt"] for line in ledger(tmp_path / "out")] == [rewritten("a", 0), rewritten("a", 1)]


def test_answers_that_are_no_prompt_fail_their_images_alone(chat: ChatServer, tmp_path: Path) -> None:
    ended = run(chat, tmp_path, prompts=["good", "one [empty]", "two [long]", "three [refused]", "four [think]"])
    assert ended.code == 3
    assert texts(tmp_path) == {"good": rewritten("good"), "four [think]": rewritten("four [think]")}
    errors = {line["prompt"]: line["error"] for line in ledger(tmp_path / "out", "failures.jsonl")}
    assert "the answer is empty" in errors["one [empty]"] and "not this one" in errors["three [refused]"]
    assert "longer than --rewrite_max_tokens 512" in errors["two [long]"]
    assert len((tmp_path / "out" / "rewritten.jsonl").read_text().splitlines()) == 2


def test_edits_have_their_instructions_rewritten(chat: ChatServer, tmp_path: Path) -> None:
    from support.edit_images import SINGLE, save_table

    table = save_table(tmp_path / "edits.csv", SINGLE[:2], task="make it new")
    ended = dglaunch(
        "edit", "--backend", "fake", "--input", table, "--rewrite_prompts", MODEL, "--rewrite_api_base", chat.address,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert {line["rewritten_prompt"] for line in ledger(tmp_path / "out")} == {rewritten(p) for p in chat.asked}
    assert "edits images" in chat.bodies[0]["messages"][0]["content"]


def test_plan_says_what_will_be_rewritten_and_asks_nothing(chat: ChatServer, tmp_path: Path) -> None:
    ended = run(chat, tmp_path, command="plan t2i", prompts=[*PROMPTS, PROMPTS[0]])
    said = " ".join(ended.output.split())
    assert ended.code == 0 and f"rewriting of 5 different prompts by {MODEL} at {chat.address}, greedy" in said
    assert not chat.bodies


def test_a_key_is_sent_where_there_is_one_and_shown_nowhere(tmp_path: Path) -> None:
    with ChatServer(key="sk-right-0123456789") as chat:
        assert run(chat, tmp_path, OPENAI_API_KEY="sk-right-0123456789").code == 0
        other = tmp_path / "other"
        other.mkdir()
        ended = run(chat, other, OPENAI_API_KEY="sk-wrong-0123456789")
        assert ended.code == 2 and "does not accept the key in OPENAI_API_KEY" in ended.output
        assert "sk-" not in ended.output
        assert "wants a key" in run(chat, other).output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rewrite_temperature", "0.5"], "--rewrite_temperature would do nothing without --rewrite_prompts MODEL"),
        (["--rewrite_api_base", "http://h/v1"], "--rewrite_api_base would do nothing"),
        (["--rewrite_prompts", MODEL, "--rewrite_api_base", "h"], "must be an address"),
        (["--rewrite_prompts", MODEL, "--rewrite_temperature", "3"], "must be 0 to 2"),
        (["--rewrite_prompts", MODEL, "--rewrite_max_tokens", "0"], "must be 1 or more"),
        (["--rewrite_prompts", " "], "is empty"),
        (["--rewrite_prompts", MODEL, "--rewrite_instruction", "none.txt"], "none.txt cannot be read"),
        (["--rewritten_prompts", "none.jsonl"], "none.jsonl cannot be read"),
        (["--rewrite_prompts", ".", "--output_dir", "o"], "it lacks config.json, tokenizer_config.json, *.safetensors"),
        (["--rewrite_prompts", MODEL, "--node_rank", "0", "--num_nodes", "2"], "nodes without a rendezvous"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_loaded(tmp_path: Path, words: list[str], said: str) -> None:
    ended = run(None, tmp_path, *words)
    assert ended.code == 2 and said in ended.output and ended.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_lines_of_a_given_file_are_told_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "by_hand.jsonl"
    file.write_text(json.dumps({"prompt": "a", "rewritten": "A."}) + '\n{"prompt": "b"}\nno json\n')
    ended = run(None, tmp_path, "--rewritten_prompts", file, prompts=["a"])
    assert ended.code == 2 and "2 bad rows" in ended.output and "line 2" in ended.output and "line 3" in ended.output
    file.write_text(json.dumps({"prompt": "a", "rewritten": "A."}))
    assert run(None, tmp_path, "--rewritten_prompts", file, prompts=["a"]).code == 0
    assert texts(tmp_path) == {"a": "A."}


def test_a_model_that_the_server_does_not_have(chat: ChatServer, tmp_path: Path) -> None:
    ended = run(None, tmp_path, "--rewrite_prompts", "other", "--rewrite_api_base", chat.address)
    assert ended.code == 2 and "has no model other" in ended.output and f"It has {MODEL}." in ended.output


def test_a_file_of_the_user_s_is_not_touched(chat: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rewritten.jsonl").write_text("my notes\n")
    assert run(chat, tmp_path).code == 0
    assert (tmp_path / "out" / ".dglaunch-aside" / "rewritten.jsonl").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('"A fox."\n', "A fox."), ("<think>hm</think>\n\nA fox.", "A fox."), ("A\nfox", "A fox"), ("“A fox”", "A fox"),
        ('"A" and "B"', '"A" and "B"'), ('a sign "OPEN"', 'a sign "OPEN"'), (' "" ', ""),
    ],
)  # fmt: skip
def test_what_is_around_an_answer_is_no_part_of_the_prompt(answer: str, prompt: str) -> None:
    assert cleaned(answer) == prompt
