"""dglaunch where torch and the libraries of the models cannot be imported: python -m support.without_torch t2i ..."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

BLOCKED = ("torch", "diffusers", "transformers", "accelerate", "xfuser")


class Blocked(MetaPathFinder):
    """Finds none of them, as if they were not installed or broken."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname.split(".")[0] in BLOCKED:
            raise ImportError(f"{fullname} is blocked")
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    from dglaunch.cli.main import main

    sys.exit(main(sys.argv[1:]))
