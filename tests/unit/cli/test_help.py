"""--help: one screen of what most people use, --help all for the rest, the same form for every command."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from dglaunch.cli.completion import commands
from dglaunch.cli.flag_table import Flag, Named, flags_of, flags_of_tool
from dglaunch.cli.main import COMMANDS, TOOLS, imported
from dglaunch.cli.own_flags import AROUND, Around
from dglaunch.config import COMMANDS as JOBS
from dglaunch.config import Group, RunConfig, leaf_fields
from support.commands import dglaunch


def help_of(*words: str, columns: int = 80) -> str:
    ended = dglaunch(*words, COLUMNS=str(columns))
    assert ended.code == 0, ended.output
    return ended.output


def titles(text: str) -> list[str]:
    return [line for line in text.splitlines() if line in [group.value for group in Group]]


def shown(text: str) -> list[str]:
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", JOBS)
def test_help_is_one_screen_in_groups(command: str) -> None:
    text = help_of(command, "--help")
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 80
    assert titles(text) == [group.value for group in Group]
    assert {"model_name", "output_dir", "seed", "num_gpus", "config"} <= set(shown(text))
    assert f"dglaunch {command} --help all" in text and "(default: outputs)" in text


@pytest.mark.parametrize("command", JOBS)
def test_help_all_has_every_flag_once_with_its_text(command: str) -> None:
    text = help_of(command, "--help", "all", columns=100)
    assert titles(text) == [group.value for group in Group]
    assert sorted(shown(text)) == sorted([*(item.name for item in leaf_fields(JOBS[command])), "config"])
    for flag in flags_of(JOBS[command]).values():
        assert flag.text and flag.text in " ".join(text.split()), flag.name


@pytest.mark.parametrize("command", [*COMMANDS, *TOOLS])
def test_a_default_is_said_once(command: str) -> None:
    text = " ".join(help_of(command, "--help", "all").split())
    assert "None" not in text and "(default: )" not in text and "False" not in text
    assert not re.search(r"[Dd]efault[^)]{0,60}\(default:", text)


@pytest.mark.parametrize("command", [*COMMANDS, *TOOLS])
def test_what_a_command_is_for_has_no_runs_of_spaces(command: str) -> None:
    about = help_of(command, "--help").split("\n\n")[1]
    assert "  " not in about, about


def test_preemption_is_said_where_people_look() -> None:
    assert "preempted" in " ".join(help_of("slurm", "--help").split())


@pytest.mark.parametrize("command", AROUND)
def test_a_command_around_a_job_shows_its_own_flags_first(command: str) -> None:
    own = [flag.name for flag in flags_of(AROUND[command].own).values() if flag.group is None and not flag.by_place]
    text = help_of(command, "--help")
    if not AROUND[command].jobs:
        assert shown(text) == own and f"usage: dglaunch {command}" in text
        return
    assert shown(text) == own and f"Flags of {command}" in text and "dglaunch t2i --help" in text
    job = AROUND[command].jobs[-1]
    with_job = help_of(command, job, "--help")
    assert shown(with_job)[: len(own)] == own and shown(with_job)[len(own) :] == shown(help_of(job, "--help"))
    everything = set(shown(help_of(command, "--help", "all")))
    assert everything == {*own, "config", *(name for job in AROUND[command].jobs for name in flags_of(JOBS[job]))}


def test_plan_has_the_flags_that_people_look_for() -> None:
    assert {"world_size", "gpu", "compare", "json"} <= set(shown(help_of("plan", "--help")))


@pytest.mark.parametrize("command", TOOLS)
def test_a_tool_says_what_it_takes_and_what_each_flag_does(command: str) -> None:
    text, flags = help_of(command, "--help"), flags_of_tool(imported(TOOLS[command]))
    usage = text.splitlines()[0]
    for flag in flags.values():
        assert flag.text, f"Args: of {command} lacks {flag.argument}"
        assert (flag.name.upper() if flag.by_place else f"  --{flag.name}") in (usage if flag.by_place else text)
    assert inspect.getdoc(imported(TOOLS[command])).splitlines()[0].split(":")[0] in " ".join(text.split())
    assert help_of(command, "--help", "all") == text


def test_a_command_whose_flags_are_all_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "again", "nowhere:nothing")
    monkeypatch.setitem(AROUND, "again", Around(own=Again, jobs=()))
    text = help_of("again", "--help")
    assert text.startswith("usage: dglaunch again FOLDER [flags]\n\nMake it again.\n") and shown(text) == ["failed"]
    assert {command.name: command.words for command in commands()}["again"] == ()


@dataclass(kw_only=True)
class Again:
    """Make it again."""

    folder: Annotated[Path, Named(by_place=True)]
    """Where."""
    failed: bool = False
    """What failed."""


def test_every_command_stands_in_the_first_help() -> None:
    text = help_of("--help")
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in [*COMMANDS, *TOOLS])
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("words", [["t2i", "--prompt", "x", "-h"], ["plan", "t2i", "--gpu", "H100", "--help"]])
def test_help_wins_over_what_else_was_typed(words: list[str]) -> None:
    assert help_of(*words).startswith("usage: dglaunch")


def test_of_several_ranks_one_answers() -> None:
    assert dglaunch("t2i", "--help", RANK="1", WORLD_SIZE="2").output == ""


@pytest.mark.parametrize("columns", [20, 60, 100, 300])
def test_help_fits_the_terminal_within_limits(columns: int) -> None:
    text = help_of("edit", "--help", "all", columns=columns)
    assert max(map(len, text.splitlines())) <= min(max(columns, 60), 100)
    assert "taylor_seer" in text


@pytest.mark.parametrize("config_type", JOBS.values())
def test_every_flag_has_a_group_and_a_text(config_type: type[RunConfig]) -> None:
    flags = flags_of(config_type).values()
    assert [flag.name for flag in flags if flag.group is None] == [], "write flag(DEFAULT, CONCERNS, Group.X)"
    assert [flag.name for flag in flags if not flag.text] == []
    assert [flag.name for flag in flags if len(flag.with_default(flag.usual)) > 51] == [], "more than a line of --help"


def tool(
    folder: str, rest: tuple[str, ...] = (), /, number: int = 3, choice: bool = False, *, needed: str | None = None
) -> int:
    """Do it.

    And more.

    Args:
        folder: where,
            and why.
        number: how many.
    """
    return 0


def test_a_function_s_arguments_are_flags() -> None:
    flags = flags_of_tool(tool)
    assert [flag.name for flag in flags.values() if flag.by_place] == ["folder", "rest"]
    assert flags["folder"].text == "Where, and why." and flags["folder"].is_required
    assert (flags["number"].takes, flags["choice"].takes, flags["rest"].takes) == ("N", "", "TEXT ...")
    assert flags["number"].with_default("How many.") == "How many. (default: 3)"


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: Flag(name="a", kind=int, default=0, told=lambda: "x"), "x (default: 0)"),
        (lambda: Flag(name="a", kind=int, default=4, told=lambda: "Default: 4."), "Default: 4."),
        (lambda: Flag(name="a", kind=bool, default=False, told=lambda: "x"), "x"),
        (lambda: Flag(name="a", kind=int | None, default=None, told=lambda: "x"), "x"),
    ],
)
def test_what_is_added_to_a_text(make: Callable[[], Flag], shown: str) -> None:
    assert make().with_default(make().text) == shown
