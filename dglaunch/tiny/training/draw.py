"""A spec becomes a picture here, drawn with PIL alone and anti-aliased by drawing at four times the size.

    from dglaunch.tiny.training import draw, spec
    draw.picture(spec.sample(random.Random(0), "scene"), 64)      # -> PIL.Image

Lengths are parts of the picture's shorter side, so any size may be drawn. Landscapes are painted by `landscape.py`.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dglaunch.tiny.training.landscape import Color, Painter, Point
from dglaunch.tiny.training.spec import Object, Objects, Spec

RGB: dict[str, Color] = {
    "red": (220, 40, 40), "orange": (245, 130, 20), "yellow": (250, 225, 40), "green": (40, 160, 70),
    "blue": (45, 85, 215), "purple": (130, 55, 180), "pink": (250, 150, 195), "white": (246, 246, 246),
    "black": (22, 22, 26), "gray": (130, 130, 130),
}  # fmt: skip
RADII = {"small": 0.12, "medium": 0.17, "large": 0.22}
CENTERS = (0.25, 0.5, 0.75)
"""The middles of the grid's rows and columns, as parts of each side."""
SCALE = 4


def picture(spec: Spec, width: int, height: int | None = None) -> Image.Image:
    """Draw the picture of a spec, `width` by `height` pixels (a square without a height)."""
    height = width if height is None else height
    size = width * SCALE, height * SCALE
    large = _objects(spec, *size) if isinstance(spec, Objects) else Painter(spec, *size).paint()
    small = large.reduce(SCALE)
    return oil_painting(small) if spec.oil else small


def oil_painting(image: Image.Image) -> Image.Image:
    """Redraw a picture with richer colors under visible brush strokes."""
    pixels = np.asarray(image, np.float32)
    rich = pixels.mean(-1, keepdims=True) + 1.2 * (pixels - pixels.mean(-1, keepdims=True))
    return Image.fromarray(np.clip(rich * 0.88 * _strokes(*image.size), 0, 255).astype(np.uint8))


def outline(shape: str) -> list[Point]:
    """Return a shape's polygon, scaled so that its larger side is exactly [-1, 1]; y points down."""
    points = _polygon(shape)
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    half = max(right - left, bottom - top) / 2
    return [((x - (left + right) / 2) / half, (y - (top + bottom) / 2) / half) for x, y in points]


def sheet(images: list[Image.Image], columns: int, zoom: int = 1) -> Image.Image:
    """Lay images of one size out on a contact sheet, row by row."""
    width, height = images[0].width * zoom + 4, images[0].height * zoom + 4
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * width, rows * height), (128, 128, 128))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(image.resize((width - 4, height - 4), Image.Resampling.NEAREST), (column * width, row * height))
    return page


def _objects(spec: Objects, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), RGB[spec.background])
    canvas = ImageDraw.Draw(image)
    for item in spec.objects:
        _draw_object(canvas, item, width, height)
    return image


def _draw_object(canvas: ImageDraw.ImageDraw, item: Object, width: int, height: int) -> None:
    side = min(width, height)
    x, y = (CENTERS[item.column] + item.dx) * width, (CENTERS[item.row] + item.dy) * height
    radius = RADII[item.size] * side
    canvas.polygon([(x + radius * px, y + radius * py) for px, py in outline(item.shape)], fill=RGB[item.color])


def _polygon(shape: str) -> list[Point]:
    turn = 2 * math.pi
    if shape == "circle":
        return [(math.cos(turn * i / 48), math.sin(turn * i / 48)) for i in range(48)]
    if shape == "square":
        return [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    if shape == "triangle":
        return [(0, -1), (1, 1), (-1, 1)]
    if shape == "star":
        radii = [1 if i % 2 == 0 else 0.42 for i in range(10)]
        return [(r * math.sin(turn * i / 10), -r * math.cos(turn * i / 10)) for i, r in enumerate(radii)]
    if shape == "cross":
        a = 0.36
        return [
            (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)
        ]  # fmt: skip
    return [_heart(turn * i / 64) for i in range(64)]


def _heart(a: float) -> Point:
    """A point of a heart's curve at an angle: https://mathworld.wolfram.com/HeartCurve.html, the sixth curve."""
    y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
    return 16 * math.sin(a) ** 3, -y


@cache
def _strokes(width: int, height: int) -> npt.NDArray[np.float32]:
    """Return the brightness of short diagonal brush strokes, the same for every picture of a size."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    wave = np.sin(2 * np.pi * 9 * (x + 0.5 * y)) * np.sin(2 * np.pi * 4 * (y - 0.3 * x))
    strokes: npt.NDArray[np.float32] = (1 + 0.3 * wave)[..., None].astype(np.float32)
    return strokes
