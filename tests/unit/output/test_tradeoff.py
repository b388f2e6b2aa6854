"""The picture of speed against difference: its marks stand where they should, and its numbers side by side."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from dglaunch.output.tradeoff import COLORS, LINE, PLOT, WIDTH, Point, Tradeoff, _Drawing, _overlap, write_png


def points(count: int = 20) -> list[Point]:
    """Most of them, as in a real search, on one heap: no difference and hardly a gain."""
    heap = [Point(f"flag {n}", 0.001 * n, 1 + 0.002 * (n % 5), "lossless", False) for n in range(count)]
    return [
        Point("taylor", 12.0, 2.0, "lossy", True),
        Point("compile", 0.1, 1.5, "lossless", True),
        Point("as given", 0.0, 1.0, "plain", True),
        *heap,
    ]


def test_marks_stand_where_their_numbers_say(tmp_path: Path) -> None:
    tradeoff = Tradeoff(title="tiny on a CPU", points=points(), limit=5.0)
    write_png(tmp_path / "new" / "search.png", tradeoff)
    with Image.open(tmp_path / "new" / "search.png") as image:
        assert image.width == WIDTH and image.height >= PLOT[3]
        pixels = image.convert("RGB")
    for point in tradeoff.points[:2]:
        x, y = tradeoff.place(point.difference, point.speed)
        color = tuple(int(COLORS[point.kind][n : n + 2], 16) for n in (1, 3, 5))
        assert all(abs(a - b) < 12 for a, b in zip(pixels.getpixel((round(x), round(y))), color))
        assert PLOT[0] < x < PLOT[2] and PLOT[1] < y < PLOT[3]
    slow, fast = tradeoff.place(1, 1.0), tradeoff.place(3, 1.5)
    assert slow[0] < fast[0] and slow[1] > fast[1]


def test_no_number_covers_another_or_a_mark() -> None:
    drawing = _Drawing(ImageDraw.Draw(Image.new("RGB", (10, 10))), Tradeoff("", points(), 5.0))
    marks = list(drawing.taken)
    numbers = drawing.spots()
    assert not any(_overlap(one, mark) for one in numbers for mark in marks)
    assert not any(_overlap(one, other) for n, one in enumerate(numbers) for other in numbers[:n])


def test_a_long_list_has_room(tmp_path: Path) -> None:
    write_png(tmp_path / "search.png", Tradeoff("", [*points(60), Point("x" * 300 + "字", 1, 1, "lossy", False)], 5.0))
    with Image.open(tmp_path / "search.png") as image:
        assert image.height > PLOT[1] + 64 * LINE


@pytest.mark.parametrize("speed", [1.0, 250.0])
def test_one_point_is_a_picture_too(tmp_path: Path, speed: float) -> None:
    write_png(tmp_path / "search.png", Tradeoff("one", [Point("as given", 0.0, speed, "plain", True)], 0.0))
    assert (tmp_path / "search.png").stat().st_size > 1000
