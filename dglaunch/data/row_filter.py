"""Which rows are meant: the one grammar of --filter_rows, for every command that has it.

    3,7,11                          these indices
    0:100,250,900:                  ranges, as Python has them: 0 to 99, 250, 900 to the end
    style == "oil" and seed > 3     an expression on a row's columns
    "cat" in prompt                 and, or, not, in, parentheses, lists and % are understood, too
    row["art style"] == "oil"       a column whose name is no word

An expression is read by Python's own parser and then computed here, node by node: there is no eval, and nothing but
columns, constants and comparisons can stand in it. Cells are compared as what they look like, as those of a CSV are texts:
"12" is equal to 12. A row that lacks a column has None there, and nothing is larger or smaller than None.
"""

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

from dglaunch.data.columns import find
from dglaunch.errors import UserError

FLAG = "--filter_rows"
MOST_TEXT = 1 << 20
"""Characters of a filter: of a list of 100,000 indices."""
MOST_DEPTH = 50
"""Of the parts of an expression in one another."""
SHOWN = 20
"""Columns that an error names."""
_RANGES = re.compile(r"[\d\s,:]+", re.ASCII)
_RANGE = re.compile(r"(\d{1,18})|(\d{0,18}) ?: ?(\d{0,18})", re.ASCII)
_NOT_TRUE = ("", "0", "false", "no", "none")
"""Texts of a cell that stands for itself and says no."""


class RowFilter:
    """A RowFilter is asked about each row of one table, and then whether all that it names was there."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            UserError: it is neither a list of indices nor an expression that can be computed.
        """
        self._said = f"{FLAG} {text}"
        self._singles: set[int] = set()
        self._ranges: list[range] = []
        self.expression: ast.expr | None = None
        """None: it is a list of indices."""
        self._missing: set[str] = set()
        """Columns of the expression that no row had so far."""
        self._columns: dict[str, None] = {}
        if len(text) > MOST_TEXT:
            raise UserError(f"{FLAG} has {len(text):,} characters; {MOST_TEXT:,} are the most. Give ranges of indices.")
        if _RANGES.fullmatch(text):
            self._take_ranges(text)
        else:
            self._take_expression(text)
        self._left: set[int | range] = {*self._singles, *self._ranges}
        """What no row was in so far."""

    @property
    def indices(self) -> tuple[frozenset[int], tuple[range, ...]]:
        """What a list of indices names: single ones, and ranges."""
        return frozenset(self._singles), tuple(self._ranges)

    def note(self, part: int | range) -> None:
        """Note that there was an index that this part of the list names."""
        self._left.discard(part)

    def wants(self, index: int, row: Mapping[str, object]) -> bool:
        """Return whether the row of this index, with these columns, is meant."""
        if self.expression is not None:
            self.note_columns(row)
            return is_true(value_of(self.expression, row))
        is_wanted = index in self._singles
        self._left.discard(index)
        for part in self._ranges:
            if index in part:
                is_wanted = True
                self._left.discard(part)
        return is_wanted

    def check(self, source: str, first: int, last: int) -> None:
        """Check, once every row was asked about, that each index, range and column that it names was there.

        Args:
            source: what the rows are of, in words.
            first: the least index.
            last: the greatest index.

        Raises:
            UserError: some were not.
        """
        if self._missing:
            raise self._no_column(source)
        if self._left:
            names = [_text(part) for part in (*sorted(self._singles), *self._ranges) if part in self._left]
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            raise UserError(
                f"{self._said}: {source} has no row{'s' if len(names) > 1 else ''} {shown}; its indices are {first} to {last}, counted from 0. Correct the list."
            )

    # -- a list of indices ----------------------------------------------------------------------------------------

    def _take_ranges(self, text: str) -> None:
        for part in text.split(","):
            found = _RANGE.fullmatch(part.strip())
            if found is None:
                raise UserError(f"{self._said}: {part.strip()!r} is no index (250) and no range of them (0:100).")
            index, start, stop = found.groups()
            if index is not None:
                self._singles.add(int(index))
            else:
                self._ranges.append(range(int(start or 0), int(stop or 2**62)))

    # -- an expression --------------------------------------------------------------------------------------------

    def _take_expression(self, text: str) -> None:
        try:
            self.expression = ast.parse(text.strip(), mode="eval").body
            self._check_nodes(self.expression)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._not_understood("it is no list of indices (3,7,11 or 0:100), and no whole expression") from None
        if not self._missing:
            raise self._not_understood("it names no column")

    def _check_nodes(self, node: ast.expr, depth: int = 0) -> None:
        """Every part of the expression is one that `value_of` computes; the columns are noted."""
        column = column_of(node)
        if depth > MOST_DEPTH:
            raise self._not_understood("its parts lie too deep in one another")
        if column is not None:
            self._missing.add(column)
        elif type(node) not in _COMPUTED or (isinstance(node, ast.Constant) and not _is_plain(node.value)):
            raise self._not_understood(f"{ast.unparse(node)!r} is not among what can be computed")
        elif not all(isinstance(operator, _OPERATORS) for operator in _operators(node)):
            raise self._not_understood(f"{ast.unparse(node)!r} has an operator that is not among what can be computed")
        else:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    self._check_nodes(part, depth + 1)

    def _not_understood(self, why: str) -> UserError:
        return UserError(
            f"{self._said}: {why}. Give indices (3,7,11), ranges (0:100 is 0 to 99) or a comparison of columns, such as "
            "'style == \"oil\" and seed > 3', with ==, !=, <, <=, >, >=, in, not, and, or, % and parentheses."
        )

    def note_columns(self, row: Mapping[str, object]) -> None:
        """Note which columns there were."""
        if self._missing:
            self._columns |= dict.fromkeys(row)
            self._missing -= {name for name in self._missing if find(row, name) is not None}

    def _no_column(self, source: str) -> UserError:
        name = min(self._missing)
        near = difflib.get_close_matches(name, self._columns, n=1)
        nearest = f" The nearest is {near[0]}." if near else ""
        columns = ", ".join([*self._columns][:SHOWN])
        return UserError(
            f"{self._said}: no row of {source} has a column {name!r}.{nearest} Correct it; there are: {columns}. (A text "
            "stands in quotes.)"
        )


def _text(part: int | range) -> str:
    if isinstance(part, int):
        return str(part)
    return f"{part.start}:{'' if part.stop == 2**62 else part.stop}"


# -- computing ----------------------------------------------------------------------------------------------------


def column_of(node: ast.expr) -> str | None:
    """Return the column that a part of an expression is: `style`, or `row["art style"]`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "row":
        name = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return name if isinstance(name, str) else None
    return None


def value_of(node: ast.expr, row: Mapping[str, object]) -> object:
    """Return what a part of an expression is for a row."""
    column = column_of(node)
    if column is not None:
        name = find(row, column)
        return None if name is None else row[name]
    return _COMPUTED[type(node)](node, row)


def _bool_op(node: ast.BoolOp, row: Mapping[str, object]) -> object:
    parts = (is_true(value_of(part, row)) for part in node.values)
    return all(parts) if isinstance(node.op, ast.And) else any(parts)


def _unary_op(node: ast.UnaryOp, row: Mapping[str, object]) -> object:
    value = value_of(node.operand, row)
    if isinstance(node.op, ast.Not):
        return not is_true(value)
    number = _number(value)
    return None if number is None else -number


def _modulo(node: ast.BinOp, row: Mapping[str, object]) -> object:
    left, right = _number(value_of(node.left, row)), _number(value_of(node.right, row))
    return None if left is None or not right else left % right


def _compare(node: ast.Compare, row: Mapping[str, object]) -> object:
    left = value_of(node.left, row)
    for operator, part in zip(node.ops, node.comparators):
        right = value_of(part, row)
        if not _COMPARED[type(operator)](left, right):
            return False
        left = right
    return True


def _list(node: ast.List | ast.Tuple, row: Mapping[str, object]) -> object:
    return [value_of(part, row) for part in node.elts]


def _equal(left: object, right: object) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    if isinstance(left, bool) or isinstance(right, bool):
        return left is not None and right is not None and is_true(left) == is_true(right)
    numbers = _number(left), _number(right)
    return left == right if None in numbers else numbers[0] == numbers[1]


def _less(left: object, right: object) -> bool:
    one, other = _number(left), _number(right)
    if one is not None and other is not None:
        return one < other
    return isinstance(left, str) and isinstance(right, str) and left < right


def _among(left: object, right: object) -> bool:
    if isinstance(right, str):
        return isinstance(left, str) and left in right
    return isinstance(right, list | tuple) and any(_equal(left, item) for item in right)


def _number(value: object) -> float | None:
    """What a cell is as a number, if it is one: CSV has texts only."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
        with suppress(ValueError):
            found = float(value)
            return found if math.isfinite(found) else None
    return None


def is_true(value: object) -> bool:
    """Return whether a value that stands for itself says yes."""
    return value.strip().lower() not in _NOT_TRUE if isinstance(value, str) else bool(value)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _operators(node: ast.expr) -> list[ast.AST]:
    if isinstance(node, ast.Compare):
        return [*node.ops]
    return [node.op] if isinstance(node, ast.BoolOp | ast.UnaryOp | ast.BinOp) else []


_Compute = Callable[..., object]
_COMPUTED: dict[type[ast.expr], _Compute] = {
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary_op,
    ast.BinOp: _modulo,
    ast.Compare: _compare,
    ast.List: _list,
    ast.Tuple: _list,
    ast.Constant: lambda node, _: node.value,
}
"""All that may stand in an expression, but for columns."""
_COMPARED: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda left, right: not _equal(left, right),
    ast.Is: _equal,
    ast.IsNot: lambda left, right: not _equal(left, right),
    ast.Lt: _less,
    ast.Gt: lambda left, right: _less(right, left),
    ast.LtE: lambda left, right: _less(left, right) or (left is not None and _equal(left, right)),
    ast.GtE: lambda left, right: _less(right, left) or (left is not None and _equal(left, right)),
    ast.In: _among,
    ast.NotIn: lambda left, right: not _among(left, right),
}
_OPERATORS = (*_COMPARED, ast.And, ast.Or, ast.Not, ast.USub, ast.Mod)
