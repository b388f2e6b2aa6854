"""Landscapes are painted here, with PIL alone: a sky, a land, what it contains, and the weather.

Lengths are parts of the picture's sides, so any size may be painted.
"""

import random

import numpy as np
from PIL import Image, ImageDraw

from dglaunch.tiny.training.spec import Scene

Point = tuple[float, float]
Color = tuple[int, int, int]

SKIES: dict[str, tuple[Color, Color]] = {
    "day": ((135, 195, 235), (225, 238, 245)),
    "sunset": ((110, 60, 130), (255, 160, 75)),
    "night": ((10, 14, 45), (38, 46, 95)),
    "blue": ((20, 70, 225), (85, 150, 250)),
    "rain": ((105, 112, 125), (160, 166, 175)),
    "rain night": ((30, 34, 48), (52, 57, 74)),
}
TINT = {"day": (1.0, 1.0, 1.0), "sunset": (0.9, 0.66, 0.6), "night": (0.34, 0.38, 0.58)}
RAINBOW = ((225, 50, 50), (245, 145, 40), (250, 225, 60), (60, 180, 80), (60, 110, 225), (140, 70, 190))
FLOWERS = ((235, 70, 80), (250, 220, 70), (240, 240, 245))
HORIZON = 0.6
"""Where the sky ends, from the top."""
LIGHT_RADIUS = 0.085
LIGHT_POSITIONS = (0.22, 0.5, 0.78)
R2 = (0.7548777, 0.5698403)
"""Spreads flakes evenly: https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/"""


class Painter:
    """A painter paints one landscape, from coordinates that are parts of the width and the height.

    Colors are tinted by the time of day, unless they glow.
    """

    def __init__(self, spec: Scene, width: int, height: int):
        self.spec, self.width, self.height = spec, width, height
        self.image = _sky(spec, width, height)
        self.canvas = ImageDraw.Draw(self.image)
        self.rng = random.Random(spec.seed)

    def paint(self) -> Image.Image:
        """Paint what is in the sky, the land and the weather, and return the picture."""
        elements = self.spec.elements
        if self.spec.time == "night" and not elements & {"rain", "clouds"}:
            self._stars()
        for name, paint_element in (("light", self._light), ("rainbow", self._rainbow), ("clouds", self._clouds)):
            self.rng = random.Random(f"{self.spec.seed} {name}")
            if name in elements:
                paint_element()
        self.rng = random.Random(f"{self.spec.seed} land")
        self._land()
        self._weather()
        return self.image

    def _land(self) -> None:
        paint_land = {
            "mountain": self._mountain, "sea": self._sea, "forest": self._forest, "city": self._city,
            "cabin": self._cabin, "desert": self._desert, "field": self._field,
        }  # fmt: skip
        paint_land[self.spec.land]()

    def _at(self, points: list[Point]) -> list[Point]:
        return [(x * self.width, y * self.height) for x, y in points]

    def _tint(self, color: Color) -> Color:
        red, green, blue = (int(c * t) for c, t in zip(color, TINT[self.spec.time], strict=True))
        return red, green, blue

    def _polygon(self, points: list[Point], color: Color, glow: bool = False) -> None:
        """Draw a polygon, tinted unless it glows."""
        self.canvas.polygon(self._at(points), fill=color if glow else self._tint(color))

    def _box(self, x0: float, y0: float, x1: float, y1: float, color: Color, glow: bool = False) -> None:
        self._polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, glow)

    def _disc(self, x: float, y: float, radius: float, color: Color, flat: float = 1.0) -> None:
        """Draw a disc in its untinted color; its radius is a part of the shorter side, `flat` of that its height."""
        side = min(self.width, self.height)
        dx, dy = radius * side, radius * flat * side
        x, y = x * self.width, y * self.height
        self.canvas.ellipse((x - dx, y - dy, x + dx, y + dy), fill=color)

    def _light(self) -> None:
        x = LIGHT_POSITIONS[self.spec.light_position]
        if self.spec.time == "night":
            self._disc(x, 0.17, LIGHT_RADIUS, (245, 245, 220))
            self._disc(x + 0.05, 0.17 - 0.03, LIGHT_RADIUS * 0.85, SKIES["night"][0])
        elif self.spec.time == "sunset":
            self._disc(x, 0.4, LIGHT_RADIUS * 1.15, (255, 225, 130))
        else:
            self._disc(x, 0.17, LIGHT_RADIUS * 1.15, (255, 225, 70))

    def _stars(self) -> None:
        for x, y in ((0.08, 0.1), (0.36, 0.07), (0.64, 0.12), (0.93, 0.06), (0.15, 0.33), (0.42, 0.28), (0.86, 0.32)):
            self._disc(x, y, 0.011, (250, 250, 235))

    def _rainbow(self) -> None:
        thickness = max(1, round(0.03 * min(self.width, self.height)))
        for index, color in enumerate(RAINBOW):
            radius = 0.52 - 0.028 * index
            (x0, y0), (x1, y1) = self._at([(0.5 - radius, 0.66 - radius), (0.5 + radius, 0.66 + radius)])
            self.canvas.arc((x0, y0, x1, y1), 180, 360, fill=color, width=thickness)

    def _clouds(self) -> None:
        color = {"day": (250, 250, 252), "sunset": (235, 170, 160), "night": (82, 88, 120)}[self.spec.time]
        for x, y in ((0.25, 0.16), (0.72, 0.26)):
            x += self.rng.uniform(-0.08, 0.08)
            for dx, dy, radius in ((-0.08, 0.01, 0.05), (0, -0.015, 0.07), (0.085, 0.01, 0.05)):
                self._disc(x + dx, y + dy, radius, color, 0.8)

    def _ground(self, color: Color, y: float = HORIZON) -> None:
        """Cover everything below a height, with snow where there is some."""
        self._box(0, y, 1, 1, (236, 240, 246) if "snow" in self.spec.elements else color)

    def _pine(self, x: float, y: float, size: float) -> None:
        self._box(x - 0.12 * size, y - 0.1 * size, x + 0.12 * size, y, (95, 65, 40))
        for part in range(2):
            top, low = y - size * (1 - 0.3 * part), y - size * (0.45 - 0.33 * part)
            half = size * (0.3 + 0.08 * part)
            self._polygon([(x, top), (x + half, low), (x - half, low)], (30, 105, 60))
            if "snow" in self.spec.elements:
                tip = top + 0.4 * (low - top)
                self._polygon([(x, top), (x + 0.4 * half, tip), (x - 0.4 * half, tip)], (240, 244, 250))

    def _mountain(self) -> None:
        for x in (0.24, 0.72, 0.48):
            x, peak = x + self.rng.uniform(-0.05, 0.05), self.rng.uniform(0.26, 0.38)
            half, base = 0.36, 0.72
            rock = (112, 110, 132) if x < 0.6 else (94, 92, 116)
            self._polygon([(x, peak), (x + half, base), (x - half, base)], rock)
            part = 0.32
            edge = peak + (base - peak) * part
            snow_cap = [
                (x, peak),
                (x + half * part, edge),
                (x, peak + (base - peak) * part * 0.75),
                (x - half * part, edge),
            ]
            self._polygon(snow_cap, (240, 243, 250))
        self._ground((88, 140, 74), 0.7)

    def _sea(self) -> None:
        self._box(0, 0.55, 1, 1, (38, 110, 170))
        for row in range(4):
            y = 0.62 + 0.1 * row
            for column in range(3):
                x = (column + 0.5 * (row % 2)) / 3 + 0.06
                self._box(x, y, x + 0.16, y + 0.016, (130, 190, 225))
        self._ground((225, 200, 140), 0.93)
        if "boat" in self.spec.elements:
            x = self.rng.choice((0.3, 0.5, 0.7))
            self._polygon([(x - 0.13, 0.66), (x + 0.13, 0.66), (x + 0.08, 0.74), (x - 0.08, 0.74)], (160, 60, 45))
            self._polygon([(x, 0.36), (x + 0.11, 0.63), (x, 0.63)], (250, 248, 240))
            self._polygon([(x - 0.015, 0.4), (x - 0.015, 0.63), (x - 0.09, 0.63)], (235, 225, 210))

    def _forest(self) -> None:
        self._ground((70, 120, 60))
        for index in range(6):
            self._pine(0.04 + index * 0.185, 0.66, 0.3 + self.rng.uniform(-0.04, 0.04))
        for index in range(4):
            self._pine(0.13 + index * 0.25, 0.93, 0.42 + self.rng.uniform(-0.04, 0.04))

    def _city(self) -> None:
        self._ground((82, 84, 92), 0.86)
        window = (255, 222, 110) if self.spec.time != "day" else (190, 215, 235)
        for index in range(6):
            x, top = 0.01 + index / 6, self.rng.choice((0.32, 0.42, 0.52, 0.62))
            shade = (92, 104, 128) if index % 2 else (118, 112, 124)
            self._box(x, top, x + 0.15, 0.88, shade)
            for row in range(int((0.84 - top) / 0.1)):
                for column in range(2):
                    left, y = x + 0.03 + 0.055 * column, top + 0.04 + 0.1 * row
                    self._box(left, y, left + 0.035, y + 0.05, window, glow=True)
        if "car" in self.spec.elements:
            for x, y, color in ((0.28, 0.24, (225, 60, 60)), (0.7, 0.36, (60, 200, 215))):
                self._disc(x, y, 0.085, color, 0.38)
                self._disc(x, y - 0.03, 0.045, (235, 245, 250), 0.5)

    def _cabin(self) -> None:
        self._ground((84, 132, 70))
        for x in (0.08, 0.9, 0.22):
            self._pine(x, 0.7, 0.42 + self.rng.uniform(-0.04, 0.04))
        x = 0.53 + self.rng.uniform(-0.04, 0.04)
        self._box(x - 0.2, 0.56, x + 0.2, 0.82, (140, 88, 50))
        roof = (240, 244, 250) if "snow" in self.spec.elements else (150, 52, 44)
        self._polygon([(x - 0.26, 0.58), (x, 0.38), (x + 0.26, 0.58)], roof)
        self._box(x - 0.04, 0.66, x + 0.05, 0.82, (80, 48, 30))
        for left in (-0.15, 0.1):
            self._box(x + left, 0.63, x + left + 0.07, 0.71, (255, 226, 120), glow=True)

    def _desert(self) -> None:
        self._ground((232, 196, 122))
        for x, y, radius in ((0.2, 0.76, 0.32), (0.8, 0.8, 0.4)):
            x += self.rng.uniform(-0.06, 0.06)
            self._disc(x, y, radius, self._tint((240, 206, 134)), 0.5)
        self._box(0, 0.8, 1, 1, (222, 182, 106))
        x = self.rng.choice((0.3, 0.65))
        for dx0, y0, dx1, y1 in ((-0.03, 0.5, 0.03, 0.82), (-0.12, 0.58, -0.08, 0.68), (0.08, 0.54, 0.12, 0.66)):
            self._box(x + dx0, y0, x + dx1, y1, (60, 140, 70))
        self._box(x - 0.12, 0.66, x + 0.12, 0.7, (60, 140, 70))

    def _field(self) -> None:
        self._ground((112, 178, 72))
        self._box(0, 0.78, 1, 1, (132, 192, 80))
        for row in range(3):
            for column in range(5):
                x, y = (column + 0.5 + 0.5 * (row % 2)) / 5.5, 0.69 + 0.11 * row
                self._disc(x, y, 0.025, self._tint(FLOWERS[(row + column) % len(FLOWERS)]))

    def _weather(self) -> None:
        if "snow" in self.spec.elements:
            for index in range(26):
                self._disc(index * R2[0] % 1, index * R2[1] % 1, 0.016, (250, 250, 255))
        if "rain" in self.spec.elements:
            for index in range(24):
                x, y = index * R2[0] % 1, index * R2[1] % 1 * 0.95
                drop = [(x, y), (x + 0.016, y), (x - 0.024, y + 0.11), (x - 0.04, y + 0.11)]
                self._polygon(drop, (200, 212, 230), glow=True)


def _sky(spec: Scene, width: int, height: int) -> Image.Image:
    top, bottom = (np.array(color, np.float32) for color in SKIES[_sky_name(spec)])
    part = np.clip(np.linspace(0, 1 / HORIZON, height, dtype=np.float32), 0, 1)[:, None, None]
    rows = np.broadcast_to(top + (bottom - top) * part, (height, width, 3))
    return Image.fromarray(np.ascontiguousarray(rows).round().astype(np.uint8))


def _sky_name(spec: Scene) -> str:
    if "rain" in spec.elements:
        return "rain night" if spec.time == "night" else "rain"
    return "blue" if spec.blue_sky else spec.time
