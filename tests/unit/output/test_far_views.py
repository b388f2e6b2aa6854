"""Views of results in a bucket (--layout): made there, from what is there, and gone on with shard by shard."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from dglaunch.output import layouts
from support.commands import dglaunch
from support.far_jobs import Job
from support.s3_server import Faults, S3Server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setattr(layouts, "SHARD_IMAGES", 2)
    return running


def view(job: Job, name: str) -> dict[str, bytes]:
    return {each.removeprefix(f"{name}/"): job.get(each) for each in job.objects() if each.startswith(f"{name}/")}


def in_tars(files: dict[str, bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for data in files.values():
        with tarfile.open(fileobj=BytesIO(data)) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar if each.name.endswith(".png")}  # type: ignore[union-attr]
    return found


def fetched(server: S3Server, ending: str) -> int:
    """Objects of such names that were read."""
    return sum(method == "GET" and path.endswith(ending) for method, path in server.requests)


@pytest.mark.slow
def test_shards_of_images(server: S3Server, tmp_path: Path) -> None:
    """A shard that cannot be put is made by the next start, those before it are not even read; after a redo the one that is concerned
    is made anew."""
    job = Job(server, "view-tars", tmp_path, 5, "--layout", "webdataset")
    server.faults.only, server.faults.refuse = "webdataset/00001.tar", "AccessDenied"
    ended = job.start()
    assert ended.code == 1 and f"The layout {job.address}/webdataset cannot be written" in ended.output, ended.output
    server.faults = Faults()
    assert list(view(job, "webdataset")) == ["00000.tar"]
    server.requests.clear()
    ended = job.start()
    assert ended.code == 0 and f"5 images for webdataset are in {job.address}/webdataset" in ended.output, ended.output
    assert fetched(server, "00000.tar") == 0 and fetched(server, ".png") == 3
    made = view(job, "webdataset")
    assert in_tars(made) == {f"{number:06d}.png": job.get(f"{number:06d}.png") for number in range(5)}
    assert job.command("redo", "--filter_rows", "3", "--seed_offset", "100").code == 0
    after = view(job, "webdataset")
    assert [name for name in made if made[name] != after[name]] == ["00001.tar"]
    assert in_tars(after)["000003.png"] == job.get("000003.png")


@pytest.mark.slow
def test_links_are_copies_within_the_store(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "view-links", tmp_path, 3, "--layout", "genarena")
    assert job.start().code == 0
    names = [f"{number:06d}.png" for number in range(3)]
    assert view(job, "genarena") == {name: job.get(name) for name in names}
    assert fetched(server, ".png") == 0
    server.put(job.bucket, "some run/genarena/000001.png", b"somebody's")
    assert job.start().code == 0
    assert view(job, "genarena") == {name: job.get(name) for name in names}
    assert job.get(".dglaunch-aside/000001.png") == b"somebody's"
    assert job.start("--overwrite").code == 0
    assert view(job, "genarena") == {name: job.get(name) for name in names}


def test_files_of_the_users_in_its_place(server: S3Server, tmp_path: Path) -> None:
    job = Job(server, "view-foreign", tmp_path, 3, "--layout", "parquet")
    server.put(job.bucket, "some run/parquet/00000.parquet", b"mine")
    ended = job.start()
    assert ended.code == 2 and f"{job.address}/parquet is there, and dglaunch did not make it" in ended.output
    assert list(job.objects()) == ["parquet/00000.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--files_per_folder", "3"], "0001/000005.png"),
        (["--store", "webdataset"], "000005.png"),
        (["--store", "parquet"], "000005.png"),
    ],
    ids=["folders", "webdataset", "parquet"],
)
def test_one_image_is_made_again(running: S3Server, tmp_path: Path, words: list[str], name: str) -> None:
    job = Job(running, f"replay-{name[:4]}-{words[-1]}", tmp_path, 6, *words)
    assert job.start().code == 0
    image = f"{job.address}/{name}"
    ended = dglaunch("replay", image, "--output", str(tmp_path / "again.png"), **job.server.environment)
    assert ended.code == 0 and "the same" in ended.output, ended.output
    ended = dglaunch("replay", f"{job.address}/nothing.png", **job.server.environment)
    assert ended.code == 2 and f"There is no file {job.address}/nothing.png" in ended.output, ended.output
    ended = dglaunch("replay", "s3://no-such-bucket-at-all/a.png", **job.server.environment)
    assert ended.code == 2 and "cannot be read" in ended.output, ended.output
