"""verify, status and merge: folders of the fake backend, damaged in every way a disk or a person damages them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.commands import dglaunch, run_module
from support.edit_images import picture
from support.results import ledger, run_json, write_jsonl

NUM = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(NUM)])
    assert main(["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(folder / "out")]) == 0
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def _undecodable(out: Path) -> None:
    """Right size and sha256, but no image: only decoding finds it."""
    lines = ledger(out)
    data = b"no image at all"
    (out / "000002.png").write_bytes(data)
    for line in lines:
        if line["index"] == 2:
            line |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_jsonl(out / "metadata.jsonl", lines)


def _append(out: Path, text: str) -> None:
    with (out / "metadata.jsonl").open("a") as stream:
        stream.write(text)


def lose_line(out: Path, name: str) -> None:
    write_jsonl(out / "metadata.jsonl", [line for line in ledger(out) if line["file_name"] != name])


def lose(out: Path, name: str) -> None:
    """An image is gone with its ledger line, as if it had never been made."""
    lose_line(out, name)
    (out / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda out: (out / "000002.png").unlink(), "000002.png has a ledger line but no file"),
    "truncated": (lambda out: os.truncate(out / "000002.png", 10), "000002.png has 10 bytes"),
    "bit flip": (lambda out: _flip(out / "000002.png"), "000002.png was changed"),
    "no image": (_undecodable, "000002.png does not decode"),
    "torn line": (lambda out: _append(out, '{"index": 3, "sam'), "1 lines cannot be read"),
    "two lines": (lambda out: _append(out, json.dumps(ledger(out)[0]) + "\n"), "has two lines"),
    "no line": (lambda out: lose_line(out, "000000.png"), "000000.png has no ledger line"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds_each_damage_and_repair_queues_it(
    finished: Path, out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, text = DAMAGE[damage]
    apply(out)
    assert main(["verify", str(out)]) == 1
    assert text in capsys.readouterr().out
    assert main(["verify", str(out), "--repair"]) == 1
    arguments = ["t2i", "--backend", "fake", "--prompts_file", str(finished / "prompts.jsonl")]
    assert main([*arguments, "--output_dir", str(out)]) == 0
    assert main(["verify", str(out)]) == 0
    assert len(ledger(out)) == NUM


def test_verify_names_missing_images_and_leaves_foreign_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(out)]) == 0
    lines = ledger(out)
    (out / lines[-1]["file_name"]).unlink()
    write_jsonl(out / "metadata.jsonl", lines[:-1])
    shutil.copy(out / lines[0]["file_name"], out / "holiday.png")
    assert main(["verify", str(out), "--repair"]) == 1
    told = capsys.readouterr().out
    assert f"1 of {NUM} images are missing (index {lines[-1]['index']})" in told
    assert "holiday.png has no ledger line (left alone)" in told
    assert (out / "holiday.png").exists()


def test_a_folder_without_results_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["verify", tmp_path], ["status", tmp_path], ["status", tmp_path / "none"]):
        assert main(list(map(str, command))) == 2
        assert "dglaunch: " in capsys.readouterr().err


def test_status_by_exit_code(tmp_path: Path, out: Path) -> None:
    assert main(["status", str(out)]) == 0
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "one"}, {"prompt": "[item error] two"}])
    failed = tmp_path / "failed"
    assert dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", failed).code == 3
    assert main(["status", str(failed)]) == 3
    table = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "one"}, {"prompt": "[interrupt] [sleep 5] two"}])
    drained = tmp_path / "drained"
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", drained, "--batch_size", "1"]
    assert dglaunch(*words).code == 130
    assert main(["status", str(drained)]) == 130


def test_the_break_between_two_starts_is_no_working_time(tmp_path: Path) -> None:
    """Ten batches of two images, each of a second; after the fifth one nobody worked for an hour."""
    out = tmp_path / "out"
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}] * 20)
    assert main(["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(out)]) == 0
    lines = [line | {"seconds": 1.0, "batch_size": 2} for line in ledger(out)]
    write_jsonl(out / "metadata.jsonl", lines)
    for line in lines:
        written = 1_800_000_000 + line["index"] // 2 + (3600 if line["index"] >= 10 else 0)
        os.utime(out / line["file_name"], (written, written))
    assert "\n2 images/s over the last 20 images" in dglaunch("status", out).output


def test_status_of_a_folder_that_lacks_images(tmp_path: Path, out: Path) -> None:
    lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
    (out / "metadata.jsonl").write_text("".join(lines[:-1]))
    assert main(["status", str(out)]) == 130
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"prompt {n}"} for n in range(4)])
    words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(tmp_path / "node")]
    assert main([*words, "--num_nodes", "2", "--node_rank", "0"]) == 0
    assert main(["status", str(tmp_path / "node")]) == 130
    assert main(["status", str(tmp_path / "node"), "--node_rank", "0"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        '{"index": [1], "sample": 0, "file_name": "a"}',
        '{"index": 1, "sample": 0, "file_name": 5}',
        "[" * 100_000,
    ],
    ids=["an index that is none", "a name that is none", "nested"],
)
def test_a_line_of_another_shape_is_passed_over(out: Path, damage: str) -> None:
    _append(out, damage + "\n")
    assert main(["status", str(out)]) == 0
    assert main(["verify", "--repair", str(out)]) in (0, 1)
    assert main(["verify", str(out)]) == 0


def test_a_run_json_of_another_shape_is_nobodys_of_ours(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "one"}])
    words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(tmp_path / "out")]
    for damage in ("[]", '{"settings": null}', "5"):
        assert main(words) == 0
        file = tmp_path / "out" / "run.json"
        file.write_text(damage)
        assert main(["status", str(tmp_path / "out")]) in (0, 1)
        assert main(words) == 2 and file.read_text() == damage
        file.unlink()


def test_a_refused_merge_leaves_nothing(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"prompt {n}"} for n in range(4)])
    nodes = [tmp_path / f"node{n}" for n in range(2)]
    for n, node in enumerate(nodes):
        words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(node)]
        assert main([*words, "--num_nodes", "2", "--node_rank", str(n)]) == 0
    (nodes[1] / "000003.png").unlink()
    assert main(["merge", *map(str, nodes), "--output_dir", str(tmp_path / "joined")]) == 2
    assert not (tmp_path / "joined").exists()


def test_merge_of_nodes_without_a_shared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"prompt {n}"} for n in range(NUM)])
    nodes = [tmp_path / f"node{n}" for n in range(3)]
    for n, node in enumerate(nodes):
        words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(node)]
        assert main([*words, "--num_nodes", "3", "--node_rank", str(n)]) == 0
    joined = tmp_path / "joined"
    two = ["merge", *map(str, nodes[:2]), "--output_dir"]
    assert main([*two, str(tmp_path / "two")]) == 1
    assert "4 of 12 images are missing (index 8, 9, 10, 11)" in capsys.readouterr().out
    assert main(["merge", *map(str, nodes), "--output_dir", str(joined)]) == 0
    assert [line["index"] for line in ledger(joined)] == list(range(NUM))
    assert main(["verify", str(joined)]) == 0
    assert main(["status", str(joined)]) == 0
    # The joined folder is a job like any other: nothing is left to make.
    assert main(["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(joined)]) == 0
    assert main(["merge", *map(str, nodes), "--output_dir", str(joined)]) == 2
    _flip(nodes[1] / "000005.png")
    assert main(["merge", *map(str, nodes), "--output_dir", str(tmp_path / "other")]) == 2
    assert "000005.png was changed" in capsys.readouterr().err


def edit_parts(folder: Path, *rows: str) -> list[Path]:
    """Parts of an editing job of six rows, each made by itself with --filter_rows."""
    picture(0, (64, 64)).save(folder / "a.png")
    table = write_jsonl(folder / "t.jsonl", [{"input_images": "a.png", "instruction": f"{n}"} for n in range(6)])
    parts = [folder / f"rows {part.replace(':', '-')}" for part in rows]
    for part, filtered in zip(parts, rows):
        words = ["edit", "--backend", "fake", "--input", str(table), "--output_dir", str(part)]
        assert main([*words, "--filter_rows", filtered]) == 0
    return parts


def t2i_parts(folder: Path, *rows: Sequence[int], **columns: object) -> list[Path]:
    """Parts of a job of prompts, each made from a table of its own."""
    parts = [folder / f"part{n}" for n in range(len(rows))]
    for part, indices in zip(parts, rows):
        table = write_jsonl(folder / "p.jsonl", [{"index": n, "prompt": f"{n}"} | columns for n in indices])
        words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(part)]
        assert main(words) == 0
    return parts


def test_parts_of_filtered_rows_are_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, joined = edit_parts(tmp_path, "0:3", "3:6"), tmp_path / "joined"
    assert main(["merge", *map(str, parts), "--output_dir", str(joined)]) == 0
    assert main(["status", str(joined)]) == 0
    assert "6 of 6 images done, 0 failed, 0 to make" in capsys.readouterr().out
    assert main(["verify", str(joined)]) == 0
    run = run_json(joined)
    assert (run["tasks"], run["num_tasks"], run["num_ok"], run["outcome"]) == ("0:6", 6, 6, "done")


def test_an_image_that_a_filtered_part_lost_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was hidden: the total was that of one part, and merge and verify ended with exit 0."""
    parts, joined = edit_parts(tmp_path, "0:3", "3:6"), tmp_path / "joined"
    lose(parts[1], "000004.png")
    assert main(["verify", str(parts[1])]) == 1
    assert "1 of 3 images are missing (index 4)" in capsys.readouterr().out
    assert main(["merge", *map(str, parts), "--output_dir", str(joined)]) == 1
    assert "1 of 6 images are missing (index 4)" in capsys.readouterr().out
    assert main(["verify", str(joined)]) == 1
    assert "1 of 6 images are missing (index 4)" in capsys.readouterr().out
    assert main(["status", str(joined)]) == 130
    assert "5 of 6 images done, 0 failed, 1 to make" in capsys.readouterr().out
    words = ["edit", "--backend", "fake", "--input", str(tmp_path / "t.jsonl"), "--output_dir", str(joined)]
    assert main(words) == 0 and run_json(joined)["num_ok"] == 1
    assert main(["verify", str(joined)]) == 0


def test_parts_of_a_table_with_several_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, joined = t2i_parts(tmp_path, [0, 7], [100, 3], num_images_per_prompt=2), tmp_path / "joined"
    lose(parts[0], "000007_01.png")
    assert main(["merge", *map(str, parts), "--output_dir", str(joined)]) == 1
    assert "1 of 8 images are missing (index 7 sample 1)" in capsys.readouterr().out
    assert run_json(joined)["tasks"] == "0x2,3x2,7x2,100x2"


def test_failures_of_parts_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one part a row failed that another one has made."""
    parts, joined = [tmp_path / f"part{n}" for n in range(2)], tmp_path / "joined"
    for part, prompts in zip(parts, ({0: "a", 1: "[item error]"}, {2: "[item error]", 3: "b"})):
        table = write_jsonl(tmp_path / "p.jsonl", [{"index": n, "prompt": text} for n, text in prompts.items()])
        words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(part)]
        assert main(words) == 3
    assert main(["merge", *map(str, parts), "--output_dir", str(joined)]) == 1
    assert "2 of 4 images are missing (index 1, 2); 2 of them failed" in capsys.readouterr().out
    assert main(["status", str(joined)]) == 3
    assert "2 of 4 images done, 2 failed, 0 to make" in capsys.readouterr().out


def test_parts_of_an_older_version_never_count_below_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, joined = t2i_parts(tmp_path, [0, 1, 2], [3, 4, 5]), tmp_path / "joined"
    for part in parts:
        run = {name: value for name, value in run_json(part).items() if name != "tasks"}
        (part / "run.json").write_text(json.dumps(run))
    assert main(["merge", *map(str, parts), "--output_dir", str(joined)]) == 0
    assert main(["status", str(joined)]) == 0
    assert "6 of 6 images done, 0 failed, 0 to make" in capsys.readouterr().out
    lose(parts[1], "000004.png")
    assert main(["status", str(parts[1])]) == 130
    assert "2 of 3 images done, 0 failed, 1 to make" in capsys.readouterr().out
    assert main(["verify", str(parts[1])]) == 1
    assert "1 of 3 images are missing" in capsys.readouterr().out


def test_the_tools_import_no_torch(out: Path) -> None:
    ended = run_module("support.imported", "torch", "verify", out)
    assert ended.code == 0, ended.output
