"""Results in an object store, through the commands: what is there is whole, a start goes on with it, and nobody is overwritten."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from dglaunch.addresses import Address
from dglaunch.errors import UserError
from dglaunch.output import far_leases, far_lines
from dglaunch.output.far_files import OWN
from dglaunch.storage import lease, retrying
from dglaunch.storage.lease import Owner
from dglaunch.storage.store import Store
from support.commands import dglaunch, kill_group, start
from support.far_jobs import Job
from support.s3_server import ACCESS_KEY, SECRET, TOKEN, Faults, S3Server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    return running


def test_a_run_into_a_bucket(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "whole-run", tmp_path)
    ended = job.start()
    assert ended.code == 0 and job.address in ended.output and str(tmp_path / "cache") not in ended.output, ended.output
    job.assert_whole(6)
    images = [f"{number:06d}.png" for number in range(6)]
    assert sorted(job.objects()) == [*images, "metadata.jsonl", "run.json"]
    run = json.loads(job.get("run.json"))
    assert run["outcome"] == "done" and run["config"]["output_dir"]["value"] == job.address
    for secret in (SECRET, ACCESS_KEY, TOKEN):
        assert secret not in ended.output and secret.encode() not in job.get("run.json") + job.get("metadata.jsonl")
    server.requests.clear()
    again = job.start()
    assert (
        again.code == 0
        and "6 there before, of 6" in again.output
        and not any(path.endswith(".png") for method, path in server.requests if method == "PUT")
    ), again.output


def test_status_verify_and_gallery(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "looked-at", tmp_path)
    assert job.start().code == 0
    assert "6 of 6 images done" in job.command("status").output
    assert job.command("verify").output.endswith("6 images are right\n")
    page = job.command("gallery")
    assert page.code == 0 and f"{job.address}/gallery.html" in page.output, page.output
    assert b"a fox, number 3" in job.get("gallery.html")
    server.put(job.bucket, "some run/000002.png", b"x" * job.objects()["000002.png"])
    server.delete(job.bucket, "some run/000004.png")
    wrong = job.command("verify")
    assert (
        wrong.code == 1 and "000002.png was changed" in wrong.output and "000004.png has a ledger line" in wrong.output
    )
    assert job.start().code == 0
    assert "000004.png" in job.objects()


def test_failures_are_kept_and_made_good(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "with-failures", tmp_path)
    job.prompts.write_text("a fox\na hare [raise]\na crow\n")
    assert job.start().code == 3
    assert [row["index"] for row in job.ledger("failures.jsonl")] == [1]
    assert [row["index"] for row in job.ledger()] == [0, 2]
    assert job.start().code == 3 and "2 of 3 images done, 1 failed" in job.command("status").output


def test_killed_in_the_middle(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "killed", tmp_path, count=60)
    server.faults.share, server.faults.delay = 0.02, 0.01
    process = start(job.words(), server.environment)
    until = time.monotonic() + 60
    while sum(path.endswith(".png") for _, path in server.requests) < 25 and time.monotonic() < until:
        time.sleep(0.01)
    kill_group(process)
    process.communicate()
    left = sum(name.endswith(".png") for name in job.objects())
    assert process.returncode == -signal.SIGKILL and 20 <= left < 60
    server.faults.delay = 0.0
    ended = job.start()
    assert ended.code == 0, ended.output
    job.assert_whole(60)
    assert sorted(job.objects())[60:] == ["metadata.jsonl", "run.json"]


def test_what_a_dead_machine_has_left_is_gone_on_with(server: S3Server, tmp_path: Path) -> None:
    """As another machine finds it: images, lines and an owner that nobody renews."""
    job = Job(server, "dead-machine", tmp_path)
    assert job.start().code == 0
    lines = job.get("metadata.jsonl").splitlines(keepends=True)
    for name in ("metadata.jsonl", "000005.png"):
        server.delete(job.bucket, f"some run/{name}")
    server.put(job.bucket, f"some run/{far_lines.LINES}metadata.jsonl/00000001-aaaa.jsonl", b"".join(lines[:2]))
    server.put(job.bucket, f"some run/{far_lines.LINES}metadata.jsonl/00000002-bbbb.jsonl", b"".join(lines[1:4]))
    before = server.get(job.bucket, "some run/000001.png")
    ended = job.start()
    assert ended.code == 0, ended.output
    job.assert_whole(6)
    assert job.get("000001.png") == before and not any(name.startswith(OWN) for name in job.objects())


def test_images_without_lines_are_as_many_as_a_start_looks_at(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is slow to take lines holds up the images: were it killed, a start would look at each that has no line."""
    monkeypatch.setattr(far_lines, "MOST_AHEAD", 4)
    monkeypatch.setattr(far_lines, "LINES_S", 0.1)
    job = Job(server, "ahead", tmp_path, count=60)
    server.faults.only, server.faults.delay = far_lines.LINES, 0.5
    assert job.start().code == 0
    puts = [path for method, path in server.requests if method == "PUT"]
    lines = [number for number, path in enumerate(puts) if far_lines.LINES in path]
    assert lines and sum(path.endswith(".png") for path in puts[: lines[1]]) < 30


@pytest.mark.slow
def test_many_images_whose_lines_were_lost(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "many-unnamed", tmp_path, count=400)
    assert job.start().code == 0
    server.delete(job.bucket, "some run/metadata.jsonl")
    again = job.start()
    assert again.code == 0 and job.command("verify").code == 0, again.output


def test_two_jobs_on_one_prefix(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD_S", 60.0)
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    job = Job(server, "two-jobs", tmp_path)
    owner = f"{far_leases.LEASES}owner.json"
    other = Owner("elsewhere", "boot ns 1", 17)
    server.put(job.bucket, f"some run/{owner}", other.data(1))
    seen: list[bytes] = []
    monkeypatch.setattr(
        lease,
        "sleep",
        lambda _: seen.append(b"") or server.put(job.bucket, f"some run/{owner}", other.data(len(seen) + 1)),
    )
    ended = job.start()
    assert ended.code == 2 and f"Another dglaunch is writing to {job.address} (process 17 of elsewhere)" in ended.output
    assert list(job.objects()) == [owner]
    monkeypatch.undo()
    monkeypatch.setattr(lease, "DEAD_S", 0.5)
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert job.start().code == 0  # it was not renewed any more
    job.assert_whole(6)


def test_an_owner_that_lost_its_lease_stops(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    store = Store(Address(f"s3://{server.bucket('lost-lease')}/x"))
    held = lease.Lease(store, "owner", UserError)
    held.take(store.check_writable("probe", b"x"))
    store.put("owner", Owner("elsewhere", "", 1).data(1))
    deadline = time.monotonic() + 5
    while not held.is_lost and time.monotonic() < deadline:
        time.sleep(0.02)
    held.close()
    assert held.is_lost and Owner.parse(store.get("owner", 1000)).host == "elsewhere"


def test_this_process_is_alive_and_a_dead_one_is_known() -> None:
    alive = Owner.this()
    child = os.fork()
    if not child:
        os._exit(0)
    dead = Owner(alive.host, alive.process.rpartition(" ")[0] + " 1", child)
    os.waitpid(child, 0)
    assert not alive.is_known_dead and dead.is_known_dead
    assert not Owner("elsewhere", "another boot 1", 1).is_known_dead and not Owner.parse(b"no json").is_known_dead


def test_a_store_that_fails_for_good_ends_the_run_and_a_start_goes_on(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "PATIENCE_S", 0.3)
    job = Job(server, "out-of-order", tmp_path, count=40)
    server.faults.only, server.faults.refuse = "00002", "ExpiredToken"
    ended = job.start()
    assert ended.code == 1, ended.output
    assert f"Writing to {job.address} failed: the credentials have expired" in ended.output
    assert TOKEN not in ended.output and ACCESS_KEY not in ended.output
    server.faults = Faults()
    assert job.start().code == 0
    job.assert_whole(40)


def test_files_of_the_users_are_not_replaced(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "of-the-user", tmp_path)
    server.put(job.bucket, "some run/000003.png", b"a photograph")
    server.put(job.bucket, "some run/notes.txt", b"mine")
    ended = job.start()
    assert ended.code == 2 and "would be overwritten (000003.png)" in ended.output, ended.output
    assert job.objects() == {"000003.png": 12, "notes.txt": 4}
    server.delete(job.bucket, "some run/000003.png")
    server.put(job.bucket, "some run/metadata.jsonl", b'{"mine": 1}\n')
    ended = job.start()
    assert ended.code == 2 and "metadata.jsonl" in ended.output and job.get("metadata.jsonl") == b'{"mine": 1}\n'


def test_another_job_is_refused(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "another-job", tmp_path)
    assert job.start().code == 0
    job.prompts.write_text("something else\n" * 6)
    ended = job.start()
    assert ended.code == 2 and f"{job.address} holds the results of another job" in ended.output


def test_a_slow_store_keeps_no_more_than_there_is_room_for(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dglaunch.storage.uploads.MOST_OBJECTS", 3)
    job = Job(server, "slow-store", tmp_path, count=20)
    server.faults.only, server.faults.delay = ".png", 0.05
    assert job.start().code == 0
    job.assert_whole(20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output_dir", "s3://nobodys-bucket/x"), "s3://nobodys-bucket/x cannot be written: there is no such bucket"),
        (("--output_dir", "https://host/x"), "this flag takes s3://, gs://, az:// or a path on this machine"),
        (("--metrics_file", "s3://bucket/x.prom"), "this flag takes a path on this machine"),
    ],
)
def test_what_cannot_go_is_told_before_anything_is_written(
    server: S3Server, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    job = Job(server, "wrong-uses", tmp_path)
    ended = job.start(*words)
    assert ended.code == 2 and said in ended.output, ended.output
    assert not job.objects()


@pytest.mark.parametrize("command", ["tune", "certify"])
def test_commands_that_need_a_folder_say_so(server: S3Server, tmp_path: Path, command: str) -> None:
    job = Job(server, "no-folder", tmp_path)
    words = [command, "t2i", "--prompts_file", str(job.prompts), "--output_dir", job.address]
    ended = dglaunch(*words, cwd=tmp_path, **server.environment)
    assert ended.code == 2 and "a folder on this machine" in ended.output, ended.output
    assert not job.objects() and not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("command", ["redo --failed", "score --with clip", "merge --output_dir all", "verify --repair"])
def test_a_prefix_without_results(server: S3Server, tmp_path: Path, command: str) -> None:
    job = Job(server, "no-results", tmp_path)
    name, *more = command.split()
    ended = dglaunch(name, job.address, *more, cwd=tmp_path, **server.environment)
    assert ended.code == 2 and f"{job.address} holds no results of dglaunch" in ended.output, ended.output
    assert not job.objects() and not (tmp_path / "all").exists()


def test_plan_writes_nothing(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "only-planned", tmp_path)
    words = ["plan", *job.words()]
    assert dglaunch(*words, **server.environment).code == 0
    assert not job.objects() and all(method in ("GET", "HEAD") for method, _ in server.requests)
