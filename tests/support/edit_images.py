"""Pictures and tables for the tests of editing."""

import csv
import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {"a": (64, 64), "b": (64, 64), "c": (96, 64), "d": (64, 96)}
"""Two of one size, and two of other shapes."""
SINGLE = "abcadacbacdb"
"""The image of each of 12 rows: three of its four images are shared, and rows that share stand apart."""
MULTI = ["a", "ac", "a", "b", "acd", "ac", "b", "a", "acd", "d", "ac", "ca"]
"""The images of each of 12 rows: 1 to 3; the last has a set of its own, for the order counts."""
INSTRUCTIONS = [f"make it {what}" for what in ("red", "a very long and winding drawing", "blue", "x", "snow", "night, "
                "with stars", "green", "old", "gold", "a cat on the moon", "wood", "glass and steel")]  # fmt: skip


def picture(seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Image.Image:
    """A gradient with blocks of noise: no two seeds look alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


def png(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def save_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        picture(seed, size).save(folder / f"{name}.png")


def save_table(path: Path, sets: Sequence[str], order: Sequence[int] | None = None, **columns: Any) -> Path:
    """A CSV with its own index column, in any order of rows; the pictures lie in `images` beside it."""
    save_pictures(path.parent / "images")
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["index", "input_images", "instruction", *columns])
        for n in order if order is not None else range(len(sets)):
            paths = [f"images/{name}.png" for name in sets[n]]
            cell = paths[0] if len(paths) == 1 else json.dumps(paths) if n % 2 else ", ".join(paths)
            table.writerow([n, cell, INSTRUCTIONS[n % len(INSTRUCTIONS)], *columns.values()])
    return path


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few bytes that claims 2.5 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def matrix_profile(
    name: str, gamma: float, red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]
) -> bytes:
    """A profile of three primaries (as XYZ at D50), as cameras and screens have."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    def words(text: str) -> bytes:
        data = text.encode("utf-16-be")
        return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(data), 28) + data

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": words(name), b"cprt": words("none"), b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"rXYZ": xyz(red),
            b"gXYZ": xyz(green), b"bXYZ": xyz(blue), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}  # fmt: skip
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        data += bytes(-len(data) % 4)
        table += key + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x04300000, b"mntr", b"RGB ", b"XYZ ") + struct.pack(
        ">6H4s4sIIIIII", 2026, 1, 1, 0, 0, 0, b"acsp", b"none", 0, 0, 0, 0, 0, 0
    )
    header += number(0.9642) + number(1.0) + number(0.8249)
    return header.ljust(128, b"\0") + table + body


ADOBE = matrix_profile("Adobe RGB (1998)", 2.19921875, (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))  # fmt: skip
