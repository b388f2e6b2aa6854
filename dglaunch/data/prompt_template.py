"""--prompt_template: a prompt that is made of a row's columns, as in "{style} photo of {name}".

Between braces stands the plain name of a column, whatever its case; {{ and }} are braces. Nothing else is read there, no
format and no attribute: what is between the braces is looked up among the columns as it is.
"""

import difflib
import re
from collections.abc import Mapping
from itertools import chain

from dglaunch.data import values
from dglaunch.data.columns import find, there_are
from dglaunch.errors import UserError

FLAG = "--prompt_template"
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])|[^{}]+")


class PromptTemplate:
    """A template, taken apart."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            UserError: a brace is alone, or the template names no column.
        """
        self._text = text
        self._pieces: list[tuple[str, bool]] = []
        """Texts, and names of columns."""
        self._columns: dict[tuple[str, ...], dict[str, str]] = {}
        """By the columns of a row: of its names, those that are columns there."""
        for piece in _PIECE.finditer(text):
            name, alone = piece.groups()
            if alone is not None or (name is not None and not name.strip()):
                raise UserError(
                    f"{FLAG} {text!r}: the brace at {piece.start() + 1} has no column's name with it. Write {{name}} for the "
                    f"column `name`, and {{{{ or }}}} for a brace."
                )
            whole = piece[0]
            self._pieces.append(
                (name.strip(), True) if name is not None else (whole[:1] if whole in ("{{", "}}") else whole, False)
            )
        self.names = tuple(dict.fromkeys(name for name, is_name in self._pieces if is_name))
        if not self.names:
            raise UserError(
                f"{FLAG} {text!r} names no column, so that all prompts would be the same. Write {{name}} for the column `name`; "
                "one prompt for all images is --prompt."
            )

    def fill(self, row: Mapping[str, object]) -> str:
        """Return the prompt of a row.

        Raises:
            ValueError: the row has nothing under a name, or something that is no text and no number.
        """
        columns = self._columns_of(tuple(row))
        lacking = [name for name in self.names if name not in columns or not values.is_given(row[columns[name]])]
        if lacking:
            raise ValueError(f"has no {' and no '.join(lacking)} for {FLAG}{there_are(row)}")
        texts = {name: _text(name, row[column]) for name, column in columns.items()}
        return "".join(texts[piece] if is_name else piece for piece, is_name in self._pieces)

    def _columns_of(self, names: tuple[str, ...]) -> dict[str, str]:
        found = self._columns.get(names)
        if found is None:
            found = {name: column for name in self.names if (column := find(names, name)) is not None}
            self._columns[names] = found
        return found

    @property
    def columns(self) -> set[str]:
        """Return the columns that it was filled with."""
        return {column for columns in self._columns.values() for column in columns.values()}

    def check(self, source: str) -> None:
        """Look whether each of its names is a column, once the table is read.

        Raises:
            UserError: a name is that of no column in any row.
        """
        seen = dict.fromkeys(chain.from_iterable(self._columns))
        found = set(chain.from_iterable(self._columns.values()))
        name = next((name for name in self.names if name not in found), None)
        if name is None or not seen:
            return
        folded = {column.casefold(): column for column in seen}
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
        raise UserError(
            f"{FLAG} {self._text!r}: {source} has no column {name!r}{there_are(seen)}."
            f"{f' The nearest is {folded[near[0]]!r}.' if near else ''} Correct the name (between braces stands that of a column and "
            "nothing else; {{ is a brace)."
        )


def _text(name: str, value: object) -> str:
    """A cell as part of a prompt; a whole number that pandas made a floating point one is whole again."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"has {value!r} as {name}, which is no text and no number, and {FLAG} needs one")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
