"""How a program ends, seen from inside of its process. Imports nothing: `support.imported` looks at what was imported."""

import traceback
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], int]


def exit_code(main: Main, words: list[str]) -> int:
    """What the interpreter would make of how `main` ends."""
    try:
        return main(words)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except Exception:
        traceback.print_exc()
        return 1
