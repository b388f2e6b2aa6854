"""The terminal: the only way in which dglaunch prints tables, progress and lines of a run.

Terminal().print("bad[/b].png")             as it is: no text is markup, an emoji's name or to be highlighted
Terminal(stderr=True).print(table)          the cells, too
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod  # noqa: TID251
from rich.style import Style
from rich.text import Text

from dglaunch.streams import Stream, readable

SAY_EVERY_S = 10.0


def _stream(error: bool) -> IO[str]:
    return Stream(error)  # type: ignore[return-value]  # what rich uses of an IO[str] is there


class Terminal(Console):
    """A Terminal shows the texts of prompts, file names, servers and other people's files as they are.

    Args:
        stderr: print to stderr.
        file: print there instead.
        width: columns. Default: the terminal's.
        soft_wrap: long lines are the terminal's to wrap, so that they can be copied in one piece.
        quiet: print nothing.
        force_jupyter: be a notebook's widget, for a bar; lines are plain text there.
    """

    def __init__(
        self,
        *,
        stderr: bool = False,
        file: IO[str] | None = None,
        width: int | None = None,
        soft_wrap: bool = True,
        quiet: bool = False,
        force_jupyter: bool | None = None,
    ) -> None:
        begin = functools.partial(
            super().__init__, width=width, soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False
        )
        begin(file=file if file is not None else _stream(stderr), force_jupyter=force_jupyter)
        self.in_notebook = self.is_jupyter
        if self.in_notebook and force_jupyter is None and file is None:
            # As text: rich would make an output of its own of each line, and a notebook shows stderr as a mistake.
            begin(file=_stream(error=False), force_jupyter=False, color_system=None)

    @property
    def redraws(self) -> bool:
        """Whether what was written can be written over, as a progress bar does. FORCE_COLOR makes rich take a log file for
        a terminal, too."""
        return self.is_terminal and self.file.isatty()

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Every string passes here, be it a line, a cell or a title."""
        return Text(readable(text), style=style, justify=justify, overflow=overflow)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far something is, in this block: yields a function that is told how much more is done. Where what is
    written cannot be written over (a log), a line now and then says it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Terminal(stderr=True)
    if terminal.redraws:
        columns = TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=terminal, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)
        return
    done, said = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            terminal.print(f"{what}: {done:,} of {total:,}")

    yield advance
