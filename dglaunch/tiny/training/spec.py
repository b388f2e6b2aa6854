"""What a picture shows, as data: objects or a scene, how it may be edited, what its prompts say, what is held out.

Everything is drawn from a `random.Random`, so a seed names a picture, its prompt and its edits.
Nothing here touches pixels: `draw.py` turns a spec into a picture, `checker.py` tells whether a picture meets one.
"""

import hashlib
import random
from dataclasses import dataclass, replace

from dglaunch.tiny.words import COLOURS, LANDS, SHAPES, SIZES, TIMES

ELEMENTS = ("light", "clouds", "rainbow", "snow", "rain", "car", "boat")
PLACE_NAMES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
HELD_OUT_ONE_IN = 8
MAX_JITTER = 0.02
"""Of the picture's side: a place is a neighbourhood, not one pixel."""


@dataclass(frozen=True, slots=True)
class Object:
    shape: str
    colour: str
    size: str
    row: int
    column: int
    dx: float = 0.0
    dy: float = 0.0


@dataclass(frozen=True, slots=True)
class Objects:
    """One or two shapes on a plain background."""

    background: str
    objects: tuple[Object, ...]
    oil: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """A landscape; `seed` places what the prompt does not mention (peaks, houses, clouds)."""

    land: str
    time: str = "day"
    elements: frozenset[str] = frozenset()
    seed: int = 0
    light_place: int = 2
    """Where the sun or the moon stands: left, middle, right. One that an edit adds stands right."""
    blue_sky: bool = False
    oil: bool = False


Spec = Objects | Scene


@dataclass(frozen=True, slots=True)
class Edit:
    """A pair of pictures and the instruction that leads from the first to the second."""

    kind: str
    before: Spec
    after: Spec
    instruction: str


def _one_in(key: object) -> bool:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def _key(spec: Spec) -> object:
    if isinstance(spec, Scene):
        return "scene", spec.land, spec.time, sorted(spec.elements)
    objects = [(thing.shape, thing.colour, thing.row - thing.column) for thing in spec.objects]
    return "objects", spec.background, objects


def held_out(item: Spec | Edit) -> bool:
    """Whether training must never see this combination: a hash of what matters decides, the same on every machine.

    The wording never matters. An edit of a scene is held out with both its pictures, one of objects by the pair of them
    (the empty string stands in the hash since the shipped weights were trained).
    """
    if isinstance(item, Edit):
        if isinstance(item.before, Scene):
            return held_out(item.before) and held_out(item.after)
        return _one_in(("edit", _key(item.before), _key(item.after), ""))
    return _one_in(_key(item))


def _object(rng: random.Random, colours: list[str], row: int, column: int, shapes: tuple[str, ...] = SHAPES) -> Object:
    jitter = (rng.uniform(-MAX_JITTER, MAX_JITTER), rng.uniform(-MAX_JITTER, MAX_JITTER))
    return Object(rng.choice(shapes), colours.pop(), rng.choice(SIZES), row, column, *jitter)


def sample_objects(rng: random.Random, num_objects: int) -> Objects:
    """One object anywhere, or two with at least one free row or column between them."""
    colours = rng.sample(COLOURS, 1 + num_objects)
    background = colours.pop()
    if num_objects == 1:
        return Objects(background, (_object(rng, colours, rng.randrange(3), rng.randrange(3)),))
    while True:
        (r0, c0), (r1, c1) = [(rng.randrange(3), rng.randrange(3)) for _ in range(2)]
        if max(abs(r0 - r1), abs(c0 - c1)) == 2:
            break
    first = _object(rng, colours, r0, c0)
    others = tuple(shape for shape in SHAPES if shape != first.shape)
    return Objects(background, (first, _object(rng, colours, r1, c1, others)))


ELEMENT_CHANCE = {"light": 0.45, "clouds": 0.3, "rainbow": 0.15, "snow": 0.2, "rain": 0.12}


def sample_scene(rng: random.Random) -> Scene:
    land, time = rng.choice(LANDS), rng.choice(TIMES)
    elements = {name for name, chance in ELEMENT_CHANCE.items() if rng.random() < chance}
    if "rain" in elements:
        elements -= {"snow", "light"}
    if land == "city" and rng.random() < 0.4:
        elements.add("car")
    if land == "sea" and rng.random() < 0.5:
        elements.add("boat")
    return Scene(land, time, frozenset(elements), rng.randrange(1 << 30), rng.randrange(3))


def sample(rng: random.Random, kind: str, is_held_out: bool = False) -> Spec:
    """A spec of a kind ("one", "two", "scene") from the training side of the split, or from the held-out side."""
    while True:
        spec = sample_scene(rng) if kind == "scene" else sample_objects(rng, 1 if kind == "one" else 2)
        if held_out(spec) == is_held_out:
            return spec


def _edit_objects(rng: random.Random, spec: Objects) -> Edit:
    target = rng.choice(spec.objects)
    rest = tuple(thing for thing in spec.objects if thing is not target)
    used = {spec.background, *(thing.colour for thing in spec.objects)}
    colour = rng.choice([name for name in COLOURS if name not in used])
    which = rng.choices(("recolour", "remove", "background", "add", "oil"), (5, 3, 3, 2, 1))[0]
    if which == "recolour":
        after = replace(spec, objects=tuple(replace(t, colour=colour) if t is target else t for t in spec.objects))
        verb = rng.choice(("make", "turn", "change", "recolor"))
        return Edit("recolour", spec, after, f"{verb} the {target.shape} {'to ' if verb != 'make' else ''}{colour}")
    if which == "background":
        verb = rng.choice(("make", "change", "turn"))
        return Edit("background", spec, replace(spec, background=colour), f"{verb} the background {colour}")
    if which == "oil":
        return Edit("oil", spec, replace(spec, oil=True), _oil_words(rng))
    if len(spec.objects) == 2 and which == "remove":
        verb = rng.choice(("remove", "delete", "erase"))
        return Edit("remove", spec, replace(spec, objects=rest), f"{verb} the {target.shape}")
    full = spec if len(spec.objects) == 2 else _with_second(rng, spec)
    new = full.objects[-1]
    verb = rng.choice(("add", "put", "insert"))
    words = f"{verb} {describe(new)} {_place(rng, new)}"
    return Edit("add", replace(full, objects=full.objects[:1]), full, words)


def _with_second(rng: random.Random, spec: Objects) -> Objects:
    only = spec.objects[0]
    places = [(r, c) for r in range(3) for c in range(3) if max(abs(r - only.row), abs(c - only.column)) == 2]
    first = only if places else replace(only, row=0, column=0)
    row, column = rng.choice(places or [(2, 2), (0, 2), (2, 0)])
    colours = [name for name in COLOURS if name not in (spec.background, only.colour)]
    rng.shuffle(colours)
    others = tuple(shape for shape in SHAPES if shape != only.shape)
    return replace(spec, objects=(first, _object(rng, colours, row, column, others)))


def _oil_words(rng: random.Random) -> str:
    return rng.choice(("convert to oil painting style", "make it an oil painting", "turn it into an oil painting"))


def _edit_scene(rng: random.Random, spec: Scene) -> Edit:
    choices = ["oil", "light", "rainbow", *(time for time in TIMES if time != spec.time)]
    choices += ["blue"] * 2 * ("rain" not in spec.elements and spec.time != "night") + ["rainbow", "night"]
    which = rng.choice([name for name in choices if name != spec.time])
    if which == "oil":
        return Edit("oil", spec, replace(spec, oil=True), _oil_words(rng))
    if which == "blue":
        words = ("make the sky more blue", "make the sky blue", "a more blue sky, please")
        return Edit("blue", spec, replace(spec, blue_sky=True), rng.choice(words))
    if which in TIMES:
        words = {"night": ("make it look like night time", "turn it into night"), "day": ("make it daytime",)}
        default = (f"make it {which}", f"change it to {which}")
        return Edit(which, spec, replace(spec, time=which), rng.choice(words.get(which, default)))
    name = ("moon" if spec.time == "night" else "sun") if which == "light" else which
    without, with_it = (replace(spec, elements=spec.elements ^ {which}), spec)[:: 1 if which in spec.elements else -1]
    if rng.random() < 0.6:
        if which == "light":
            without, with_it = replace(without, light_place=2), replace(with_it, light_place=2)
        words = f"{rng.choice(('add', 'put'))} a {name}{rng.choice((' to the sky', ''))}"
        return Edit(which, without, with_it, words)
    return Edit(which, with_it, without, f"{rng.choice(('remove', 'erase'))} the {name}")


OBJECT_EDITS = ("recolour", "remove", "background", "add", "oil")
SCENE_EDITS = ("oil", "blue", "light", "rainbow", *TIMES)


def sample_edit(
    rng: random.Random, is_held_out: bool = False, source: str | None = None, kind: str | None = None
) -> Edit:
    """An edit, of a kind if one is named, of one object, two or a scene, from either side of the split."""
    while True:
        of = source or rng.choice(("one", "two", "two", "scene", "scene"))
        spec = sample(rng, of, is_held_out and of == "scene")
        edit = _edit_scene(rng, spec) if isinstance(spec, Scene) else _edit_objects(rng, spec)
        if held_out(edit) == is_held_out and kind in (None, edit.kind):
            return edit


def describe(thing: Object) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def _place(rng: random.Random, thing: Object) -> str:
    name = PLACE_NAMES[thing.row][thing.column]
    return rng.choice((f"in the {name}", f"at the {name}", f"on the {name}"))


FILLERS = ("beautiful", "serene", "cozy", "futuristic", "detailed", "4k", "photo of", "picture of", "simple", "quiet")


def prompt(rng: random.Random, spec: Spec) -> str:
    """One of many wordings of a spec, with words in it that the model does not know."""
    text = _scene_prompt(rng, spec) if isinstance(spec, Scene) else _objects_prompt(rng, spec)
    return f"{rng.choice(FILLERS)} {text}" if rng.random() < 0.2 else text


def _relation(first: Object, second: Object) -> str | None:
    """The words "left of" and their like stand for the two places beside, above and below the middle."""
    pairs = {((1, 0), (1, 2)): "left of", ((1, 2), (1, 0)): "right of", ((0, 1), (2, 1)): "above"}
    pairs[(2, 1), (0, 1)] = "below"
    return pairs.get(((first.row, first.column), (second.row, second.column)))


def _objects_prompt(rng: random.Random, spec: Objects) -> str:
    parts = []
    for thing in spec.objects:
        size = "" if thing.size == "medium" and rng.random() < 0.4 else thing.size + " "
        centred = len(spec.objects) == 1 and (thing.row, thing.column) == (1, 1)
        place = "" if centred and rng.random() < 0.5 else " " + _place(rng, thing)
        parts.append((f"a {size}{thing.colour} {thing.shape}", place))
    relation = _relation(*spec.objects) if len(spec.objects) == 2 else None
    if relation and rng.random() < 0.7:
        body = f"{parts[0][0]} {relation} {parts[1][0]}"
    else:
        body = " and ".join(words + place for words, place in parts)
    if spec.background == "white" and rng.random() < 0.3:
        return body
    if rng.random() < 0.2:
        return f"a {spec.background} background with {body}"
    return f"{body} on a {spec.background} background"


LAND_WORDS = {
    "mountain": ("mountain landscape", "mountains", "alpine landscape"), "sea": ("sea", "ocean", "beach"),
    "forest": ("forest", "woods"), "city": ("city skyline", "cityscape", "city"), "desert": ("desert", "dunes"),
    "cabin": ("cabin", "cabin in the forest", "cottage in the woods"), "field": ("field", "meadow"),
}  # fmt: skip
TIME_WORDS = {
    "day": ("", "", "at day", "in the morning"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at midnight"),
}
ELEMENT_WORDS = {
    "clouds": ("clouds", "a cloudy sky"), "rainbow": ("a rainbow",), "rain": ("rain", "raining"),
    "snow": ("snow", "snowfall"), "car": ("flying cars", "a car"), "boat": ("a boat", "a sailboat"),
}  # fmt: skip


def _scene_prompt(rng: random.Random, spec: Scene) -> str:
    land = rng.choice(LAND_WORDS[spec.land])
    names = [name for name in ELEMENTS if name in spec.elements]
    rng.shuffle(names)
    before = "a "
    if "snow" in names and rng.random() < 0.5:
        names.remove("snow")
        before = "a snowy "
        if spec.land == "cabin":
            before, land = "", rng.choice(("a cabin in a snowy forest", "a snowy cabin"))
    light = ("the moon", "a full moon") if spec.time == "night" else ("the sun", "a bright sun")
    words = [rng.choice(ELEMENT_WORDS.get(name, light)) for name in names]
    text = f"{before}{land} {rng.choice(TIME_WORDS[spec.time])}".rstrip()
    return text + (f" with {' and '.join(words)}" if words else "")
