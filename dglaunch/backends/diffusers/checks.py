"""Optimizations that cannot take effect are refused here, before anything is loaded."""

import difflib
import importlib.util

from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import MissingPackage, UserError
from dglaunch.models.checkpoint import DTYPE_BYTES, Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.models.optimizations import (
    ATTENTION,
    BLOCKS,
    CACHE_FLAGS,
    PINNED,
    WITHOUT_RING,
    XFUSER_ATTENTION,
    Optimisation,
    asked,
)
from dglaunch.system import host_memory


def check(checkpoint: Checkpoint, config: RunConfig, topology: Topology, device: str) -> None:
    """Refuse what cannot take effect, before anything is loaded.

    Raises:
        UserError: with the row's reason and what to do instead.
    """
    wanted, rows = config.optimization, asked(config.optimization)
    xdit = config.backend.backend == "xdit"
    for row in rows:
        if xdit and row.xdit:
            raise UserError(
                f"--{row.name} does not go with --backend xdit: {row.xdit}. Drop it, or use --backend diffusers."
            )
        if xdit and row.xdit_families and checkpoint.family.name not in row.xdit_families:
            raise UserError(
                f"--{row.name} reaches xfuser's transformer for {', '.join(row.xdit_families)} only, not for "
                f"{checkpoint.family.name}. Drop it, or use --backend diffusers."
            )
        _check_family(row, checkpoint, xdit)
        for other in rows:
            if other.name in row.excludes:
                raise UserError(f"--{row.name} and --{other.name} do not go together; drop one of them.")
        _check_machine(row, config, topology, device)
    if wanted.attention_backend is not None:
        _check_attention(wanted.attention_backend, xdit, device)
        if xdit and topology.parallel.ring_degree > 1 and wanted.attention_backend.upper() in WITHOUT_RING:
            raise UserError(
                f"--attention_backend {wanted.attention_backend} cannot be merged over a ring (DG_XDIT_RING_DEGREE); take "
                "another, or use DG_XDIT_ULYSSES_DEGREE."
            )
    if wanted.enable_group_offloading:
        _check_pinned(checkpoint, topology, config.backend.torch_dtype or "bfloat16")
    _check_cache_flags(wanted)
    if wanted.compile_scope == "whole" and not wanted.enable_compile:
        raise UserError("--compile_scope does nothing without --enable_compile; add it, or drop --compile_scope.")
    if wanted.enable_compile and wanted.compile_scope == "regional" and not _names_blocks(checkpoint):
        raise UserError(
            f"{checkpoint.family.name} does not name its repeated blocks, so --enable_compile cannot compile them alone; "
            "add --compile_scope whole."
        )


def _names_blocks(checkpoint: Checkpoint) -> bool:
    return checkpoint.family is OTHER or checkpoint.family.name in BLOCKS


def _check_family(row: Optimisation, checkpoint: Checkpoint, xdit: bool) -> None:
    name = checkpoint.family.name
    by_engine = xdit and row.flag == "attention_backend"  # xfuser's processors always ask its own dispatcher
    if row.families and checkpoint.family is not OTHER and name not in row.families and not by_engine:
        raise UserError(
            f"--{row.name} does nothing or fails with {name}; it works with {', '.join(row.families)}. Drop it."
        )


def _check_machine(row: Optimisation, config: RunConfig, topology: Topology, device: str) -> None:
    """Packages, the GPU and its generation, the type of the weights."""
    if row.gpu and device == "cpu":
        raise UserError(f"--{row.name} runs on GPUs only ({row.gpu}); drop it on a CPU.")
    dtype = config.backend.torch_dtype or ("bfloat16" if device == "cuda" else "float32")
    if row.dtypes and dtype not in row.dtypes:
        raise UserError(
            f"--{row.name} does nothing or fails with weights in {dtype}; drop it, or give --torch_dtype {row.dtypes[0]}."
        )
    if row.uncompiled and device == "cuda" and not config.optimization.enable_compile:
        raise UserError(
            f"--{row.name} needs --enable_compile on a GPU: {row.uncompiled}. Add it, or drop --{row.name}."
        )
    if row.package is not None and not _found(row.package[0]):
        raise MissingPackage(row.package[0], f"--{row.name}", row.package[1])
    if row.capability > (0, 0) and device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return  # a plan for another machine
        have = torch.cuda.get_device_capability(topology.local_rank % torch.cuda.device_count())
        if have < row.capability:
            needed = ".".join(map(str, row.capability))
            raise UserError(
                f"--{row.name} needs compute capability {needed} (8.0: A100, 8.9: L40S and RTX 4090, 9.0: H100); this GPU "
                f"has {have[0]}.{have[1]}. Drop it."
            )


def _check_pinned(checkpoint: Checkpoint, topology: Topology, dtype: str) -> None:
    weights = (
        sum(n for name, n in checkpoint.parameters.items() if name in ("transformer", "unet")) * DTYPE_BYTES[dtype]
    )
    needed, have = weights * PINNED * topology.local_world_size, host_memory()
    if needed > have:
        raise UserError(
            f"--enable_group_offloading would lock {needed / 2**30:,.0f} GiB of host memory for {topology.local_world_size} "
            f"ranks ({PINNED:g} times the transformer for each), and this machine has {have / 2**30:,.0f} GiB. Start fewer "
            "ranks a machine, or use --enable_cpu_offload or --quantization."
        )


def _found(module: str) -> bool:
    """Without importing it; a module inside a package that is not there counts as missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _check_attention(name: str, xdit: bool, device: str) -> None:
    table, whose = (XFUSER_ATTENTION, "xfuser") if xdit else (ATTENTION, "diffusers")
    row = table.get(name.upper() if xdit else name)
    if row is None:
        near = difflib.get_close_matches(name.upper() if xdit else name, table, n=3, cutoff=0.0)
        raise UserError(f"--attention_backend {name} is none of {whose}'s names; the nearest: {', '.join(near)}.")
    module, install, gpu = row
    if module and not _found(module):
        raise MissingPackage(module, f"--attention_backend {name}", install)
    if gpu and device == "cpu":
        fitting = [n for n, (needs, _, on_gpu) in table.items() if not needs and not on_gpu]
        raise UserError(f"--attention_backend {name} runs on GPUs only; on a CPU there are {', '.join(fitting)}.")


def _check_cache_flags(config: OptimizationConfig) -> None:
    takes = CACHE_FLAGS.get(config.cache_type or "", {})
    for flag in ("cache_threshold", "cache_interval", "cache_warmup"):
        if getattr(config, flag) is not None and flag not in takes:
            fitting = [name for name, flags in CACHE_FLAGS.items() if flag in flags]
            now = f"--cache_type {config.cache_type} does not take it" if config.cache_type else "there is no cache"
            raise UserError(f"--{flag} would do nothing: {now}; it belongs to {', '.join(fitting)}.")
