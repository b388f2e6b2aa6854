"""What a start keeps of the folders of images that it has looked at: the next asks for no file in them, and misses nothing."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dglaunch.output import looks
from dglaunch.output.ledger import OutputFolder, Part
from dglaunch.output.ledger_index import Compared, LedgerIndex
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.resume import Progress, read_progress
from dglaunch.output.segments import FOLDER
from dglaunch.output.status import read_status
from support.commands import Ended, dglaunch
from support.results import write_jsonl

NUM = 12
LOST = "0001/000007.png"
RANK_0 = Part()


def run(folder: Path, *more: str | Path) -> Ended:
    table = write_jsonl(folder / "p.jsonl", [{"prompt": f"p {n}"} for n in range(NUM)])
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", folder / "out"]
    return dglaunch(*words, *(more if "--store" in more else ("--files_per_folder", "5", *more)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert run(folder).code == 0
    return folder / "out"


@pytest.fixture
def out(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three folders of images, as a start left them that has looked at them all: of a large job that rested for long."""
    monkeypatch.setattr(looks, "LARGE_ROWS", NUM - 1)
    monkeypatch.setattr(looks, "SETTLED_S", 0)
    shutil.copytree(made, tmp_path / "out")
    start(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose files are asked for one by one. (Several are looked into at a time.)"""
    found: list[str] = []
    monkeypatch.setattr(looks, "LOOKING", 1)
    scandir = os.scandir

    def spied(path: int | Path) -> object:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
        found.extend([name] if name.isdigit() else [])
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spied)
    return found


def start(out: Path, part: Part = RANK_0) -> Progress:
    """As a run begins."""
    progress = read_progress(OutputFolder(out), part)
    progress.keep()
    return progress


def kept(out: Path) -> Path:
    return out / FOLDER / looks.KEPT


def test_no_file_of_an_unchanged_folder_is_asked_for(out: Path, asked: list[str]) -> None:
    progress = start(out)
    assert len(progress.done) == NUM and not progress.damaged and not progress.unlisted
    assert not asked
    assert f"{NUM} are there already" in run(out.parent).output
    assert not asked
    os.remove(kept(out))
    assert len(start(out).done) == NUM
    assert asked == ["0000", "0001", "0002"], "it may be lost at any time"


def test_several_processes_find_what_one_finds(out: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = kept(out).read_bytes()
    os.remove(kept(out))
    monkeypatch.setattr(looks, "MANY", 3)
    monkeypatch.setattr(looks, "LOOKING", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (out / LOST).rename(out / "lost.png")
    assert len(start(out).done) == NUM - 1 and not asked, "not by this process"
    (out / "lost.png").rename(out / LOST)
    assert len(start(out).done) == NUM and asked == ["0001"], "one is looked into at once"
    assert [line[:8] for line in _lines(kept(out).read_bytes())] == [line[:8] for line in _lines(alone)]


def _lines(data: bytes) -> list[bytes]:
    """What is kept of each folder; its number comes first."""
    lines, size = data.removeprefix(looks._HEAD), looks._LOOK.size
    return [lines[at : at + size] for at in range(0, len(lines), size)]


def removed(path: Path) -> None:
    path.unlink()


def renamed(path: Path) -> None:
    path.rename(path.with_name("x.png"))


def replaced(path: Path) -> None:
    """By one that is shorter, and the folder gets back the time that it had."""
    times = path.parent.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1])
    other.rename(path)
    os.utime(path.parent, ns=(times.st_atime_ns, times.st_mtime_ns))


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


@pytest.mark.parametrize("change", [removed, renamed, replaced, linked])
def test_a_file_that_is_lost_is_missed(out: Path, asked: list[str], change: Callable[[Path], None]) -> None:
    change(out / LOST)
    progress = start(out)
    assert progress.done.keys() == {(n, 0) for n in range(NUM) if n != 7} and progress.damaged == 1
    assert asked == ["0001"], "the others are as they were"


def test_a_file_that_is_new_is_seen(out: Path, asked: list[str]) -> None:
    (out / "0001" / "mine.png").write_bytes(b"mine")
    for _ in range(2):
        progress = start(out)
        assert progress.unlisted == ["0001/mine.png"] and len(progress.done) == NUM
    assert asked == ["0001"], "and known from then on"


def test_names_tell_where_the_folder_says_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """A file system of the web's kind may have no times for folders."""
    monkeypatch.setattr(looks, "_state", lambda opened: (1, 2, 3, 4, 5))
    kept(out).unlink()
    start(out)
    asked.clear()
    (out / LOST).rename(out / "0001" / "x.png")
    progress = start(out)
    assert len(progress.done) == NUM - 1 and progress.unlisted == ["0001/x.png"]
    assert asked == ["0001"]


def test_lines_that_are_others_are_compared_with_the_files(out: Path) -> None:
    """The folder is as it was, and what its ledger says is not."""
    view = out / "0001" / "metadata.jsonl"
    text = view.read_text()
    size = (out / LOST).stat().st_size
    with view.open("r+") as lines:  # in place: the folder does not change
        lines.write(text.replace(f'"bytes": {size}', f'"bytes": {size + 1}'))
    done = start(out).done.keys()
    assert done >= {(n, 0) for n in (0, 1, 2, 3, 4, 10, 11)} and len(done) < NUM


def test_a_folder_counts_only_once_it_has_settled(out: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    kept(out).unlink()
    monkeypatch.setattr(looks, "SETTLED_S", 600)
    for _ in range(2):
        assert len(start(out).done) == NUM
        assert not kept(out).exists()
    assert asked == ["0000", "0001", "0002"] * 2
    monkeypatch.setattr(time, "time_ns", lambda: os.stat(out).st_ctime_ns + 601 * 10**9)
    start(out)
    asked.clear()
    assert len(start(out).done) == NUM and not asked


def test_a_folder_in_which_one_is_missing_is_looked_at_each_time(out: Path, asked: list[str]) -> None:
    (out / LOST).unlink()
    for _ in range(2):
        assert len(start(out).done) == NUM - 1
    assert asked == ["0001"] * 2


def test_a_small_job_is_looked_at_file_by_file(out: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(looks, "LARGE_ROWS", NUM)
    os.truncate(out / LOST, 5)
    assert len(start(out).done) == NUM - 1
    assert asked == ["0000", "0001", "0002"]


def test_an_object_store_keeps_none(out: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(looks, "far_of", lambda folder: object())
    kept(out).unlink()
    assert len(start(out).done) == NUM
    assert asked == ["0000", "0001", "0002"] and not kept(out).exists()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def of_another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"looks 1", b"looks 2"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(1000))


def with_folders_that_are_not_there(path: Path) -> None:
    """The states of the three that are there, under other numbers."""
    head, looked = looks._HEAD, looks._LOOK
    lines = looked.iter_unpack(path.read_bytes().removeprefix(head))
    path.write_bytes(head + b"".join(looked.pack((number + 1) * 10**17 - 7, *rest) for number, *rest in lines))


def with_hashes_of_others(path: Path) -> None:
    head, looked = looks._HEAD, looks._LOOK
    lines = looked.iter_unpack(path.read_bytes().removeprefix(head))
    path.write_bytes(head + b"".join(looked.pack(*rest, b"x" * 16, latest) for *rest, _, latest in lines))


def a_link(path: Path) -> None:
    path.rename(path.parent.parent / "looks")
    path.symlink_to("../looks")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [
    cut, of_another_version, empty, noise, with_folders_that_are_not_there, with_hashes_of_others, a_link, a_folder,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_look_that_is_no_look_is_as_none(out: Path, asked: list[str], damage: Callable[[Path], None]) -> None:
    damage(kept(out))
    os.truncate(out / LOST, 5)
    assert read_progress(OutputFolder(out), RANK_0).done.keys() == {(n, 0) for n in range(NUM) if n != 7}
    assert asked == ["0000", "0001", "0002"]


def test_a_look_that_cannot_be_kept_stops_no_run(out: Path) -> None:
    a_folder(kept(out))
    (out / LOST).unlink()
    assert f"{NUM - 1} are there already" in run(out.parent).output
    assert f"{NUM} images are right" in dglaunch("verify", out).output


def test_nothing_is_kept_behind_a_link(out: Path) -> None:
    elsewhere = out.parent / "elsewhere"
    (out / FOLDER).rename(elsewhere)
    (elsewhere / looks.KEPT).unlink()
    (out / FOLDER).symlink_to(elsewhere)
    before = sorted(os.listdir(elsewhere))
    assert f"{NUM} are there already" in run(out.parent).output
    assert sorted(os.listdir(elsewhere)) == before


def test_verify_finds_what_was_cut_in_place(out: Path) -> None:
    """The one thing that a start does not see; what is in doubt is looked at all the same."""
    os.truncate(out / LOST, 5)
    assert len(start(out).done) == NUM
    PendingRedo.begun({}, [(7, 0)]).write(OutputFolder(out))
    assert len(start(out).done) == NUM - 1
    for note in OutputFolder(out).path.glob(".dglaunch-redo*"):
        note.unlink()
    ended = dglaunch("verify", out)
    assert ended.code == 1 and f"{LOST} has 5 bytes" in ended.output
    assert dglaunch("verify", out, "--repair").code == 1
    assert f"{NUM - 1} are there already" in run(out.parent).output
    assert dglaunch("verify", out).code == 0


def test_status_looks_only_where_the_latest_images_are(out: Path, asked: list[str]) -> None:
    for number, name in enumerate(sorted(out.glob("0*/*.png"))):
        os.utime(name, (1e9 + number, 1e9 + number))
    kept(out).unlink()
    start(out)
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    asked.clear()
    status = read_status(OutputFolder(out))
    assert (status.num_done, status.total) == (NUM, NUM)
    assert asked == ["0002", "0001", "0000"], "the latest 100 are all that there are"
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before, "it writes nothing"
    asked.clear()
    found = looked_at(out).latest(4)
    assert [record["index"] for _, record in found] == [8, 9, 10, 11] and asked == ["0002", "0001"]
    kept(out).unlink()
    assert looked_at(out).latest(4) == found
    assert read_status(OutputFolder(out)).images_per_s == status.images_per_s


def looked_at(out: Path) -> Compared:
    return LedgerIndex.read(OutputFolder(out)).compare(with_times=True)


def test_overwrite_removes_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "LARGE_ROWS", 10**6)
    assert run(out.parent, "--overwrite").code == 0
    assert not kept(out).exists()


def test_nodes_of_a_job_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """While it runs, too: the lines of a folder are in the open segments of both."""
    monkeypatch.setattr(looks, "LARGE_ROWS", 2)
    monkeypatch.setattr(looks, "SETTLED_S", 0)
    for node in ("1", "0"):
        assert run(tmp_path, "--num_nodes", "2", "--node_rank", node, "--limit", "9").code == 0
        if node == "1":
            assert len(start(tmp_path / "out", Part("-node1of2")).done) > 2
    parts = [Part("-node0of2"), Part("-node1of2")]
    assert [len(start(tmp_path / "out", part).done) for part in parts] == [9, 9]
    asked.clear()
    assert [len(start(tmp_path / "out", part).done) for part in parts] == [9, 9]
    assert not asked


def test_images_in_shards_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "LARGE_ROWS", 2)
    monkeypatch.setattr(looks, "SETTLED_S", 0)
    for _ in range(2):
        assert run(tmp_path, "--store", "webdataset").code == 0
    assert len(start(tmp_path / "out").done) == NUM
    assert not kept(tmp_path / "out").exists()
