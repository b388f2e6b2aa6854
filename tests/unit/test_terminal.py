"""Tables, titles and lines of a Terminal: no text of theirs is markup, an emoji's name or a control sequence."""

import io

import pytest
from rich.table import Table

from dglaunch.terminal import Terminal

TEXTS = ["bad[/b].png", "unexpected [/INST]", "runs[v3]", "[/__w/pytorch/gloo/tcp/pair.cc:144]", ":smile:", "[red]'x'"]


@pytest.mark.parametrize("text", TEXTS)
def test_lines_cells_and_titles_are_as_they_are(text: str) -> None:
    said = io.StringIO()
    terminal = Terminal(file=said, width=200)
    table = Table("", text, title=f"title {text}", caption=f"caption {text}")
    table.add_row(f"cell {text}", "\x1b]0;\u202e")
    terminal.print(f"line {text}")
    terminal.print(table)
    for place in ("line", "cell", "title", "caption"):
        assert f"{place} {text}" in said.getvalue()
    assert "\x1b" not in said.getvalue() and r"\x1b]0;\u202e" in said.getvalue()


def test_long_lines_are_not_broken() -> None:
    said = io.StringIO()
    Terminal(file=said, width=20).print("word " * 20)
    assert said.getvalue() == "word " * 20 + "\n"


def test_colors_that_are_forced_draw_no_bar_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal(file=io.StringIO())
    assert terminal.is_terminal and not terminal.redraws
