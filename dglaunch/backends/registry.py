"""The table of backends by name. A backend of your own is registered the same way, and found by `module:Class`:

registry.register("gray", "my_package.gray:Gray")
backend = registry.create(context)      # context.config.backend.backend == "gray"
"""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from dglaunch.backends.base import Backend, Context
from dglaunch.config import RunConfig
from dglaunch.errors import UserError

BackendFactory = Callable[[Context], Backend]
"""A class of backends, or a function that makes one."""

BACKENDS = {
    "diffusers": "dglaunch.backends.diffusers.backend:DiffusersBackend",
    "xdit": "dglaunch.backends.xdit.backend:xdit_backend",
    "openai": "dglaunch.backends.api.openai:OpenAIBackend",
    "google_genai": "dglaunch.backends.api.google:GoogleBackend",
    "fake": "dglaunch.backends.fake:FakeBackend",
}
"""Name -> `module:Class`, or `module:function`. A module is imported only when its backend is used."""


def register(name: str, target: str) -> None:
    """Register a backend, or replace the one of that name.

    Args:
        target: `module:Class`; the class is called with a `base.Context`.
    """
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise UserError(f"The backend {name} is registered as {target!r}; give it as module:Class.")
    BACKENDS[name] = target


def find(name: str) -> BackendFactory:
    """Find the class behind a name, and import its module.

    Raises:
        UserError: no backend has this name.
    """
    if name not in BACKENDS:
        nearest = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.0)[0]
        raise UserError(f"There is no backend {name}. The nearest: {nearest}; all: {', '.join(BACKENDS)}.")
    module, _, attribute = BACKENDS[name].partition(":")
    factory: BackendFactory = getattr(importlib.import_module(module), attribute)
    return factory


def create(context: Context) -> Backend:
    """Make the backend that `--backend` names."""
    return find(context.config.backend.backend)(context)


def engine(config: RunConfig) -> Any:
    """The class that --backend names, for what it says of itself without a connection."""
    return find(config.backend.backend)
