"""A run of a large table: what comes of it is what comes of the same rows in a small one, on one rank and on several."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch.output.ledger import OutputFolder
from support.commands import dglaunch
from support.ranks import on_ranks
from support.results import ledger

NUM_ROWS = 24


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = {
        "prompt": [f"a red fox number {n}" for n in range(NUM_ROWS)],
        "width": [64, 32, None] * 8,
        "height": [64, 32, None] * 8,
        "style": ["oil", None] * 12,
    }
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    return tmp_path / "p.parquet"


def make(table: Path, out: Path, *flags: str, code: int = 0) -> str:
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", out, *flags)
    assert ended.code == code, ended.output
    return ended.output


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "time" and "seconds" not in name}
        for line in ledger(out)
    ]


def test_images_ledger_and_record_are_those_of_a_small_table(
    table: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    flags = ["--batch_size", "4", "--num_images_per_prompt", "2", "--seed", "9"]
    make(table, tmp_path / "small", *flags)
    scratch = request.getfixturevalue("all_are_large")
    make(table, tmp_path / "large", *flags)
    assert lines_of(tmp_path / "large") == lines_of(tmp_path / "small")
    assert len(lines_of(tmp_path / "large")) == 2 * NUM_ROWS
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("small", "large")]
    for name in ("tasks", "num_tasks", "settings", "columns", "choices"):
        assert runs[0][name] == runs[1][name], name
    assert not any(scratch.iterdir())


def test_a_folder_that_was_begun_row_by_row_goes_on_in_columns(
    table: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    make(table, out, "--limit", "5")
    before = {line["index"]: line["sha256"] for line in ledger(out)}
    request.getfixturevalue("all_are_large")
    make(table, out, "--filter_rows", 'style == "oil"')
    make(table, out)
    after = {line["index"]: line["sha256"] for line in ledger(out)}
    assert len(after) == NUM_ROWS
    assert {index: after[index] for index in before} == before
    assert "holds the results of another job" in make(table, out, "--guidance_scale", "3", code=2)


def test_plan_says_the_same(table: Path, request: pytest.FixtureRequest) -> None:
    command = ["plan", "t2i", "--model_name", "tiny", "--prompts_file", table, "--world_size", "6", "--batch_size", "2"]
    small = dglaunch(*command)
    request.getfixturevalue("all_are_large")
    large = dglaunch(*command)
    assert small.code == 0, small.output
    assert large.output == small.output


@pytest.mark.parametrize("node", range(3))
def test_nodes_without_a_rendezvous_share_it_as_a_small_one(
    table: Path, tmp_path: Path, node: int, request: pytest.FixtureRequest
) -> None:
    flags = ["--num_nodes", "3", "--node_rank", str(node), "--batch_size", "3"]
    make(table, tmp_path / "small", *flags)
    request.getfixturevalue("all_are_large")
    make(table, tmp_path / "large", *flags)
    assert lines_of(tmp_path / "large") == lines_of(tmp_path / "small")


def test_the_ranks_of_a_node_read_it_once(tmp_path: Path) -> None:
    prompts = [f"a red fox number {n}" for n in range(60_000)]
    pq.write_table(pa.table({"prompt": prompts, "style": ["oil"] * len(prompts)}), tmp_path / "p.parquet")
    (tmp_path / "scratch").mkdir()
    flags = ["t2i", "--backend", "fake", "--prompts_file", tmp_path / "p.parquet", "--output_dir", tmp_path / "out"]
    case = on_ranks(tmp_path, 2, *flags, "--filter_rows", "59990:", TMPDIR=str(tmp_path / "scratch"))
    assert case.codes == [0, 0], case.output
    assert {line["index"] for line in ledger(tmp_path / "out")} == {*range(59_990, 60_000)}
    assert all(line["style"] == "oil" for line in ledger(tmp_path / "out"))
    assert not os.listdir(tmp_path / "scratch")
    bad = pa.table({"prompt": [*prompts, " "]})
    pq.write_table(bad, tmp_path / "p.parquet")
    case = on_ranks(tmp_path, 2, *flags, "--overwrite")
    assert case.codes == [2, 2], case.output
    assert case.output.count("row 60000: prompt is ' ', not a text") == 1


def test_a_disk_that_cannot_take_it_is_named(table: Path, all_are_large: Path, tmp_path: Path) -> None:
    all_are_large.rmdir()
    all_are_large.write_text("no folder")
    said = make(table, tmp_path / "out", code=2)
    assert f"{all_are_large} cannot take the rows of {table} in columns: " in said
    assert "TMPDIR or --stage_to" in said
    assert not (tmp_path / "out").exists()


def test_images_of_a_large_table_lie_in_folders_too(table: Path, tmp_path: Path, all_are_large: Path) -> None:
    make(table, tmp_path / "out", "--files_per_folder", "10")
    names = {str(line["file_name"]) for line in OutputFolder(tmp_path / "out").records()}
    assert names == {f"{index // 10:04d}/{index:06d}.png" for index in range(NUM_ROWS)}
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert "24 there before" in make(table, tmp_path / "out", "--files_per_folder", "10")
