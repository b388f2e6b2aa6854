"""verify, status and merge: folders of the fake backend, damaged in every way a disk or a person damages them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.commands import dglaunch, run_module
from support.results import ledger, write_jsonl

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


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda out: (out / "000002.png").unlink(), "000002.png has a ledger line but no file"),
    "truncated": (lambda out: os.truncate(out / "000002.png", 10), "000002.png has 10 bytes"),
    "bit flip": (lambda out: _flip(out / "000002.png"), "000002.png was changed"),
    "no image": (_undecodable, "000002.png does not decode"),
    "torn line": (lambda out: _append(out, '{"index": 3, "sam'), "1 lines cannot be read"),
    "two lines": (lambda out: _append(out, json.dumps(ledger(out)[0]) + "\n"), "has two lines"),
    "no line": (
        lambda out: write_jsonl(out / "metadata.jsonl", [line for line in ledger(out) if line["index"]]),
        "000000.png has no ledger line",
    ),
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


def test_a_run_json_of_another_shape_is_passed_over(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "one"}])
    words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(tmp_path / "out")]
    for damage in ("[]", '{"settings": null}', "5"):
        assert main(words) == 0
        (tmp_path / "out" / "run.json").write_text(damage)
        assert main(["status", str(tmp_path / "out")]) in (0, 1)


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


def test_the_tools_import_no_torch(out: Path) -> None:
    ended = run_module("support.imported", "torch", "verify", out)
    assert ended.code == 0, ended.output
