"""Long lists of cases: a short form of them always, the rest with `make soak`; and a fixture makes only what is asked of it.

@pytest.mark.parametrize("family", rarely(FAMILIES, {"sd3", "zimage"}))      those two are marked slow
for family, split in selected(request, "family", "split"): ...               what will run, after -k and -m
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rarely(cases: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Cases for `parametrize`; a tuple gives several parameters. Those in `slow` run with `make soak` only."""
    given = list(cases)
    assert set(slow) <= set(given), f"no such cases: {set(slow) - set(given)}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if case in slow else [])
        for case in given
    ]


def selected(request: pytest.FixtureRequest, *names: str) -> list[tuple[Any, ...]]:
    """The values that these parameters have in the tests of this file that are going to run, in their order."""
    found: dict[tuple[Any, ...], None] = {}
    for item in request.session.items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if item.path == request.path and all(name in given for name in names):
            found[tuple(given[name] for name in names)] = None
    return list(found)
