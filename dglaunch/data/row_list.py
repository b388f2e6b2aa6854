"""Rows that Python hands in as a list, in the place of a table: texts, or dictionaries with a table's columns."""

from collections.abc import Iterator, Mapping, Sequence

from dglaunch.data.table_formats import Row


def rows_of_list(given: Sequence[object]) -> Iterator[Row]:
    """Yield each as a row of a table, or what is wrong with it."""
    for number, item in enumerate(given):
        yield f"item {number}", _row(item)


def _row(item: object) -> dict[str, object] | str:
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, Mapping):
        return f"is {item!r:.40}; a text or a dictionary of columns is needed"
    if odd := [column for column in item if not isinstance(column, str)]:
        return f"has a column {odd[0]!r}, whose name is no text"
    return dict(item)
