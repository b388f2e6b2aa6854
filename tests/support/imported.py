"""dglaunch, which must not import certain packages for a command: python -m support.imported torch,PIL verify OUT ..."""

import sys

from dglaunch.__main__ import main

if __name__ == "__main__":
    packages, *arguments = sys.argv[1:]
    try:
        code = main(arguments)
    except SystemExit as left:  # --help
        code = int(left.code or 0)
    unwanted = set(packages.split(",")) & sys.modules.keys()
    sys.exit(f"imported: {unwanted}" if unwanted else code)
