"""JSON that others can read: what is written, and what is refused before it could be."""

import json
import math
from typing import Any

import pytest

from dglaunch import strict_json


def strict(text: str) -> Any:
    """As a reader that takes nothing but JSON."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_written_is_strict() -> None:
    """A number that no JSON has was measured, or a server's: null says so, and the run goes on."""
    value = {"a": [math.nan, -math.inf, 1.5], "b": {"c": math.inf}, "d": "caf\udce9 é", "e": (1, 2)}
    text = strict_json.dumps(value)
    assert strict(text) == {"a": [None, None, 1.5], "b": {"c": None}, "d": "caf\ufffd é", "e": [1, 2]}
    assert text.encode()
    assert strict_json.dumps({"a": "é", "b": 1}, ascii_only=True, compact=True) == '{"a":"\\u00e9","b":1}'


@pytest.mark.parametrize("depth", [65, 950, 100_000])
def test_nesting_without_end_is_a_value_error(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(ValueError, match="nested more than 64 levels"):
            strict_json.loads(text)
        with pytest.raises(ValueError, match="nested more than 64 levels"):
            strict_json.loads(text.encode(), allow_nan=False)


def test_many_brackets_beside_one_another_are_no_nesting() -> None:
    value = [[[n]] for n in range(1000)]
    assert strict_json.loads(json.dumps(value)) == value
    assert strict_json.loads("[" * 64 + "]" * 64)


def test_constants_are_read_where_older_files_have_them() -> None:
    assert strict_json.loads('{"a": Infinity}') == {"a": math.inf}
    with pytest.raises(ValueError, match="NaN, which is no JSON"):
        strict_json.loads('{"a": NaN}', allow_nan=False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, {"a": math.nan}], "nan"),
        (-math.inf, "-inf"),
        (2**64, "beyond 64 bits"),
        ([-(2**63) - 1], "beyond 64 bits"),
    ],
)
def test_what_others_would_not_read_is_named(value: object, said: str) -> None:
    problem = strict_json.problem_with(value)
    assert problem is not None and said in problem


@pytest.mark.parametrize("value", [None, True, 2**64 - 1, -(2**63), 0.5, "NaN", {"a": [1, {"b": ()}]}])
def test_what_they_read_is_no_problem(value: object) -> None:
    assert strict_json.problem_with(value) is None
