"""A file is whole or not there: it is written under another name, which then takes the place of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, temporary: Path) -> Iterator[None]:
    """Write to `temporary` inside; at the end it becomes `target` in one step. Whatever fails, it does not stay behind."""
    try:
        yield
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # also after a replace: two links of one file are left alone by it
