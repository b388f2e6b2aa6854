"""Jobs whose images are kept in shards (--store), and what a loader finds there."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from support.commands import Ended, dglaunch
from support.results import write_jsonl

STORES = ("webdataset", "parquet")
NUM = 7


def table(folder: Path, num: int = NUM, **more: Any) -> Path:
    rows = [{"prompt": f"prompt {n}, ü", "style": "oil" if n % 2 else "ink", **more} for n in range(num)]
    return write_jsonl(folder / "prompts.jsonl", rows)


def words(folder: Path, store: str, *flags: str) -> list[str]:
    given = ["t2i", "--backend", "fake", "--prompts_file", str(folder / "prompts.jsonl"), "--store", store]
    return [*given, "--output_dir", str(folder / "out"), *flags]


def make(folder: Path, store: str, *flags: str, code: int = 0, **more: Any) -> Path:
    """A job of NUM images, and its folder."""
    table(folder, **more)
    ended = dglaunch(*words(folder, store, *flags))
    assert ended.code == code, ended.output
    return folder / "out"


def in_shards(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """The line and the bytes of all images that a loader of the shards would get, in their order: with nothing of dglaunch's."""
    found: list[tuple[dict[str, Any], bytes]] = []
    for path in sorted((folder / "shards").iterdir()):
        found += images_in(path)
    return found


def images_in(shard: Path) -> list[tuple[dict[str, Any], bytes]]:
    """The same of one."""
    return _of_parquet(shard) if shard.suffix == ".parquet" else _of_tar(shard)


def _of_parquet(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    return [(json.loads(row["ledger"]), row["image"]["bytes"]) for row in pq.read_table(path).to_pylist()]


def _of_tar(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    keys = dict.fromkeys(name.partition(".")[0] for name in files)
    return [(json.loads(files[f"{key}.json"]), files[f"{key}.png"]) for key in keys]


def indices(folder: Path) -> list[int]:
    """What `in_shards` has, once each or not."""
    return sorted(line["index"] for line, _ in in_shards(folder))


def is_whole(folder: Path, num: int = NUM) -> Ended:
    """Each image is once in the shards, and verify finds nothing wrong."""
    assert indices(folder) == list(range(num))
    ended = dglaunch("verify", folder)
    assert ended.code == 0, ended.output
    return ended


def opens(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return True
