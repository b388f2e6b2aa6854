"""Packages are imported in other processes: one that crashes, hangs or floods the terminal is an answer, too."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import dglaunch
from dglaunch.search_path import without_current_folder

IMPORT_S = 180
"""A cold import of torch from a network file system takes a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that a feature of dglaunch needs, and how to try whether it can be imported."""

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
    Package(name="peft", module="peft", imports="import peft", torch=True, install="pip install 'dglaunch[lora]'", purpose="--lora"),
    Package(name="torchvision", module="torchvision", imports="import torchvision", torch=True, install="pip install torchvision (from the same index as torch)", purpose="Qwen-Image-Edit checkpoints"),
    Package(name="pyarrow", module="pyarrow", imports="import pyarrow.parquet", install="pip install pyarrow", purpose="large tables, Parquet"),
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
path, root = json.loads(sys.argv[2])
sys.path.append(root)
import dglaunch
sys.path[:] = path
for name, code in json.loads(sys.argv[1]).items():
    inside, error = {}, ""
    try:
        exec(code, inside)
    except BaseException as wrong:  # also what a package says with sys.exit
        error = f"{type(wrong).__name__}: {wrong}"
    print("DOCTOR" + json.dumps([name, inside.get("found"), error]), flush=True)
"""
"""Runs pieces of code one after the other and prints how each ended. It looks for packages where this process does: not in
the current folder."""


class TorchFound(TypedDict):
    """What the code TORCH leaves in `found`."""

    version: str
    cuda: str | None
    hip: str | None
    available: bool
    gloo: bool
    nccl: str | None
    gpus: list[tuple[str, int, int, str]]
    """Name, bytes, free bytes and compute capability of each."""


@dataclass(frozen=True, slots=True)
class Probed:
    """How a piece of code ended in another process."""

    found: TorchFound | None = None
    error: str = ""


def probe(codes: Mapping[str, str]) -> dict[str, Probed]:
    """Run pieces of code in one process after the other; where one ends the process, the rest get another."""
    results: dict[str, Probed] = {}
    while left := {name: code for name, code in codes.items() if name not in results}:
        output, reason = _run(left)
        for line in re.findall(r"^DOCTOR(.*)$", output, re.MULTILINE):
            name, found, error = json.loads(line)
            results[name] = Probed(found, " ".join(error.split())[:300])
        stuck = next((name for name in left if name not in results), None)
        if stuck is not None:
            results[stuck] = Probed(error=reason)
    return results


def _run(codes: Mapping[str, str]) -> tuple[str, str]:
    """What the process printed, and how it ended, in case that it ended too early."""
    path = [without_current_folder(sys.path), str(Path(dglaunch.__file__).parents[1])]
    words = [sys.executable, "-P", "-c", PROBE, json.dumps(codes), json.dumps(path)]
    try:
        ended = subprocess.run(words, capture_output=True, timeout=IMPORT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace"), f"not imported within {IMPORT_S} s"
    how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit code {ended.returncode}"
    return ended.stdout.decode(errors="replace"), f"importing it ends the process with {how}"


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a broken parent package
        return False
