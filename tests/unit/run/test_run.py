"""`t2i` as a user runs it, on one rank with the fake backend: failures, resume, signals, nodes. What needs ranks is in tests/torchrun."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dglaunch.backends.base import Facts
from dglaunch.backends.fake import SIDE, FakeBackend
from dglaunch.data.task import ROW_FIELDS
from dglaunch.run.record import OWN_KEYS
from support.commands import dglaunch
from support.edit_images import picture
from support.results import PROMPTS, images, ledger, run_json, write_jsonl

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


def test_what_was_cut_off_prompts_stands_in_ledger_failures_run_json_and_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, cut = FakeBackend.load, {"tokenizer_2": [700, 512]}

    def with_cuts(backend: FakeBackend) -> Facts:
        facts = load(backend)
        facts.of_task |= {(1, 0): {"prompt_cut": cut}, (2, 0): {"prompt_cut": cut}}
        return facts

    monkeypatch.setattr(FakeBackend, "load", with_cuts)
    table = [{"prompt": "a", "prompt_cut": "my column"}, {"prompt": "b"}, {"prompt": "c [item error]"}]
    out = tmp_path / "out"
    ended = dglaunch(*FAKE, "--prompts_file", write_jsonl(tmp_path / "t.jsonl", table), "--output_dir", out)
    lines = {line["index"]: line for line in ledger(out)}
    assert lines[1]["prompt_cut"] == cut and ledger(out, "failures.jsonl")[0]["prompt_cut"] == cut
    assert "prompt_cut" not in lines[0] and lines[0]["row_prompt_cut"] == "my column"
    assert run_json(out)["num_rows_cut"] == 2
    assert "2 rows lost the end of a prompt: the longest has 700 tokens, of which tokenizer_2 reads 512" in ended.output


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


def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path) -> None:
    ended = dglaunch(*FAKE, "--prompt", "x", "--seed", str(2**63), "--output_dir", tmp_path / "out")
    assert ended.code == 2 and "--seed is 9223372036854775808" in ended.output


def test_a_drained_run_is_not_inside_for_longer_than_it_took(tmp_path: Path) -> None:
    rows = [{"prompt": "one"}, {"prompt": "[interrupt] [sleep 1] two"}]
    command = [*FAKE, "--prompts_file", write_jsonl(tmp_path / "p.jsonl", rows), "--output_dir", tmp_path / "out"]
    assert dglaunch(*command, "--batch_size", "1").code == 130
    assert run_json(tmp_path / "out")["pipeline_share"] <= 1


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
        text = getattr(image, "text", {})
        assert (text["prompt"], text["seed"], text["model"]) == ("ein Bär 🐻", "7", "tiny")
        assert json.loads(text["settings"])["num_inference_steps"] == 1
    else:
        assert json.loads(image.getexif()[0x010E])["prompt"] == "ein Bär 🐻"
    (line,) = ledger(tmp_path / "out")
    assert (line["note"], line["row_key"], line["prompt"]) == ("kept", "clash", "ein Bär 🐻")


RESUMED: dict[str, tuple[list[str], list[str], str | None]] = {
    "the default said aloud": ([], ["--num_inference_steps", "1"], None),
    "all that the ledger says": ([], ["--num_inference_steps=1", "--width", str(SIDE), "--height", str(SIDE)], None),
    "said before, and the rest said now": (
        ["--num_inference_steps", "1"],
        ["--num_inference_steps=1", f"--width={SIDE}"],
        None,
    ),
    "another value": ([], ["--num_inference_steps", "2"], "num_inference_steps: 1 -> 2"),
    "no value any more": (
        ["--num_inference_steps", "2"],
        [],
        "num_inference_steps: 2 was given before, now it is left to its default",
    ),
    "a negative prompt less": (
        ["--negative_prompt", "x"],
        ["--num_inference_steps=1"],
        "negative_prompt: 'x' was given before, now it is left to its default",
    ),
}


@pytest.mark.parametrize("what", RESUMED)
def test_a_value_that_the_ledger_has_is_no_other_job(tmp_path: Path, prompts: Path, what: str) -> None:
    before, after, said = RESUMED[what]
    command = [*FAKE, "--prompts_file", prompts, "--output_dir", tmp_path / "out"]
    assert dglaunch(*command, *before).code == 0
    ended = dglaunch(*command, *after)
    if said is None:
        assert ended.code == 0 and run_json(tmp_path / "out")["num_skipped"] == 23, ended.output
    else:
        assert ended.code == 2 and said in ended.output, ended.output


def test_no_column_of_the_users_takes_the_place_of_an_image_in_an_image_folder(tmp_path: Path) -> None:
    """The library datasets makes a column `image` of file_name, and an image X of each X_file_name, also inside of others."""
    row = {"prompt": "a", "image": "cat.png", "file_name": "x", "my_file_name": "y", "file_names": ["z"], "row_image": 1,
           "a_file_names": ["w"], "profile_name": "kept", "meta": {"file_name": "v", "parts": [{"b_file_name": 1}]}}  # fmt: skip
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    assert dglaunch(*FAKE, "--prompts_file", path, "--output_dir", tmp_path / "out").code == 0
    (line,) = ledger(tmp_path / "out")
    expected = {"row_row_image": "cat.png", "row_filename": "x", "row_my_filename": "y", "row_filenames": ["z"], "row_image": 1,
                "row_a_filenames": ["w"], "profile_name": "kept",
                "meta": {"filename": "v", "parts": [{"b_filename": 1}]}}  # fmt: skip
    assert {name: line.get(name) for name in expected} == expected
    assert "image" not in line and line["file_name"] == "000000.png"
    assert [name for name in line if re.search(r"(^|_)file_names?$", name)] == ["file_name"]


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


def test_one_seed_one_noise() -> None:
    """The fake's pictures differ by seed and by prompt, or the comparisons above could not fail."""
    from dglaunch.backends.fake import draw
    from dglaunch.data.task import Task

    one, two, three = (Task(index=0, prompt=p, seed=s, stem="0") for p, s in (("a", 1), ("a", 2), ("b", 1)))
    assert np.abs(np.asarray(draw(one)).astype(int) - np.asarray(draw(two))).max() > 10
    assert np.abs(np.asarray(draw(one)).astype(int) - np.asarray(draw(three))).max() > 0


def test_columns_that_are_called_as_our_own_keys_get_names_of_their_own(tmp_path: Path) -> None:
    """What dglaunch says in a ledger it says whatever the table's columns are called, and no column is lost."""
    row = {"prompt": "a", "tag": "t", **{name: f"its {name}" for name in OWN_KEYS - {"prompt", "index", *ROW_FIELDS}}}
    row |= {"row_key": "its row_key", "row_row_key": "its row_row_key", "row_bytes": "its row_bytes"}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    ended = dglaunch(*FAKE, "--prompts_file", path, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    (line,) = ledger(tmp_path / "out")
    assert (line["file_name"], line["sample"], line["tag"]) == ("000000.png", 0, "t")
    assert line["bytes"] == (tmp_path / "out" / "000000.png").stat().st_size
    its = {value: name for name, value in line.items() if str(value).startswith("its ")}
    assert set(its) == {value for value in row.values() if str(value).startswith("its ")}
    assert not OWN_KEYS & set(its.values())
    assert [its[f"its {name}"] for name in ("file_name", "row_key", "seed_sent")] == [
        "row_filename", "row_key", "row_seed_sent",
    ]  # fmt: skip
    assert dglaunch("verify", tmp_path / "out").code == 0


def test_own_keys_are_all_that_a_ledger_has(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}])
    words = ["edit", "--backend", "fake", "--input", table, "--output_dir", tmp_path / "out", "--save_inputs"]
    assert dglaunch(*words).code == 0
    (line,) = ledger(tmp_path / "out")
    assert line.keys() <= OWN_KEYS


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_flag_is_a_number_that_run_json_can_hold(tmp_path: Path, value: str) -> None:
    for name in ("stall_timeout", "guidance_scale"):
        ended = dglaunch(*FAKE, "--prompt", "a", "--output_dir", tmp_path / "out", f"--{name}", value)
        assert ended.code == 2 and f"--{name} is {value}" in ended.output


def test_a_folder_whose_name_is_no_text_has_a_run_json(tmp_path: Path) -> None:
    """The command stands in run.json: bytes that are no UTF-8 ended the run in a UnicodeEncodeError."""
    out = tmp_path / os.fsdecode(b"caf\xe9")
    ended = dglaunch(*FAKE, "--prompt", "a", "--output_dir", out)
    assert ended.code == 0, ended.output
    assert run_json(out)["config"]["output_dir"]["value"].endswith("caf\ufffd")


def test_a_model_folder_whose_name_is_no_text_costs_no_image(tmp_path: Path) -> None:
    ended = dglaunch(*FAKE, "--prompt", "a", "--model_name", os.fsdecode(b"caf\xe9"), "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    assert getattr(Image.open(tmp_path / "out" / "000000.png"), "text", {})["model"] == "caf\ufffd"


def test_half_a_character_in_a_flag_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    for name in ("prompt", "negative_prompt"):
        words = {"--prompt": "a", f"--{name}": os.fsdecode(b"caf\xe9")}
        ended = dglaunch(*FAKE, *(word for pair in words.items() for word in pair), "--output_dir", tmp_path / "out")
        assert ended.code == 2 and f"--{name}" in ended.output and "not UTF-8 at 3" in ended.output
