"""Tables as large as users have: plans and resumption stay quick and small."""

import json
import re
import time
from pathlib import Path

import pytest

from support.commands import run_module


def test_plan_of_many_prompts_for_many_ranks_is_quick_and_small(tmp_path: Path) -> None:
    """A short form of the million (make soak): 30,000 prompts for 1,024 ranks."""
    seconds, gib = plan_of(tmp_path, 30_000)
    assert (
        seconds < 90 and gib < 1
    )  # a plan that grows with the square of its rows takes hours; a busy machine triples seconds


@pytest.mark.slow
def test_plan_of_a_million_prompts(tmp_path: Path) -> None:
    seconds, gib = plan_of(tmp_path, 1_000_000)
    print(f"\nplan of 1,000,000 prompts for 1,024 ranks: {seconds:.1f} s, {gib:.2f} GiB")
    assert seconds < 20 and gib < 2


def plan_of(tmp_path: Path, count: int) -> tuple[float, float]:
    path = tmp_path / "many.jsonl"
    with path.open("w") as lines:
        for number in range(count):
            lines.write(json.dumps({"prompt": f"a photo of thing number {number} in a landscape, detailed"}) + "\n")
    words = ["plan", "t2i", "--model_name", "tiny", "--prompts_file", str(path), "--world_size", "1024"]
    began = time.monotonic()
    ended = run_module("support.with_memory", *words)
    seconds = time.monotonic() - began
    assert ended.code == 0 and "1024 replicas" in ended.output and f"{count:,} images" in ended.output, ended.output
    return seconds, int(re.search(r"MEMORY (\d+)", ended.output)[1]) / 2**20  # type: ignore[index]


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_resume_of_many_ledger_lines_takes_seconds(tmp_path: Path, count: int) -> None:
    from dglaunch.data.task import Task
    from dglaunch.output.writer import Writer

    todo = [Task(index=n, prompt=f"p{n}", seed=n, stem=f"{n:06d}") for n in range(count)]
    with (tmp_path / "metadata.jsonl").open("w") as lines:
        for task in todo:
            line = {
                "file_name": f"{task.stem}.png",
                "index": task.index,
                "sample": 0,
                **task.content(),
                "key": task.key,
                "sha256": "0" * 64,
                "bytes": 1,
            }
            lines.write(json.dumps(line) + "\n")
    for task in todo[:-1]:
        (tmp_path / f"{task.stem}.png").write_bytes(b"x")
    began = time.monotonic()
    writer = Writer(tmp_path)
    found = writer.open({}, todo, "png", overwrite=False)
    writer.begin(found, todo)
    seconds = time.monotonic() - began
    writer.close()
    assert len(found.done) == count - 1 and seconds < 20
