"""Tables and input images that lie in an object store or on the web, through the commands that read them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.commands import Ended, dglaunch
from support.results import ledger, run_json
from support.s3_server import S3Server
from support.web_server import WebServer

FAKE = ("--backend", "fake", "--height", "64", "--width", "64")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as found:
        found.bucket("inputs")
        yield found


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path) as found:
        yield found


def png(size: int = 64) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(data, "PNG")
    return data.getvalue()


def t2i(server: S3Server, tmp_path: Path, *words: str, **environment: str) -> Ended:
    where = ("--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache")
    return dglaunch("t2i", *FAKE, *where, *words, **server.environment, **environment)


def test_prompts_from_a_bucket(server: S3Server, tmp_path: Path) -> None:
    server.put("inputs", "rows/a.csv", b"prompt\na fox\na hare\n")
    server.put("inputs", "rows/b.csv", b"prompt\na crow\n")
    ended = t2i(server, tmp_path, "--prompts_file", "s3://inputs/rows/*.csv")
    assert ended.code == 0, ended.output
    assert [row["prompt"] for row in ledger(tmp_path / "out")] == ["a fox", "a hare", "a crow"]
    assert run_json(tmp_path / "out")["config"]["prompts_file"]["value"] == "s3://inputs/rows/*.csv"


def test_prompts_from_the_web_whose_address_is_signed(server: S3Server, web: WebServer, tmp_path: Path) -> None:
    web.files["/a.jsonl"] = b'{"prompt": "a fox"}\n'
    ended = t2i(server, tmp_path, "--prompts_file", f"{web.address}/a.jsonl?Signature=0123secret", **web.environment)
    assert ended.code == 0 and ledger(tmp_path / "out")[0]["prompt"] == "a fox", ended.output
    assert web.requests == ["/a.jsonl?Signature=0123secret"]
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert b"0123secret" not in b"".join(written) and "0123secret" not in ended.output


def test_images_from_a_bucket_and_from_the_web(server: S3Server, web: WebServer, tmp_path: Path) -> None:
    web.files["/1.png"] = png()
    server.put("inputs", "edits/red.png", png())
    server.put("inputs", "other, one.png", png())
    rows = [
        {"input_images": "red.png", "instruction": "beside the table"},
        {"input_images": "s3://inputs/other, one.png", "instruction": "by its address"},
        {"input_images": f"{web.address}/1.png", "instruction": "where the user's table does not lie"},
        {"input_images": "s3://inputs/edits/missing.png", "instruction": "missing"},
    ]
    server.put("inputs", "edits/t.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    out = tmp_path / "out"
    words = ("--input", "s3://inputs/edits/t.jsonl", "--output_dir", out, "--cache_dir", tmp_path / "cache")
    ended = dglaunch("edit", *FAKE, "--model_type", "qwen", *words, **server.environment, **web.environment)
    assert ended.code == 3, ended.output
    assert [row["input_images"] for row in ledger(out)] == [["red.png"], ["s3://inputs/other, one.png"]]
    private, missing = (row["error"] for row in ledger(out, "failures.jsonl"))
    assert "no public address" in private and "there is no object s3://inputs/edits/missing.png" in missing
    assert [path for _, path in server.requests].count("/inputs/edits/red.png") <= 6 and not web.requests


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--prompts_file", "s3://inputs/nothing.csv"),
            "s3://inputs/nothing.csv cannot be read: there is no such object",
        ),
        (("--prompts_file", "s3://nobodys-bucket/a.csv"), "there is no such"),
        (("--prompts_file", "s3://inputs/*.nothing"), "no object fits it"),
        (("--prompts_file", "http://host/a.csv"), "no such kind of address; it knows s3://"),
        (("--prompts_file", "https://me:secret@host/a.csv"), "holds a user name or a password"),
        (
            ("--prompt", "a fox", "--cache_dir", "s3://inputs/cache"),
            "--cache_dir s3://inputs/cache: this flag takes a path",
        ),
    ],
)
def test_what_cannot_be_read_is_told_before_a_model_is_loaded(
    server: S3Server, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    where = () if "--cache_dir" in words else ("--cache_dir", tmp_path / "cache")
    ended = dglaunch("t2i", *FAKE, "--output_dir", tmp_path / "out", *where, *words, **server.environment)
    assert ended.code == 2 and said in ended.output and "me:secret" not in ended.output, ended.output
    assert not (tmp_path / "out").exists()


def test_a_prefix_of_shards(server: S3Server, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    for number in range(3):
        data = io.BytesIO()
        write_table(pa.table({"prompt": [f"shard {number}, row {row}" for row in range(2)]}), data)
        server.put("inputs", f"shards/{number}.parquet", data.getvalue())
    server.put("inputs", "shards/README.md", b"no table")
    ended = t2i(server, tmp_path, "--prompts_file", "s3://inputs/shards")
    assert ended.code == 0, ended.output
    assert [row["prompt"] for row in ledger(tmp_path / "out")][-1] == "shard 2, row 1"
    server.put("inputs", "shards/more.csv", b"prompt\na fox\n")
    ended = t2i(server, tmp_path, "--prompts_file", "s3://inputs/shards")
    assert ended.code == 2 and "tables of several kinds" in ended.output
