"""Reading what a run left in its folder, and the prompts that most tests use."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dglaunch.output import differences

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in ("circle", "star", "square",
           "triangle", "heart", "cross")][:23]  # fmt: skip
"""A number that no batch size or world size divides."""


def ledger(folder: Path, name: str = "metadata.jsonl") -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def images(folder: Path, pattern: str = "*.png") -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob(pattern))}


def difference(one: Path, other: Path) -> int:
    """Largest difference of a pixel (of 255) between two folders that must have the same files."""
    mine, theirs = images(one), images(other)
    assert mine.keys() == theirs.keys() and mine, f"{sorted(mine)} and {sorted(theirs)}"
    return max(differences.difference(mine[name], theirs[name]).greatest for name in mine)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
