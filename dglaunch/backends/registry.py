"""The table of backends by name."""

import importlib
from typing import TYPE_CHECKING, Any

from dglaunch.config import RunConfig

if TYPE_CHECKING:
    pass
from dglaunch.backends.base import Backend, Context

BACKENDS = {
    "diffusers": "dglaunch.backends.diffusers.backend:DiffusersBackend",
    "xdit": "dglaunch.backends.xdit.backend:XDiTBackend",
    "openai": "dglaunch.backends.api.openai:OpenAIBackend",
    "google_genai": "dglaunch.backends.api.google:GoogleBackend",
    "fake": "dglaunch.backends.fake:FakeBackend",
}


def engine(config: RunConfig) -> Any:
    """The class that --backend names; its module is imported only now."""
    module, _, name = BACKENDS[config.backend.backend].partition(":")
    return getattr(importlib.import_module(module), name)


def create(context: Context) -> Backend:
    return engine(context.config)(context)
