"""Tables of prompts with input images: pictures, masks and control images, and the rows that name them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.edit_images import picture
from support.results import write_jsonl

SIDE = 64
COLUMNS = ["--image_column", "image", "--mask_column", "mask"]
CONTROL = ["--control_column", "control"]


def mask(number: int, side: int = SIDE) -> Image.Image:
    """White in a square that begins somewhere else for each number."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[8 * number : 8 * number + side // 2, 8 : 8 + side // 2] = 255
    return Image.fromarray(pixels)


def save_images(folder: Path, count: int = 4) -> Path:
    """i0.png, m0.png, c0.png and so on: pictures, masks and control images of 64 x 64."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        picture(10 + n).save(folder / f"i{n}.png")
        mask(n % 4).save(folder / f"m{n}.png")
        picture(20 + n).save(folder / f"c{n}.png")
    return folder


def table(folder: Path, rows: list[dict[str, Any]], name: str = "t.jsonl") -> Path:
    """A table of rows, with the images beside it."""
    save_images(folder)
    return write_jsonl(folder / name, rows)
