"""`dglaunch redo`: some images of a job again, in its folder; the old ones are kept, the ledger is right, and whoever is killed
in the middle of it loses nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.commands import dglaunch
from support.dying import KILLED, killed_at
from support.edit_images import SINGLE, save_table
from support.redone import NUM, hashes, is_right, redo, t2i
from support.results import ledger, run_json, write_jsonl


@pytest.fixture
def out(tmp_path: Path) -> Path:
    t2i(tmp_path / "out")
    return tmp_path / "out"


def test_some_images_again_with_other_seeds(out: Path) -> None:
    before, lines = hashes(out), ledger(out)
    said = redo(out, "--filter_rows", "1,3", "--seed_offset", "100").output
    assert "2 images in 1 batch to make" in said
    after = hashes(out)
    assert {name for name in after if after[name] != before[name]} == {"000001.png", "000003.png"}
    assert hashes(out / "replaced") == {name: before[name] for name in ("000001.png", "000003.png")}
    assert [line["seed"] for line in ledger(out)] == [0, 101, 2, 103, 4] and is_right(out)
    kept = sorted(ledger(out / "replaced"), key=lambda line: line["index"])
    assert kept == [lines[1], lines[3]]
    assert ledger(out)[1]["redo_of"] == lines[1]["key"] and ledger(out)[1]["style"] == "oil"
    # The same once more makes nothing, the job's own command goes on with the folder, and so does one with more rows.
    assert (
        "0 images in 0 batches to make; 2 are there already"
        in redo(out, "--filter_rows", "1,3", "--seed_offset", "100").output
    )
    assert "5 are there already" in t2i(out).output
    assert dglaunch("status", out).code == 0 and run_json(out)["tasks"] == "0:5"
    # And again with another: the first ones are kept, too.
    redo(out, "--filter_rows", 'style == "oil" and seed > 102', "--seed_offset", "200")
    assert len(hashes(out / "replaced")) == 3 and hashes(out / "replaced")["000003-1.png"] == after["000003.png"]
    assert [line["seed"] for line in ledger(out)] == [0, 101, 2, 203, 4] and is_right(out)


def test_rows_that_are_there_lead_to_redo(out: Path) -> None:
    said = t2i(out, "--filter_rows", "1,3").output
    assert "2 are there already" in said and f"To make them again: dglaunch redo {out} --filter_rows" in said


def test_other_values(out: Path) -> None:
    redo(
        out,
        "--filter_rows",
        "index == 2",
        "--set",
        "guidance_scale=5",
        "--set",
        "prompt=a cat, [oil]",
        "--set",
        "seed=8",
    )
    line = ledger(out)[2]
    assert (line["guidance_scale"], line["prompt"], line["seed"], line["style"]) == (5.0, "a cat, [oil]", 8, "ink")
    assert is_right(out) and "5 are there already" in t2i(out).output
    redo(out, "--filter_rows", 'prompt == "a cat, [oil]"')
    assert ledger(out)[2]["prompt"] == "prompt 2", "what is not said is as the table has it"
    assert is_right(out)


def test_what_failed_again(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b [item error]"}, {"prompt": "c [item error]"}, {"prompt": "d"}]
    write_jsonl(tmp_path / "p.jsonl", rows)
    out = tmp_path / "out"
    words = ["t2i", "--backend", "fake", "--prompts_file", tmp_path / "p.jsonl", "--output_dir", out]
    assert dglaunch(*words).code == 3
    assert dglaunch("redo", out, "--failed", "--seed_offset", "7").code == 3
    assert [line["index"] for line in ledger(out, "failures.jsonl")] == [1, 2]
    redo(out, "--failed", "--set", "prompt=a dog")
    assert [line["prompt"] for line in ledger(out)] == ["a", "a dog", "a dog", "d"] and is_right(out, 4)
    assert not (out / "failures.jsonl").exists() and not (out / "replaced").exists()
    assert "nothing failed" in redo(out, "--failed").output
    assert dglaunch(*words).code == 0
    # One that fails leaves the image that there is.
    before = hashes(out)
    ended = dglaunch("redo", out, "--filter_rows", "0,3", "--set", "prompt=[item error]")
    assert ended.code == 3 and hashes(out) == before and is_right(out, 4)
    assert [line["index"] for line in ledger(out, "failures.jsonl")] == [0, 3]


def test_a_stopped_job_is_not_finished_by_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    t2i(out, "--limit", "3")
    redo(out, "--filter_rows", "1", "--seed_offset", "9")
    assert [line["seed"] for line in ledger(out)] == [0, 10, 2] and is_right(out, 3)
    t2i(out)
    redo(out, "--filter_rows", "4", "--seed_offset", "9")
    assert [line["seed"] for line in ledger(out)] == [0, 10, 2, 3, 13] and is_right(out)


def test_several_samples_of_a_row_and_names_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n}", "name": f"n{n}"} for n in range(2)])
    t2i(out, "--num_images_per_prompt", "2", "--output_name_column", "name", "--output_format", "webp")
    redo(out, "--filter_rows", "1", "--set", "seed=70")
    redo(out, "--filter_rows", "sample == 1 and index == 0", "--seed_offset", "10")
    assert [(line["file_name"], line["seed"]) for line in ledger(out)] == [
        ("n0_00.webp", 0), ("n0_01.webp", 11), ("n1_00.webp", 70), ("n1_01.webp", 71)
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "replaced").glob("*.webp")) == ["n0_01.webp", "n1_00.webp", "n1_01.webp"]
    assert is_right(out, 4)


def test_edits(tmp_path: Path) -> None:
    table, out = save_table(tmp_path / "edits.csv", SINGLE[:3]), tmp_path / "out"
    words = [
        "edit",
        "--backend",
        "fake",
        "--model_type",
        "qwen",
        "--input",
        table,
        "--output_dir",
        out,
        "--save_inputs",
    ]
    ended = dglaunch(*words)
    assert ended.code == 0, ended.output
    redo(out, "--filter_rows", "2", "--set", "prompt=make it night", "--seed_offset", "5")
    line = ledger(out)[2]
    assert (line["instruction"], line["seed"]) == ("make it night", 7) and is_right(out, 3)
    assert "3 are there already" in dglaunch(*words).output
    (tmp_path / line["input_images"][0]).unlink()
    before = hashes(out)
    ended = dglaunch("redo", out, "--filter_rows", "2")
    assert ended.code == 3 and hashes(out) == before, "an image of which the input is gone stays"


def test_several_ledgers_become_one(tmp_path: Path) -> None:
    """Of nodes without a rendezvous, one of which is not there yet."""
    out = tmp_path / "out"
    t2i(out, "--node_rank", "1", "--num_nodes", "2")
    redo(out, "--filter_rows", "4", "--seed_offset", "9")
    t2i(out, "--node_rank", "0", "--num_nodes", "2")
    redo(out, "--filter_rows", "0,4", "--seed_offset", "30")
    assert [line["seed"] for line in ledger(out)] == [30, 1, 2, 3, 34] and is_right(out)
    assert [path.name for path in out.glob("metadata*.jsonl")] == ["metadata.jsonl"]


def test_views_show_the_new_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    t2i(out, "--layout", "genarena")
    t2i(out, "--layout", "t2i_compbench", "--num_images_per_prompt", "1")
    dglaunch("gallery", out)
    said = redo(out, "--filter_rows", "3", "--seed_offset", "9").output
    assert hashes(out / "genarena") == hashes(out) and set(hashes(out / "t2i_compbench/samples").values()) == set(
        hashes(out).values()
    )
    assert "genarena has the new images, too" in said and "dglaunch gallery" in said
    said = redo(out, "--filter_rows", "3", "--set", "prompt=a cat").output
    assert "t2i_compbench still shows the images as they were" in said and "Remove that folder" in said


def test_prompts_from_a_pipe_and_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n}"} for n in range(3)])
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", "p.jsonl", "--output_dir", "out", cwd=tmp_path)
    assert ended.code == 0
    redo(tmp_path / "out", "--filter_rows", "1", "--seed_offset", "9")
    with (tmp_path / "p.jsonl").open() as lines:
        monkeypatch.setattr("dglaunch.files.open", lambda *_, **__: (tmp_path / "p.jsonl").open("rb"), raising=False)
        assert lines and t2i(tmp_path / "piped", "--prompts_file", "-").code == 0
    monkeypatch.undo()
    redo(tmp_path / "piped", "--filter_rows", "1", "--seed_offset", "9")
    assert [line["seed"] for line in ledger(tmp_path / "piped")] == [0, 10, 2]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--filter_rows (3,7,11 or 0:100"),
        (["--failed", "--filter_rows", "1"], "either with --filter_rows"),
        (["--filter_rows", "1,7"], "has no row 7; its indices are 0 to 4"),
        (["--filter_rows", "sed > 3"], "The nearest is seed"),
        (["--filter_rows", "seed > 30"], "leaves none of the 5 images"),
        (["--filter_rows", "1", "--set", "model_name=x"], "makes another job"),
        (["--filter_rows", "1", "--set", "guidance=5"], "The nearest is guidance_scale"),
        (["--filter_rows", "1", "--set", "guidance_scale=-5"], "--set guidance_scale is -5.0"),
        (["--filter_rows", "1", "--set", "seed=5", "--seed_offset", "3"], "Drop one of them"),
        (["--filter_rows", "1", "--seed_offset", "-9"], "the seed of row 1 would be -8"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(out: Path, words: list[str], said: str) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ended = dglaunch("redo", out, *words)
    assert ended.code == 2 and said in ended.output, ended.output
    assert len([line for line in ended.output.splitlines() if line.startswith("dglaunch: ")]) == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def change_run(out: Path, **config: Any) -> None:
    run = run_json(out)
    run["config"] |= {name: {"value": value, "from": "flag"} for name, value in config.items()}
    (out / "run.json").write_text(json.dumps(run))


def test_a_folder_of_another_version_is_told(out: Path) -> None:
    change_run(out, enable_magic=True)
    ended = dglaunch("redo", out, "--filter_rows", "1")
    assert ended.code == 2 and "--enable_magic, which this dglaunch" in ended.output
    run = run_json(out)
    for changed, said in [
        ({"config": {}}, "another version of dglaunch wrote it"),
        ({"config": None}, "does not say how"),
    ]:
        (out / "run.json").write_text(json.dumps(run | changed))
        ended = dglaunch("redo", out, "--filter_rows", "1")
        assert ended.code == 2 and said in ended.output, ended.output
    (out / "run.json").unlink()
    assert "does not say how its images were made" in dglaunch("redo", out, "--filter_rows", "1").output
    assert dglaunch("redo", out.parent / "none", "--failed").code == 2


def test_what_nobody_may_say_in_a_file_is_said_again(out: Path) -> None:
    """A folder that somebody sent must not send keys to a server of theirs, nor run code."""
    change_run(out, api_base="http://stranger.example/v1", trust_remote_code=False)
    ended = dglaunch("redo", out, "--filter_rows", "1")
    assert ended.code == 2 and "--set api_base=http://stranger.example/v1" in ended.output
    change_run(out, api_base=None, trust_remote_code=True)
    assert "--set trust_remote_code=True" in dglaunch("redo", out, "--filter_rows", "1").output
    change_run(out, trust_remote_code=False, embedding_cache=str(out / "theirs"), seed="x; rm")
    assert "says that --seed was 'x; rm'" in dglaunch("redo", out, "--filter_rows", "1").output
    assert not (out / "theirs").exists()
    change_run(out, seed=[1, 2])
    said = dglaunch("redo", out, "--filter_rows", "1").output
    assert "says that --seed was [1, 2]" in said and "Traceback" not in said


def test_files_of_the_users_are_left_alone(out: Path) -> None:
    mine = out / "replaced" / "000001.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    redo(out, "--filter_rows", "1", "--seed_offset", "9")
    assert mine.read_bytes() == b"mine" and (out / "replaced" / "000001-1.png").exists() and is_right(out)
    (out / "replaced" / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "mine"}\n')
    ended = dglaunch("redo", out, "--filter_rows", "2", "--seed_offset", "9")
    assert ended.code == 2 and "Rename it" in ended.output
    shutil.rmtree(out / "replaced")
    (out / "replaced").symlink_to(out.parent)
    assert dglaunch("redo", out, "--filter_rows", "2", "--seed_offset", "9").code == 2


def test_another_job_is_told_the_way(out: Path) -> None:
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", out.parent / "p.jsonl", "--output_dir", out, "--seed", "9"
    )
    assert ended.code == 2 and f"dglaunch redo {out} --filter_rows" in ended.output


# -- killed ---------------------------------------------------------------------------------------------------------

WAYS = {"other seeds": ["--filter_rows", "3", "--seed_offset", "100"], "the same": ["--filter_rows", "1,3"]}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("other seeds"),
        pytest.param("the same", marks=pytest.mark.slow),
        pytest.param("other seeds, the job first", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_step_loses_nothing(tmp_path: Path, way: str) -> None:
    """At each step that changes the folder: both the old and, where it was done, the new image are there, and the same
    command makes the rest."""
    base, words = tmp_path / "base", WAYS[way.partition(",")[0]]
    t2i(base)
    before, chosen = hashes(base), [f"00000{n}.png" for n in words[1].split(",")]
    expected = tmp_path / "expected"
    shutil.copytree(base, expected)
    redo(expected, *words)
    for number in range(100):
        out = tmp_path / f"out{number}"
        shutil.copytree(base, out)
        code = killed_at(number, "redo", out, *words)
        if code == 0:
            break
        assert code == KILLED, f"step {number}"
        there = {*hashes(out).values(), *hashes(out / "replaced").values()}
        assert set(before.values()) <= there, f"step {number}"
        assert not (out / ".dglaunch-aside").exists()
        if way.endswith("the job first"):  # whatever is in doubt is made as the table has it
            t2i(out)
            assert is_right(out), f"step {number}"
        redo(out, *words)
        assert hashes(out) == hashes(expected) and is_right(out), f"step {number}"
        assert {name: sha for name, sha in hashes(out / "replaced").items() if name in chosen} == {
            name: before[name] for name in chosen
        }
        assert [
            line["file_name"] for line in sorted(ledger(out / "replaced"), key=lambda line: line["index"])
        ] == chosen
        assert not list(out.glob(".dglaunch-*.tmp")) and not (out / ".dglaunch-redo.json").exists()
    assert number > 10, "it has more steps than that"
    assert f"{NUM} are there already" in t2i(out).output


def test_seeds_do_not_help_an_input_that_is_still_broken(tmp_path: Path) -> None:
    save_table(tmp_path / "edits.csv", SINGLE[:2])
    (tmp_path / "images" / f"{SINGLE[1]}.png").write_bytes(b"torn")
    out = tmp_path / "out"
    words = ("edit", "--backend", "fake", "--input", tmp_path / "edits.csv", "--output_dir", out)
    assert dglaunch(*words).code == 3
    ended = dglaunch("redo", out, "--failed", "--seed_offset", "1000")
    assert ended.code == 3 and "1 image cannot be made, whatever the seed, as the input is still broken" in ended.output
    assert "Mend it, then start the same command again." in ended.output


def test_a_list_from_python_is_not_kept_and_that_is_said(tmp_path: Path) -> None:
    """What the message says to do works, and makes nothing again."""
    from dglaunch import BackendConfig, T2IConfig, t2i

    rows = [{"prompt": "a red fox"}, {"prompt": "a blue bear", "seed": 7}]
    out = tmp_path / "out"
    t2i(T2IConfig(backend=BackendConfig(backend="fake"), prompts=rows, output_dir=out))
    ended = dglaunch("redo", out, "--filter_rows", "1", "--seed_offset", "100")
    assert ended.code == 2 and "was made from Python with prompts=[...]" in ended.output
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    again = dglaunch("t2i", "--config", out / "run.json", "--prompts_file", table, "--output_dir", out)
    assert again.code == 0 and "0 made, 0 failed, 2 there before" in again.output, again.output
    assert dglaunch("redo", out, "--filter_rows", "1", "--seed_offset", "100").code == 0
    assert [line["seed"] for line in ledger(out)] == [0, 107]
