"""On another diffusers than constraints.txt has (`make floor`): what it lacks, and what was recorded with the other one.

needs_diffusers(FAMILIES["Krea2Pipeline"].since)        # in a test: skipped where it is older than that
pytestmark = pinned_diffusers                           # figures, golden files: skipped where it is another one
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
HERE = version("diffusers")
PINNED = re.findall(r"^diffusers==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[0]
FLOOR = re.findall(r'"diffusers>=(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[0]
"""The oldest that is allowed."""

pinned_diffusers = pytest.mark.skipif(HERE != PINNED, reason=f"recorded with diffusers {PINNED}, and here is {HERE}")
"""A mark of tests that compare with what another diffusers has said."""


@contextmanager
def skipping_what_is_newer() -> Iterator[None]:
    """Skip the test if it asks diffusers for a class that came later."""
    try:
        yield
    except AttributeError as error:
        if HERE == PINNED or "module diffusers has no attribute" not in str(error):
            raise
        pytest.skip(f"{error}, {HERE}")


def skip_what_is_newer(said: str) -> None:
    """Skip the test if dglaunch has said that diffusers is too old for what was asked."""
    if HERE != PINNED and "needs diffusers" in said:
        pytest.skip(said)


def needs_diffusers(since: str) -> None:
    """Skip the test where diffusers is older; "" lets it run everywhere."""
    if since and Version(HERE) < Version(since):
        pytest.skip(f"needs diffusers {since}, and here is {HERE}")
