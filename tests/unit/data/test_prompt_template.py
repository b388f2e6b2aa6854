"""--prompt_template: prompts that are made of columns, and what is no template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dglaunch import T2IConfig
from dglaunch.data.prompt_template import PromptTemplate
from dglaunch.data.prompts import read_prompts
from dglaunch.data.task import Task
from dglaunch.errors import InputError, UserError
from support.results import write_jsonl


def read(folder: Path, rows: list[dict[str, Any]], template: str, **flags: Any) -> Sequence[Task]:
    path = write_jsonl(folder / "t.jsonl", rows)
    return read_prompts(T2IConfig(prompts_file=path, prompt_template=template, **flags))


def test_a_prompt_of_columns_which_stay_in_the_ledger(tmp_path: Path) -> None:
    rows = [{"Style": "oil", "name": "Ada", "seed": 7}, {"Style": "ink", "name": 5.0, "prompt": "own"}]
    first, second = read(tmp_path, rows, "{style} photo of {name}, {{raw}} {name}")
    assert (first.prompt, first.seed, first.extra) == (
        "oil photo of Ada, {raw} Ada",
        7,
        {"Style": "oil", "name": "Ada"},
    )
    assert second.prompt == "ink photo of 5, {raw} 5" and second.extra is not None and second.extra["prompt"] == "own"


def test_a_missing_column_is_its_rows_error(tmp_path: Path) -> None:
    rows = [
        {"style": "oil", "name": "Ada"},
        {"style": "oil"},
        {"name": "Bo", "style": None},
        {"name": ["x"], "style": "a"},
    ]
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows, "{style} {name}")
    assert caught.value.problems == [
        "line 2: has no name for --prompt_template (there are: style)",
        "line 3: has no style for --prompt_template (there are: name, style)",
        "line 4: has ['x'] as name, which is no text and no number, and --prompt_template needs one",
    ]


@pytest.mark.parametrize("name", ["stile", "0.__class__", "name.__class__", "name[0]", "name!r", "name:>99999999"])
def test_what_stands_between_braces_is_a_columns_name_and_nothing_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"has no column .*there are: style, name") as caught:
        read(tmp_path, [{"style": "oil", "name": "Ada"}], f"{{{name}}} of {{name}}")
    assert not isinstance(caught.value, InputError)
    odd: dict[str, Any] = {name: "as it is", "name": "Ada"}
    assert read(tmp_path, [odd], f"{{{name}}} of {{name}}")[0].prompt == "as it is of Ada"


@pytest.mark.parametrize("text", ["{name", "name}", "{}", "{ } {a}", "a {b{c}}", "no column", "{{name}}", ""])
def test_templates_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--prompt_template"):
        PromptTemplate(text)


def test_values_with_braces_are_not_read_again() -> None:
    assert PromptTemplate("{a}{b}").fill({"a": "{b}", "b": "}{"}) == "{b}}{"


def test_a_column_of_a_template_is_no_near_miss(tmp_path: Path) -> None:
    (task,) = read(tmp_path, [{"size": "huge", "name": "fox"}], "a {size} {name}")
    assert task.prompt == "a huge fox"
