"""A spec says what a picture shows, as data: one or two shapes on a plain background, or a landscape.

Everything is drawn from a `random.Random`, so a seed names a picture. `prompts.py` puts a spec into words, `edits.py`
changes it, `draw.py` turns it into a picture and `checker.py` decides whether a picture shows it.
A hash splits the specs and the edits into those that training may see and those that are held out for measuring.
"""

import hashlib
import random
from dataclasses import dataclass

from dglaunch.tiny.words import COLORS, LANDS, SHAPES, SIZES, TIMES

HELD_OUT_ONE_IN = 8
MAX_JITTER = 0.02
"""How far an object lies from the middle of its cell, at most, as a part of the picture's side."""
ELEMENTS = ("light", "clouds", "rainbow", "snow", "rain", "car", "boat")
"""What a landscape may contain; "light" is the sun or, at night, the moon."""
ELEMENT_CHANCE = {"light": 0.45, "clouds": 0.3, "rainbow": 0.15, "snow": 0.2, "rain": 0.12}


@dataclass(frozen=True, slots=True)
class Object:
    """A colored shape stands in a cell of a 3x3 grid over the picture; `dx` and `dy` move it off the cell's middle."""

    shape: str
    color: str
    size: str
    row: int
    column: int
    dx: float = 0.0
    dy: float = 0.0


@dataclass(frozen=True, slots=True)
class Objects:
    """One or two shapes stand on a plain background; `oil` asks for the style of an oil painting."""

    background: str
    objects: tuple[Object, ...]
    oil: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """A landscape is shown; `seed` decides what the prompt does not mention (where peaks, houses and clouds are)."""

    land: str
    time: str = "day"
    elements: frozenset[str] = frozenset()
    seed: int = 0
    light_position: int = 2
    """Where the sun or the moon stands: left, middle, right. One that an edit adds stands right."""
    blue_sky: bool = False
    oil: bool = False


Spec = Objects | Scene


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction leads from the picture `before` to the picture `after`."""

    kind: str
    before: Spec
    after: Spec
    instruction: str


def held_out(item: Spec | Edit) -> bool:
    """Return whether training must never see this picture or edit: a hash decides, the same on every machine.

    The wording never matters. An edit of a scene is held out with both its pictures, one of objects by the pair of them
    (the empty string stands in the hash since the shipped weights were trained).
    """
    if isinstance(item, Edit):
        if isinstance(item.before, Scene):
            return held_out(item.before) and held_out(item.after)
        return _is_held_out_key(("edit", split_key(item.before), split_key(item.after), ""))
    return _is_held_out_key(split_key(item))


def split_key(spec: Spec) -> object:
    """Return what of a spec decides on which side of the split it is; `repr` of it is hashed."""
    if isinstance(spec, Scene):
        return "scene", spec.land, spec.time, sorted(spec.elements)
    objects = [(item.shape, item.color, item.row - item.column) for item in spec.objects]
    return "objects", spec.background, objects


def _is_held_out_key(key: object) -> bool:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def sample(rng: random.Random, kind: str, is_held_out: bool = False) -> Spec:
    """Sample a spec of a kind ("one", "two", "scene") from the training side of the split or the held-out side."""
    while True:
        spec = sample_scene(rng) if kind == "scene" else sample_objects(rng, 1 if kind == "one" else 2)
        if held_out(spec) == is_held_out:
            return spec


def sample_objects(rng: random.Random, num_objects: int) -> Objects:
    """Sample one object anywhere, or two with at least one free row or column between them."""
    colors = rng.sample(COLORS, 1 + num_objects)
    background = colors.pop()
    if num_objects == 1:
        return Objects(background, (sample_object(rng, colors.pop(), rng.randrange(3), rng.randrange(3)),))
    while True:
        row, column = rng.randrange(3), rng.randrange(3)
        other_row, other_column = rng.randrange(3), rng.randrange(3)
        if are_apart(row, column, other_row, other_column):
            break
    first = sample_object(rng, colors.pop(), row, column)
    return Objects(background, (first, sample_object(rng, colors.pop(), other_row, other_column, but=first.shape)))


def are_apart(row: int, column: int, other_row: int, other_column: int) -> bool:
    """Return whether a row or a column of the grid lies free between two cells."""
    return max(abs(row - other_row), abs(column - other_column)) == 2


def sample_object(rng: random.Random, color: str, row: int, column: int, but: str = "") -> Object:
    """Sample an object's shape and size for a cell of the grid; `but` names a shape that it must not have."""
    dx, dy = rng.uniform(-MAX_JITTER, MAX_JITTER), rng.uniform(-MAX_JITTER, MAX_JITTER)
    shape = rng.choice([name for name in SHAPES if name != but])
    return Object(shape, color, rng.choice(SIZES), row, column, dx, dy)


def sample_scene(rng: random.Random) -> Scene:
    """Sample a landscape, a time of day and what it contains."""
    land, time = rng.choice(LANDS), rng.choice(TIMES)
    elements = {name for name, chance in ELEMENT_CHANCE.items() if rng.random() < chance}
    if "rain" in elements:
        elements -= {"snow", "light"}
    if land == "city" and rng.random() < 0.4:
        elements.add("car")
    if land == "sea" and rng.random() < 0.5:
        elements.add("boat")
    return Scene(land, time, frozenset(elements), rng.randrange(1 << 30), rng.randrange(3))
