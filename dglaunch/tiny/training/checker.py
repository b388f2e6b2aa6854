"""The checker decides from pixels alone, with no model, whether a picture shows what was asked for.

    checker.objects(image, spec)          # {"background": True, "number": True, "color": ..., ...}
    checker.scene(image, spec)            # the land and the time of day that it looks most like
    checker.edit(image, before, edit)     # {"changed": True, "kept": True, ...}

Objects are connected regions that differ from the background; a region's shape is that of the drawing code's outlines
which overlaps it best when laid over its bounding box, so that neither position nor size matters to it.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dglaunch.tiny.training import draw
from dglaunch.tiny.training.edits import sample_edit
from dglaunch.tiny.training.spec import Edit, Object, Objects, Scene, Spec, sample
from dglaunch.tiny.words import LANDS, SHAPES, TIMES

FOREGROUND = 30.0
"""RGB distance from the background at which a pixel belongs to an object; the closest two colors are 98 apart."""
EDGE = 0.4
"""Of the distance between an object's color and the background's: the share at which its edge is taken to lie."""
LEAST_AREA = 0.004
"""Of the picture: what is smaller is a speck, not an object; the smallest object covers 0.015."""
FINE = 4
MARGIN = 3
SCALES = (0.92, 1.0, 1.08, 1.16)
SHIFTS = (-0.6, 0.0, 0.6)
"""Where `_fit` looks besides the region's own bounding box, as parts of its radius and in pixels."""
CHANGE = 0.5
"""An edit is done if the changed pixels end nearer than half the way to the wanted picture, as a mean error."""
KEPT = 0.06
"""Mean absolute error, of 1, allowed where nothing was to change; the autoencoder alone costs about 0.01."""
PROTOTYPES = 12

Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of a picture: the radius is a part of the shorter side, `x` and `y` are parts of each side."""

    x: float
    y: float
    radius: float
    color: str
    shape: str


def picture(image: Image.Image, spec: Spec) -> dict[str, bool]:
    """Check a picture of objects or of a scene; `all` says whether everything is right."""
    return scene(image, spec) if isinstance(spec, Scene) else objects(image, spec)


def objects(image: Image.Image, spec: Objects) -> dict[str, bool]:
    """Check the background, the number of objects, and each one's color, shape, position and size."""
    background, found = regions(image)
    result = {"background": background == spec.background, "number": len(found) == len(spec.objects)}
    result |= dict.fromkeys(("color", "shape", "position", "size"), bool(found))
    unmatched = list(found)
    for wanted in spec.objects:
        if not unmatched:
            result |= dict.fromkeys(("color", "shape", "position", "size"), False)
            break
        nearest = _nearest_region(unmatched, wanted)
        unmatched = [region for region in unmatched if region is not nearest]
        result |= {name: result[name] and is_right for name, is_right in _matches(nearest, wanted).items()}
    return result | {"all": all(result.values())}


def scene(image: Image.Image, spec: Scene) -> dict[str, bool]:
    """Check the land and the time of day, roughly: of all with these elements, which looks on the mean most like it?"""
    small = _thumbnail(image)
    land, time = min(
        itertools.product(LANDS, TIMES),
        key=lambda pair: float(np.abs(small - _prototype(*pair, spec.elements)).mean()),
    )
    result = {"land": land == spec.land, "time": time == spec.time}
    return result | {"all": all(result.values())}


def edit(image: Image.Image, before: Image.Image, wanted: Edit) -> dict[str, bool]:
    """Check that an edit changed what it was to change, and kept the rest.

    `changed`: where the edit changes the drawn picture, the result is nearer to the drawn one than half the way;
    `kept`: elsewhere it is still the picture before, or, since brush strokes reach everywhere, the wanted one
    in a thumbnail. On objects everything that `objects` checks must be right too.
    """
    wanted_picture = draw.picture(wanted.after, *before.size)
    result_pixels, source, target = _unit_pixels(image), _unit_pixels(before), _unit_pixels(wanted_picture)
    difference = np.abs(target - source).max(-1)
    where, elsewhere = difference > 0.1, difference < 0.02
    changed = _error(result_pixels, target, where) < CHANGE * _error(source, target, where)
    if wanted.kind == "oil":
        kept = float(np.abs(_thumbnail(image) / 255 - _thumbnail(wanted_picture) / 255).mean()) < KEPT
    else:
        kept = _error(result_pixels, source, elsewhere) < KEPT
    result = {"changed": changed, "kept": kept}
    if isinstance(wanted.after, Objects) and not wanted.after.oil:
        result["objects"] = objects(image, wanted.after)["all"]
    return result | {"all": all(result.values())}


def regions(image: Image.Image) -> tuple[str, list[Region]]:
    """Find the background's color (of the picture's frame) and the objects on it, largest first."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(rim, axis=0)
    distance = np.sqrt(np.square(pixels - background).sum(-1))
    parts = [part for part in _components(distance > FOREGROUND) if part.mean() >= LEAST_AREA]
    return _nearest_color(background), [_region(pixels, distance, part) for part in parts]


def self_test(count: int = 100, seed: int = 0) -> dict[str, float]:
    """Return the share of drawn pictures that pass, and of pictures drawn for another spec that pass all the same."""
    rng = random.Random(seed)
    scores = {}
    for kind in ("one", "two", "scene"):
        items = [sample(rng, kind) for _ in range(count)]
        drawn = [draw.picture(item, 64) for item in items]
        scores[f"{kind} right"] = _share_right(drawn, items)
        scores[f"{kind} wrong"] = _share_right(drawn[1:] + drawn[:1], items)
    edits = [sample_edit(rng) for _ in range(count)]
    befores = [draw.picture(item.before, 64) for item in edits]
    afters = [draw.picture(item.after, 64) for item in edits]
    scores["edit right"] = _share_edited(afters, befores, edits)
    scores["edit undone"] = _share_edited(befores, befores, edits)
    return scores


def _share_right(images: list[Image.Image], specs: list[Spec]) -> float:
    return float(np.mean([picture(image, spec)["all"] for image, spec in zip(images, specs, strict=True)]))


def _share_edited(images: list[Image.Image], befores: list[Image.Image], edits: list[Edit]) -> float:
    triples = zip(images, befores, edits, strict=True)
    return float(np.mean([edit(image, before, wanted)["all"] for image, before, wanted in triples]))


# -- an object and what was asked for -----------------------------------------------------------------------------


def _nearest_region(found: list[Region], wanted: Object) -> Region:
    x, y = draw.CENTERS[wanted.column], draw.CENTERS[wanted.row]
    return min(found, key=lambda region: (region.x - x) ** 2 + (region.y - y) ** 2)


def _matches(found: Region, wanted: Object) -> dict[str, bool]:
    return {
        "color": found.color == wanted.color,
        "shape": found.shape == wanted.shape,
        "position": (_nearest_cell(found.y), _nearest_cell(found.x)) == (wanted.row, wanted.column),
        "size": _size_name(found.radius) == wanted.size,
    }


def _nearest_cell(center: float) -> int:
    """Return the row or column of the grid whose middle is nearest."""
    return min(range(3), key=lambda index: abs(draw.CENTERS[index] - center))


def _size_name(radius: float) -> str:
    return min(draw.RADII, key=lambda name: abs(draw.RADII[name] - radius))


def _nearest_color(rgb: Pixels) -> str:
    return min(draw.RGB, key=lambda name: float(np.square(rgb - np.array(draw.RGB[name], np.float32)).sum()))


# -- regions of a picture -----------------------------------------------------------------------------------------


def _components(mask: Mask) -> list[Mask]:
    """Return the 8-connected components of a mask, largest first."""
    left, found = mask.copy(), []
    for start in np.argwhere(mask):
        if left[tuple(start)]:
            found.append(_take_component(left, int(start[0]), int(start[1])))
    return sorted(found, key=np.count_nonzero, reverse=True)


def _take_component(left: Mask, y: int, x: int) -> Mask:
    """Return the component that a pixel belongs to, and take it out of the mask."""
    height, width = left.shape
    part = np.zeros_like(left)
    stack = [(y, x)]
    left[y, x] = False
    while stack:
        y, x = stack.pop()
        part[y, x] = True
        for ny in range(max(0, y - 1), min(height, y + 2)):
            for nx in range(max(0, x - 1), min(width, x + 2)):
                if left[ny, nx]:
                    left[ny, nx] = False
                    stack.append((ny, nx))
    return part


def _region(pixels: Pixels, distance: Pixels, mask: Mask) -> Region:
    """Measure a component: its bounding box, the shape that fits it best, and the color of its inner pixels."""
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
    color = _nearest_color(np.median(pixels[inner], axis=0))
    return Region(x / width, y / height, radius / min(height, width), color, shape)


def _inner(mask: Mask) -> Mask:
    """Return the pixels whose four neighbors belong to the region too: their color has no background in it."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _grown(mask: Mask) -> Mask:
    """Return the pixels of a region and those beside it, where its edge may lie."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _fit(cover: Pixels, x: float, y: float, radius: float) -> tuple[str, float]:
    """Return the shape and radius that overlap a region's coverage best, moved and scaled a little to meet it."""

    def overlap(shape: str, scale: float, dx: float, dy: float) -> float:
        wanted = _coverage(shape, len(cover), x + dx, y + dy, radius * scale)
        return float(np.minimum(cover, wanted).sum() / np.maximum(cover, wanted).sum())

    shape, scale, _, _ = max(itertools.product(SHAPES, SCALES, SHIFTS, SHIFTS), key=lambda fit: overlap(*fit))
    return shape, radius * scale


def _coverage(shape: str, side: int, x: float, y: float, radius: float) -> Pixels:
    """Return how much of each pixel of a square crop a shape covers."""
    image = Image.new("L", (side * FINE, side * FINE))
    points = [((x + radius * px) * FINE, (y + radius * py) * FINE) for px, py in draw.outline(shape)]
    ImageDraw.Draw(image).polygon(points, fill=255)
    return np.asarray(image.reduce(FINE), np.float32) / np.float32(255)


# -- whole pictures -----------------------------------------------------------------------------------------------


def _unit_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)


def _error(one: Pixels, other: Pixels, where: Mask) -> float:
    return float(np.abs(one - other)[where].mean()) if where.any() else 0.0


def _thumbnail(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)


@cache
def _prototype(land: str, time: str, elements: frozenset[str]) -> Pixels:
    """Return the mean thumbnail of drawn scenes of a land at a time of day."""
    pictures = [draw.picture(Scene(land, time, elements, seed, seed % 3), 64) for seed in range(PROTOTYPES)]
    mean: Pixels = np.mean([_thumbnail(picture) for picture in pictures], axis=0)
    return mean
