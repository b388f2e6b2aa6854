"""Rows of families, compared with what diffusers' own source says; nothing of it is imported."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from dglaunch.models.families import FAMILIES
from support.versions import needs_diffusers


@cache
def sources() -> list[str]:
    found = importlib.util.find_spec("diffusers")
    assert found is not None and found.origin is not None
    return [path.read_text(encoding="utf-8") for path in Path(found.origin).parent.glob("pipelines/*/pipeline_*.py")]


@pytest.mark.parametrize("pipeline_class", FAMILIES)
def test_the_longest_text_is_what_the_pipeline_lets_through(pipeline_class: str) -> None:
    needs_diffusers(FAMILIES[pipeline_class].since)
    (source,) = [text for text in sources() if f"\nclass {pipeline_class}(" in text]
    limits = {int(number) for number in re.findall(r"\bmax_sequence_length > (\d+)", source)}
    family = FAMILIES[pipeline_class]
    if not family.takes_text_length:
        assert family.max_sequence_limit is None, "the flag is refused whatever it says"
        return
    limit = family.max_sequence_limit
    assert limits == ({limit} if limit is not None else set())
