"""The one exception tree. Imports nothing, so that it works where nothing else does.

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
    """All bad rows of one table: `problems` are "line 3: ..." texts, shown up to a limit."""

    SHOWN = 50

    def __init__(self, path: object, problems: Sequence[str], remedy: str = "Correct them and start again.") -> None:
        self.problems = list(problems)
        rows = [f"  {path}, {problem}" for problem in self.problems[: self.SHOWN]]
        if len(self.problems) > self.SHOWN:
            rows.append(f"  ... and {len(self.problems) - self.SHOWN:,} more")
        count = len(self.problems)
        head = f"{path} has {count:,} bad row{'s' if count != 1 else ''}; nothing was run. {remedy}"
        super().__init__("\n".join([head, *rows]))


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
