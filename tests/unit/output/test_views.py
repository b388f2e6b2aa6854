"""--layout killed in its middle: what was finished stays, the rest is made, and all is as if nothing had happened."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from dglaunch.output import layouts, views
from dglaunch.output.forks import in_forks
from dglaunch.output.ownership import ASIDE, Made, Mark
from support.commands import dglaunch
from support.killed import KILLED, killed_after
from support.results import write_jsonl

NUM, IN_SHARD = 14, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that has ended, beside its table."""
    folder = tmp_path_factory.mktemp("made")
    write_jsonl(folder / "p.jsonl", [{"prompt": f"p {n}", "tag": "x"} for n in range(NUM)])
    assert dglaunch(*words(folder, "indexed")).code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; its shards are small, and processes make them."""
    monkeypatch.setattr(layouts, "SHARD_IMAGES", IN_SHARD)
    monkeypatch.setattr(views, "MOST_ALONE", 4)
    return shutil.copytree(made, tmp_path / "copy")


def words(folder: Path, layout: str) -> list[str | Path]:
    return ["t2i", "--backend", "fake", "--prompts_file", folder / "p.jsonl", "--output_dir", folder / "out", "--layout", layout]  # fmt: skip


def files_of(view: Path) -> dict[str, bytes]:
    return {path.relative_to(view).as_posix(): path.read_bytes() for path in view.rglob("*") if path.is_file()}


def identities(view: Path) -> dict[str, tuple[int, int]]:
    """Which files they are: one that is written again is another."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in view.rglob("*") if path.is_file()}


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The process dies when it has noted this file, before the file takes its place."""
    add, calls = Mark.add, []

    def then_die(self: Mark, name: str, made: Made) -> None:
        add(self, name, made)
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Mark, "add", then_die)


@pytest.mark.parametrize(
    ("layout", "call"),
    [
        ("webdataset", 3), ("genarena", 11),
        *(pytest.param("webdataset", call, marks=pytest.mark.slow) for call in (1, 2, 4, 5)),
        *(pytest.param("parquet", call, marks=pytest.mark.slow) for call in (1, 2, 3, 4, 5)),
    ],
)  # fmt: skip
def test_killed_and_begun_again(folder: Path, tmp_path: Path, layout: str, call: int) -> None:
    whole = shutil.copytree(folder, tmp_path / "whole")
    assert dglaunch(*words(whole, layout)).code == 0
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, call)
        assert killed_after(60, *words(folder, layout)) == KILLED
    view = folder / "out" / layout
    before = identities(view)
    assert len(before) == call - 1 or layout == "genarena"
    assert dglaunch(*words(folder, layout)).code == 0
    assert files_of(view) == files_of(whole / "out" / layout)
    assert before.items() <= identities(view).items(), "what was finished was not written again"
    assert not list((folder / "out").glob(".dglaunch-*.tmp")) and not (folder / "out" / ASIDE).exists()
    after = identities(view)
    assert dglaunch(*words(folder, layout)).code == 0 and identities(view) == after


def test_what_is_not_as_it_would_be_written_is_written(folder: Path) -> None:
    assert dglaunch(*words(folder, "webdataset")).code == 0
    view = folder / "out" / "webdataset"
    right, before = files_of(view), identities(view)
    damaged = view / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"damaged")
    assert dglaunch(*words(folder, "webdataset")).code == 0
    assert files_of(view) == right
    assert {name for name, which in identities(view).items() if before[name] != which} == {"00001.tar"}
    assert (folder / "out" / ASIDE / "00001.tar").read_bytes().endswith(b"damaged")
    mark = folder / "out" / ".dglaunch-view-webdataset"
    mark.write_text("".join(line.partition(', "of"')[0] + "}\n" for line in mark.read_text().splitlines()))
    assert dglaunch(*words(folder, "webdataset")).code == 0, (
        "a mark of before says nothing of what its files are made of"
    )
    assert files_of(view) == right
    ledger = folder / "out" / "metadata.jsonl"
    ledger.write_text(ledger.read_text().replace('"prompt": "p 4"', '"prompt": "q 4"'))
    before = identities(view)
    assert dglaunch(*words(folder, "webdataset")).code == 0
    assert {name for name, which in identities(view).items() if before[name] != which} == {"00001.tar"}


def test_helpers_die_with_the_process_that_they_work_for(tmp_path: Path) -> None:
    child = os.fork()
    if not child:

        def work(number: int) -> None:
            (tmp_path / f"{os.getpid()}").touch()
            time.sleep(60)

        try:
            list(in_forks(work, range(2), 2))
        finally:
            os._exit(99)
    until = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    helpers = [int(path.name) for path in tmp_path.iterdir()]
    while any(is_alive(pid) for pid in helpers) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(helpers) == 2 and not any(map(is_alive, helpers))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_helper_that_is_killed_is_an_error_of_the_system() -> None:
    def work(number: int) -> int:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(OSError, match="was killed"):
        list(in_forks(work, range(9), 2))
