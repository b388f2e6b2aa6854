"""What rank 0 shows: texts of others as they are, and a bar where one can be seen."""

import importlib.util
import io

import pytest

from dglaunch.data.task import Result
from dglaunch.run.report import LeaderReport, Report, Summary
from dglaunch.terminal import Terminal


def failed(error: str) -> Result:
    return Result(task_id=(0, 0), file_name="000000.png", record={"rank": 0, "error": error})


def test_brackets_in_errors_and_folders_are_shown_as_they_are() -> None:
    """They were read as rich's markup: a tag that closes nothing ended the run."""
    said = io.StringIO()
    report = Report(total=1, skipped=0, terminal=Terminal(file=said, width=200))
    report.begin()
    report.update(failed("unexpected [/INST] in [b]prompt"))
    report.note("[red] a model's name [/x]")
    leader = LeaderReport(0.0, 1.0, events=["[/x] happened"])
    report.end(report.summary({0: leader}, 0.0, "failed", 1), "out[/1]")
    for text in (
        "unexpected [/INST] in [b]prompt",
        "[red] a model's name [/x]",
        "[/x] happened",
        "Partly failed: 0 of 1 made, in out[/1]",
    ):
        assert text in said.getvalue()


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_gets_a_bar_where_it_can_draw_one(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    bars: list[str] = []
    monkeypatch.setattr("rich.progress.Progress.start", lambda self: bars.append("started"))
    report = Report(total=1, skipped=0, terminal=Terminal(file=io.StringIO(), force_jupyter=True))
    report.begin()
    assert bars == (["started"] if widgets else [])


def test_lines_are_plain_text_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of rich's HTML each line would be an output of its own, with a gap; and stderr is shown as if something were wrong."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    terminal = Terminal(stderr=True)
    report = Report(total=1, skipped=0, terminal=terminal)
    report.note("a line")
    report.end(report.summary({0: LeaderReport(0.0, 1.0)}, 0.0, "done", 1), "out")
    said = capsys.readouterr()
    assert (
        terminal.in_notebook
        and said.err == ""
        and said.out.startswith("a line\nDone: 0 of 1 made, in out\n")
        and "\x1b" not in said.out
    )


def made(index: int, **record: object) -> Result:
    return Result(task_id=(index, 0), file_name="x.png", record={"index": index, "rank": 0, **record}, data=b"x")


def end_of(*results: Result) -> tuple[Summary, str]:
    """What run.json and the terminal say at the end."""
    said = io.StringIO()
    report = Report(total=len(results), skipped=0, terminal=Terminal(file=said, width=500))
    report.begin()
    for result in results:
        report.update(result)
    summary = report.summary({0: LeaderReport(0.0, 1.0)}, 0.0, "done", 1)
    report.end(summary, "out")
    return summary, said.getvalue()


def test_rows_that_lost_the_end_of_a_prompt_are_told_in_one_line() -> None:
    long = {"tokenizer": [702, 77], "tokenizer_2": [1400, 512]}
    summary, said = end_of(
        made(0),
        made(1, prompt_cut=long),
        made(1, prompt_cut=long),
        made(2, negative_prompt_cut={"tokenizer_2": [600, 512]}),
        made(3, prompt_cut_for={"tokenizer": [90, 77]}),
    )
    assert summary.num_rows_cut == 2, "two images of one row are one row"
    (line,) = [line for line in said.splitlines() if "lost the end" in line]
    assert "2 rows" in line and "1,400 tokens, of which tokenizer_2 reads 512" in line and "--on_long_prompt" in line
    assert "Of 1 row tokenizer reads only the first 77 tokens (the longest has 90)" in line


def test_nothing_is_said_where_prompts_are_read_to_their_ends() -> None:
    summary, said = end_of(made(0), made(1))
    assert summary.num_rows_cut == 0 and "token" not in said


def test_a_log_gets_no_bar_whatever_the_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = io.StringIO()
    report = Report(total=2, skipped=0, terminal=Terminal(file=said))
    report.begin()
    report.update(failed("\x1b]52;c;aGk=\x07"))
    report.stop()
    assert "\x1b]52" not in said.getvalue() and "\x1b[?25l" not in said.getvalue()
    assert said.getvalue().count("\n") == 1
