"""The one exception tree. Imports nothing but Python's own `re`, so that it works where nothing else does.

    DglaunchError            exit 1: the run broke off (what was written stays valid; start again to resume)
    ├── UserError            exit 2: the user's mistake, told once, with the remedy, before a model is loaded
    │   ├── InputError       exit 2: every bad row of an input table, all at once
    │   └── MissingPackage   exit 2: names the pip line that brings it
    ├── OutputError          exit 1: the output folder cannot take results any more (disk full, removed)
    ├── ReplicaError         exit 1: the ranks of one replica do not do the same thing any more
    └── LostPeer             exit 1: another rank died or hangs; a new start can resume

`Drained` is no error but the way out of a batch when a signal asks the run to stop: it is not caught by
`except Exception`, and the run ends with exit 130.
"""

import re
from collections.abc import Sequence

OUT_OF_MEMORY_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
EXIT_DONE, EXIT_BROKEN, EXIT_USER, EXIT_ITEMS_FAILED, EXIT_DRAINED = 0, 1, 2, 3, 130


class DglaunchError(Exception):
    """The run cannot go on. `exit_code` is what `python -m dglaunch` leaves with."""

    exit_code = EXIT_BROKEN


class UserError(DglaunchError):
    """A mistake in a flag, a variable or a file, as one paragraph that ends with what to do about it."""

    exit_code = EXIT_USER


class InputError(UserError):
    """All bad rows of one table: `problems` are "line 3: ..." texts. Each cause is shown once, with its rows, up to a limit."""

    SHOWN = 50

    def __init__(
        self,
        path: object,
        problems: Sequence[str],
        remedy: str = "Correct them and start again.",
        each_row: bool = False,
    ) -> None:
        """
        Args:
            each_row: every row is shown for itself, as it has figures of its own.
        """
        self.problems = list(problems)
        causes = self.problems if each_row else _by_cause(self.problems)
        rows = [f"  {path}, {text}" for text in causes[: self.SHOWN]]
        if len(causes) > self.SHOWN:
            rows.append(f"  ... and {len(causes) - self.SHOWN:,} more")
        count = len(self.problems)
        head = f"{path} has {count:,} bad row{'s' if count != 1 else ''}; nothing was run. {remedy}"
        super().__init__("\n".join([head, *rows]))


def _by_cause(problems: Sequence[str]) -> list[str]:
    """The problems that differ by more than a value or a number: the first of each kind, with the rows that have it too."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for problem in problems:
        row, _, text = problem.partition(": ")
        rows.setdefault(_VALUES.sub("", text), []).append((row, text))
    return [f"{found[0][0]}: {found[0][1]}{_the_same_in([row for row, _ in found[1:]])}" for found in rows.values()]


_VALUES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d[\d,.]*""")
_SHOWN_ROWS = 10


def _the_same_in(rows: Sequence[str]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - _SHOWN_ROWS:,} more" if len(rows) > _SHOWN_ROWS else ""
    return f"; the same in {len(rows):,} more row{'s' if len(rows) > 1 else ''}: {', '.join(rows[:_SHOWN_ROWS])}{more}"


class MissingPackage(UserError):
    """A feature was asked for whose package is not installed."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(f"{needed_for} needs the package {package}, which is not installed. Install it: {install}")


class OutputError(DglaunchError):
    """Writing an image or a ledger line failed; everything written before is still valid."""


class ReplicaError(DglaunchError):
    """Ranks of one replica were about to run different batches, or lost each other."""


class LostPeer(DglaunchError):
    """A rank that this one depends on has died or makes no progress; nothing is wrong with the job itself."""


class Drained(BaseException):
    """A signal asked the run to stop, and the ranks of the replica agreed to leave the batch under way."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too small, by torch's own class or, as libraries wrap it, by the text."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
