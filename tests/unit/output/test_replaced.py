"""What a redo that was killed leaves: which images are in doubt, and what nobody may make of its note."""

import json
from pathlib import Path

import pytest

from dglaunch.output.ledger import OutputFolder, Part
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.resume import read_progress
from support.redone import hashes, redo, t2i
from support.results import ledger


def test_an_image_of_the_same_size_is_told_apart_by_its_hash(tmp_path: Path) -> None:
    """Killed between an image and its line: the new image is in place, and the old line still stands."""
    out = tmp_path / "out"
    t2i(out)
    folder = OutputFolder(out)
    path = out / "000001.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert len(read_progress(folder, Part()).done) == 5, "as long as nobody says that it is in doubt"
    PendingRedo.begun({}, [(1, 0), (2, 0)]).write(folder)
    assert read_progress(folder, Part()).done.keys() == {(0, 0), (2, 0), (3, 0), (4, 0)}
    damaged = path.read_bytes()
    t2i(out)
    assert (out / ".dglaunch-aside" / "000001.png").read_bytes() == damaged and path.read_bytes() != damaged


def test_a_job_that_starts_anew_has_no_redo_to_go_on_with(tmp_path: Path) -> None:
    """With the note left there, `redo --failed` would go on with what had failed in the job before."""
    out = tmp_path / "out"
    t2i(out)
    PendingRedo.begun({}, [(1, 0)]).write(OutputFolder(out))
    t2i(out, "--overwrite")
    assert PendingRedo.read(OutputFolder(out)) is None


@pytest.mark.parametrize(
    "note",
    ["", "[]", "{", '{"dglaunch": "redo"}', '{"dglaunch": "tune", "asked": {}, "token": "0000000000000000", "tasks": []}',
     '{"dglaunch": "redo", "asked": {}, "token": "../x", "tasks": []}', "[" * 9999],
)  # fmt: skip
def test_a_note_that_is_none_is_moved_aside(tmp_path: Path, note: str) -> None:
    out = tmp_path / "out"
    t2i(out)
    (out / ".dglaunch-redo.json").write_text(note)
    assert PendingRedo.read(OutputFolder(out)) is None
    redo(out, "--filter_rows", "1", "--seed_offset", "9")
    assert (out / ".dglaunch-aside" / ".dglaunch-redo.json").read_text() == note
    assert not (out / ".dglaunch-redo.json").exists() and list(hashes(out / "replaced")) == ["000001.png"]


def test_a_note_of_a_strangers_is_only_numbers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    t2i(out)
    asked = {"filter_rows": "1", "failed": False, "seed_offset": 9, "set": {}}
    wanted = [[1, 0], [99, 0], ["../x", 0], [True, 0], [-1, 0], None, [3]]
    note = {"dglaunch": "redo", "asked": asked, "token": "0" * 16, "tasks": wanted}
    (out / ".dglaunch-redo.json").write_text(json.dumps(note))
    redo(out, "--filter_rows", "1", "--seed_offset", "9")
    assert [line["seed"] for line in ledger(out)] == [0, 10, 2, 3, 4]
