"""A picture of speed against difference: one mark for each thing that was measured, and the front of those worth having.

    write_png(Path("search.png"), Tradeoff(title="FLUX.1-dev on an H100", points=points, limit=5.0))

Drawn with Pillow alone. A mark's number is that of its line in the list beside the plot.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.atomic import atomic_write
from dglaunch.output.encode import encode
from dglaunch.output.lettering import fitting
from dglaunch.output.ownership import WRITTEN_BY

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SCALE = 2
"""Drawn so many times as large and then made smaller, which smooths the lines."""
PLOT = (80, 70, 700, 520)
"""Left, top, right and bottom of the plot."""
INSET = 16
"""Between the axis and a difference of 0."""
LIST_LEFT, LINE = 730, 21
WIDTH = 1390
MARK, TEXT = 6, 13
DISTANCES = (15, 25, 36, 48, 62, 78, 96)
"""Of a number from its mark, the nearest first."""
INK, GRAY, FAINT = "#1d2733", "#8a94a0", "#e3e7ec"
COLORS = {"plain": "#1d2733", "lossless": "#12805c", "lossy": "#c2560c"}
"""What a point can be, and its color."""
MEANINGS = {"plain": "as given", "lossless": "changes nothing beyond rounding", "lossy": "changes the images"}
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One mark."""

    label: str
    difference: float
    speed: float
    """As many times as fast as the plain run."""
    kind: str
    """One of COLORS."""
    on_front: bool


@dataclass(frozen=True)
class Tradeoff:
    """What is drawn."""

    title: str
    points: Sequence[Point]
    """In the order of their numbers, from 1."""
    limit: float
    """A difference that is marked."""

    @cached_property
    def most_difference(self) -> float:
        return max(1.2 * self.limit, 1.08 * max(point.difference for point in self.points), 1.0)

    @cached_property
    def speeds(self) -> tuple[float, float]:
        """The least and the greatest of the axis."""
        speeds = [point.speed for point in self.points]
        room = 0.06 * max(max(speeds) - min(speeds), 0.2)
        return max(min(speeds) - room, 0.0), max(speeds) + room

    def place(self, difference: float, speed: float) -> tuple[float, float]:
        """Return where something stands; differences on a scale of square roots, which spreads the small ones."""
        left, top, right, bottom = PLOT
        low, high = self.speeds
        part = math.sqrt(max(difference, 0.0) / self.most_difference)
        return left + INSET + part * (right - left - INSET), bottom - (speed - low) / (high - low) * (bottom - top)


def write_png(path: Path, tradeoff: Tradeoff) -> None:
    """Draw it into a file.

    Raises:
        OSError: it cannot be written.
    """
    from PIL import Image, ImageDraw

    height = max(PLOT[3] + 100, PLOT[1] + LINE * (len(tradeoff.points) + 1) + 20)
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), "white")
    _Drawing(ImageDraw.Draw(image), tradeoff).draw()
    small = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(small, "png", {WRITTEN_BY: "tune"}))


class _Drawing:
    """What is drawn where, in pixels of the finished picture."""

    def __init__(self, draw: "ImageDraw", tradeoff: Tradeoff) -> None:
        self._draw = draw
        self.tradeoff = tradeoff
        self.places = [tradeoff.place(point.difference, point.speed) for point in tradeoff.points]
        self.taken: list[Box] = [_around(x, y, MARK + 1, MARK + 1) for x, y in self.places]
        """Where something stands that no number may cover."""

    def draw(self) -> None:
        self.text(PLOT[0], 24, self.tradeoff.title, size=17)
        self.axes()
        self.limit()
        self.front()
        self.marks()
        self.list()
        self.meanings()

    # -- the plot -------------------------------------------------------------------------------------------------

    def axes(self) -> None:
        left, top, right, bottom = PLOT
        for speed in _ticks(*self.tradeoff.speeds):
            _, y = self.tradeoff.place(0, speed)
            self.line([(left, y), (right, y)], FAINT)
            self.text(left - 10, y, f"{speed:g}x", GRAY, anchor="rm")
        for difference in _root_ticks(self.tradeoff.most_difference):
            x, _ = self.tradeoff.place(difference, self.tradeoff.speeds[0])
            self.line([(x, top), (x, bottom)], FAINT)
            self.text(x, bottom + 8, f"{difference:g}", GRAY, anchor="mt")
        self.line([(left, top), (left, bottom), (right, bottom)], GRAY)
        self.text(left, top - 18, "speed, times the plain run")
        below = "mean difference of the image that moved most, of 255 (scale of square roots)"
        self.text((left + right) / 2, bottom + 30, below, anchor="mt")

    def limit(self) -> None:
        x, _ = self.tradeoff.place(self.tradeoff.limit, 1)
        for start in range(PLOT[1], PLOT[3], 10):
            self.line([(x, start), (x, start + 5)], GRAY)
        self.text(x + 4, PLOT[1] + 2, f"--max_difference {self.tradeoff.limit:g}", GRAY, size=11)

    def front(self) -> None:
        """Steps: up to the next one nothing better is known."""
        found = sorted(
            (place for point, place in zip(self.tradeoff.points, self.places) if point.on_front), key=lambda at: at[0]
        )
        if found:
            corners = [(x, y) for (_, y), (x, _) in pairwise(found)]
            steps = [place for pair in zip(found, [*corners, (PLOT[2], found[-1][1])]) for place in pair]
            self.line(steps, "#5b8def", width=2)

    def marks(self) -> None:
        """The marks with their numbers, on top of the threads between those that are apart."""
        spots = self.spots()
        for place, spot in zip(self.places, spots):
            if math.dist(_middle(spot), place) > DISTANCES[0] + 4:
                self.line([place, _middle(spot)], GRAY)
        for point, place in sorted(zip(self.tradeoff.points, self.places), key=lambda each: each[0].on_front):
            self.mark(point, place)
        for number, (point, spot) in enumerate(zip(self.tradeoff.points, spots), 1):
            self.text(*_middle(spot), str(number), COLORS[point.kind], anchor="mm", halo=2)

    def mark(self, point: Point, place: tuple[float, float]) -> None:
        color = COLORS[point.kind]
        box = [SCALE * edge for edge in _around(*place, MARK, MARK)]
        self._draw.ellipse(box, fill=color if point.on_front else "white", outline=color, width=2 * SCALE)

    def spots(self) -> list[Box]:
        """Where each number stands: as near to its mark as there is room, those of the front first."""
        found: dict[int, Box] = {}
        for number in sorted(range(len(self.places)), key=lambda number: not self.tradeoff.points[number].on_front):
            x, y = self.places[number]
            half = 4 + 3.5 * len(str(number + 1)), 7
            around = [_around(x + dx, y + dy, *half) for dx, dy in _offsets()]
            found[number] = next((spot for spot in around if self.is_free(spot)), around[0])
            self.taken.append(found[number])
        return [found[number] for number in range(len(self.places))]

    def is_free(self, spot: Box) -> bool:
        inside = PLOT[0] < spot[0] and spot[2] < PLOT[2] and PLOT[1] < spot[1] and spot[3] < PLOT[3]
        return inside and not any(_overlap(spot, other) for other in self.taken)

    # -- beside it ------------------------------------------------------------------------------------------------

    def list(self) -> None:
        columns = (LIST_LEFT + 22, LIST_LEFT + 36, WIDTH - 100, WIDTH - 20)
        for x, head in zip(columns[2:], ("speed", "difference")):
            self.text(x, PLOT[1] - 18, head, GRAY, anchor="ra", size=12)
        for number, point in enumerate(self.tradeoff.points):
            y, color = PLOT[1] + 8 + LINE * number, COLORS[point.kind]
            label = fitting(point.label, SCALE * (columns[2] - columns[1] - 55), self._draw, _font(TEXT))
            cells = (str(number + 1), label, f"{point.speed:.2f}x", f"{point.difference:.2f}")
            if point.on_front:
                self._draw.rectangle([SCALE * edge for edge in (LIST_LEFT, y - 9, WIDTH - 14, y + 10)], fill="#eaf1fd")
            for x, cell, anchor in zip(columns, cells, ("rm", "lm", "rm", "rm")):
                self.text(x, y, cell, color, anchor=anchor)

    def meanings(self) -> None:
        x, y = float(PLOT[0]), PLOT[3] + 70
        for kind, meaning in MEANINGS.items():
            if any(point.kind == kind for point in self.tradeoff.points):
                self.mark(Point("", 0, 0, kind, True), (x, y))
                self.text(x + 12, y, meaning, anchor="lm", size=12)
                x += 36 + self._draw.textlength(meaning, font=_font(12)) / SCALE
        self.text(x, y, "filled, and on the blue line: the front", "#3566c4", anchor="lm", size=12)

    def line(self, places: Sequence[tuple[float, float]], color: str, width: int = 1) -> None:
        self._draw.line([(x * SCALE, y * SCALE) for x, y in places], fill=color, width=width * SCALE)

    def text(
        self, x: float, y: float, text: str, color: str = INK, anchor: str = "la", size: int = TEXT, halo: int = 0
    ) -> None:
        """Write a text; a halo keeps what it stands on away from it."""
        place = x * SCALE, y * SCALE
        self._draw.text(
            place, text, fill=color, font=_font(size), anchor=anchor, stroke_width=halo * SCALE, stroke_fill="white"
        )


def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size * SCALE)


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _offsets() -> Iterator[tuple[float, float]]:
    """Where a number may stand, seen from its mark: to the right first, then around it, then further away."""
    angles = (0, -45, 45, 180, -90, 90, -135, 135, -20, 20, -65, 65)
    for distance, angle in product(DISTANCES, angles):
        yield distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, four to nine of them."""
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(step * number, 10) for number in range(first, math.floor(high / step) + 1)]


def _root_ticks(most: float) -> list[float]:
    """Round numbers from 0 that do not stand in each other's way on a scale of square roots."""
    found = [0.0]
    for number in (factor * 10.0**power for power in range(-2, 3) for factor in (1, 2, 5)):
        if number <= most and math.sqrt(number / most) - math.sqrt(found[-1] / most) > 0.06:
            found.append(number)
    return found
