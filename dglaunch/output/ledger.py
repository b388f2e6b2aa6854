"""Ledger lines and who holds a folder: what the run that writes there shares with the tools that look at it later."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPORARY = ".dglaunch-"
"""How the names of all files begin that are no results."""
PART = re.compile(r"(-node\d+of\d+)?(-rank\d+of\d+)?")
"""What a ledger's name says of who writes it."""


@dataclass(slots=True)
class Ledger:
    """What an output folder already has."""

    done: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    """(index, sample) -> (key, file name) of images whose file is there in full."""
    damaged: int = 0
    """Lines that could not be read or whose file is missing or of another size: those images are made again."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each file of the folder."""

    def is_good(self, line: dict[str, Any]) -> bool:
        """Whether the line has its file in full."""
        size = line.get("bytes", 0)
        return bool(size) and self.sizes.get(line.get("file_name", "")) == size


def is_held(folder: Path, parts: str = "*") -> bool:
    """Whether a run is writing to the folder, or such parts of it, as far as the file system knows other machines' locks."""
    for path in folder.glob(f"{TEMPORARY[:-1]}{parts}.lock"):
        try:
            with path.open("r") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def id_of(line: dict[str, Any]) -> tuple[int, int]:
    return line["index"], line["sample"]


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The readable lines of a ledger, as text and parsed; a torn or foreign one is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                line = json.loads(text)
                whole = all(type(line[name]) is int for name in ("index", "sample"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if not whole or not isinstance(line.get("file_name", ""), str):
                continue
            yield (text if text.endswith("\n") else text + "\n"), line


def read_runs(folder: Path, name: str = "run*") -> dict[str, dict[str, Any]]:
    """Every run*.json of a folder that can be read, by its file's name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{name}.json")):
        with contextlib.suppress(OSError, ValueError):  # another version's, or being replaced
            run = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(run, dict):
                found[path.name] = run
    return found


def count_newlines(path: Path) -> int:
    with path.open("rb") as data:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: data.read(1 << 20), b""))


def ends_with_newline(path: Path) -> bool:
    with path.open("rb") as data:
        if data.seek(0, os.SEEK_END) == 0:
            return True
        data.seek(-1, os.SEEK_END)
        return data.read(1) == b"\n"
