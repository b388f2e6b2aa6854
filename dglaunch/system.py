"""This machine and its Python, as far as they are known without loading a model: memory, versions, packages, addresses."""

import importlib.util
import os
import platform
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from dglaunch.errors import MissingPackage, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A rank's device, as far as the planning needs to know it."""

    name: str
    memory: int | None
    """Bytes of the GPU, or of this rank's part of the host; None if unknown (a plan for another machine)."""
    dtype: str
    capability: tuple[int, int] | None = None
    """Compute capability of the GPU; None on a CPU, or if it is not known."""


def host_memory() -> int:
    """Return the bytes of this machine's memory, not of its GPUs'."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def need(package: str, purpose: str, install: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        MissingPackage: it is not; the message is made of its purpose and the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(package, purpose, install)


def release_of(version_text: str) -> tuple[int, ...]:
    """Return the first three numbers of a version, to be compared: of 2.13.0+cu130 (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version_text.split("+")[0])[:3])


def need_version(package: str, oldest: str, purpose: str) -> None:
    """Check that an installed package is new enough, without importing it.

    Raises:
        UserError: it is older; the message is made of its purpose.
    """
    here = version(package)
    if release_of(here) < release_of(oldest):
        raise UserError(
            f"{purpose} needs {package} {oldest} or newer, and here is {here}. Update it: pip install -U '{package}>={oldest}'"
        )


def torchrun_command(num_ranks: int, *words: str) -> list[str]:
    """Return the command line that starts `python WORDS` on so many ranks of this machine. torchrun itself imports nothing
    from the current folder (-P)."""
    return [sys.executable, "-P", "-m", "torch.distributed.run", *torchrun_options(num_ranks), *words]


def torchrun_options(num_ranks: int) -> list[str]:
    """Return how torchrun is told to start so many ranks on this machine."""
    return ["--standalone", "--nproc_per_node", str(num_ranks)]


def addresses_of_host() -> list[str]:
    """Return the addresses of this machine's own name, which gloo and torchrun's rendezvous look up.

    Raises:
        OSError: the name does not resolve.
    """
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)})


def are_loopback(addresses: Iterable[str]) -> bool:
    """Return whether all of them lead back to this machine, where no other one can reach it."""
    return all(address.startswith("127.") or address == "::1" for address in addresses)


PACKAGES = (
    "dglaunch",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "xfuser",
    "peft",
    "openai",
    "google-genai",
    "pillow",
)


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and the packages that shape the images. Nothing is imported."""
    found = {"python": platform.python_version(), "host": platform.node()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
