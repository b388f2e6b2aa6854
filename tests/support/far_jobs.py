"""Jobs whose results go to an S3 server on loopback, and what is found there with nothing of dglaunch's."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from support.commands import Ended, dglaunch
from support.kept import images_in
from support.s3_server import S3Server

FAKE = ("--backend", "fake", "--height", "64", "--width", "64", "--batch_size", "2")
KINDS = {"files": "**", "webdataset": "shards/*", "parquet": "shards/*"}
"""What `datasets` is given of each --store."""


class Job:
    """A job whose results go to a bucket of its own."""

    def __init__(self, server: S3Server, bucket: str, folder: Path, count: int = 6, *always: str) -> None:
        self.server, self.bucket, self.folder = server, server.bucket(bucket), folder
        self.address = f"s3://{bucket}/some run"
        self.always = always
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("".join(f"a fox, number {number}\n" for number in range(count)))

    def words(self, *more: str) -> list[str]:
        given = {"prompts_file": self.prompts, "output_dir": self.address, "cache_dir": self.folder / "cache"}
        named = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return ["t2i", *FAKE, *named, *self.always, *more]

    def start(self, *more: str, **environment: str) -> Ended:
        return dglaunch(*self.words(*more), **self.server.environment, **environment)

    def command(self, name: str, *more: str) -> Ended:
        return dglaunch(name, self.address, *more, **self.server.environment)

    def objects(self) -> dict[str, int]:
        found = self.server.objects(self.bucket)
        return {name.removeprefix("some run/"): size for name, size in found.items()}

    def get(self, name: str) -> bytes:
        return self.server.get(self.bucket, f"some run/{name}")

    def ledger(self, name: str = "metadata.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.get(name).splitlines()]

    def assert_whole(self, count: int) -> None:
        """A line for each image, in order, and each image is as its line says."""
        rows = self.ledger()
        assert [row["index"] for row in rows] == list(range(count))
        for row in rows:
            assert hashlib.sha256(self.get(row["file_name"])).hexdigest() == row["sha256"]

    def in_shards(self) -> list[tuple[dict[str, Any], bytes]]:
        """The line and the bytes of all images that a loader of the shards would get."""
        return in_shards(self.server, self.bucket, "some run", self.folder)

    def assert_whole_in_shards(self, count: int) -> None:
        """Each image is once in the shards, as the line says that it has there and in the ledger, and nothing else is there."""
        assert_whole_in_shards(self.ledger(), self.in_shards(), self.objects(), count)


def in_shards(server: S3Server, bucket: str, prefix: str, folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    found: list[tuple[dict[str, Any], bytes]] = []
    for name in sorted(server.objects(bucket, f"{prefix}/shards/")):
        path = folder / Path(name).name
        path.write_bytes(server.get(bucket, name))
        found += images_in(path)
    return found


def assert_whole_in_shards(
    ledger: list[dict[str, Any]], there: list[tuple[dict[str, Any], bytes]], objects: dict[str, int], count: int
) -> None:
    assert [row["index"] for row in ledger] == list(range(count))
    assert sorted(line["index"] for line, _ in there) == list(range(count)), "each is once in the shards"
    for line, data in there:
        assert ledger[line["index"]]["sha256"] == line["sha256"] == hashlib.sha256(data).hexdigest()
    shards = {row["image_shard"] for row in ledger}
    indexes = {f".dglaunch-shards/{name}.json" for name in shards}
    own = {name for name in objects if not name.startswith(".dglaunch-ledger/")}
    expected = {"metadata.jsonl", "run.json", *indexes, *(f"shards/{name}" for name in shards)}
    assert own == expected, own ^ expected


def loaded(
    server: S3Server, address: str, cache: Path, store: str = "files", step: int = 1
) -> Iterator[dict[str, Any]]:
    """The rows that `datasets` reads from a bucket, through obstore's fsspec.

    Args:
        cache: where `datasets` keeps what it fetched.
        step: only every so manieth image that is a file of its own is fetched.
    """
    environment = {**server.environment, "AWS_ALLOW_HTTP": "true"}
    with ExitStack() as given:
        given.enter_context(mock.patch.dict(os.environ, environment))
        import datasets
        import fsspec
        from obstore.fsspec import register

        register("s3")
        given.enter_context(
            mock.patch.object(datasets.config, "HF_HUB_OFFLINE", False)
        )  # it would not ask this server either
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another server
        kind, files = "imagefolder" if store == "files" else store, f"{address}/{KINDS[store]}"
        # Shards are fetched as a whole; an ImageFolder elsewhere is read as a stream: datasets 5.2 looks for fetched images under
        # other names than it has fetched them to.
        found = datasets.load_dataset(
            kind, data_files=files, split="train", streaming=store == "files", cache_dir=str(cache)
        )
        if step == 1:
            yield from found
            return
        image = datasets.Image()
        for number, row in enumerate(found.cast_column("image", datasets.Image(decode=False))):
            yield row if number % step else row | {"image": image.decode_example(row["image"])}
