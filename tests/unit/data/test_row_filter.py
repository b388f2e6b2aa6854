"""--filter_rows: lists of indices, ranges and expressions on columns; what is not there is told, and nothing is evaluated."""

from collections.abc import Mapping
from typing import Any

import pytest

from dglaunch.data.row_filter import RowFilter
from dglaunch.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a cat", "style": "oil", "seed": "2"},
    {"prompt": "a dog", "style": "oil", "seed": 12, "Score": 0.5},
    {"prompt": "two cats", "style": "ink", "seed": 4, "tags": ["old", "best"]},
    {"prompt": "a bird", "seed": "5", "art style": "Oil", "kept": "False"},
    {"prompt": "a fish", "style": "ink", "seed": 3.0, "kept": True, "Score": "n/a"},
]


def chosen(text: str, rows: list[dict[str, Any]] = ROWS) -> list[int]:
    wanted = RowFilter(text)
    found = [index for index, row in enumerate(rows) if wanted.wants(index, {**row, "index": index})]
    wanted.check("t.jsonl", 0, len(rows) - 1)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", [3]), ("4,0, 2", [0, 2, 4]), ("0:2", [0, 1]), ("3:", [3, 4]), (":2,4", [0, 1, 4]), ("0:100", [0, 1, 2, 3, 4]),
        ('style == "oil" and seed > 3', [1]), ('style != "oil"', [2, 3, 4]), ("seed > 3", [1, 2, 3]), ("3 <= seed < 5", [2, 4]),
        ("seed in [2, 12]", [0, 1]), ("seed == 3", [4]), ('"cat" in prompt', [0, 2]), ('not "cat" in prompt', [1, 3, 4]),
        ('"best" in tags', [2]), ("style is None", [3]), ("style == None or seed == 2", [0, 3]), ("kept", [4]),
        ("kept == False", [3]), ('row["art style"] == "Oil"', [3]), ("score > 0", [1]), ("index % 2 == 0", [0, 2, 4]),
        ("seed >= 4 and seed <= 5", [2, 3]), ('style in ("ink", "pen")', [2, 4]), ('prompt < "a d"', [0, 3]), ("-1 > seed", []),
        ("Style == 'ink' and not (seed == 4)", [4]), ("index % 0 == 0", []),
    ],
)  # fmt: skip
def test_what_is_chosen(text: str, found: list[int]) -> None:
    assert chosen(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7", "has no row 7; its indices are 0 to 4"),
        ("0,3,99,5", "has no rows 5, 99;"),
        ("10:20", "has no row 10:20"),
        ("9:", "has no row 9:;"),
        ("2:2", "has no row 2:2"),
        ("sed > 3", "has a column 'sed'. The nearest is seed"),
        ("style == oil", "has a column 'oil'"),
    ],
)
def test_what_is_not_there_is_told(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen(text)
    assert said in str(caught.value) and f"--filter_rows {text}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "1,", "1:2:3", "-1", "1-3", "3 7", "seed >", "seed = 3", "seed > 3; index", "__import__('os').remove('x')",
        "seed.real", "[s for s in seed]", "(lambda: seed)()", "f'{seed}'", "seed + 1 > 2", "seed ** 9 ** 9", "seed if seed else 1",
        "row[0] == 1", "row[seed]", "(seed := 1)", "*seed", "seed > b'x'", "seed > 1j", "seed > ...", "{1: seed}", "~seed", "seed @ 2",
        "(" * 5000 + "seed" + ")" * 5000, "not " * 50_000 + "seed", "not " * 60 + "seed", "seed > 3\0", "3 > 2", "'a'", "1" * 4000 + "a",
    ],
)  # fmt: skip
def test_what_is_no_filter_is_told_and_never_run(text: str) -> None:
    with pytest.raises(UserError, match="--filter_rows"):
        RowFilter(text)


class Noting(dict[str, object]):
    """A row that notes what is asked of it."""

    asked: list[str]

    def __getitem__(self, name: str) -> object:
        self.asked.append(name)
        return super().__getitem__(name)


def test_only_the_columns_that_are_named_are_looked_at() -> None:
    row: Mapping[str, object] = Noting(prompt="a cat", seed=1, secret="x")
    row.asked = []  # type: ignore[attr-defined]
    assert RowFilter("seed == 1 or secret == 'x'").wants(0, row)
    assert row.asked == ["seed"]  # type: ignore[attr-defined]


def test_a_long_list_of_indices_is_quick() -> None:
    wanted = RowFilter(",".join(str(2 * n) for n in range(50_000)))
    assert sum(wanted.wants(n, {}) for n in range(100_000)) == 50_000
    wanted.check("t", 0, 99_999)
