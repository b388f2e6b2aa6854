"""--store on real ranks that are killed at random, one or all, with every --writer: nothing is lost, and nothing is there twice."""

import contextlib
import random
import time
from pathlib import Path
from typing import get_args

import pytest

from dglaunch.config import WriterName
from dglaunch.output.lines import read_lines
from support.commands import dglaunch
from support.kept import STORES, is_whole, table, words
from support.processes import kill
from support.ranks import World, launch
from support.selection import rarely

WRITERS = get_args(WriterName)
SMALL = ("--batch_size", "4", "--width", "128", "--height", "128", "--shard_size", "1")
SIZE = 45_000
"""Bytes of an image, so that 25 make a megabyte."""
SOAK = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("store", "kills", "num"), [("webdataset", 2, 60), *(pytest.param(store, 40, 1500, marks=SOAK) for store in STORES)]
)
def test_random_kills_lose_nothing_and_keep_nothing_twice(tmp_path: Path, store: str, kills: int, num: int) -> None:
    dice = random.Random(f"{store} {kills}")
    table(tmp_path, num)
    kept: dict[int, tuple[object, object]] = {}
    for _ in range(kills):
        world = World(tmp_path, dice.randint(2, 4), words(tmp_path, store, *SMALL, "--writer", dice.choice(WRITERS)))
        # After so much more was written; now and then before there is anything.
        enough = held(tmp_path / "out") + dice.choice([0, 1, 1, 1]) * dice.uniform(0, 1.5 / kills) * num * SIZE
        while held(tmp_path / "out") <= enough and world.poll() is None:
            time.sleep(0.005)
        if dice.random() < 0.5 and world.poll() is None:  # one first, and the others see it go
            kill(dice.choice(world.pids))
            time.sleep(dice.uniform(0, 0.5))
        world.kill()
        made = lines(tmp_path / "out")
        assert made.items() >= kept.items(), "what has a line keeps it, and is not made again"
        kept = made
    assert launch(tmp_path, 2, [(words(tmp_path, store, *SMALL, "--writer", "rank"), {})])[0].codes == [0, 0]
    assert lines(tmp_path / "out").items() >= kept.items()
    is_whole(tmp_path / "out", num)
    assert not list((tmp_path / "out" / ".dglaunch-shards").glob("*.open"))


def held(out: Path) -> int:
    """Bytes of all shards, closed or not."""
    found = 0
    for path in (path for path in out.glob("*shards/*") if path.suffix != ".json"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def lines(out: Path) -> dict[int, tuple[object, object]]:
    """When each image that has a line was made, and its hash."""
    found = [line for path in sorted(out.glob("metadata*.jsonl")) for _, line in read_lines(path)]
    return {int(str(line["index"])): (line["time"], line["sha256"]) for line in found}


@pytest.mark.parametrize("store", rarely(STORES, {"webdataset"}))
def test_each_writer_fills_shards_of_its_own(tmp_path: Path, store: str) -> None:
    table(tmp_path, 12)
    given = [
        words(tmp_path, store, "--batch_size", "2", "--shares", "static", "--writer", writer) for writer in WRITERS
    ]
    for writer, case in zip(WRITERS, given):
        case[case.index("--output_dir") + 1] = str(tmp_path / writer)
    cases = launch(tmp_path, 3, [(case, {}) for case in given])
    assert [case.codes for case in cases] == [[0, 0, 0]] * 3, cases[0].output
    for writer in WRITERS:
        is_whole(tmp_path / writer, 12)
        assert len(list((tmp_path / writer / "shards").iterdir())) == (3 if writer == "rank" else 1)
    again = dglaunch(*given[0][:-1], "main")
    assert again.code == 0 and "12 are there already" in again.output


@pytest.mark.slow
def test_nodes_without_a_common_folder_are_merged(tmp_path: Path) -> None:
    table(tmp_path, 12)
    given = words(tmp_path, "webdataset", "--writer", "node", "--batch_size", "2", "--shares", "static")
    given[given.index("--output_dir") + 1] = str(tmp_path / "node%node%" / "out")
    for node in (0, 1):
        (tmp_path / f"node{node}").mkdir()
    world = World(tmp_path, 4, given, nodes=2)
    assert world.wait() == 0, world.output()
    folders = [tmp_path / f"node{node}" / "out" for node in (0, 1)]
    ended = dglaunch("merge", *folders, "--output_dir", tmp_path / "all")
    assert ended.code == 0, ended.output
    is_whole(tmp_path / "all", 12)
