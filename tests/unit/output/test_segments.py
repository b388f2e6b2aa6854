"""The ledger of a large job is in segments: nothing is lost when one is closed, indexed, published, or on the way to it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dglaunch.data import tables
from dglaunch.output import file_index, ledger_index, resume, segments
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ledger_index import LedgerIndex
from dglaunch.output.segments import in_order, new_name
from support.commands import Ended, dglaunch
from support.results import ledger, write_jsonl

NUM = 23
SEGMENT_LINES = 5


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_LINES", SEGMENT_LINES)


def run(folder: Path, *more: str | Path, first: str = "p") -> Ended:
    table = write_jsonl(folder / "p.jsonl", [{"prompt": f"{first if n == 14 else 'p'} {n}"} for n in range(NUM)])
    words = ["t2i", "--backend", "fake", "--batch_size", "2", "--prompts_file", table, "--output_dir", folder / "out"]
    return dglaunch(*words, *more)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that a signal stopped in its middle, with closed segments and an open one; its table is then the whole job's."""
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p {n}"} for n in range(NUM)])
    words = ["t2i", "--backend", "fake", "--batch_size", "2", "--prompts_file", table, "--output_dir", tmp_path / "out"]
    assert dglaunch(*words, "--limit", "13").code == 0
    shutil.move(tmp_path / "out" / "metadata.jsonl", tmp_path / "lines")
    lines = (tmp_path / "lines").read_text().splitlines(keepends=True)
    there = tmp_path / "out" / segments.FOLDER
    there.mkdir(exist_ok=True)
    for first in (0, 5):
        (there / new_name(os.listdir(there))).write_text("".join(lines[first : first + 5]))
    (tmp_path / "out" / "metadata.jsonl").write_text("".join(lines[10:]))
    return tmp_path


def assert_all_there(folder: Path) -> None:
    assert dglaunch("verify", folder / "out").code == 0
    assert [line["index"] for line in ledger(folder / "out")] == list(range(NUM))
    assert not segments.closed(folder / "out")


def test_names_count_on_and_say_who_wrote() -> None:
    first = new_name([])
    second = new_name([first, "else.jsonl"], "-node0of2-rank3of8")
    assert in_order([second, "x", first]) == [first, second]
    assert second.startswith("000001-node0of2-rank3of8-")
    assert segments.suffix_of(Path(second)) == "-node0of2-rank3of8"


def test_a_job_with_segments_ends_with_one_ledger_in_order(tmp_path: Path) -> None:
    assert run(tmp_path).code == 0
    assert_all_there(tmp_path)
    assert f"{NUM} are there already" in run(tmp_path).output


def test_every_command_reads_segments(stopped: Path) -> None:
    out = stopped / "out"
    assert "13 of 13 images done" in dglaunch("status", out).output
    assert "13 images are right" in dglaunch("verify", out).output
    assert dglaunch("gallery", out).code == 0
    assert '"count":13' in (out / "gallery.html").read_text().replace(" ", "")
    assert dglaunch("merge", out, "--output_dir", stopped / "all").code == 0
    assert [line["index"] for line in ledger(stopped / "all")] == list(range(13))
    assert "10 to make" in run(stopped, "--dry_run").output or run(stopped).code == 0


def test_a_start_goes_on_and_publishes(stopped: Path) -> None:
    assert "13 are there already" in run(stopped).output
    assert_all_there(stopped)


def test_the_index_is_used_and_may_be_lost_or_damaged(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped / "out"
    LedgerIndex.read(OutputFolder(out)).keep()
    kept = sorted((out / segments.FOLDER).glob("0*.index"))
    assert len(kept) == 2
    read: list[str] = []
    of_lines = file_index.FileIndex.of_lines
    monkeypatch.setattr(
        file_index.FileIndex, "of_lines", classmethod(lambda _, at: read.append(at.path.name) or of_lines(at))
    )
    assert len(LedgerIndex.read(OutputFolder(out))) == 13
    assert read == ["metadata.jsonl"], "closed segments are known"
    whole = kept[0].read_bytes()
    for damaged in (whole[:-40], b"no", None):
        kept[0].write_bytes(damaged or b"")
        if damaged is None:
            kept[0].unlink()
        read.clear()
        assert len(LedgerIndex.read(OutputFolder(out))) == 13
        assert len(read) == 2
    assert "13 are there already" in run(stopped).output
    assert_all_there(stopped)


def test_columns_of_many_files_are_joined_a_few_at_a_time(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(stopped / "out")
    whole = LedgerIndex.read(folder)
    monkeypatch.setattr(ledger_index, "JOINED", 2)
    index = LedgerIndex.read(folder)
    assert len(index.files) == 3 and [len(file) for file in index.files] == [5, 5, 3]
    for name, column in whole.columns.items():
        assert column.dtype == index.columns[name].dtype and column.tolist() == index.columns[name].tolist()
    assert index.all_names(index.last()) == [f"{n:06d}.png" for n in range(13)]


def test_an_index_of_a_stranger_leads_nowhere(stopped: Path) -> None:
    """It names a file outside of the folder: the lines are read instead."""
    import numpy as np

    out = stopped / "out"
    index = LedgerIndex.read(OutputFolder(out))
    index.keep()
    path = sorted((out / segments.FOLDER).glob("0*.index"))[0]
    with np.load(path) as kept:
        arrays = dict(kept)
    bad = file_index.pack([f"../{n}.png" for n in range(5)])
    with path.open("wb") as to:
        np.savez(to, **(arrays | {"names": np.frombuffer(bad, np.uint8)}))
    read = LedgerIndex.read(OutputFolder(out))
    assert sorted(read.names(read.last()))[0] == "000000.png"


@pytest.mark.parametrize("state", ["between rename and a new open one", "published, segments still there", "torn"])
def test_killed_in_between(stopped: Path, state: str) -> None:
    out = stopped / "out"
    there = out / segments.FOLDER
    if state.startswith("between"):
        os.rename(out / "metadata.jsonl", there / new_name(os.listdir(there)))
    elif state.startswith("published"):
        lines = [line for path in segments.closed(out) for line in path.read_text().splitlines(keepends=True)]
        (out / "metadata.jsonl").write_text("".join(lines) + (out / "metadata.jsonl").read_text())
    else:
        with (out / "metadata.jsonl").open("a") as to:
            to.write('{"file_name": "000013.p')
    assert "13 are there already" in run(stopped).output
    assert_all_there(stopped)


def test_two_writers_that_died_leave_their_segments_to_the_next_start(stopped: Path) -> None:
    """Rank 1 of 2 had closed a segment and torn a line of its open one."""
    out = stopped / "out"
    there = out / segments.FOLDER
    first = segments.closed(out)[0]
    first.rename(there / new_name(os.listdir(there), "-rank1of2"))
    lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
    (out / "metadata.jsonl").write_text(lines[0])
    (out / "metadata-rank1of2.jsonl").write_text("".join(lines[1:]) + '{"file_name": ')
    assert "13 are there already" in run(stopped).output
    assert_all_there(stopped)


@pytest.mark.parametrize("damage", ["gone", "changed", "a line nobody can read"])
def test_damage_in_a_closed_segment_is_made_again(stopped: Path, damage: str) -> None:
    out = stopped / "out"
    if damage == "gone":
        (out / "000002.png").unlink()
    elif damage == "changed":
        (out / "000002.png").write_bytes(b"mine")
    else:
        path = segments.closed(out)[0]
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[:2], "{]\n", *lines[3:]]))
    assert dglaunch("verify", out).code == 1
    assert "12 are there already" in run(stopped).output
    assert_all_there(stopped)
    assert damage != "changed" or (out / ".dglaunch-aside" / "000002.png").read_bytes() == b"mine"


def test_verify_repairs_a_closed_segment(stopped: Path) -> None:
    out = stopped / "out"
    (out / "000002.png").write_bytes(b"")
    assert "000002.png has 0 bytes" in dglaunch("verify", out, "--repair").output
    assert "12 images are right" in dglaunch("verify", out).output


def test_redo_replaces_what_a_segment_says(stopped: Path) -> None:
    out = stopped / "out"
    assert dglaunch("redo", out, "--filter_rows", "2", "--seed_offset", "9").code == 0
    line = ledger(out)[2]
    assert line["seed"] == 11 and line["redo"]
    assert dglaunch("verify", out).code == 0
    assert "13 are there already" in run(stopped).output


def test_overwrite_removes_segments(stopped: Path) -> None:
    assert run(stopped, "--overwrite").code == 0
    assert_all_there(stopped)
    assert not list((stopped / "out").glob(f"{segments.FOLDER}/*.jsonl"))


def test_an_old_flat_folder_opens_and_goes_on(tmp_path: Path) -> None:
    """Its one ledger is longer than a segment: it becomes one, and is whole again in the end."""
    assert run(tmp_path, "--limit", "13").code == 0
    shutil.rmtree(tmp_path / "out" / segments.FOLDER, ignore_errors=True)
    assert "13 are there already" in run(tmp_path).output
    assert_all_there(tmp_path)


def test_lines_of_others_come_through(stopped: Path) -> None:
    out = stopped / "out"
    theirs = json.dumps({"file_name": "mine.png", "text": "a cat"}) + "\n"
    with (out / "metadata.jsonl").open("a") as to:
        to.write(theirs)
    assert run(stopped).code == 0
    assert (out / "metadata.jsonl").read_text().endswith(theirs)
    assert dglaunch("verify", out).code == 0


def test_a_table_in_columns_goes_on_and_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of which nothing has changed are not looked at one by one; if one has, it is named."""
    monkeypatch.setattr(tables, "LARGE_BYTES", 0)
    compared: list[object] = []
    changed_rows = resume._changed_rows
    monkeypatch.setattr(resume, "_changed_rows", lambda *given: compared.append(given) or changed_rows(*given))
    more = ["--files_per_folder", "5"]
    assert run(tmp_path, *more, first="[item error] p").code == 3
    out = tmp_path / "out"
    assert "tasks_fingerprint" in (out / "run.json").read_text()
    (out / "0001" / "000007.png").unlink()
    (out / "0003" / "000017.png").rename(tmp_path / "kept.png")
    (out / "0000" / "metadata.jsonl").write_text("".join(ledger_lines(out / "0000")[:4]))  # one is left without a line
    assert "19 are there already" in run(tmp_path, *more, first="[item error] p").output
    assert not compared
    ended = run(tmp_path, *more, first="another p")
    assert "22 are there already" in ended.output and ended.code == 0, "of row 14 there is no image"
    assert len(compared) == 1
    refused = run(tmp_path, *more, first="a third p")
    assert refused.code == 2
    assert "row 14, prompt: 'another p 14' -> 'a third p 14'" in refused.output
    assert not (out / "failures.jsonl").exists()
    assert "23 images are right" in dglaunch("verify", out).output


def ledger_lines(folder: Path) -> list[str]:
    return (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
