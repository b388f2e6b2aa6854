"""Which images a job has: ranges as run.json names them, their sums, and what strangers may have written there."""

import json
import random
from pathlib import Path

import pytest

from dglaunch.output import asked
from dglaunch.output.asked import Asked, TaskRanges, asked_of, together
from dglaunch.output.ledger import RUN, OutputFolder


def ranges(text: str) -> TaskRanges:
    found = TaskRanges.parse(text)
    assert found is not None
    return found


def test_ids_as_ranges_and_back() -> None:
    ids = [(0, 0), (1, 0), (2, 0), (7, 0), *((index, sample) for index in (9, 10, 11) for sample in (0, 1))]
    found = TaskRanges.of(reversed(ids))
    assert found.text == "0:3,7,9:12x2" and ranges(found.text) == found
    assert found.count == len(ids) == found.num_of([*ids, (3, 0), (7, 1), (12, 0)])
    assert list(found.names_without({(1, 0), (9, 1)})) == [
        "0", "2", "7", "9 sample 0", "10 sample 0", "10 sample 1", "11 sample 0", "11 sample 1",
    ]  # fmt: skip


def test_unions_are_those_of_the_ids() -> None:
    chance = random.Random(1)
    for _ in range(200):
        parts = [{chance.randrange(12): chance.randint(1, 3) for _ in range(chance.randrange(8))} for _ in range(2)]
        ids = [{(index, sample) for index, count in part.items() for sample in range(count)} for part in parts]
        one, other = (TaskRanges.of(part) for part in ids)
        assert one | other == TaskRanges.of(ids[0] | ids[1])
        assert (one | other).count == len(ids[0] | ids[1])


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        "",
        "3:3",
        "5:2",
        "a",
        "1,,2",
        "1:2:3",
        "0x0",
        "-1",
        "\u0661",
        "1" * 20,
        ["0:3"],
        pytest.param("0," * 2_000_000, id="long"),
    ],
)
def test_what_names_no_tasks_counts_as_untold(text: object) -> None:
    assert TaskRanges.parse(text) is None


def test_overlapping_and_unordered_ranges_of_a_stranger() -> None:
    assert ranges("5:8,0:6,2x3").text == "0:2,2x3,3:8"
    assert ranges("0:9000000000000000000").count == 9 * 10**18


def test_too_many_ids_for_a_text_leave_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MOST_TEXT", 20)
    assert TaskRanges.of((index * 100, 0) for index in range(20)).text is None


def test_what_is_known_stands_in_for_an_older_run_json(tmp_path: Path) -> None:
    known, folder = [(0, 0), (5, 0)], OutputFolder(tmp_path)
    assert asked_of(folder, known).total == 2
    runs = {"-node0of2": {"tasks": "0:3", "num_tasks": 3}, "-node1of2": {"tasks": "3:6", "num_tasks": 3}}
    for suffix, run in runs.items():
        folder.file(RUN, suffix).write_text(json.dumps({"outcome": "done"} | run))
    assert asked_of(folder, known) == Asked(ranges("0:6"))
    assert asked_of(folder, known, node_rank=1) == Asked(ranges("3:6"))
    folder.file(RUN, "-node1of2").write_text('{"outcome": "done", "num_tasks": 7}')
    assert asked_of(folder, known) == Asked(ranges("0:3,5"), 3)
    folder.file(RUN, "-node1of2").write_text('{"outcome": "done", "num_tasks": 1}')
    assert asked_of(folder, known).total == 4


def test_parts_add_up() -> None:
    assert together([Asked(ranges("0:3")), Asked(ranges("3:6"))]).total == 6
    assert together([Asked(ranges("0:2"), 4), Asked(ranges("2:4"))]) == Asked(ranges("0:4"), 2)
