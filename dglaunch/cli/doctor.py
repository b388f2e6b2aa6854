"""`dglaunch doctor`: what is installed here, whether it is fine, and what to do where it is not.

A package that crashes or hangs as it is imported becomes a line of the table; `doctor` itself needs none of them.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from dglaunch.cli.probes import PACKAGES, TORCH, Package, Probed, TorchFound, is_installed, probe
from dglaunch.environment import check_variables, environment
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, UserError
from dglaunch.files import at_home
from dglaunch.system import addresses_of_host, are_loopback, release_of
from dglaunch.terminal import Terminal

LITTLE_DISK = 20 * 2**30
LITTLE_SHARED_MEMORY = 2**30
OK, NOTE, WARNING, WRONG = "ok", "-", "look", "WRONG"
STYLES = {OK: "green", NOTE: "dim", WARNING: "yellow", WRONG: "bold red"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. Only a WRONG one keeps `t2i` from running."""

    name: str
    value: str
    state: str = OK
    remedy: str = ""


def doctor() -> int:
    """Look at this machine: Python, torch, GPUs, packages, disk, Slurm, network; what is wrong comes with its remedy.

    Exit code 0: t2i can run here; 1: something that it needs is missing or broken.
    """
    terminal = Terminal(soft_wrap=False)
    found = lines(environment())
    table = Table(Column(no_wrap=True), "found", "", "what to do")
    for line in found:
        state = Text(line.state, STYLES[line.state])
        table.add_row(line.name, line.value, state, line.remedy)
    terminal.print(table)
    wrong = [line.name for line in found if line.state == WRONG]
    terminal.print(f"t2i cannot run here: {', '.join(wrong)}." if wrong else "t2i can run here.")
    return EXIT_BROKEN if wrong else EXIT_DONE


def lines(environ: Mapping[str, str]) -> list[Line]:
    """Return everything, in the order of the table."""
    probed = _probe_all()
    torch_is_fine = "torch" in probed and not probed["torch"].error
    return [
        python_line(),
        *torch_lines(probed.get("torch"), nvidia_smi()),
        *(package_line(package, probed.get(package.name), torch_is_fine) for package in PACKAGES),
        *disk_lines(environ),
        shared_memory_line(),
        slurm_line(environ),
        host_line(),
        variables_line(environ),
    ]


def _probe_all() -> dict[str, Probed]:
    """The installed packages by name; those that import torch share one process, the others another."""
    with_torch = {"torch": TORCH} if is_installed("torch") else {}
    without_torch: dict[str, str] = {}
    for package in PACKAGES:
        if is_installed(package.module):
            group = with_torch if package.torch else without_torch
            group[package.name] = package.imports
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(probe, (with_torch, without_torch))
    return first | second


# -- Python and packages ------------------------------------------------------------------------------------------


def python_line() -> Line:
    return Line("Python", f"{platform.python_version()} ({sys.executable})")


def package_line(package: Package, probed: Probed | None, torch_is_fine: bool = True) -> Line:
    """Return the line of one package: its version if it can be imported."""
    bad = WRONG if package.needed else WARNING
    if probed is None:
        remedy = package.install + (f" (for {package.purpose})" if package.purpose else "")
        return Line(package.name, "not installed", WRONG if package.needed else NOTE, remedy)
    number, least = _version(package.name), _least(package.name)
    if probed.error:
        remedy = f"make it fit this torch and Python: {package.install}"
        if package.torch and not torch_is_fine:
            remedy = "mend torch first"
        elif not package.needed:
            remedy += f"; or remove it (only for {package.purpose})"
        return Line(package.name, f"{number}, does not import: {probed.error}", bad, remedy)
    if least is not None and release_of(number) < release_of(least):
        return Line(package.name, number, bad, f"pip install '{package.name}>={least}'")
    return Line(package.name, number)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown version"


def _least(name: str) -> str | None:
    """The oldest version that dglaunch's metadata ask for."""
    try:
        requirements = requires("dglaunch") or []
    except PackageNotFoundError:
        return None
    found = (re.match(rf"{re.escape(name)}\s*\(?[^;]*>=\s*([\d.]+)", text) for text in requirements)
    return next((match[1] for match in found if match), None)


# -- torch and GPUs -----------------------------------------------------------------------------------------------


def torch_lines(probed: Probed | None, driver: Sequence[str] | None) -> list[Line]:
    """Return the lines of torch, CUDA, NCCL and each GPU; `driver` are the GPUs that nvidia-smi sees."""
    if probed is None:
        return [Line("torch", "not installed", WRONG, "pip install torch"), _driver_line(driver)]
    found = probed.found
    if probed.error or found is None:
        remedy = "reinstall it: pip install --force-reinstall torch (the build for this machine: pytorch.org)"
        return [Line("torch", f"does not import: {probed.error}", WRONG, remedy), _driver_line(driver)]
    lines_of_gpus = [_gpu_line(number, *gpu) for number, gpu in enumerate(found["gpus"])]
    nccl = [_nccl_line(found)] if found["gpus"] else []
    return [_torch_line(found), _cuda_line(found, driver), *nccl, *lines_of_gpus]


def _nccl_line(found: TorchFound) -> Line:
    if found["nccl"]:
        return Line("NCCL", found["nccl"])
    return Line("NCCL", "none", WARNING, "several GPUs need a torch built with NCCL")


def _gpu_line(number: int, name: str, total: int, free: int, capability: str) -> Line:
    value = f"{name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free, capability {capability}"
    if free < 0.9 * total:
        return Line(f"GPU {number}", value, WARNING, "another process holds memory of it (nvidia-smi)")
    return Line(f"GPU {number}", value)


def _torch_line(found: TorchFound) -> Line:
    least = _least("torch") or "2.8"
    if release_of(found["version"]) < release_of(least):
        return Line("torch", found["version"], WRONG, f"pip install 'torch>={least}'")
    if not found["gloo"]:
        return Line("torch", f"{found['version']}, without gloo", WARNING, "torchrun needs a torch built with gloo")
    return Line("torch", found["version"])


def _cuda_line(found: TorchFound, driver: Sequence[str] | None) -> Line:
    built = found["cuda"] or found["hip"]
    if found["available"]:
        return Line("CUDA", f"{built}, {len(found['gpus'])} GPUs")
    if not driver:
        return Line("CUDA", "no GPU here", NOTE, "runs on the CPU: right for trying out, slow for real models")
    seen = f"nvidia-smi sees {len(driver)} ({driver[0]}), torch none"
    if built is None:
        remedy = "this torch is built for CPUs; install the CUDA build (pytorch.org, 'Get started')"
    else:
        remedy = f"the driver may be too old for CUDA {built}, or CUDA_VISIBLE_DEVICES hides them"
    return Line("CUDA", seen, WARNING, remedy)


def _driver_line(driver: Sequence[str] | None) -> Line:
    return Line("CUDA", f"nvidia-smi sees {', '.join(driver)}") if driver else Line("CUDA", "no GPU here", NOTE)


def nvidia_smi() -> list[str] | None:
    """Return the GPUs' names as the driver has them, without torch."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def _output(*words: str) -> list[str] | None:
    """The lines that a command prints, or None if it is missing or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=30, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line.strip() for line in ended.stdout.splitlines() if line.strip()] if ended.returncode == 0 else None


# -- the machine --------------------------------------------------------------------------------------------------


def disk_lines(environ: Mapping[str, str]) -> list[Line]:
    """Return how much room there is where results, downloads and dglaunch's embedded checkpoint go."""
    hub = Path(environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    folders = {
        "disk, this folder": Path.cwd(),
        "disk, hub cache": Path(environ.get("HF_HUB_CACHE", hub)),
        "disk, --cache_dir": Path(environ.get("DG_CACHE_DIR", "~/.cache/dglaunch")),
    }
    return [_disk_line(name, path) for name, path in folders.items()]


def _disk_line(name: str, folder: Path) -> Line:
    try:
        path = at_home(folder)
    except UserError:
        return Line(name, f"no home folder for {folder}", WARNING, "set HOME: this user is unknown to the system")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    value = f"{free / 2**30:.0f} GiB free at {path}"
    if not os.access(existing, os.W_OK):
        return Line(name, f"{path} cannot be written", WARNING, "correct its permissions, or name another folder")
    if free < LITTLE_DISK:
        return Line(name, value, WARNING, "FLUX.1-dev alone takes 34 GB; make room or name another folder")
    return Line(name, value)


def shared_memory_line() -> Line:
    """Return the size of /dev/shm, through which NCCL talks inside of a machine; Docker gives it 64 MiB."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Line("shared memory", "no /dev/shm", WARNING, "NCCL between GPUs of a machine needs it")
    total = shutil.disk_usage(path).total
    value = f"{total / 2**30:.1f} GiB"
    if total < LITTLE_SHARED_MEMORY:
        return Line("shared memory", value, WARNING, "too little for NCCL; docker run --shm-size 8g (or --ipc host)")
    return Line("shared memory", value)


def slurm_line(environ: Mapping[str, str]) -> Line:
    found = _output("sbatch", "--version")
    if found is None:
        return Line("Slurm", "not here", NOTE, "only for sbatch jobs")
    job = environ.get("SLURM_JOB_ID")
    return Line("Slurm", f"{' '.join(found)}" + (f", inside job {job}" if job else ""))


def host_line() -> Line:
    """Return what this machine's name leads to: gloo and torchrun's rendezvous look it up."""
    name = socket.gethostname()
    try:
        addresses = addresses_of_host()
    except OSError as error:
        remedy = f"add '127.0.0.1 {name}' to /etc/hosts (one machine), or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        return Line("host name", f"{name} does not resolve: {error.strerror or error}", WARNING, remedy)
    value = f"{name} is {', '.join(addresses)}"
    if are_loopback(addresses):
        return Line(
            "host name", value, NOTE, "fine on one machine; for several set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
    return Line("host name", value)


def variables_line(environ: Mapping[str, str]) -> Line:
    """Return the DG_* variables that are set: a misspelt one stops every run."""
    given = sorted(name for name in environ if name.startswith("DG_"))
    try:
        check_variables(environ)
    except UserError as error:
        return Line("DG_* variables", ", ".join(given), WRONG, str(error))
    return Line("DG_* variables", ", ".join(given) or "none", OK if given else NOTE)
