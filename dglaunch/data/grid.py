"""--grid guidance_scale=2,4,7 seed=1,2: each row is made with every combination of these values.

Row r of the table becomes the rows r*6 to r*6+5, the first axis slowest. Where neither the grid nor the row says a seed, all
of a row's images have that of its first, so that they differ by the grid's values alone.
"""

import csv
import difflib
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from dglaunch.data.columns import find
from dglaunch.data.task import ROW_FIELDS, Record
from dglaunch.data.values import Check
from dglaunch.errors import UserError

ALIASES = {"steps": "num_inference_steps"}


def places_of(name: str, grid: Sequence[str]) -> str:
    """Return where a value of this name may have come from, as a message says from where to take it.

    Args:
        name: of a setting.
        grid: the words of --grid.
    """
    axes = (word.partition("=")[0].strip().casefold() for word in grid)
    return f"{name} of --grid" if name in (ALIASES.get(axis, axis) for axis in axes) else f"the column, or --{name}"


class Point(NamedTuple):
    """One combination: what it sets, and the columns that it stands in for."""

    settings: Record
    columns: Record


class Grid:
    """The axes of --grid, each with its values; without any there is one combination, of nothing."""

    def __init__(self, words: Sequence[str], checks: Mapping[str, Check], columns: Sequence[str]) -> None:
        """
        Args:
            words: `guidance_scale=2,4,7` for each axis.
            checks: what a setting's value must be, by its name.
            columns: names that --prompt_template has: they may be axes too.

        Raises:
            UserError: an axis has no such name, no values, or bad ones.
        """
        self.axes: dict[str, list[object]] = {}
        for word in words:
            name, values = _axis(word, checks, columns)
            if name in self.axes:
                raise UserError(f"--grid {word}: {name} is varied twice. Write all its values after one {name}=.")
            self.axes[name] = values
        self.points = [_point(dict(zip(self.axes, values))) for values in product(*self.axes.values())]
        self.largest_seed = max((seed for seed in self.axes.get("seed", ()) if isinstance(seed, int)), default=0)

    def __len__(self) -> int:
        """Return how many rows each row becomes."""
        return len(self.points)

    def clash(self, given: Collection[str]) -> str | None:
        """Say which of these names, that a row sets itself, the grid varies."""
        names = " and ".join(name for name in self.axes if name in given)
        return f"{names} is set in the row, and --grid varies it; drop one of them" if names else None


def _point(values: Record) -> Point:
    settings = {name: value for name, value in values.items() if name in ROW_FIELDS}
    return Point(settings, {name: value for name, value in values.items() if name not in settings})


def _axis(word: str, checks: Mapping[str, Check], columns: Sequence[str]) -> tuple[str, list[object]]:
    """One axis: its name and its values.

    Raises:
        UserError: it is none.
    """
    name, sign, text = word.partition("=")
    if not sign:
        raise UserError(f"--grid {word}: a name and values are needed, such as --grid guidance_scale=2,4,7 seed=1,2.")
    possible = [*ROW_FIELDS, *ALIASES, *columns]
    found = find(possible, name.strip())
    if found is None:
        near = difflib.get_close_matches(name.casefold(), possible, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--grid {word}: there is nothing called {name.strip()!r} to vary. The nearest is {near}; all there is: "
            f"{', '.join(possible)}{'' if columns else ', and what --prompt_template names'}."
        )
    setting = ALIASES.get(found, found)
    try:
        texts = next(csv.reader([text], strict=True, skipinitialspace=True), [])
        values = [_value(setting, value, checks) for value in texts]
    except (csv.Error, ValueError) as error:
        raise UserError(f"--grid {word}: {setting} {error}. Write the values with commas between them.") from None
    if not values:
        raise UserError(f"--grid {word}: {setting} has no values. Write them with commas between them.")
    twice = next((value for n, value in enumerate(values) if value in values[:n]), None)
    if twice is not None:
        raise UserError(f"--grid {word}: {setting} has {twice!r} twice, so that the same images would be made again.")
    return setting, values


def _value(name: str, text: str, checks: Mapping[str, Check]) -> object:
    if name in checks:
        return checks[name](text)
    if not text.strip():
        raise ValueError("has a value that is empty")
    return text
