"""The matrix of families and features in docs/models.md: each cell says what was measured, or why it is refused."""

import json

from dglaunch.models.families import FAMILIES
from support.matrix import COLUMNS, MATRIX


def test_no_cell_is_empty() -> None:
    cells = json.loads(MATRIX.read_text())["families"]
    names = {family.name for family in FAMILIES.values()}
    assert cells.keys() == names
    assert not {(name, column) for name in names for column in COLUMNS if not cells[name].get(column)}
    for name, column in ((name, column) for name in names for column in COLUMNS):
        said = cells[name][column]
        assert said.startswith("no: ") or float(said) <= 0.01, f"{name}, {column}: {said}"
