"""The record of batch jobs in an output folder: what a job still owes, and what of it is never passed over."""

import json
from pathlib import Path
from typing import Any

import pytest

from dglaunch.errors import UserError
from dglaunch.output.batch_jobs import BatchJob, Item, forget_settled, jobs_of, open_jobs
from dglaunch.output.ledger import OutputFolder
from support.commands import dglaunch
from support.results import ledger, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    """A job of three images, of which the last one has failed."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in ("a", "b", "c [raise]")])
    assert dglaunch("t2i", "--backend", "fake", "--prompts_file", rows, "--output_dir", tmp_path / "out").code == 3
    return OutputFolder(tmp_path / "out")


def ordered(folder: OutputFolder, *items: Item, **more: Any) -> BatchJob:
    job = BatchJob.begun("openai", "", {}, "2026-11-26T14:00:00.000+00:00")
    job.requests, job.file, job.id = [[item] for item in items], "file-1", "batch_1"
    for name, value in more.items():
        setattr(job, name, value)
    job.write(folder)
    return job


def owed(folder: OutputFolder) -> list[list[int]]:
    return [[item.row for item in items] for _, items in open_jobs(folder)]


def test_an_image_is_owed_until_it_is_there_refused_or_released(folder: OutputFolder) -> None:
    keys = [str(line["key"]) for line in ledger(folder.path)]
    items = Item(0, 0, keys[0]), Item(1, 0, "another prompt's"), Item(2, 0, "c"), Item(7, 0, "of a row to come")
    job = ordered(folder, *items)
    assert owed(folder) == [[1, 2, 7]]
    failures = folder.path / "failures.jsonl"
    failures.write_text(json.dumps(json.loads(failures.read_text()) | {"api_job": "batch_1"}) + "\n")
    assert owed(folder) == [[1, 7]]
    job.released = [(7, 0)]
    job.write(folder)
    assert owed(folder) == [[1]] and jobs_of(folder) == [job]
    (folder.path / "000000.png").unlink()
    assert owed(folder) == [[0, 1]]


def test_an_image_that_redo_ordered_is_not_the_one_that_is_there(folder: OutputFolder) -> None:
    key = str(ledger(folder.path)[0]["key"])
    ordered(folder, Item(0, 0, key, "0123456789abcdef"))
    assert owed(folder) == [[0]]


def test_what_was_never_ordered_is_owed_by_nobody(folder: OutputFolder) -> None:
    ordered(folder, Item(1, 0, "x"), file="", id="")
    assert owed(folder) == []
    forget_settled(folder)
    assert jobs_of(folder) == []


BAD = [
    b"", b"{", b"[]", b'{"dglaunch": "redo"}', b'{"dglaunch": "api_batch", "token": "x"}',
    b'{"dglaunch": "api_batch", "token": "0123456789abcdef", "backend": "", "server": "", "ordered": "", "file": "", "id": "",'
    b' "state": "", "settings": {}, "released": [], "requests": [[["0", 0, "", ""]]]}',
]  # fmt: skip


@pytest.mark.parametrize("content", BAD)
def test_a_record_that_cannot_be_read_is_not_passed_over(folder: OutputFolder, content: bytes) -> None:
    """It may be of a job that is paid for. Nor is it removed: it may be somebody's file."""
    path = folder.path / ".dglaunch-job-0123456789abcdef.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is the record of a batch job, and cannot be read"):
        open_jobs(folder)
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompt", "a", "--output_dir", folder.path, "--overwrite"
    )  # which would remove it
    assert ended.code == 2 and path.read_bytes() == content


def test_starting_anew_takes_the_records_away(folder: OutputFolder) -> None:
    ordered(folder, Item(1, 0, "x"), released=[(1, 0)])
    assert dglaunch("t2i", "--backend", "fake", "--prompt", "a", "--output_dir", folder.path, "--overwrite").code == 0
    assert jobs_of(folder) == []
