"""--store webdataset and parquet into an object store: what is killed loses no image that has a line, and doubles none."""

import json
import signal
import time
from pathlib import Path

import pytest

from dglaunch.backends.profiles import FakeProfile
from dglaunch.output import far_shards, shard_writer
from support.commands import kill_group, start
from support.far_jobs import Job, loaded
from support.kept import STORES, images_in
from support.s3_server import Faults, S3Server

BOTH = pytest.mark.parametrize("store", STORES)


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setattr(shard_writer, "SHARD_IMAGES", 3)
    return running


def pieces(server: S3Server) -> list[str]:
    return [path for method, path in server.requests if method == "PUT" and far_shards.OPEN in path]


@BOTH
def test_a_run_in_shards(server: S3Server, tmp_path: Path, store: str) -> None:
    job = Job(server, f"in-{store}", tmp_path, 7, "--store", store)
    ended = job.start()
    assert ended.code == 0 and "the last 2 s" in ended.output, ended.output
    job.assert_whole_in_shards(7)
    assert sum(name.startswith("shards/") for name in job.objects()) == 3
    assert job.command("verify").output.endswith("7 images are right\n")
    assert "7 of 7 images done" in job.command("status").output
    server.requests.clear()
    again = job.start()
    assert again.code == 0 and "7 there before, of 7" in again.output and not pieces(server), again.output


def test_datasets_reads_a_bucket(server: S3Server, tmp_path: Path) -> None:
    """A job of each --store, with no code of ours but what `docs/object_storage.md` says."""
    for store in ("files", *STORES):
        more = ("--files_per_folder", "2") if store == "files" else ("--store", store)
        job = Job(server, f"read-{store}", tmp_path, 4, *more)
        assert job.start().code == 0
        rows = list(loaded(server, job.address, tmp_path, store))
        assert sorted(row.get("prompt") or row["txt"] for row in rows) == [
            f"a fox, number {number}" for number in range(4)
        ]
        assert all((row.get("image") or row["png"]).size == (64, 64) for row in rows)


def test_the_page_has_small_copies(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "page-of-shards", tmp_path, 4, "--store", "webdataset")
    assert job.start().code == 0
    page = job.command("gallery")
    assert page.code == 0 and "--serve" not in page.output, page.output
    assert job.get("gallery.html").count(b"data:image/") >= 4
    assert job.command("gallery", "--serve").code == 2


def stopped(job: Job, server: S3Server) -> None:
    """A start that can close no shard, so that the store has pieces and lines: what a lost machine leaves."""
    server.faults.only, server.faults.refuse = "/shards/", "AccessDenied"
    ended = job.start()
    assert ended.code == 1 and "Writing to" in ended.output, ended.output
    server.faults = Faults()
    assert not any(name.startswith("shards/") for name in job.objects())
    server.requests.clear()


@BOTH
def test_what_a_lost_machine_left_is_gone_on_with(server: S3Server, tmp_path: Path, store: str) -> None:
    job = Job(server, f"lost-{store}", tmp_path, 6, "--store", store)
    stopped(job, server)
    left = [name for name in job.objects() if name.startswith(far_shards.OPEN)]
    assert left
    seen = job.command("status")
    assert seen.code == 0 and not any(".dglaunch/open" in path for method, path in server.requests if method == "GET")
    in_pieces = sum(job.get(name).count(b".json\0") for name in left)
    assert f"{in_pieces} of 6 images done" in seen.output, seen.output
    assert f"{in_pieces} images are right" in job.command("verify").output
    ended = job.start()
    assert ended.code == 0 and f"{in_pieces} there before, of 6" in ended.output, ended.output
    job.assert_whole_in_shards(6)


def test_a_piece_or_a_line_that_did_not_arrive(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some that were on their way any may be missing: its images are made again, and an image without a line gets one."""
    monkeypatch.setattr(far_shards, "PIECE_BYTES", 1)
    monkeypatch.setattr(shard_writer, "PIECE_BYTES", 1)
    monkeypatch.setattr(shard_writer, "SHARD_IMAGES", 5)
    job = Job(server, "on-their-way", tmp_path, 5, "--store", "webdataset")
    stopped(job, server)
    objects = job.objects()
    left = [name for name in objects if name.startswith(far_shards.OPEN)]
    assert len(left) == 5
    (tmp_path / "piece.tar").write_bytes(job.get(left[1]))
    ((lost, _),) = images_in(tmp_path / "piece.tar")  # images come in the order in which they were encoded
    server.delete(job.bucket, f"some run/{left[1]}")
    assert not any(name.startswith(".dglaunch/lines/") for name in objects), "they stand in the ledger"
    kept = [row for row in job.ledger() if row["index"] not in (lost["index"], (lost["index"] + 2) % 5)]
    server.put(job.bucket, "some run/metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in kept).encode())
    ended = job.start()
    assert ended.code == 0 and "4 there before, of 5" in ended.output, ended.output
    job.assert_whole_in_shards(5)


def test_closed_and_not_tidied_up(server: S3Server, tmp_path: Path) -> None:
    """The process died when a shard was whole and its pieces were there, too; and an index got lost."""
    job = Job(server, "not-tidied", tmp_path, 6, "--store", "webdataset")
    stopped(job, server)
    left = {name: job.get(name) for name in job.objects() if name.startswith(far_shards.OPEN)}
    assert job.start().code == 0
    for name, data in left.items():
        server.put(job.bucket, f"some run/{name}", data)
    server.delete(job.bucket, "some run/.dglaunch-shards/00000.tar.json")
    assert "6 of 6 images done" in job.command("status").output
    server.requests.clear()
    again = job.start()
    assert again.code == 0 and "6 there before, of 6" in again.output and not pieces(server), again.output
    job.assert_whole_in_shards(6)


def test_images_that_are_paid_for_are_there_before_the_next_is_asked_for(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProfile, "costs_money", True)
    monkeypatch.setattr(shard_writer, "SHARD_IMAGES", 100)
    job = Job(server, "paid", tmp_path, 6, "--store", "webdataset", "--batch_size", "1")
    ended = job.start()
    assert ended.code == 0 and "no image that is paid for" in ended.output, ended.output
    put = [path.split("/")[4] for method, path in server.requests if method == "PUT" and "/.dglaunch/" in path]
    assert [kind for kind in put if kind in ("open", "lines")] == ["open", "lines"] * 6
    job.assert_whole_in_shards(6)


@pytest.mark.slow
@BOTH
def test_killed_in_the_middle(server: S3Server, tmp_path: Path, store: str) -> None:
    """What had come into the store is not made again, and no image is there twice."""
    job = Job(server, f"killed-{store}", tmp_path, 16, "--store", store)
    job.prompts.write_text("".join(f"fox {number} [sleep 0.1]\n" for number in range(16)))
    process = start(job.words(), server.environment)
    until = time.monotonic() + 60
    while len(pieces(server)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    kill_group(process)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    server.faults.share = 0.02
    ended = job.start()
    assert ended.code == 0 and " there before, of 16" in ended.output, ended.output
    job.assert_whole_in_shards(16)
