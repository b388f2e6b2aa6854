"""What is installed here, whether it is fine, and what to do where it is not.

    dglaunch doctor

Packages are imported in other processes: one that crashes, hangs or floods the terminal as it is imported becomes a line
of the table, and `doctor` itself needs none of them. Exit code 0: `t2i` can run here.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dglaunch.environment import check_variables, environment
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, UserError

IMPORT_S = 180
"""A cold import of torch from a network file system takes a minute."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Something to import."""

    name: str
    module: str
    imports: str
    torch: bool = False
    """It imports torch: such packages share a process, so that torch is loaded once."""
    needed: bool = False
    install: str
    purpose: str = ""


PACKAGES = (
    Package(name="diffusers", module="diffusers", imports="from diffusers import DiffusionPipeline", torch=True, needed=True, install="pip install diffusers"),
    Package(name="transformers", module="transformers", imports="from transformers import T5EncoderModel", torch=True, needed=True, install="pip install transformers"),
    Package(name="accelerate", module="accelerate", imports="import accelerate", torch=True, needed=True, install="pip install accelerate"),
    Package(name="safetensors", module="safetensors", imports="import safetensors", needed=True, install="pip install safetensors"),
    Package(name="sentencepiece", module="sentencepiece", imports="import sentencepiece", install="pip install sentencepiece", purpose="T5 tokenizers without a tokenizer.json"),
    Package(name="pillow", module="PIL", imports="import PIL.Image", needed=True, install="pip install pillow"),
    Package(name="numpy", module="numpy", imports="import numpy", needed=True, install="pip install numpy"),
    Package(name="jinja2", module="jinja2", imports="import jinja2", install="pip install jinja2", purpose="dglaunch gallery"),
    Package(name="xfuser", module="xfuser", imports="from dglaunch.backends.xdit.cpu import import_xfuser; import_xfuser()", torch=True, install="pip install 'dglaunch[xdit]'", purpose="--backend xdit"),
    Package(name="flash-attn", module="flash_attn", imports="import flash_attn", torch=True, install="pip install flash-attn --no-build-isolation", purpose="--attention_backend flash, xfuser's FLASH"),
    Package(name="sageattention", module="sageattention", imports="import sageattention", torch=True, install="pip install sageattention", purpose="--attention_backend sage"),
    Package(name="xformers", module="xformers", imports="import xformers.ops", torch=True, install="pip install xformers", purpose="--attention_backend xformers"),
    Package(name="torchao", module="torchao", imports="import torchao", torch=True, install="pip install 'dglaunch[quant]'", purpose="--quantization int8 and fp8"),
    Package(name="bitsandbytes", module="bitsandbytes", imports="import bitsandbytes", torch=True, install="pip install 'dglaunch[quant]'", purpose="--quantization nf4"),
    Package(name="cache-dit", module="cache_dit", imports="import cache_dit", torch=True, install="pip install 'dglaunch[cache]'", purpose="--cache_type cache_dit"),
    Package(name="torchvision", module="torchvision", imports="import torchvision", torch=True, install="pip install torchvision (from the same index as torch)", purpose="Qwen-Image-Edit checkpoints"),
    Package(name="pyarrow", module="pyarrow", imports="import pyarrow.parquet", install="pip install 'dglaunch[parquet]'", purpose="Parquet tables"),
    Package(name="openai", module="openai", imports="import openai", install="pip install 'dglaunch[api]'", purpose="--backend openai"),
    Package(name="google-genai", module="google.genai", imports="import google.genai", install="pip install 'dglaunch[api]'", purpose="--backend google_genai"),
)  # fmt: skip
TORCH = """
import torch, torch.distributed as dist
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "available": torch.cuda.is_available()}
found["gloo"] = dist.is_available() and dist.is_gloo_available()
found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_available() and dist.is_nccl_available() else None
found["gpus"] = []
for number in range(torch.cuda.device_count()):
    it = torch.cuda.get_device_properties(number)
    free = torch.cuda.mem_get_info(number)[0] if found["available"] else 0
    found["gpus"].append([it.name, it.total_memory, free, f"{it.major}.{it.minor}"])
"""
PROBE = """
import json, sys
for name, code in json.loads(sys.argv[1]).items():
    inside, error = {}, ""
    try:
        exec(code, inside)
    except BaseException as wrong:
        error = f"{type(wrong).__name__}: {wrong}"
    print("DOCTOR" + json.dumps([name, inside.get("found"), error]), flush=True)
"""
"""Runs pieces of code one after the other and tells of each as it ends."""


def doctor() -> int:
    """Look at this machine: Python, torch, GPUs, packages, disk, Slurm, network; what is wrong comes with its remedy.

    Exit code 0: t2i can run here; 1: something that it needs is missing or broken.
    """
    console = Console(soft_wrap=False, highlight=False)
    found = lines(environment())
    table = Table("", "found", "", "what to do")
    for line in found:
        state = Text(line.state, STYLES[line.state])
        table.add_row(Text(line.name, no_wrap=True), Text(line.value), state, Text(line.remedy))
    console.print(table)
    wrong = [line.name for line in found if line.state == WRONG]
    console.print(f"t2i cannot run here: {', '.join(wrong)}." if wrong else "t2i can run here.")
    return EXIT_BROKEN if wrong else EXIT_DONE


def lines(environ: Mapping[str, str]) -> list[Line]:
    """Everything, in the order of the table."""
    codes = {"torch": TORCH, **{package.name: package.imports for package in PACKAGES}}
    there = {"torch": installed("torch"), **{package.name: installed(package.module) for package in PACKAGES}}
    with_torch = {"torch", *(package.name for package in PACKAGES if package.torch)}
    groups = [{n: code for n, code in codes.items() if there[n] and (n in with_torch) == own} for own in (True, False)]
    with ThreadPoolExecutor(len(groups)) as pool:
        probed = {name: result for results in pool.map(probe, groups) for name, result in results.items()}
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


# -- Python and packages ------------------------------------------------------------------------------------------


def python_line() -> Line:
    return Line("Python", f"{platform.python_version()} ({sys.executable})")


@dataclass(frozen=True, slots=True)
class Probed:
    """How a piece of code ended in another process."""

    found: Any = None
    error: str = ""


def probe(codes: Mapping[str, str]) -> dict[str, Probed]:
    """Run pieces of code in one process after the other; where one ends the process, the rest get another."""
    results: dict[str, Probed] = {}
    while left := {name: code for name, code in codes.items() if name not in results}:
        output, reason = _run(left)
        for told in re.findall(r"^DOCTOR(.*)$", output, re.MULTILINE):
            name, found, error = json.loads(told)
            results[name] = Probed(found, " ".join(error.split())[:300])
        stuck = next((name for name in left if name not in results), None)
        if stuck is not None:
            results[stuck] = Probed(error=reason)
    return results


def _run(codes: Mapping[str, str]) -> tuple[str, str]:
    """What the process printed, and why it may have ended before its time."""
    words = [sys.executable, "-c", PROBE, json.dumps(codes)]
    try:
        ended = subprocess.run(words, capture_output=True, timeout=IMPORT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace"), f"not imported within {IMPORT_S} s"
    how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit code {ended.returncode}"
    return ended.stdout.decode(errors="replace"), f"importing it ends the process with {how}"


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a broken parent package
        return False


def package_line(package: Package, probed: Probed | None, torch_is_fine: bool = True) -> Line:
    """One package: its version if it can be imported."""
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
    if least is not None and _numbers(number) < _numbers(least):
        return Line(package.name, number, bad, f"pip install '{package.name}>={least}'")
    return Line(package.name, number)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown version"


def _least(name: str) -> str | None:
    """The oldest version that dglaunch's own metadata ask for."""
    try:
        asked: Iterable[str] = requires("dglaunch") or ()
    except PackageNotFoundError:
        return None
    found = (re.match(rf"{re.escape(name)}\s*\(?[^;]*>=\s*([\d.]+)", text) for text in asked)
    return next((match[1] for match in found if match), None)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


# -- torch and GPUs -----------------------------------------------------------------------------------------------


def torch_lines(probed: Probed | None, driver: Sequence[str] | None) -> list[Line]:
    """torch, CUDA, NCCL and each GPU; `driver` are the GPUs that nvidia-smi sees."""
    if probed is None:
        return [Line("torch", "not installed", WRONG, "pip install torch"), _driver_line(driver)]
    if probed.error:
        remedy = "reinstall it: pip install --force-reinstall torch (the build for this machine: pytorch.org)"
        return [Line("torch", f"does not import: {probed.error}", WRONG, remedy), _driver_line(driver)]
    found = probed.found
    found_lines = [_torch_line(found), _cuda_line(found, driver)]
    if found["gpus"]:
        told = (found["nccl"],) if found["nccl"] else ("none", WARNING, "several GPUs need a torch built with NCCL")
        found_lines.append(Line("NCCL", *told))
    for number, (name, total, free, capability) in enumerate(found["gpus"]):
        value = f"{name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free, capability {capability}"
        used = (WARNING, "another process holds memory of it (nvidia-smi)") if free < 0.9 * total else ()
        found_lines.append(Line(f"GPU {number}", value, *used))
    return found_lines


def _torch_line(found: Mapping[str, Any]) -> Line:
    least = _least("torch") or "2.8"
    if _numbers(found["version"]) < _numbers(least):
        return Line("torch", found["version"], WRONG, f"pip install 'torch>={least}'")
    if not found["gloo"]:
        return Line("torch", f"{found['version']}, without gloo", WARNING, "torchrun needs a torch built with gloo")
    return Line("torch", found["version"])


def _cuda_line(found: Mapping[str, Any], driver: Sequence[str] | None) -> Line:
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
    """The GPUs' names as the driver has them, without torch."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def _output(*words: str) -> list[str] | None:
    """The lines that a command prints, None if it is not there or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line.strip() for line in ended.stdout.splitlines() if line.strip()] if ended.returncode == 0 else None


# -- the machine --------------------------------------------------------------------------------------------------


def disk_lines(environ: Mapping[str, str]) -> list[Line]:
    """Room where results, downloads and dglaunch's own checkpoint go."""
    home = Path(environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    places = {
        "disk, this folder": Path.cwd(),
        "disk, hub cache": Path(environ.get("HF_HUB_CACHE", home / "hub")).expanduser(),
        "disk, --cache_dir": Path(environ.get("DG_CACHE_DIR", "~/.cache/dglaunch")).expanduser(),
    }
    return [_disk_line(name, path) for name, path in places.items()]


def _disk_line(name: str, path: Path) -> Line:
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    value = f"{free / 2**30:.0f} GiB free at {path}"
    if not os.access(there, os.W_OK):
        return Line(name, f"{path} cannot be written", WARNING, "correct its permissions, or name another place")
    if free < LITTLE_DISK:
        return Line(name, value, WARNING, "FLUX.1-dev alone takes 34 GB; make room or name another place")
    return Line(name, value)


def shared_memory_line() -> Line:
    """NCCL's transport between the GPUs of one machine; Docker gives 64 MiB unasked."""
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
    """gloo and torchrun's rendezvous look up this machine's own name."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError as error:
        remedy = f"add '127.0.0.1 {name}' to /etc/hosts (one machine), or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        return Line("host name", f"{name} does not resolve: {error.strerror or error}", WARNING, remedy)
    value = f"{name} is {', '.join(addresses)}"
    if all(address.startswith(("127.", "::1")) for address in addresses):
        return Line(
            "host name", value, NOTE, "fine on one machine; for several set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
    return Line("host name", value)


def variables_line(environ: Mapping[str, str]) -> Line:
    """The DG_* variables: a misspelt one stops every run."""
    given = sorted(name for name in environ if name.startswith("DG_"))
    try:
        check_variables(environ)
    except UserError as error:
        return Line("DG_* variables", ", ".join(given), WRONG, str(error))
    return Line("DG_* variables", ", ".join(given) or "none", OK if given else NOTE)
