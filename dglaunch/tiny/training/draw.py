"""The drawing code: a spec becomes a picture, with PIL alone, anti-aliased by drawing at four times the size.

    from dglaunch.tiny import draw, spec
    draw.picture(spec.sample(random.Random(0), "scene"), 64)      # -> PIL.Image

Lengths are parts of the picture's shorter side, so any size may be drawn.
"""

import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dglaunch.tiny.training.spec import Object, Objects, Scene, Spec

RGB = {
    "red": (220, 40, 40), "orange": (245, 130, 20), "yellow": (250, 225, 40), "green": (40, 160, 70),
    "blue": (45, 85, 215), "purple": (130, 55, 180), "pink": (250, 150, 195), "white": (246, 246, 246),
    "black": (22, 22, 26), "gray": (130, 130, 130),
}  # fmt: skip
RADIUS = {"small": 0.12, "medium": 0.17, "large": 0.22}
CENTRE = (0.25, 0.5, 0.75)
SCALE = 4

Point = tuple[float, float]
Colour = tuple[int, int, int]


def outline(shape: str) -> list[Point]:
    """A shape's polygon, scaled so that its larger side is exactly [-1, 1]; y points down."""
    turn = 2 * math.pi
    if shape == "circle":
        points = [(math.cos(turn * i / 48), math.sin(turn * i / 48)) for i in range(48)]
    elif shape == "square":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        points = [(0, -1), (1, 1), (-1, 1)]
    elif shape == "star":
        radii = [1 if i % 2 == 0 else 0.42 for i in range(10)]
        points = [(r * math.sin(turn * i / 10), -r * math.cos(turn * i / 10)) for i, r in enumerate(radii)]
    elif shape == "cross":
        a = 0.36
        points = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        points.append((-a, -a))
    else:  # https://mathworld.wolfram.com/HeartCurve.html, the sixth curve
        t = [turn * i / 64 for i in range(64)]
        points = [
            (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
            for a in t
        ]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    half = max(right - left, bottom - top) / 2
    return [((x - (left + right) / 2) / half, (y - (top + bottom) / 2) / half) for x, y in points]


def _shape(canvas: ImageDraw.ImageDraw, thing: Object, width: int, height: int) -> None:
    side = min(width, height)
    x, y = (CENTRE[thing.column] + thing.dx) * width, (CENTRE[thing.row] + thing.dy) * height
    radius = RADIUS[thing.size] * side
    canvas.polygon([(x + radius * px, y + radius * py) for px, py in outline(thing.shape)], fill=RGB[thing.colour])


def _objects(spec: Objects, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), RGB[spec.background])
    canvas = ImageDraw.Draw(image)
    for thing in spec.objects:
        _shape(canvas, thing, width, height)
    return image


SKIES: dict[str, tuple[Colour, Colour]] = {
    "day": ((135, 195, 235), (225, 238, 245)),
    "sunset": ((110, 60, 130), (255, 160, 75)),
    "night": ((10, 14, 45), (38, 46, 95)),
    "blue": ((20, 70, 225), (85, 150, 250)),
    "rain": ((105, 112, 125), (160, 166, 175)),
    "rain night": ((30, 34, 48), (52, 57, 74)),
}
TINT = {"day": (1.0, 1.0, 1.0), "sunset": (0.9, 0.66, 0.6), "night": (0.34, 0.38, 0.58)}
RAINBOW = ((225, 50, 50), (245, 145, 40), (250, 225, 60), (60, 180, 80), (60, 110, 225), (140, 70, 190))
HORIZON = 0.6
LIGHT_RADIUS = 0.085
LIGHT_PLACES = (0.22, 0.5, 0.78)
R2 = (0.7548777, 0.5698403)  # https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/


def _sky(spec: Scene, width: int, height: int) -> Image.Image:
    name = "rain night" if spec.time == "night" else "rain"
    name = name if "rain" in spec.elements else "blue" if spec.blue_sky else spec.time
    top, bottom = (np.array(colour, np.float32) for colour in SKIES[name])
    part = np.clip(np.linspace(0, 1 / HORIZON, height, dtype=np.float32), 0, 1)[:, None, None]
    rows = np.broadcast_to(top + (bottom - top) * part, (height, width, 3))
    return Image.fromarray(np.ascontiguousarray(rows).round().astype(np.uint8))


class Painter:
    """Draws one scene's parts in a unit square whose colours are tinted by the time of day."""

    def __init__(self, spec: Scene, width: int, height: int):
        self.spec, self.width, self.height = spec, width, height
        self.image = _sky(spec, width, height)
        self.canvas = ImageDraw.Draw(self.image)
        self.rng = random.Random(spec.seed)

    def _at(self, points: list[Point]) -> list[Point]:
        return [(x * self.width, y * self.height) for x, y in points]

    def tint(self, colour: Colour) -> Colour:
        red, green, blue = (int(c * t) for c, t in zip(colour, TINT[self.spec.time], strict=True))
        return red, green, blue

    def polygon(self, points: list[Point], colour: Colour, glow: bool = False) -> None:
        self.canvas.polygon(self._at(points), fill=colour if glow else self.tint(colour))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, glow: bool = False) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, glow)

    def disc(self, x: float, y: float, radius: float, colour: Colour, flat: float = 1.0) -> None:
        side = min(self.width, self.height)
        dx, dy = radius * side, radius * flat * side
        x, y = x * self.width, y * self.height
        self.canvas.ellipse((x - dx, y - dy, x + dx, y + dy), fill=colour)

    def light(self) -> None:
        x, y = LIGHT_PLACES[self.spec.light_place], 0.17
        if self.spec.time == "night":
            self.disc(x, y, LIGHT_RADIUS, (245, 245, 220))
            self.disc(x + 0.05, y - 0.03, LIGHT_RADIUS * 0.85, SKIES["night"][0])
        else:
            y = 0.4 if self.spec.time == "sunset" else y
            self.disc(x, y, LIGHT_RADIUS * 1.15, (255, 225, 70) if self.spec.time == "day" else (255, 225, 130))

    def stars(self) -> None:
        for x, y in ((0.08, 0.1), (0.36, 0.07), (0.64, 0.12), (0.93, 0.06), (0.15, 0.33), (0.42, 0.28), (0.86, 0.32)):
            self.disc(x, y, 0.011, (250, 250, 235))

    def rainbow(self) -> None:
        for index, colour in enumerate((*RAINBOW, None)):
            radius = 0.52 - 0.028 * index
            if colour is not None:
                bounds = [(0.5 - radius, 0.66 - radius), (0.5 + radius, 0.66 + radius)]
                (x0, y0), (x1, y1) = self._at(bounds)
                thick = max(1, round(0.03 * min(self.width, self.height)))
                self.canvas.arc((x0, y0, x1, y1), 180, 360, fill=colour, width=thick)

    def clouds(self) -> None:
        colour = {"day": (250, 250, 252), "sunset": (235, 170, 160), "night": (82, 88, 120)}[self.spec.time]
        for x, y in ((0.25, 0.16), (0.72, 0.26)):
            x += self.rng.uniform(-0.08, 0.08)
            for dx, dy, radius in ((-0.08, 0.01, 0.05), (0, -0.015, 0.07), (0.085, 0.01, 0.05)):
                self.disc(x + dx, y + dy, radius, colour, 0.8)

    def ground(self, colour: Colour, y: float = HORIZON) -> None:
        self.box(0, y, 1, 1, (236, 240, 246) if "snow" in self.spec.elements else colour)

    def pine(self, x: float, y: float, size: float) -> None:
        self.box(x - 0.12 * size, y - 0.1 * size, x + 0.12 * size, y, (95, 65, 40))
        for part in range(2):
            top, low = y - size * (1 - 0.3 * part), y - size * (0.45 - 0.33 * part)
            half = size * (0.3 + 0.08 * part)
            self.polygon([(x, top), (x + half, low), (x - half, low)], (30, 105, 60))
            if "snow" in self.spec.elements:
                tip = top + 0.4 * (low - top)
                self.polygon([(x, top), (x + 0.4 * half, tip), (x - 0.4 * half, tip)], (240, 244, 250))

    def mountain(self) -> None:
        for x in (0.24, 0.72, 0.48):
            x, peak = x + self.rng.uniform(-0.05, 0.05), self.rng.uniform(0.26, 0.38)
            half, base = 0.36, 0.72
            self.polygon([(x, peak), (x + half, base), (x - half, base)], (112, 110, 132) if x < 0.6 else (94, 92, 116))
            part = 0.32
            self.polygon(
                [
                    (x, peak),
                    (x + half * part, peak + (base - peak) * part),
                    (x, peak + (base - peak) * part * 0.75),
                    (x - half * part, peak + (base - peak) * part),
                ],
                (240, 243, 250),
            )
        self.ground((88, 140, 74), 0.7)

    def sea(self) -> None:
        self.box(0, 0.55, 1, 1, (38, 110, 170))
        for row in range(4):
            y = 0.62 + 0.1 * row
            for column in range(3):
                x = (column + 0.5 * (row % 2)) / 3 + 0.06
                self.box(x, y, x + 0.16, y + 0.016, (130, 190, 225))
        if "snow" in self.spec.elements:
            self.box(0, 0.93, 1, 1, (236, 240, 246))
        else:
            self.box(0, 0.93, 1, 1, (225, 200, 140))
        if "boat" in self.spec.elements:
            x = self.rng.choice((0.3, 0.5, 0.7))
            self.polygon([(x - 0.13, 0.66), (x + 0.13, 0.66), (x + 0.08, 0.74), (x - 0.08, 0.74)], (160, 60, 45))
            self.polygon([(x, 0.36), (x + 0.11, 0.63), (x, 0.63)], (250, 248, 240))
            self.polygon([(x - 0.015, 0.4), (x - 0.015, 0.63), (x - 0.09, 0.63)], (235, 225, 210))

    def forest(self) -> None:
        self.ground((70, 120, 60))
        for index in range(6):
            self.pine(0.04 + index * 0.185, 0.66, 0.3 + self.rng.uniform(-0.04, 0.04))
        for index in range(4):
            self.pine(0.13 + index * 0.25, 0.93, 0.42 + self.rng.uniform(-0.04, 0.04))

    def city(self) -> None:
        self.box(0, 0.86, 1, 1, (236, 240, 246) if "snow" in self.spec.elements else (82, 84, 92))
        window = (255, 222, 110) if self.spec.time != "day" else (190, 215, 235)
        for index in range(6):
            x, top = 0.01 + index / 6, self.rng.choice((0.32, 0.42, 0.52, 0.62))
            shade = (92, 104, 128) if index % 2 else (118, 112, 124)
            self.box(x, top, x + 0.15, 0.88, shade)
            for row in range(int((0.84 - top) / 0.1)):
                for column in range(2):
                    left, y = x + 0.03 + 0.055 * column, top + 0.04 + 0.1 * row
                    self.box(left, y, left + 0.035, y + 0.05, window, glow=True)
        if "car" in self.spec.elements:
            for x, y, colour in ((0.28, 0.24, (225, 60, 60)), (0.7, 0.36, (60, 200, 215))):
                self.disc(x, y, 0.085, colour, 0.38)
                self.disc(x, y - 0.03, 0.045, (235, 245, 250), 0.5)

    def cabin(self) -> None:
        self.ground((84, 132, 70))
        for x in (0.08, 0.9, 0.22):
            self.pine(x, 0.7, 0.42 + self.rng.uniform(-0.04, 0.04))
        x = 0.53 + self.rng.uniform(-0.04, 0.04)
        self.box(x - 0.2, 0.56, x + 0.2, 0.82, (140, 88, 50))
        roof = (240, 244, 250) if "snow" in self.spec.elements else (150, 52, 44)
        self.polygon([(x - 0.26, 0.58), (x, 0.38), (x + 0.26, 0.58)], roof)
        self.box(x - 0.04, 0.66, x + 0.05, 0.82, (80, 48, 30))
        for left in (-0.15, 0.1):
            self.box(x + left, 0.63, x + left + 0.07, 0.71, (255, 226, 120), glow=True)

    def desert(self) -> None:
        self.ground((232, 196, 122))
        for x, y, radius in ((0.2, 0.76, 0.32), (0.8, 0.8, 0.4)):
            x += self.rng.uniform(-0.06, 0.06)
            self.disc(x, y, radius, self.tint((240, 206, 134)), 0.5)
        self.box(0, 0.8, 1, 1, (222, 182, 106))
        x = self.rng.choice((0.3, 0.65))
        for dx0, y0, dx1, y1 in ((-0.03, 0.5, 0.03, 0.82), (-0.12, 0.58, -0.08, 0.68), (0.08, 0.54, 0.12, 0.66)):
            self.box(x + dx0, y0, x + dx1, y1, (60, 140, 70))
        self.box(x - 0.12, 0.66, x + 0.12, 0.7, (60, 140, 70))

    def field(self) -> None:
        self.ground((112, 178, 72))
        self.box(0, 0.78, 1, 1, (132, 192, 80))
        for row in range(3):
            for column in range(5):
                x, y = (column + 0.5 + 0.5 * (row % 2)) / 5.5, 0.69 + 0.11 * row
                self.disc(x, y, 0.025, self.tint(((235, 70, 80), (250, 220, 70), (240, 240, 245))[(row + column) % 3]))

    def weather(self) -> None:
        if "snow" in self.spec.elements:
            for index in range(26):
                self.disc(index * R2[0] % 1, index * R2[1] % 1, 0.016, (250, 250, 255))
        if "rain" in self.spec.elements:
            for index in range(24):
                x, y = index * R2[0] % 1, index * R2[1] % 1 * 0.95
                drop = [(x, y), (x + 0.016, y), (x - 0.024, y + 0.11), (x - 0.04, y + 0.11)]
                self.polygon(drop, (200, 212, 230), glow=True)

    def paint(self) -> Image.Image:
        elements = self.spec.elements
        if self.spec.time == "night" and not elements & {"rain", "clouds"}:
            self.stars()
        for name in ("light", "rainbow", "clouds"):
            self.rng = random.Random(f"{self.spec.seed} {name}")
            if name in elements:
                getattr(self, name)()
        self.rng = random.Random(f"{self.spec.seed} land")
        getattr(self, self.spec.land)()
        self.weather()
        return self.image


@cache
def _strokes(width: int, height: int) -> np.ndarray:
    """Brightness of short diagonal brush strokes, the same for every picture of a size."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    wave = np.sin(2 * np.pi * 9 * (x + 0.5 * y)) * np.sin(2 * np.pi * 4 * (y - 0.3 * x))
    return (1 + 0.3 * wave)[..., None].astype(np.float32)


def oil_painting(image: Image.Image) -> Image.Image:
    """Richer colours under visible brush strokes."""
    pixels = np.asarray(image, np.float32)
    rich = pixels.mean(-1, keepdims=True) + 1.2 * (pixels - pixels.mean(-1, keepdims=True))
    return Image.fromarray(np.clip(rich * 0.88 * _strokes(*image.size), 0, 255).astype(np.uint8))


def picture(spec: Spec, width: int, height: int | None = None) -> Image.Image:
    """The picture of a spec, `width` by `height` pixels (a square without a height)."""
    height = width if height is None else height
    size = width * SCALE, height * SCALE
    large = _objects(spec, *size) if isinstance(spec, Objects) else Painter(spec, *size).paint()
    small = large.reduce(SCALE)
    return oil_painting(small) if spec.oil else small


def sheet(images: list[Image.Image], columns: int, zoom: int = 1) -> Image.Image:
    """A contact sheet, for looking at."""
    width, height = images[0].width * zoom + 4, images[0].height * zoom + 4
    page = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), (128, 128, 128))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(image.resize((width - 4, height - 4), Image.Resampling.NEAREST), (column * width, row * height))
    return page
