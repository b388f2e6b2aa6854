"""A spec becomes a prompt here, in one of many wordings, some with words that the model does not know."""

import random

from dglaunch.tiny.training.spec import ELEMENTS, Object, Objects, Scene, Spec

POSITION_NAMES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""The names of the grid's cells, by row and column."""
RELATIONS = {
    ((1, 0), (1, 2)): "left of",
    ((1, 2), (1, 0)): "right of",
    ((0, 1), (2, 1)): "above",
    ((2, 1), (0, 1)): "below",
}
"""What may be said instead of two positions, each a row and a column."""
FILLERS = ("beautiful", "serene", "cozy", "futuristic", "detailed", "4k", "photo of", "picture of", "simple", "quiet")
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


def prompt(rng: random.Random, spec: Spec) -> str:
    """Write a prompt for a picture, in one of many wordings, sometimes with a word that the model does not know."""
    text = _scene_prompt(rng, spec) if isinstance(spec, Scene) else _objects_prompt(rng, spec)
    return f"{rng.choice(FILLERS)} {text}" if rng.random() < 0.2 else text


def describe(item: Object) -> str:
    """Name an object by its size, color and shape."""
    return f"a {item.size} {item.color} {item.shape}"


def position_words(rng: random.Random, item: Object) -> str:
    """Say in which part of the picture an object is."""
    name = POSITION_NAMES[item.row][item.column]
    return rng.choice((f"in the {name}", f"at the {name}", f"on the {name}"))


def _objects_prompt(rng: random.Random, spec: Objects) -> str:
    descriptions, positions = [], []
    for item in spec.objects:
        size = "" if item.size == "medium" and rng.random() < 0.4 else item.size + " "
        descriptions.append(f"a {size}{item.color} {item.shape}")
        is_alone_in_center = len(spec.objects) == 1 and (item.row, item.column) == (1, 1)
        omits_position = is_alone_in_center and rng.random() < 0.5
        positions.append("" if omits_position else " " + position_words(rng, item))
    relation = _relation(spec)
    if relation and rng.random() < 0.7:
        body = f"{descriptions[0]} {relation} {descriptions[1]}"
    else:
        body = " and ".join(words + position for words, position in zip(descriptions, positions, strict=True))
    return _with_background(rng, body, spec.background)


def _relation(spec: Objects) -> str | None:
    """Return what may be said instead of the positions of two objects that lie opposite one another."""
    if len(spec.objects) != 2:
        return None
    first, second = spec.objects
    return RELATIONS.get(((first.row, first.column), (second.row, second.column)))


def _with_background(rng: random.Random, body: str, background: str) -> str:
    if background == "white" and rng.random() < 0.3:
        return body
    if rng.random() < 0.2:
        return f"a {background} background with {body}"
    return f"{body} on a {background} background"


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
