"""--help of each command: what most people use on one screen, and all of it with `--help all`."""

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from rich.text import Text

from dglaunch.cli.flag_table import Flag, about_tool, flags_of, flags_of_tool
from dglaunch.cli.own_flags import AROUND, Around, OwnFlags
from dglaunch.config import COMMANDS, Group
from dglaunch.environment import takes_several
from dglaunch.terminal import Terminal

ALL = "all"
FIRST_COLUMN = 29
"""Where texts begin; that of a flag that is longer stands below it."""
NARROWEST, WIDEST = 60, 100


def show_job_help(words: Sequence[str]) -> None:
    """Print the help of a command of the table COMMANDS.

    Args:
        words: the command and what stands after it: t2i --help, plan t2i --help all.
    """
    command, wants_all = words[0], _wants_all(words)
    if command in COMMANDS:
        flags, page = flags_of(COMMANDS[command], OwnFlags), Page(f"dglaunch {command}")
        page.head("[flags]", str(COMMANDS[command].__doc__))
        _show_groups(page, flags.values(), wants_all)
        page.paragraph(_more(command, flags, wants_all))
    elif AROUND[command].jobs:
        _show_around(command, [word for word in words[1:2] if word in AROUND[command].jobs], wants_all)
    else:
        _show_alone(command, str(AROUND[command].own.__doc__), flags_of(AROUND[command].own).values())


def show_tool_help(command: str, function: Callable[..., object]) -> None:
    """Print the help of a command of the table TOOLS."""
    _show_alone(command, about_tool(function), flags_of_tool(function).values())


def _show_around(command: str, named: Sequence[str], wants_all: bool) -> None:
    """The help of a command around a job, if it is named with the job's."""
    around, own = AROUND[command], flags_of(AROUND[command].own)
    page = Page(" ".join(["dglaunch", command, *named]))
    page.head(_usage_around(around, named), str(around.own.__doc__))
    page.section(f"Flags of {command}", [flag for flag in own.values() if flag.group is None], wants_all)
    flags = flags_of(*(COMMANDS[name] for name in named or around.jobs))
    flags |= {name: flag for name, flag in own.items() if flag.group is not None}
    if wants_all or named:
        _show_groups(page, flags.values(), wants_all)
        page.paragraph(_more(" ".join([command, *named]), flags, wants_all))
    else:
        jobs = " or ".join(f"dglaunch {name} --help" for name in around.jobs)
        page.paragraph(f"All other flags are those of the job: {jobs}, or dglaunch {command} --help all.")


def _show_alone(command: str, about: str, flags: Collection[Flag]) -> None:
    """The help of a command whose flags are all its own."""
    places = [flag for flag in flags if flag.by_place]
    others = [flag for flag in flags if not flag.by_place]
    page = Page(f"dglaunch {command}")
    required = [f"--{flag.name} {flag.takes}" for flag in others if flag.is_required]
    rest = ["[flags]"] if len(others) > len(required) else []
    page.head(" ".join([*map(_place, places), *required, *rest]), about)
    page.section("What it takes", places, wants_all=True)
    page.section("Flags", others, wants_all=True)


def _wants_all(words: Sequence[str]) -> bool:
    at = max(number for number, word in enumerate(words) if word in ("-h", "--help"))
    return list(words[at + 1 : at + 2]) == [ALL]


def _usage_around(around: Around, named: Sequence[str]) -> str:
    if named:
        return "[flags]"
    jobs = "|".join(around.jobs)
    return f"{jobs} [flags]" if around.needs_job else f"[{jobs}] [flags]"


def _more(command: str, flags: Mapping[str, Flag], wants_all: bool) -> str:
    if wants_all:
        return "DG_SEED=7 stands for --seed 7, and --no_FLAG takes a switch back."
    hidden = sum(not flag.usual for flag in flags.values())
    return f"{hidden} more: dglaunch {command} --help all. DG_SEED=7 stands for --seed 7."


def _show_groups(page: "Page", flags: Iterable[Flag], wants_all: bool) -> None:
    found = sorted(flags, key=lambda flag: not flag.usual)
    for group in [*Group, None]:
        title = group.value if group is not None else "Others"
        page.section(title, [flag for flag in found if flag.group is group], wants_all)


class Page:
    """A Page prints a help text in two columns, as wide as the terminal within limits."""

    def __init__(self, command: str) -> None:
        self._width = min(max(Terminal().width, NARROWEST), WIDEST)
        self._terminal = Terminal(width=self._width)
        self._command = command

    def head(self, usage: str, about: str) -> None:
        """Print how the command is called, and what it is for, paragraph by paragraph."""
        self._terminal.print(f"usage: {self._command} {usage}".rstrip())
        for paragraph in about.split("\n\n"):
            self.paragraph(paragraph)

    def section(self, title: str, flags: Sequence[Flag], wants_all: bool) -> None:
        """Print a group of flags: its usual ones, or all."""
        shown = [flag for flag in flags if wants_all or flag.usual or flag.group is None]
        if not shown:
            return
        self._terminal.print()
        self._terminal.print(Text(title, style="bold"))
        for flag in shown:
            for line in self._lines(flag, wants_all):
                self._terminal.print(line)

    def paragraph(self, text: str) -> None:
        self._terminal.print()
        for line in textwrap.wrap(" ".join(text.split()), self._width, break_on_hyphens=False):
            self._terminal.print(line)

    def _lines(self, flag: Flag, in_full: bool) -> list[str]:
        """A flag, and its text beside it or below it."""
        in_short = bool(flag.usual) and not in_full
        name = f"  {_name(flag, in_short)}"
        text = flag.with_default(flag.usual if in_short else flag.text)
        if len(name) > self._width:
            name, text = f"  --{flag.name} NAME", f"{', '.join(flag.choices)}: {text}"
        if flag.is_required and not flag.by_place:
            text += " (needed)"
        lines = textwrap.wrap(text, self._width - FIRST_COLUMN, break_on_hyphens=False) or [""]
        beside = len(name) < FIRST_COLUMN - 1
        above = [] if beside else [name]
        first = f"{name if beside else '':{FIRST_COLUMN}}{lines[0]}".rstrip()
        return [*above, first, *(" " * FIRST_COLUMN + line for line in lines[1:])]


def _name(flag: Flag, in_short: bool) -> str:
    """A flag and what stands behind it; in short without a long list, which its text has."""
    if flag.by_place:
        return _place(flag)
    name = f"--{flag.name} {flag.takes}".rstrip()
    return f"--{flag.name} NAME" if in_short and flag.choices and len(name) > FIRST_COLUMN - 4 else name


def _place(flag: Flag) -> str:
    name = flag.name.upper()
    name = f"{name} ..." if takes_several(flag.kind) else name
    return name if flag.is_required else f"[{name}]"
