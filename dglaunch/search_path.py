"""Where modules are looked for: not in the current folder. Imports next to nothing, as it comes before all else."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def without_current_folder(path: Sequence[str]) -> list[str]:
    """Return `sys.path` without the current folder, where `python -m` and `-c` look first: a user's openai.py or diffusers.py
    that lies there is not the package of that name. What a user names as a module is still found there (with_current_folder)."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        return list(path)
    if os.path.basename(here) in ("site-packages", "dist-packages"):
        return list(path)
    return [entry for entry in path if os.path.realpath(entry) != here]


@contextmanager
def with_current_folder() -> Iterator[None]:
    """Look for modules in the current folder as well, but last: nothing there takes the place of what is installed."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
