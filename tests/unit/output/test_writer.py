"""The output folder: what a killed run leaves is repaired, another job's results are refused, a full disk loses nothing."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.data.task import Result, Task, file_name
from dglaunch.errors import OutputError, UserError
from dglaunch.models.shape import Shape
from dglaunch.output import encode
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.writer import Writer
from support.results import ledger

SETTINGS = {"model_name": "tiny"}


def tasks(count: int, prompt: str = "p") -> list[Task]:
    return [Task(index=n, prompt=f"{prompt}{n}", seed=n, stem=f"{n:06d}") for n in range(count)]


def image_of(task: Task) -> bytes:
    """A picture that says what it is, as all of dglaunch's do."""
    text = {"index": task.index, "sample": task.sample, "prompt": task.prompt, "seed": task.seed, "model": "tiny"}
    return encode.encode(Image.new("RGB", (1, 1)), "png", text)


def result(task: Task, data: bytes | None = b"") -> Result:
    """Of a task that went well, or of one that failed (None)."""
    name = file_name(task, "png")
    data = image_of(task) if data == b"" else data
    record: dict[str, Any] = {"index": task.index, "sample": task.sample, **task.content(), "rank": 0}
    record |= {"key": task.key, "sha256": encode.sha256(data)} if data is not None else {"error": "RuntimeError: no"}
    return Result(task_id=(task.index, task.sample), file_name=name, record=record, data=data)


@contextmanager
def opened(
    folder: Path, todo: list[Task], settings: dict[str, Any] = SETTINGS, **options: Any
) -> Iterator[tuple[Writer, set[int]]]:
    """A writer, and the indices that are done."""
    writer = Writer(folder, options.pop("node", ""), options.pop("rank", ""))
    try:
        overwrite = options.pop("overwrite", False)
        found = writer.open(settings, todo, "png", overwrite)
        if overwrite:
            writer.clear()
        writer.begin(found, todo)
        writer.write_run({"settings": settings, "outcome": "running", "num_tasks": len(todo)})
        yield writer, {index for index, _ in found.done}
    finally:
        writer.close()


def written(folder: Path, count: int) -> None:
    with opened(folder, tasks(count)) as (writer, _):
        for task in tasks(count):
            writer.write(result(task))


def test_a_second_start_finds_what_is_done(tmp_path: Path) -> None:
    written(tmp_path, 3)
    with opened(tmp_path, tasks(5)) as (writer, done):
        assert done == {0, 1, 2}
        writer.write(result(tasks(5)[4]))
    assert [line["file_name"] for line in ledger(tmp_path)] == ["000000.png", "000001.png", "000002.png", "000004.png"]


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "missing", "torn line", "torn line without a file", "foreign line", "two lines"]
)
def test_damage_is_repaired_and_made_again(tmp_path: Path, damage: str) -> None:
    written(tmp_path, 4)
    victim, lines = tmp_path / "000003.png", (tmp_path / "metadata.jsonl").read_text()
    if damage in ("empty", "truncated"):
        victim.write_bytes(b"" if damage == "empty" else b"ima")
    elif damage == "missing":
        victim.unlink()
    elif damage.startswith("torn"):
        (tmp_path / "metadata.jsonl").write_text(lines[:-20])
        if damage.endswith("file"):
            victim.unlink()
    elif damage == "foreign line":
        (tmp_path / "metadata.jsonl").write_text(lines.replace('"index": 3', '"index": null, "x": 3'))
        (tmp_path / "metadata.jsonl").write_text("\n".join([*lines.splitlines()[:3], "not json", "[]", "7"]) + "\n")
    else:
        (tmp_path / "metadata.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    with opened(tmp_path, tasks(4)) as (writer, done):
        assert done == ({0, 1, 2, 3} if damage == "two lines" else {0, 1, 2})
        for task in tasks(4):
            if task.index not in done:
                writer.write(result(task))
    assert sorted(line["index"] for line in ledger(tmp_path)) == [0, 1, 2, 3]
    assert all((tmp_path / f"{n:06d}.png").read_bytes() == image_of(tasks(4)[n]) for n in range(4))


def test_stale_temporaries_are_swept(tmp_path: Path) -> None:
    written(tmp_path, 1)
    left, mine = tmp_path / ".dglaunch-999-0123456789abcdef.tmp", tmp_path / ".dglaunch-999-000007.png"
    for path in (left, mine):
        path.write_bytes(b"half")
    with opened(tmp_path, tasks(2)):
        assert not left.exists() and mine.exists()


@pytest.mark.parametrize(
    ("settings", "todo", "said"),
    [
        ({"model_name": "other"}, tasks(3), "model_name: 'tiny' -> 'other'"),
        (SETTINGS, tasks(3, "q"), "row 0, prompt: 'p0' -> 'q0'"),
        (SETTINGS, tasks(2), "1 images made there have no row any more (000002.png)"),
    ],
)
def test_another_job_is_refused_with_what_changed(
    tmp_path: Path, settings: dict[str, Any], todo: list[Task], said: str
) -> None:
    written(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as caught, opened(tmp_path, todo, settings):
        pass
    assert said in str(caught.value) and "--overwrite" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_removes_only_what_dglaunch_wrote(tmp_path: Path) -> None:
    written(tmp_path, 3)
    (tmp_path / "mine.txt").write_text("keep")
    with (tmp_path / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps({"index": 9, "sample": 0, "file_name": "../mine.txt", "bytes": 4, "key": ""}) + "\n")
    (tmp_path.parent / "mine.txt").write_text("keep")
    with opened(tmp_path, tasks(3, "q"), overwrite=True) as (_, done):
        assert done == set()
    assert (tmp_path / "mine.txt").exists() and (tmp_path.parent / "mine.txt").exists()
    assert not list(tmp_path.glob("*.png"))


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "000001.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"would be overwritten \(000001.png\)"), opened(tmp_path, tasks(3)):
        pass


def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path, tasks(1)), pytest.raises(UserError, match="Another dglaunch"), opened(tmp_path, tasks(1)):
        pass


def test_failures_are_kept_until_they_are_mended(tmp_path: Path) -> None:
    with opened(tmp_path, tasks(2)) as (writer, _):
        writer.write(result(tasks(2)[0], None))
        writer.write(result(tasks(2)[1], None))
    assert [line["index"] for line in ledger(tmp_path, "failures.jsonl")] == [0, 1]
    with opened(tmp_path, tasks(2)) as (writer, done):
        assert done == set()
        writer.write(result(tasks(2)[1]))
    with opened(tmp_path, tasks(2)):
        pass
    assert [line["index"] for line in ledger(tmp_path, "failures.jsonl")] == [0]


def test_a_full_disk_is_told_and_what_was_written_stays_valid(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the ledger's own line is what no longer fits."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with opened(tmp_path, tasks(50)) as (writer, _):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
            with pytest.raises(OutputError, match="File too large"):
                for task in tasks(50):
                    writer.write(result(task))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    lines = (tmp_path / "metadata.jsonl").read_bytes()
    assert 0 < len(lines) <= 4000 and lines.endswith(b"\n")
    with opened(tmp_path, tasks(50)) as (writer, done):
        assert len(done) == len(ledger(tmp_path)) > 3


def test_a_folder_that_goes_away_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with opened(folder, tasks(2)) as (writer, _):
        for path in folder.iterdir():
            path.unlink()
        os.rmdir(folder)
        with pytest.raises(OutputError, match="No such file"):
            writer.write(result(tasks(2)[0]))


def test_nodes_write_apart_and_the_last_one_joins(tmp_path: Path) -> None:
    todo = tasks(4)
    with (
        opened(tmp_path, todo, node="-node0of2") as (first, _),
        opened(tmp_path, todo, node="-node1of2") as (second, _),
    ):
        for task in todo[:2]:
            first.write(result(task))
        first.join(todo)
        assert not (tmp_path / "metadata.jsonl").exists()
        for task in reversed(todo[2:]):
            second.write(result(task))
        second.join(todo)
    assert [line["index"] for line in ledger(tmp_path)] == [0, 1, 2, 3]
    with opened(tmp_path, todo) as (_, done):
        assert done == {0, 1, 2, 3}


def test_out_of_memory_is_remembered_by_shape(tmp_path: Path) -> None:
    OutputFolder(tmp_path).note_out_of_memory(Shape(1024, 768), 8)
    OutputFolder(tmp_path).note_out_of_memory(Shape(1024, 768), 5)
    OutputFolder(tmp_path).note_out_of_memory(Shape(64, 64), 1)
    assert OutputFolder(tmp_path).out_of_memory_limits() == {Shape(1024, 768): 4, Shape(64, 64): 1}


def test_ranks_beside_are_joined_by_the_next_start(tmp_path: Path) -> None:
    """One line for each image, whoever wrote it, and none without its file; failures that are still open are kept."""
    todo = tasks(5)
    with opened(tmp_path, todo) as (first, _), opened(tmp_path, todo, rank="-rank1of2") as (second, _):
        for writer, number in ((first, 0), (second, 1), (second, 2)):
            writer.write(result(todo[number]))
        second.write(result(todo[3], None))
        second.write(result(todo[4], None))
    (tmp_path / "000002.png").write_bytes(b"torn")
    with (tmp_path / "metadata-rank1of2.jsonl").open("a") as lines:
        lines.write('{"index": 4, "sam')
    with opened(tmp_path, todo) as (writer, done):
        assert done == {0, 1}
        writer.write(result(todo[3]))
    with opened(tmp_path, todo):
        pass
    assert sorted(line["index"] for line in ledger(tmp_path)) == [0, 1, 3]
    assert [line["index"] for line in ledger(tmp_path, "failures.jsonl")] == [4]
    assert not list(tmp_path.glob("*-rank*.json*"))


def test_a_rank_that_writes_beside_keeps_the_folder(tmp_path: Path) -> None:
    todo = tasks(2)
    with opened(tmp_path, todo, rank="-rank1of2"), pytest.raises(UserError, match="Another dglaunch"):  # noqa: SIM117
        with opened(tmp_path, todo):
            pass


def test_a_start_keeps_its_own_lock_and_what_ran_out_of_memory(tmp_path: Path) -> None:
    OutputFolder(tmp_path).note_out_of_memory(Shape(64, 64), 4)
    with opened(tmp_path, tasks(1), node="-node0of2"):
        assert OutputFolder(tmp_path).is_held("-node0of2")
        with pytest.raises(UserError, match="Another dglaunch"), opened(tmp_path, tasks(1), node="-node0of2"):
            pass
    with opened(tmp_path, tasks(1)):
        assert OutputFolder(tmp_path).out_of_memory_limits() == {Shape(64, 64): 3}


def test_another_models_folder_is_refused_whoever_wrote_it(tmp_path: Path) -> None:
    with opened(tmp_path, tasks(1), node="-node0of2") as (writer, _):
        writer.write(result(tasks(1)[0]))
    with pytest.raises(UserError, match="model_name"), opened(tmp_path, tasks(1), {"model_name": "other"}):
        pass


def test_a_full_disk_has_room_for_the_last_run_json(tmp_path: Path) -> None:
    """Without it `dglaunch status` would see a run that was killed, and the batch script would start it again."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with opened(folder, tasks(2)) as (writer, _):
            with (folder / "other").open("wb", buffering=0) as other, pytest.raises(OSError):
                while True:
                    other.write(bytes(4096))
            with pytest.raises(OutputError, match="No space left"):
                writer.write(result(tasks(2)[0], bytes(10_000)))
            writer.write_run({"outcome": "broken", "long": "x" * 20_000})
        assert json.loads((folder / "run.json").read_text())["outcome"] == "broken"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
