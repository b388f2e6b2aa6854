"""--filter_rows on columns: the grammar is row_filter.py's, and so is what each part of an expression means.

A part that names one column is computed once for each value that differs there; `and`, `or` and `not` are then of whole
columns.
"""

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dglaunch.data.columns import find
from dglaunch.data.row_filter import RowFilter, column_of, is_true, value_of

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class FilteredColumns:
    """A filter, asked about a batch of rows."""

    def __init__(self, filter: RowFilter, told: Mapping[str, pa.Array | object]) -> None:
        """
        Args:
            told: what an expression may name: a column, or a value that all rows have.
        """
        self._filter = filter
        self._told = told
        self._seen: list[int | range] = []

    def mask(self, index: Any) -> Mask:
        """Return which of the rows are meant."""
        if self._filter.expression is not None:
            return self._of(self._filter.expression, len(index))
        singles, ranges = self._filter.indices
        found = np.isin(index, np.fromiter(singles, np.int64, len(singles)))
        self._seen = index[found].tolist()
        for part in ranges:
            inside = (index >= part.start) & (index < part.stop)
            found |= inside
            self._seen += [part] if inside.any() else []
        return np.asarray(found, bool)

    def noted(self) -> None:
        """Tell the filter what of what it names was there."""
        if self._filter.expression is not None:
            self._filter.note_columns(self._told)
        for part in self._seen:
            self._filter.note(part)

    def _of(self, node: ast.expr, count: int) -> Mask:
        if isinstance(node, ast.BoolOp):
            parts = [self._of(part, count) for part in node.values]
            both = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(both.reduce(parts), bool)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._of(node.operand, count)
        return self._of_part(node, count)

    def _of_part(self, node: ast.expr, count: int) -> Mask:
        """A part that is no `and`, `or` or `not`, for each row."""
        wanted = {
            name for part in ast.walk(node) if isinstance(part, ast.expr) and (name := column_of(part)) is not None
        }
        found = {name: self._told[called] for name in wanted if (called := find(self._told, name)) is not None}
        columns = {name: column for name, column in found.items() if isinstance(column, pa.Array)}
        fixed = {name: value for name, value in found.items() if name not in columns}
        if not columns:
            return np.full(count, is_true(value_of(node, fixed)))
        if len(columns) > 1 or any(pa.types.is_nested(column.type) for column in columns.values()):
            rows = zip(*(column.to_pylist() for column in columns.values()))
            return np.array([is_true(value_of(node, {**fixed, **dict(zip(columns, row))})) for row in rows], bool)
        [(name, column)] = columns.items()
        if (text := _looked_for(node)) is not None and pa.types.is_string(column.type):
            found = pc.fill_null(pc.match_substring(column, text), False)
            return np.asarray(found.to_numpy(zero_copy_only=False), bool)
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        answers = np.array(
            [is_true(value_of(node, {**fixed, name: value})) for value in encoded.dictionary.to_pylist()], bool
        )
        return np.asarray(answers[encoded.indices.to_numpy()], bool)


def _looked_for(node: ast.expr) -> str | None:
    """The text of `"cat" in prompt`."""
    if (
        isinstance(node, ast.Compare)
        and len(node.ops) == 1
        and isinstance(node.ops[0], ast.In)
        and column_of(node.comparators[0])
    ):
        left = node.left
        return left.value if isinstance(left, ast.Constant) and isinstance(left.value, str) else None
    return None
