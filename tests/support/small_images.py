"""Makes Qwen and LongCat editing work on small images: in this process (conftest.py) and in those that tests start.

Their pipelines rescale every input image to about 1024 x 1024 with a module-level `calculate_dimensions`, and no
argument or config changes that. On a CPU this costs 3 s an image, and 4096 image tokens drown the few text tokens of a
tiny random model, so that the instruction no longer changes the result. Here the area becomes 1/64 of that: 128 x 128.
What is simulated at its true size needs none of that.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

PATCHED = {
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit",
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_inpaint",
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus",
    "diffusers.pipelines.longcat_image.pipeline_longcat_image_edit",
}


SHRINK = 64
"""By how much the area is divided. The fixture `published_size` says 1."""


class SmallImages(MetaPathFinder):
    """Patches the modules as they are imported: importing diffusers here would slow every Python process down."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in PATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        exec_module = spec.loader.exec_module

        def exec_and_patch(module: ModuleType) -> None:
            exec_module(module)
            names = vars(module)
            original = names["calculate_dimensions"]
            names["calculate_dimensions"] = lambda target_area, ratio: original(target_area / SHRINK, ratio)

        spec.loader.exec_module = exec_and_patch
        return spec


def install() -> None:
    """To be called before one of the modules is imported."""
    if not any(isinstance(finder, SmallImages) for finder in sys.meta_path):
        sys.meta_path.insert(0, SmallImages())
