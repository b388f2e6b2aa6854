"""An edit is sampled here: a picture, what it becomes, and an instruction such as "make the circle green"."""

import random
from dataclasses import replace

from dglaunch.tiny.training.prompts import describe, position_words
from dglaunch.tiny.training.spec import Edit, Object, Objects, Scene, are_apart, held_out, sample, sample_object
from dglaunch.tiny.words import COLORS, TIMES

OBJECT_EDITS = ("recolor", "remove", "background", "add", "oil")
OBJECT_EDIT_WEIGHTS = (5, 3, 3, 2, 1)
SCENE_EDITS = ("oil", "blue", "light", "rainbow", *TIMES)
TIME_INSTRUCTIONS = {
    "day": ("make it daytime",),
    "sunset": ("make it sunset", "change it to sunset"),
    "night": ("make it look like night time", "turn it into night"),
}
OIL_INSTRUCTIONS = ("convert to oil painting style", "make it an oil painting", "turn it into an oil painting")
BLUE_INSTRUCTIONS = ("make the sky more blue", "make the sky blue", "a more blue sky, please")


def sample_edit(
    rng: random.Random, is_held_out: bool = False, source: str | None = None, kind: str | None = None
) -> Edit:
    """Sample an edit from either side of the split, if asked for of a source ("one", "two", "scene") or a kind."""
    while True:
        chosen = source or rng.choice(("one", "two", "two", "scene", "scene"))
        spec = sample(rng, chosen, is_held_out and chosen == "scene")
        edit = _edit_scene(rng, spec) if isinstance(spec, Scene) else _edit_objects(rng, spec)
        if held_out(edit) == is_held_out and kind in (None, edit.kind):
            return edit


# -- objects ------------------------------------------------------------------------------------------------------


def _edit_objects(rng: random.Random, spec: Objects) -> Edit:
    target = rng.choice(spec.objects)
    used = {spec.background, *(item.color for item in spec.objects)}
    color = rng.choice([name for name in COLORS if name not in used])
    kind = rng.choices(OBJECT_EDITS, OBJECT_EDIT_WEIGHTS)[0]
    if kind == "recolor":
        return _recolor(rng, spec, target, color)
    if kind == "background":
        verb = rng.choice(("make", "change", "turn"))
        return Edit(kind, spec, replace(spec, background=color), f"{verb} the background {color}")
    if kind == "oil":
        return Edit(kind, spec, replace(spec, oil=True), rng.choice(OIL_INSTRUCTIONS))
    if kind == "remove" and len(spec.objects) == 2:
        return _remove(rng, spec, target)
    return _add(rng, spec)


def _recolor(rng: random.Random, spec: Objects, target: Object, color: str) -> Edit:
    objects = tuple(replace(item, color=color) if item is target else item for item in spec.objects)
    verb = rng.choice(("make", "turn", "change", "recolor"))
    to = "" if verb == "make" else "to "
    return Edit("recolor", spec, replace(spec, objects=objects), f"{verb} the {target.shape} {to}{color}")


def _remove(rng: random.Random, spec: Objects, target: Object) -> Edit:
    rest = tuple(item for item in spec.objects if item is not target)
    verb = rng.choice(("remove", "delete", "erase"))
    return Edit("remove", spec, replace(spec, objects=rest), f"{verb} the {target.shape}")


def _add(rng: random.Random, spec: Objects) -> Edit:
    after = spec if len(spec.objects) == 2 else _with_second(rng, spec)
    first, second = after.objects
    verb = rng.choice(("add", "put", "insert"))
    instruction = f"{verb} {describe(second)} {position_words(rng, second)}"
    return Edit("add", replace(after, objects=(first,)), after, instruction)


def _with_second(rng: random.Random, spec: Objects) -> Objects:
    """Add an object apart from the only one, which moves to a corner if it stands in the middle."""
    first = spec.objects[0]
    cells = [
        (row, column) for row in range(3) for column in range(3) if are_apart(row, column, first.row, first.column)
    ]
    if not cells:
        first = replace(first, row=0, column=0)
        cells = [(2, 2), (0, 2), (2, 0)]
    row, column = rng.choice(cells)
    colors = [name for name in COLORS if name not in (spec.background, first.color)]
    rng.shuffle(colors)
    return replace(spec, objects=(first, sample_object(rng, colors[-1], row, column, but=first.shape)))


# -- scenes -------------------------------------------------------------------------------------------------------


def _edit_scene(rng: random.Random, spec: Scene) -> Edit:
    kind = rng.choice(_scene_choices(spec))
    if kind == "oil":
        return Edit(kind, spec, replace(spec, oil=True), rng.choice(OIL_INSTRUCTIONS))
    if kind == "blue":
        return Edit(kind, spec, replace(spec, blue_sky=True), rng.choice(BLUE_INSTRUCTIONS))
    if kind in TIMES:
        return Edit(kind, spec, replace(spec, time=kind), rng.choice(TIME_INSTRUCTIONS[kind]))
    return _edit_element(rng, spec, kind)


def _scene_choices(spec: Scene) -> list[str]:
    """List the kinds of edit that change this scene; those listed twice are chosen twice as often."""
    choices = ["oil", "light", "rainbow", *(time for time in TIMES if time != spec.time)]
    if "rain" not in spec.elements and spec.time != "night":
        choices += ["blue", "blue"]
    choices.append("rainbow")
    if spec.time != "night":
        choices.append("night")
    return choices


def _edit_element(rng: random.Random, spec: Scene, element: str) -> Edit:
    """Add the sun, the moon or a rainbow to a scene, or remove it."""
    without = replace(spec, elements=spec.elements - {element})
    present = replace(spec, elements=spec.elements | {element})
    name = element
    if element == "light":
        name = "moon" if spec.time == "night" else "sun"
    if rng.random() < 0.6:
        if element == "light":
            without, present = replace(without, light_position=2), replace(present, light_position=2)
        instruction = f"{rng.choice(('add', 'put'))} a {name}{rng.choice((' to the sky', ''))}"
        return Edit(element, without, present, instruction)
    return Edit(element, present, without, f"{rng.choice(('remove', 'erase'))} the {name}")
