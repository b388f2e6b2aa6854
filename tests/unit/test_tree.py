"""The tree: what import-linter (make lint) does not ask."""

from pathlib import Path

import dglaunch

PACKAGE = Path(dglaunch.__file__).parent


def test_packages_import_nothing_of_themselves() -> None:
    """So that one module of a package can be imported without the others, and without what they need."""
    inits = {path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE}
    assert len(inits) >= 12 and [path for path in inits if path.read_text(encoding="utf-8")] == []


def test_types_ship() -> None:
    assert (PACKAGE / "py.typed").exists()
