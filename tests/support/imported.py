"""dglaunch, which must not import certain packages for a command: python -m support.imported torch,PIL verify OUT ...

`import MODULE` in the place of a command only imports a module.
"""

import importlib
import sys

from support.exit_codes import exit_code


def import_only(arguments: list[str]) -> int:
    for name in arguments:
        importlib.import_module(name)
    return 0


if __name__ == "__main__":
    packages, command, *arguments = sys.argv[1:]
    if command == "import":
        code = import_only(arguments)
    else:
        from dglaunch.cli.main import main

        code = exit_code(main, [command, *arguments])
    unwanted = set(packages.split(",")) & sys.modules.keys()
    sys.exit(f"imported: {unwanted}" if unwanted else code)
