"""Scripts of the documentation in a process that `support.ranks` forks: `support.scripts:run FOLDER NAME`.

They are run there as `python NAME` would run them. What they print goes to FOLDER/NAME.said.RANK, without what dglaunch
says of its progress.
"""

import contextlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from support.exit_codes import exit_code


def run(folder: str, name: str) -> int:
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = [name]
    said = Path(f"{name}.said.{os.environ.get('RANK', 0)}")
    with said.open("w") as file, contextlib.redirect_stdout(file):
        return exit_code(_as_main, [name])


def _as_main(words: Sequence[str]) -> int:
    runpy.run_path(words[0], run_name="__main__")
    return 0
