"""Decides from pixels alone, with no model, whether a picture shows what was asked for.

    checker.objects(image, spec)          # {"background": True, "number": True, "colour": ..., ...}
    checker.scene(image, spec)            # the land and the time of day that it looks most like
    checker.edit(image, before, edit)     # {"changed": True, "kept": True, ...}

Objects are connected regions that differ from the background; a region's shape is that of the drawing code's outlines
which overlaps it best when laid over its bounding box, so that neither place nor size matters to it.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dglaunch.tiny.training import draw
from dglaunch.tiny.training.spec import Edit, Object, Objects, Scene
from dglaunch.tiny.words import LANDS, SHAPES, TIMES

FOREGROUND = 30.0
"""RGB distance from the background at which a pixel belongs to an object; the closest two colours are 98 apart."""
EDGE = 0.4
"""Of the distance between an object's colour and the background's: the share at which its edge is taken to lie."""
LEAST_AREA = 0.004
"""Of the picture: what is smaller is a speck, not an object; the smallest object covers 0.015."""
FINE = 4
MARGIN = 3
SCALES = (0.92, 1.0, 1.08, 1.16)
SHIFTS = (-0.6, 0.0, 0.6)
"""Where `_fit` looks besides the region's own bounding box, as parts of its radius and in pixels."""
CHANGE = 0.5
"""An edit is made where the changed pixels end nearer than half the way to the wanted picture, as a mean error."""
KEPT = 0.06
"""Mean absolute error, of 1, allowed where nothing was to change; the autoencoder alone costs about 0.01."""
PROTOTYPES = 12


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of a picture, lengths as parts of the shorter side, the centre as parts of each side."""

    x: float
    y: float
    radius: float
    colour: str
    shape: str


def _nearest_colour(rgb: np.ndarray) -> str:
    return min(draw.RGB, key=lambda name: float(np.square(rgb - np.array(draw.RGB[name], np.float32)).sum()))


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components, largest first."""
    left, found = mask.copy(), []
    height, width = mask.shape
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        part = np.zeros_like(mask)
        stack = [start]
        left[start] = False
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            for ny in range(max(0, y - 1), min(height, y + 2)):
                for nx in range(max(0, x - 1), min(width, x + 2)):
                    if left[ny, nx]:
                        left[ny, nx] = False
                        stack.append((ny, nx))
        found.append(part)
    return sorted(found, key=np.count_nonzero, reverse=True)


def _coverage(shape: str, side: int, x: float, y: float, radius: float) -> np.ndarray:
    """How much of each pixel of a square crop a shape covers."""
    image = Image.new("L", (side * FINE, side * FINE))
    points = [((x + radius * px) * FINE, (y + radius * py) * FINE) for px, py in draw.outline(shape)]
    ImageDraw.Draw(image).polygon(points, fill=255)
    return np.asarray(image.reduce(FINE), np.float32) / 255


def _fit(cover: np.ndarray, x: float, y: float, radius: float) -> tuple[str, float]:
    """The shape and radius that overlap a region's coverage best, moved and scaled a little to meet it."""

    def overlap(shape: str, scale: float, dx: float, dy: float) -> float:
        wanted = _coverage(shape, len(cover), x + dx, y + dy, radius * scale)
        return float(np.minimum(cover, wanted).sum() / np.maximum(cover, wanted).sum())

    shape, scale, _, _ = max(itertools.product(SHAPES, SCALES, SHIFTS, SHIFTS), key=lambda fit: overlap(*fit))
    return shape, radius * scale


def _inner(mask: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbours belong too: their colour has no background in it."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _region(pixels: np.ndarray, distance: np.ndarray, mask: np.ndarray) -> Region:
    height, width = mask.shape
    inner = _inner(mask)
    full = max(float(np.median(distance[inner])), 1.0)
    share = _grown(mask) * np.clip(distance / full, 0, 1)
    ys, xs = np.nonzero(share > EDGE)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    radius, x, y = max(y1 - y0, x1 - x0) / 2, (x0 + x1) / 2, (y0 + y1) / 2
    side = int(2 * radius) + 2 * MARGIN
    left, top = int(x - side / 2), int(y - side / 2)
    cover = np.pad(share, side)[top + side : top + 2 * side, left + side : left + 2 * side]
    shape, radius = _fit(cover, x - left, y - top, radius)
    colour = _nearest_colour(np.median(pixels[inner], axis=0))
    return Region(x / width, y / height, radius / min(height, width), colour, shape)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The pixels of a region and those beside it, where its edge may lie."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def regions(image: Image.Image) -> tuple[str, list[Region]]:
    """The background's colour (of the picture's frame) and the objects on it, largest first."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(rim, axis=0)
    distance = np.sqrt(np.square(pixels - background).sum(-1))
    parts = [part for part in _components(distance > FOREGROUND) if part.mean() >= LEAST_AREA]
    return _nearest_colour(background), [_region(pixels, distance, part) for part in parts]


def _size_name(radius: float) -> str:
    return min(draw.RADIUS, key=lambda name: abs(draw.RADIUS[name] - radius))


def _grid(x: float, y: float) -> tuple[int, int]:
    def nearest(value: float) -> int:
        return min(range(3), key=lambda i: abs(draw.CENTRE[i] - value))

    return nearest(y), nearest(x)


def _matches(found: Region, wanted: Object) -> dict[str, bool]:
    return {
        "colour": found.colour == wanted.colour,
        "shape": found.shape == wanted.shape,
        "place": _grid(found.x, found.y) == (wanted.row, wanted.column),
        "size": _size_name(found.radius) == wanted.size,
    }


def objects(image: Image.Image, spec: Objects) -> dict[str, bool]:
    """What is right: background, number, and each object's colour, shape, place and size; `all` says everything is."""
    background, found = regions(image)
    result = {"background": background == spec.background, "number": len(found) == len(spec.objects)}
    result |= dict.fromkeys(("colour", "shape", "place", "size"), bool(found))
    left = list(found)
    for wanted in spec.objects:
        if not left:
            result |= dict.fromkeys(("colour", "shape", "place", "size"), False)
            break
        x, y = draw.CENTRE[wanted.column], draw.CENTRE[wanted.row]
        nearest = min(left, key=lambda region: (region.x - x) ** 2 + (region.y - y) ** 2)
        left = [region for region in left if region is not nearest]
        result |= {name: result[name] and right for name, right in _matches(nearest, wanted).items()}
    return result | {"all": all(result.values())}


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)


@cache
def _prototype(land: str, time: str, elements: frozenset[str]) -> np.ndarray:
    pictures = [draw.picture(Scene(land, time, elements, seed, seed % 3), 64) for seed in range(PROTOTYPES)]
    return np.mean([_thumbnail(picture) for picture in pictures], axis=0)


def scene(image: Image.Image, spec: Scene) -> dict[str, bool]:
    """Roughly: of all lands and times with these elements, is the right one's mean drawn picture the nearest?"""
    small = _thumbnail(image)
    best = min(
        ((land, time) for land in LANDS for time in TIMES),
        key=lambda pair: float(np.abs(small - _prototype(*pair, spec.elements)).mean()),
    )
    result = {"land": best[0] == spec.land, "time": best[1] == spec.time}
    return result | {"all": all(result.values())}


def _error(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(one - other)[where].mean()) if where.any() else 0.0


def edit(image: Image.Image, before: Image.Image, wanted: Edit) -> dict[str, bool]:
    """`changed`: where the edit changes the drawn picture, the result is nearer to the drawn one than half the way;
    `kept`: elsewhere it is still the picture before, or, since brush strokes reach everywhere, the wanted one
    in a thumbnail. On objects everything that `objects` asks must be right too."""
    result_pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    source = np.asarray(before.convert("RGB"), np.float32) / 255
    target = np.asarray(draw.picture(wanted.after, *before.size), np.float32) / 255
    difference = np.abs(target - source).max(-1)
    where, elsewhere = difference > 0.1, difference < 0.02
    change = _error(result_pixels, target, where) < CHANGE * _error(source, target, where)
    if wanted.kind == "oil":
        coarse = [_thumbnail(picture) / 255 for picture in (image, draw.picture(wanted.after, *before.size))]
        kept = float(np.abs(coarse[0] - coarse[1]).mean()) < KEPT
    else:
        kept = _error(result_pixels, source, elsewhere) < KEPT
    result = {"changed": change, "kept": kept}
    if isinstance(wanted.after, Objects) and not wanted.after.oil:
        result["objects"] = objects(image, wanted.after)["all"]
    return result | {"all": all(result.values())}


def self_test(count: int = 100, seed: int = 0) -> dict[str, float]:
    """The share of drawn pictures that pass, and of pictures drawn for another spec that pass all the same."""
    from dglaunch.tiny.training import spec as specs

    rng, scores = random.Random(seed), {}
    for kind in ("one", "two", "scene"):
        check = scene if kind == "scene" else objects
        items = [specs.sample(rng, kind) for _ in range(count)]
        drawn = [draw.picture(item, 64) for item in items]
        scores[f"{kind} right"] = np.mean([check(p, s)["all"] for p, s in zip(drawn, items, strict=True)])
        moved = zip(drawn[1:] + drawn[:1], items, strict=True)
        scores[f"{kind} wrong"] = np.mean([check(p, s)["all"] for p, s in moved])
    edits = [specs.sample_edit(rng) for _ in range(count)]
    befores = [draw.picture(item.before, 64) for item in edits]
    afters = [draw.picture(item.after, 64) for item in edits]
    triples = list(zip(afters, befores, edits, strict=True))
    scores["edit right"] = np.mean([edit(after, before, item)["all"] for after, before, item in triples])
    scores["edit undone"] = np.mean([edit(before, before, item)["all"] for _, before, item in triples])
    return {name: float(score) for name, score in scores.items()}
