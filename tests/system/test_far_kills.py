"""A job of several ranks into an S3 server that fails, throttles, and sees the job killed: all images are there once, whole.

One process is killed in tests/unit/output/test_far.py; `make soak` has 20,000 images on 4 ranks, 2 % of requests failing, throttled for a minute, 10 kills.
"""

import hashlib
import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.commands import descendants, end, kill_group, start
from support.far_jobs import assert_whole_in_shards, in_shards, loaded
from support.ranks import launch
from support.s3_server import S3Server
from support.selection import rarely

LINE_OF_MEMORY = "VmHWM:"
LOOK_S = 1.0


def most_memory(process: "subprocess.Popen[str]") -> int:
    """Bytes of the largest of its processes, at its largest."""
    sizes = [0]
    for pid in descendants(process.pid):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes += [int(line.split()[1]) << 10 for line in lines if line.startswith(LINE_OF_MEMORY)]
    return max(sizes)


class Killed:
    """A job that is started again and again."""

    def __init__(self, server: S3Server, bucket: str, folder: Path, count: int, writer: str, store: str) -> None:
        self.server, self.bucket, self.count = server, server.bucket(bucket), count
        self.folder, self.store = folder, store
        prompts = folder / "prompts.txt"
        prompts.write_text("".join(f"a fox, number {number}\n" for number in range(count)))
        self.words = [
            "t2i", "--backend", "fake", "--height", "64", "--width", "64", "--batch_size", "4", "--prompts_file",
            str(prompts), "--output_dir", f"s3://{bucket}/run", "--cache_dir", str(folder / "cache"), "--writer", writer, "--store", store,
        ]  # fmt: skip
        self.memory: list[int] = []

    @property
    def num_put(self) -> int:
        """Images that were put since the last start, or pieces of shards."""
        is_one = re.compile(r".*\.png" if self.store == "files" else r".*/\.dglaunch/open/.*").fullmatch
        return sum(method == "PUT" and is_one(path) is not None for method, path in self.server.requests)

    def until(self, num_put: int, ranks: int, throttled_s: float = 0.0) -> None:
        """Start it, and kill all of it when so many images were put since."""
        self.server.requests.clear()
        self.server.faults.throttled_until = 0.0
        process = start(self.words, self.server.environment, ranks)
        deadline, looked, largest = time.monotonic() + 400, 0.0, 0
        while (put := self.num_put) < num_put and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            if throttled_s and put > num_put // 2:
                self.server.faults.throttled_until, throttled_s = time.monotonic() + throttled_s, 0.0
            if time.monotonic() > looked + LOOK_S:  # it costs as much as the server's work
                looked, largest = time.monotonic(), max(largest, most_memory(process))
        self.memory.append(largest)
        was_running = process.poll() is None
        kill_group(process)
        said, _ = process.communicate()
        assert was_running and process.returncode == -signal.SIGKILL, said

    def to_its_end(self, ranks: int, timeout: float) -> None:
        self.server.requests.clear()
        ended = end(start(self.words, self.server.environment, ranks), timeout)
        assert ended.code == 0, ended.output

    def assert_all_are_there(self) -> None:
        """In one folder, or in numbered ones with a metadata.jsonl each; or in shards."""
        objects = sorted(self.server.objects(self.bucket))
        ledgers = [name for name in objects if name.endswith("metadata.jsonl")]
        rows = {}
        for ledger in ledgers:
            for line in self.server.get(self.bucket, ledger).splitlines():
                row = json.loads(line)
                rows[ledger.replace("metadata.jsonl", row["file_name"])] = row
        if self.store != "files":
            there = in_shards(self.server, self.bucket, "run", self.folder)
            names = {name.removeprefix("run/"): 0 for name in objects}
            assert_whole_in_shards(list(rows.values()), there, names, self.count)
            return
        assert [row["index"] for row in rows.values()] == list(range(self.count))
        kept = [f"run/.dglaunch-ledger/{ledger.split('/')[1]}.index" for ledger in ledgers if ledger.count("/") == 2]
        assert [name for name in objects if name not in rows] == [*kept, *ledgers, "run/run.json"]
        for name, row in rows.items():
            assert hashlib.sha256(self.server.get(self.bucket, name)).hexdigest() == row["sha256"]


def assert_datasets_reads(job: Killed) -> None:
    """All rows; of many files every so manieth image. The server fails no more: what `datasets` makes of that is its own."""
    job.server.faults.share = 0.0
    step, found = 1 if job.store != "files" else max(1, job.count // 400), []
    rows = loaded(job.server, f"s3://{job.bucket}/run", job.folder, job.store, step)
    for number, row in enumerate(rows):
        found.append(row["json"]["index"] if job.store == "webdataset" else row["index"])
        if number % step == 0:
            assert row["png" if job.store == "webdataset" else "image"].size == (64, 64)
    assert sorted(found) == list(range(job.count))


@pytest.mark.parametrize("store", rarely(["files", "webdataset", "parquet"], {"files", "webdataset"}))
def test_two_ranks_that_both_write(tmp_path: Path, store: str) -> None:
    with S3Server() as server:
        job = Killed(server, f"two-ranks-{store}", tmp_path, 40, "rank", store)
        server.faults.share = 0.02
        (ended,) = launch(tmp_path, 2, [(job.words, server.environment)])
        assert ended.codes == [0, 0], ended.output
        job.assert_all_are_there()


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["main", "rank"])
@pytest.mark.parametrize("store", ["files", "webdataset", "parquet"])
def test_two_ranks_killed_once(tmp_path: Path, writer: str, store: str) -> None:
    with S3Server() as server:
        job = Killed(server, f"killed-{writer}-{store}", tmp_path, 120, writer, store)
        server.faults.share = 0.02
        job.until(60 if store == "files" else 2, ranks=2)
        job.to_its_end(ranks=2, timeout=120)
        job.assert_all_are_there()
        assert_datasets_reads(job)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("writer", "count", "store"),
    [("main", 20_000, "files"), ("rank", 4_000, "files"), ("main", 20_000, "webdataset"), ("rank", 4_000, "parquet")],
)
def test_four_ranks_killed_ten_times(tmp_path: Path, writer: str, count: int, store: str) -> None:
    dice, began = random.Random(5), time.monotonic()
    with S3Server() as server:
        job = Killed(server, f"killed-often-{writer}-{store}", tmp_path, count, writer, store)
        server.faults.share = 0.02
        kills, puts = (10, (count // 40, count // 12)) if store == "files" else (5, (1, 3))
        for kill in range(kills):
            print(
                f"start {kill}: {len(server.objects(job.bucket))} objects, {time.monotonic() - began:.0f} s", flush=True
            )
            job.until(dice.randrange(*puts), ranks=4, throttled_s=60.0 if kill == 4 else 0.0)
        job.to_its_end(ranks=4, timeout=3600)
        print(f"ended after {time.monotonic() - began:.0f} s", flush=True)
        job.assert_all_are_there()
        assert_datasets_reads(job)
        print(f"{count} images; largest rank at each kill, MiB: {[size >> 20 for size in job.memory]}")
        assert max(job.memory) < 1.5 * sorted(job.memory)[1]
