"""tests/README.md names a test for each silent fault of the libraries: they are there."""

import ast
import re

from support.commands import TESTS

ROW = re.compile(r"^\| (.+) \| `([\w/]+\.py)::(\w+)` \|$", re.MULTILINE)


def test_each_fault_has_a_test_that_exists() -> None:
    text = (TESTS / "README.md").read_text(encoding="utf-8").partition("## What the libraries do wrong")[2]
    rows = ROW.findall(text)
    assert len(rows) > 30 and len(rows) == text.count("\n| ") - 1, "a row has another form"
    for fault, file, name in rows:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{fault}: {file}::{name}"
        )
