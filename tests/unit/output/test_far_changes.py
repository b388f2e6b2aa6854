"""What changes results in a bucket does what it does to a folder: nothing of the user's is lost, and a kill at any step loses nothing.

The usual tests have three of these, `make soak` has all."""

import hashlib
import json
from operator import itemgetter
from pathlib import Path

import pytest

from dglaunch.addresses import Address
from dglaunch.output.batch_jobs import BatchJob
from dglaunch.output.far_files import ASIDE
from dglaunch.output.ledger import OutputFolder, Part
from dglaunch.storage import retrying
from dglaunch.storage.errors import StorageError
from dglaunch.storage.lease import Owner
from dglaunch.storage.working import working_folder
from support.commands import dglaunch
from support.edit_images import picture
from support.far_jobs import FAKE, Job
from support.results import write_jsonl
from support.s3_server import Faults, S3Server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    return running


def put(job: Job, name: str, data: bytes) -> None:
    job.server.put(job.bucket, f"some run/{name}", data)


def images(job: Job) -> dict[str, bytes]:
    """Those of the job, with their bytes."""
    return {
        name: job.get(name)
        for name in job.objects()
        if name.endswith(".png") and not name.startswith((".", "replaced/"))
    }


# -- aside --------------------------------------------------------------------------------------------------------


def test_what_lies_aside_from_before_moves_no_image(server: S3Server, tmp_path: Path) -> None:
    """An image of the same name is there again by now, and is whole."""
    job = Job(server, "aside-before", tmp_path)
    assert job.start().code == 0
    put(job, f"{ASIDE}000001.png", b"an earlier one")
    put(job, f"{ASIDE}metadata.jsonl", b"an earlier line\n")
    server.delete(job.bucket, "some run/000003.png")
    assert job.start().code == 0
    job.assert_whole(6)
    assert job.get(f"{ASIDE}000001.png") == b"an earlier one"
    kept = job.get(f"{ASIDE}metadata.jsonl").splitlines()
    assert kept[0] == b"an earlier line" and json.loads(kept[1])["file_name"] == "000003.png"


@pytest.mark.slow
def test_of_images_in_folders(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "aside-folders", tmp_path, 6, "--files_per_folder", "2")
    assert job.start().code == 0
    wrong = b"x" * (job.objects()["0001/000003.png"] + 1)
    put(job, "0001/000003.png", wrong)
    assert job.start().code == 0
    assert job.get(f"{ASIDE}000003.png") == wrong and job.get("0001/000003.png") != wrong
    assert job.command("verify").output.endswith("6 images are right\n")


# -- verify --repair ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_repaired(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "repaired", tmp_path)
    assert job.start().code == 0
    made = images(job)
    wrong = b"x" * len(made["000002.png"])
    put(job, "000002.png", wrong)
    put(job, "notes.txt", b"mine")
    server.delete(job.bucket, "some run/000004.png")
    put(job, "metadata.jsonl", job.get("metadata.jsonl") + b'{"file_name": "x.png", "index": 3, "sample": \n')
    mended = job.command("verify", "--repair")
    assert mended.code == 1 and f"{job.address}/{ASIDE.rstrip('/')}" in mended.output, mended.output
    assert [row["index"] for row in job.ledger()] == [0, 1, 3, 5] and job.get(f"{ASIDE}000002.png") == wrong
    assert "000002.png" not in job.objects() and job.get("notes.txt") == b"mine"
    assert not any(name.startswith(".dglaunch/") for name in job.objects()), "nobody holds it any more"
    again = job.command("verify", "--repair")
    assert again.code == 1 and "4 images are right\n" in again.output and "problems" not in again.output
    assert job.start().code == 0 and images(job) == made


@pytest.mark.slow
def test_nothing_is_repaired_while_a_run_writes(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "repaired-held", tmp_path)
    assert job.start().code == 0
    server.delete(job.bucket, "some run/000004.png")
    put(job, ".dglaunch/leases/owner.json", b'{"host": "elsewhere", "process": "boot ns 1", "pid": 7}')
    held = job.command("verify", "--repair")
    assert held.code == 2 and "is writing to" in held.output and len(job.ledger()) == 6


@pytest.mark.slow
def test_a_shard_is_written_without_what_is_wrong(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "repaired-shard", tmp_path, 5, "--store", "webdataset")
    assert job.start().code == 0
    (name,) = (name for name in job.objects() if name.startswith("shards/"))
    data, row = job.get(name), job.ledger()[2]
    (image,) = (image for line, image in job.in_shards() if line["index"] == 2)
    assert hashlib.sha256(image).hexdigest() == row["sha256"]
    put(job, name, data.replace(image, bytes(len(image))))
    mended = job.command("verify", "--repair")
    assert mended.code == 1 and f"{row['file_name']} in shards/" in mended.output, mended.output
    assert [line["index"] for line, _ in job.in_shards()] == [0, 1, 3, 4] == [row["index"] for row in job.ledger()]
    assert job.get(f"{ASIDE}{row['file_name']}") == bytes(len(image))
    assert job.start().code == 0
    assert sorted(line["index"] for line, _ in job.in_shards()) == list(range(5))


# -- --overwrite ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_overwritten(server: S3Server, tmp_path: Path) -> None:
    """What is the user's stays; what was changed since is moved aside."""
    job = Job(server, "overwritten", tmp_path)
    assert job.start().code == 0
    put(job, "000002.png", b"retouched")
    put(job, "notes.txt", b"mine")
    job.prompts.write_text("a hare\na crow\n")
    ended = job.start("--overwrite")
    assert ended.code == 0, ended.output
    job.assert_whole(2)
    assert {row["prompt"] for row in job.ledger()} == {"a hare", "a crow"}
    assert sorted(job.objects()) == [
        f"{ASIDE}000002.png", "000000.png", "000001.png", "metadata.jsonl", "notes.txt", "run.json"
    ]  # fmt: skip
    assert job.get(f"{ASIDE}000002.png") == b"retouched" and job.get("notes.txt") == b"mine"


@pytest.mark.slow
def test_shards_are_overwritten(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "overwritten-shards", tmp_path, 5, "--store", "webdataset")
    assert job.start().code == 0
    job.prompts.write_text("a hare\na crow\n")
    assert job.start("--overwrite").code == 0
    job.assert_whole_in_shards(2)


# -- redo ------------------------------------------------------------------------------------------------------------


def test_made_again(server: S3Server, tmp_path: Path) -> None:
    """The new image is under the same name, the old one and its line are kept; the job's own command goes on as before."""
    job = Job(server, "redone", tmp_path)
    assert job.start().code == 0
    before, lines = images(job), job.ledger()
    ended = job.command("redo", "--filter_rows", "1,4", "--seed_offset", "100")
    assert ended.code == 0 and job.address in ended.output, ended.output
    after = images(job)
    assert [name for name in before if before[name] != after[name]] == ["000001.png", "000004.png"]
    job.assert_whole(6)
    assert [job.get(f"replaced/{name}") for name in ("000001.png", "000004.png")] == [
        before["000001.png"],
        before["000004.png"],
    ]
    assert sorted(job.ledger("replaced/metadata.jsonl"), key=itemgetter("index")) == [lines[1], lines[4]]
    others = [name for name in job.objects() if not name.endswith(".png")]
    assert others == ["metadata.jsonl", "replaced/metadata.jsonl", "run.json"]


@pytest.mark.slow
def test_made_again_and_again(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "redone-twice", tmp_path)
    assert job.start().code == 0
    assert job.command("redo", "--filter_rows", "1", "--seed_offset", "100").code == 0
    once = images(job)
    again = job.start()
    assert again.code == 0 and "6 there before, of 6" in again.output, again.output
    assert job.command("redo", "--filter_rows", "1", "--seed_offset", "200").code == 0
    assert job.get("replaced/000001-1.png") == once["000001.png"] and len(job.ledger("replaced/metadata.jsonl")) == 2
    assert job.command("verify").code == 0


@pytest.mark.slow
def test_made_again_in_shards(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "redone-shards", tmp_path, 5, "--store", "webdataset")
    assert job.start().code == 0
    before = {line["index"]: data for line, data in job.in_shards()}
    assert job.command("redo", "--filter_rows", "1", "--seed_offset", "100").code == 0
    after = {line["index"]: data for line, data in job.in_shards()}
    assert [index for index in before if before[index] != after[index]] == [1]
    assert job.get("replaced/000001.png") == before[1] and job.command("verify").code == 0


@pytest.mark.slow
def test_what_had_failed_is_made_again(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "redone-failed", tmp_path)
    job.prompts.write_text("a fox\na hare [raise]\na crow\n")
    assert job.start().code == 3
    assert job.command("redo", "--failed", "--set", "prompt=a hare").code == 0
    assert [row["prompt"] for row in job.ledger()] == [
        "a fox",
        "a hare",
        "a crow",
    ] and "failures.jsonl" not in job.objects()


@pytest.mark.slow
def test_broken_off_between_an_image_and_its_line(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old line still stands, with the new image: the same command goes on, and nothing is lost."""
    monkeypatch.setattr(retrying, "PATIENCE_S", 0.2)
    job = Job(server, "redone-broken", tmp_path)
    assert job.start().code == 0
    before, lines = images(job), job.get("metadata.jsonl")
    server.faults.only, server.faults.refuse = ".dglaunch/lines/metadata.jsonl/", "AccessDenied"
    ended = job.command("redo", "--filter_rows", "1", "--seed_offset", "100")
    assert ended.code == 1, ended.output
    server.faults = Faults()
    put(job, "metadata.jsonl", lines)  # what a killed process leaves: its last lines nobody has put
    assert images(job)["000001.png"] != before["000001.png"] == job.get("replaced/000001.png")
    again = job.command("redo", "--filter_rows", "1", "--seed_offset", "100")
    assert again.code == 0, again.output
    job.assert_whole(6)
    assert job.get("replaced/000001.png") == before["000001.png"]
    assert job.ledger("replaced/metadata.jsonl") == [json.loads(lines.splitlines()[1])]
    assert ".dglaunch-redo.json" not in job.objects() and job.command("verify").code == 0


# -- copies of input images -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_input_images_are_kept_beside_the_results(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "kept-inputs", tmp_path)
    for name in ("a.png", "b.png"):
        picture(ord(name[0])).save(tmp_path / name)
    rows = [{"instruction": "redder", "input_images": name} for name in ("a.png", "b.png")]
    words = ["edit", *FAKE, "--input", write_jsonl(tmp_path / "edits.jsonl", rows), "--save_inputs"]
    words += ["--output_dir", job.address, "--cache_dir", tmp_path / "cache"]
    put(job, "inputs/mine.txt", b"mine")
    assert dglaunch(*words, **server.environment).code == 0
    for row, name in zip(job.ledger(), ("a.png", "b.png")):
        assert [job.get(copy) for copy in row["input_file_names"]] == [(tmp_path / name).read_bytes()]
    assert job.command("verify").code == 0
    assert dglaunch(*words, "--overwrite", **server.environment).code == 0
    assert sorted(name for name in job.objects() if name.startswith("inputs/")) == [
        "inputs/000000_0.png", "inputs/000001_0.png", "inputs/mine.txt"
    ]  # fmt: skip


# -- jobs that are paid for -----------------------------------------------------------------------------------------


def test_who_was_taken_over_orders_nothing(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is there before anything is ordered, and another start that finds this one dead reads it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    address = f"s3://{server.bucket('ordered')}/x"
    folder = OutputFolder(working_folder(Address(address), tmp_path))
    lock = folder.lock(Part())
    job = BatchJob.begun("openai", "", {}, "2026-11-27")
    job.write(folder)
    assert list(server.objects("ordered")) == [f"x/.dglaunch-job-{job.token}.json", "x/.dglaunch/leases/owner.json"]
    server.put("ordered", "x/.dglaunch/leases/owner.json", Owner("elsewhere", "", 1).data(1))
    with pytest.raises(StorageError, match="another process has taken over"):
        job.write(folder)
    lock.close()
