"""What is known of this machine and its Python without loading a model: memory, versions, installed packages."""

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dglaunch.errors import MissingPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the estimate needs to know of a rank's device."""

    name: str
    memory: int | None
    """Bytes of the GPU, or of this rank's part of the host; None if unknown (a plan for another machine)."""
    dtype: str


def host_memory() -> int:
    """Bytes of this machine, not of its GPUs."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def need(package: str, purpose: str, install: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(package, purpose, install)


PACKAGES = (
    "dglaunch",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "xfuser",
    "openai",
    "google-genai",
    "pillow",
)


def versions() -> dict[str, str]:
    """Of Python and the packages that shape the images; cheap, nothing is imported."""
    found = {"python": platform.python_version(), "host": platform.node()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
