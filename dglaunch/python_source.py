"""Python source that is read and not run: what the call of a pipeline takes, the texts under the fields of a class."""

import ast
from contextlib import suppress


def parse(source: bytes | str) -> ast.Module:
    """Return the syntax tree of a module.

    CPython 3.11 keeps the depth of the tree that it makes for all threads together, and now and then raises SystemError where a
    second thread makes one at the same time (python/cpython#106905 is one of the reports): then it is made again.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    with suppress(SystemError):
        return ast.parse(source)
    return ast.parse(source)
