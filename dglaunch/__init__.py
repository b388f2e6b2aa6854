"""dglaunch: a torchrun-native launcher for offline batch inference with diffusion transformers.

    from dglaunch import BackendConfig, T2IConfig, t2i

    result = t2i(T2IConfig(backend=BackendConfig(model_name="tiny"), prompts=["a red fox"], output_dir="out"))
    result.rows, result.paths, result.images(), result.failures

`edit(EditingConfig(...))` edits the images of a table, `images(config)` iterates over the images of either as they are
finished. The same script runs on one rank or under torchrun.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dglaunch.config import (
        BackendConfig,
        EditingConfig,
        OptimizationConfig,
        ParallelConfig,
        RemoteConfig,
        RunConfig,
        T2IConfig,
    )
    from dglaunch.run.python_api import edit, images, t2i
    from dglaunch.run.result import RunResult

__all__ = [
    "BackendConfig",
    "EditingConfig",
    "OptimizationConfig",
    "ParallelConfig",
    "RemoteConfig",
    "RunConfig",
    "RunResult",
    "T2IConfig",
    "edit",
    "images",
    "t2i",
]

_HOMES = {"t2i": "run.python_api", "edit": "run.python_api", "images": "run.python_api", "RunResult": "run.result"}
"""Where a name comes from, if not from config. Nothing is imported before it is asked for: `dglaunch --help` stays quick."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'dglaunch' has no attribute {name!r}")
    module = importlib.import_module(f"dglaunch.{_HOMES.get(name, 'config')}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
