"""The backends by name. A module is imported only when its backend is chosen.

register("echo", "my_package.echo:EchoBackend")         # then: T2IConfig(backend=BackendConfig(backend="echo"), ...)
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dglaunch.backends.base import Backend, Context
from dglaunch.errors import UserError
from dglaunch.search_path import with_current_folder


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a backend's two parts are, each as `module:Class`."""

    backend: str
    """A class, or a function that makes a backend; it is called with a base.Context."""
    profile: str
    """What it says of itself without torch (profiles.py)."""


BACKENDS: dict[str, Entry] = {
    "diffusers": Entry(
        "dglaunch.backends.diffusers.backend:DiffusersBackend", "dglaunch.backends.diffusers.profile:DiffusersProfile"
    ),
    "xdit": Entry("dglaunch.backends.xdit.backend:xdit_backend", "dglaunch.backends.xdit.profile:XDiTProfile"),
    "openai": Entry("dglaunch.backends.api.openai:OpenAIBackend", "dglaunch.backends.api.profile:ApiProfile"),
    "google_genai": Entry("dglaunch.backends.api.google:GoogleBackend", "dglaunch.backends.api.profile:ApiProfile"),
    "fake": Entry("dglaunch.backends.fake:FakeBackend", "dglaunch.backends.profiles:FakeProfile"),
}


def register(name: str, backend: str, profile: str = "dglaunch.backends.profiles:Profile") -> None:
    """Make a backend of your own known by a name.

    Args:
        name: what `BackendConfig.backend` calls it.
        backend: `module:Class` of the backend (base.Backend says what it must do).
        profile: `module:Class` of its profile. Default: one that has no checkpoint and checks nothing.
    """
    BACKENDS[name] = Entry(backend, profile)


def backend_factory(name: str) -> Callable[[Context], Backend]:
    """Return the class of a backend, or the function that makes one; its module is imported only now.

    Raises:
        UserError: no backend has this name.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.0)[0]
        raise UserError(f"There is no backend {name!r}. The nearest: {near}; all: {', '.join(BACKENDS)}.")
    found: Callable[[Context], Backend] = imported(BACKENDS[name].backend)
    return found


def imported(name: str) -> Any:
    """Return what `module:attribute` names. A module of the user's may also lie in the current folder, which is looked in
    last: nothing there takes the place of what is installed."""
    module, _, attribute = name.partition(":")
    if module.split(".")[0] == "dglaunch":
        return getattr(importlib.import_module(module), attribute)
    with with_current_folder():
        return getattr(importlib.import_module(module), attribute)


def create(context: Context) -> Backend:
    """Return the backend that --backend names, not loaded yet."""
    return backend_factory(context.config.backend.backend)(context)
