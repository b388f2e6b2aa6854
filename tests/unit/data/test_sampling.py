"""--shuffle_seed: a sample that is part of every larger one, whatever the table's form, and images that stay what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch.data.sampling import Sample, is_sampled, lots_of, shuffled
from support.commands import dglaunch
from support.results import ledger, write_jsonl

NUM_ROWS = 40


@pytest.fixture(params=["row by row", "in columns"])
def table(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "row by row":
        return write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{n}"} for n in range(NUM_ROWS)])
    monkeypatch.setattr("dglaunch.data.tables.LARGE_ROWS", 1)
    pq.write_table(pa.table({"prompt": [f"p{n}" for n in range(NUM_ROWS)]}), tmp_path / "p.parquet")
    return tmp_path / "p.parquet"


def images(table: Path, out: Path, *flags: str) -> dict[int, Any]:
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", out, *flags)
    assert ended.code == 0, ended.output
    return {line["index"]: (line["file_name"], line["seed"], line["key"], line["sha256"]) for line in ledger(out)}


def test_a_sample_is_random_and_part_of_larger_ones_and_of_the_whole(table: Path, tmp_path: Path) -> None:
    few = images(table, tmp_path / "few", "--shuffle_seed", "7", "--limit", "5")
    more = images(table, tmp_path / "more", "--shuffle_seed", "7", "--limit", "12")
    other = images(table, tmp_path / "other", "--shuffle_seed", "8", "--limit", "5")
    whole = images(table, tmp_path / "whole")
    assert [len(few), len(more), len(other)] == [5, 12, 5]
    assert few.keys() < more.keys()
    assert few.keys() != other.keys()
    assert list(few) != list(range(5))
    assert whole.items() > more.items() > few.items()
    assert images(table, tmp_path / "few") == whole  # the same command goes on without the two flags


def test_which_rows_they_are_never_changes(table: Path, tmp_path: Path) -> None:
    """A sample that was made with an earlier version goes on with this one."""
    assert sorted(images(table, tmp_path / "out", "--shuffle_seed", "7", "--limit", "5")) == [4, 17, 21, 22, 23]


def test_with_a_filter_and_several_images_of_a_row(table: Path, tmp_path: Path) -> None:
    flags = ["--shuffle_seed", "7", "--limit", "3", "--filter_rows", "10:20", "--num_images_per_prompt", "2"]
    found = images(table, tmp_path / "out", *flags)
    assert len(found) == 3
    assert all(10 <= index < 20 for index in found)
    assert len(ledger(tmp_path / "out")) == 6


def test_what_is_made_first_is_a_sample_of_the_whole(table: Path, tmp_path: Path) -> None:
    flags = ["--shuffle_seed", "7", "--batch_size", "1", "--world_size", "2", "--backend", "fake"]
    ended = dglaunch("plan", "t2i", "--prompts_file", table, *flags)
    assert "order of the rows drawn from --shuffle_seed 7" in ended.output


def test_alone_with_a_prompt_it_is_refused() -> None:
    ended = dglaunch("t2i", "--backend", "fake", "--prompt", "a fox", "--shuffle_seed", "7")
    assert ended.code == 2
    assert "--shuffle_seed choose among the rows of --prompts_file; with --prompt drop them" in ended.output


def test_lots_are_the_same_however_rows_come() -> None:
    rows = np.arange(500)
    singly, at_once, in_parts = Sample(3, 20), Sample(3, 20), Sample(3, 20)
    for row in rows.tolist():
        singly.takes(row)
    at_once.taken(rows)
    for start in range(0, 500, 90):
        in_parts.taken(rows[start : start + 90])
    expected = set(np.flatnonzero(is_sampled(rows, 3, 20)).tolist())
    assert singly.indices == at_once.indices == in_parts.indices == expected
    assert len(set(lots_of(rows, 3).tolist())) == 500
    assert shuffled([], 3, 1) == []


ROWS = [("a", 1), ("b", 2), ("a", 1), ("a", 2), ("b", 2), ("a", 1)]


@pytest.mark.parametrize("is_large", [False, True])
def test_plan_tells_what_is_asked_for_twice(tmp_path: Path, is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_large:
        monkeypatch.setattr("dglaunch.data.tables.LARGE_ROWS", 1)
    columns = {"prompt": [prompt for prompt, _ in ROWS], "seed": [seed for _, seed in ROWS], "width": [None] * 5 + [64]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    ended = dglaunch("plan", "t2i", "--backend", "fake", "--prompts_file", tmp_path / "p.parquet")
    assert (
        "duplicates: 2 images are asked for again: the same prompt, seed and settings as another row has (the first: row 2, as row 0)"
        in ended.output
    )
    pq.write_table(pa.table({"prompt": ["a"] * 6}), tmp_path / "p.parquet")
    assert (
        "duplicates"
        not in dglaunch("plan", "t2i", "--backend", "fake", "--prompts_file", tmp_path / "p.parquet").output
    )
