"""Python that is read and not run."""

import ast

import pytest

from dglaunch import python_source


def test_what_another_thread_upset_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it happened in a run of all tests: `SystemError: AST constructor recursion depth mismatch (before=183, after=203)`."""
    upset = [SystemError("AST constructor recursion depth mismatch (before=183, after=203)")]
    parse = ast.parse

    def once_upset(source: str) -> ast.Module:
        if upset:
            raise upset.pop()
        return parse(source)

    monkeypatch.setattr(ast, "parse", once_upset)
    assert isinstance(python_source.parse("class A: pass").body[0], ast.ClassDef)
    with pytest.raises(SyntaxError):
        python_source.parse("class")
