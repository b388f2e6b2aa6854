"""Which optimisations there are, what each needs and which go together: one table, read by rules.py and docs/generate.py.

    for row in asked(config.optimization): print(row.name, row.does)

What the table says of families, of xDiT and of a CPU was measured with tests/tiny_models.py (tests/test_optimize.py
tries it again). torch is not imported here.
"""

import difflib
import importlib.util
from dataclasses import dataclass
from typing import Any

from dglaunch.config import OptimizationConfig, RunConfig
from dglaunch.errors import MissingPackage, UserError
from dglaunch.estimate import host_memory
from dglaunch.models import DTYPE_BYTES, OTHER, Checkpoint
from dglaunch.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """One row. An empty string or tuple means: no such limit."""

    flag: str
    value: str | None = None
    """Of a flag with values; None: a switch, or every value."""
    does: str
    changes: str = ""
    """How the images change; empty: not beyond rounding (2 of 255)."""
    package: tuple[str, str] | None = None
    """What is imported, and the pip line that brings it."""
    gpu: str = ""
    """Why it needs a GPU."""
    capability: tuple[int, int] = (0, 0)
    """Least CUDA compute capability."""
    dtypes: tuple[str, ...] = ()
    """Types of the weights for which it does something."""
    families: tuple[str, ...] = ()
    """The families of models.py in which it was measured to work. One that is not in that table is let through, and the
    loaded modules decide."""
    uncompiled: str = ""
    """Why it needs --enable_compile on a GPU."""
    xdit: str = ""
    """Why it cannot go with --backend xdit."""
    xdit_families: tuple[str, ...] = ()
    """With --backend xdit only these, in which it reached xfuser's transformer and gave diffusers' images."""
    excludes: tuple[str, ...] = ()
    """Names of rows that cannot go with it."""

    @property
    def name(self) -> str:
        return self.flag if self.value is None else f"{self.flag} {self.value}"


_DECIDES = (
    "it decides by what it sees, and each rank sees another part of the image: ranks that decide differently hang"
)
_MOVED = "weights that are moved between host and GPU while they are used"
_MOVING = ("enable_cpu_offload", "enable_group_offloading")
FUSABLE = ("Flux", "FluxKontext", "Flux2", "Flux2Klein", "SD3", "PixArtSigma", "PixArtAlpha")
DISPATCHED = ("Flux", "FluxKontext", "Flux2", "Flux2Klein", "QwenImage", "QwenImageEdit", "QwenImageEditPlus",
              "LongCatImageEdit", "ZImage")  # fmt: skip
"""Families whose attention asks diffusers' dispatcher; the others call torch's own function whatever was set."""
BLOCKS = (*DISPATCHED, "GlmImage")
"""Families that name their repeated blocks."""
PINNED = 1.6
"""Bytes of page-locked host memory that group offloading takes for each of the transformer's: torch rounds each weight up to
a power of two (on the real shapes FLUX.1 comes to 1.56, Qwen-Image to 1.58, FLUX.2 to 1.57)."""
TORCHAO = ("torchao", "pip install 'dglaunch[quant]'")

OPTIMISATIONS = (
    Optimisation(flag="enable_vae_slicing", does="decodes the images of a batch one after the other: less memory"),
    Optimisation(
        flag="enable_vae_tiling", does="decodes each image in tiles: far less memory for large images",
        changes="where an image is larger than a tile",
    ),
    Optimisation(
        flag="attention_backend", does="another attention kernel", changes="sage and fp8 kernels: they quantise",
        families=DISPATCHED,
    ),
    Optimisation(
        flag="cache_type", value="first_block_cache", does="skips a step's other blocks when the first changed little",
        changes="yes", families=("Flux", "QwenImage", "QwenImageEdit", "QwenImageEditPlus"), xdit=_DECIDES,
    ),
    Optimisation(
        flag="cache_type", value="taylor_seer", does="predicts features between fully computed steps", changes="yes",
        families=("Flux", "Flux2Klein", "QwenImage", "QwenImageEdit", "QwenImageEditPlus"), xdit_families=("Flux",),
    ),
    Optimisation(
        flag="cache_type", value="faster_cache", does="reuses attention between steps", changes="yes",
        families=("Flux", "FluxKontext", "Flux2", "Flux2Klein"), xdit_families=("Flux", "Flux2"),
    ),
    Optimisation(
        flag="cache_type", value="pab", does="reuses attention between steps (pyramid attention broadcast)",
        changes="yes", families=("Flux", "FluxKontext", "Flux2", "Flux2Klein"), xdit_families=("Flux", "Flux2"),
    ),
    Optimisation(
        flag="cache_type", value="mag_cache", does="skips steps by FLUX.1's published magnitudes; 28 steps",
        changes="yes", families=("Flux",), xdit_families=("Flux",),
    ),
    Optimisation(
        flag="cache_type", value="cache_dit", does="DBCache of the package cache-dit: compares the first blocks",
        changes="yes", package=("cache_dit", "pip install 'dglaunch[cache]'"), xdit=_DECIDES,
        families=("Flux", "FluxKontext", "Flux2", "Flux2Klein", "QwenImage", "QwenImageEdit", "QwenImageEditPlus",
                  "ZImage", "SD3", "PixArtSigma"),
    ),
    Optimisation(
        flag="enable_compile", does="torch.compile of the repeated blocks, or of the whole transformer", excludes=_MOVING,
    ),
    Optimisation(
        flag="quantization", value="int8", does="torchao: transformer's weights and activations in 8-bit integers",
        changes="yes", package=TORCHAO, excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
        uncompiled="torchao's eager int8 product prints each activation to tell what it is, which takes longer than bfloat16",
    ),
    Optimisation(
        flag="quantization", value="fp8", does="torchao: transformer's weights and activations in 8-bit floats",
        changes="yes", package=TORCHAO, gpu="float8 matrix products exist there only", capability=(8, 9),
        dtypes=("bfloat16",),
        excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
    ),
    Optimisation(
        flag="quantization", value="nf4", does="bitsandbytes: transformer's weights in 4 bits, for memory",
        changes="yes", package=("bitsandbytes", "pip install 'dglaunch[quant]'"), gpu="bitsandbytes quantises there only",
        excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
    ),
    Optimisation(
        flag="enable_fuse_qkv", does="one matrix product for query, key and value", families=FUSABLE, xdit_families=("Flux", "Flux2"),
    ),
    Optimisation(
        flag="enable_layerwise_casting", does="keeps the transformer's weights in 8 bits and casts each as it is used",
        changes="yes", excludes=_MOVING,
    ),
    Optimisation(
        flag="enable_cpu_offload", does="each network is on the GPU only while it runs", gpu="the weights are in host memory already",
        xdit=_MOVED, excludes=("enable_group_offloading",),
    ),
    Optimisation(
        flag="enable_group_offloading", does="each layer of the transformer is on the GPU only while it runs",
        gpu="the weights are in host memory already", xdit=_MOVED,
    ),
    Optimisation(flag="enable_channels_last", does="the convolutions of VAE and U-Net in NHWC order"),
    Optimisation(
        flag="enable_tf32", does="float32 matrix products on TensorFloat-32 units", changes="yes", dtypes=("float32",),
        gpu="TensorFloat-32 units are there only", capability=(8, 0),
    ),
)  # fmt: skip

CACHE_FLAGS: dict[str, dict[str, str]] = {
    "first_block_cache": {"cache_threshold": "threshold"},
    "taylor_seer": {"cache_interval": "cache_interval", "cache_warmup": "disable_cache_before_step"},
    "faster_cache": {"cache_interval": "spatial_attention_block_skip_range"},
    "pab": {"cache_interval": "spatial_attention_block_skip_range"},
    "mag_cache": {"cache_threshold": "threshold"},
    "cache_dit": {"cache_threshold": "residual_diff_threshold", "cache_warmup": "max_warmup_steps"},
}
"""--cache_type -> which of the cache flags it takes, and what they are called there."""

_FLASH = ("flash_attn", "pip install flash-attn --no-build-isolation")
_FLASH_3 = ("flash_attn_interface", "build hopper/ of github.com/Dao-AILab/flash-attention (no wheel on the index)")
_SAGE = ("sageattention", "pip install sageattention")
_HUB = ("kernels", "pip install kernels")
_HERE: tuple[str, str] = ("", "")


def _each(names: str, package: tuple[str, str], gpu: bool = True) -> dict[str, tuple[str, str, bool]]:
    return dict.fromkeys(names.split(), (*package, gpu))


ATTENTION = (
    _each("native _native_math _native_flash flex", _HERE, gpu=False)
    | _each("_native_cudnn _native_efficient", _HERE)
    | _each("_native_npu", ("torch_npu", "pip install torch_npu"), gpu=False)
    | _each("_native_xla", ("torch_xla", "pip install torch_xla"), gpu=False)
    | _each("flash flash_varlen", _FLASH)
    | _each("_flash_3 _flash_varlen_3", _FLASH_3)
    | _each("flash_hub flash_varlen_hub flash_4_hub _flash_3_hub _flash_3_varlen_hub aiter_fa2_hub", _HUB)
    | _each("sage_hub sage_blackwell_hub", _HUB)
    | _each("sage sage_varlen _sage_qk_int8_pv_fp8_cuda _sage_qk_int8_pv_fp8_cuda_sm90", _SAGE)
    | _each("_sage_qk_int8_pv_fp16_cuda _sage_qk_int8_pv_fp16_triton", _SAGE)
    | _each("xformers", ("xformers", "pip install xformers"))
)
"""diffusers' names -> module that must be there, how to get it, and whether it needs a GPU."""
WITHOUT_MASK = frozenset(
    [
        "_native_flash",
        "_native_xla",
        "flash",
        "flash_hub",
        "flash_4_hub",
        "_flash_3",
        "_flash_3_hub",
        "aiter_fa2_hub",
        "sage",
        "sage_hub",
        "sage_blackwell_hub",
        "_sage_qk_int8_pv_fp8_cuda",
        "_sage_qk_int8_pv_fp8_cuda_sm90",
        "_sage_qk_int8_pv_fp16_cuda",
        "_sage_qk_int8_pv_fp16_triton",
    ]
)
"""Of these, the ones that raise where texts of different length share a call, which then has an attention mask."""
XFUSER_ATTENTION = (
    _each("SDPA SDPA_MATH SDPA_FLASH", _HERE, gpu=False)
    | _each("SDPA_EFFICIENT CUDNN", _HERE)
    | _each("FLASH", _FLASH)
    | _each("FLASH_3 FLASH_3_FP8", _FLASH_3)
    | _each("FLASH_4 FLASH_4_FP4", ("flash_attn.cute", "pip install flash-attn-4"))
    | _each("NVTE_FP8", ("transformer_engine", "pip install transformer-engine[pytorch]"))
    | _each("SAGE", _SAGE)
    | _each("AITER AITER_BF16 AITER_FP8 AITER_SAGE", ("aiter", "install AMD's aiter (ROCm)"))
)
"""xfuser's names for images (its sparse ones are for video), for --backend xdit."""
WITHOUT_RING = ("SDPA", "SDPA_MATH", "FLASH_4", "FLASH_4_FP4", "AITER_BF16", "AITER_FP8", "AITER_SAGE")
"""Those that do not return the log-sum-exp by which ring attention merges its parts."""

DESCRIBED = (
    "enable_vae_tiling", "cache_type", "cache_threshold", "cache_interval", "cache_warmup", "quantization",
    "enable_layerwise_casting", "enable_tf32",
)  # fmt: skip
"""Flags of OptimizationConfig that change the images: a run with others is another job, and the file names them.
--attention_backend joins them where its kernel quantises (`image_settings`)."""


def image_settings(config: OptimizationConfig) -> dict[str, Any]:
    """Those of DESCRIBED that were given. (What was not given is left out: older folders do not name it.)"""
    given = {name: value for name in DESCRIBED if (value := getattr(config, name)) not in (None, False)}
    backend = config.attention_backend or ""
    quantises = any(word in backend.lower() for word in ("sage", "fp8", "fp4"))
    return given | ({"attention_backend": backend} if quantises else {})


def asked(config: OptimizationConfig) -> list[Optimisation]:
    """The rows that a configuration asks for."""
    return [
        row for row in OPTIMISATIONS
        if (value := getattr(config, row.flag)) not in (None, False) and row.value in (None, value)
    ]  # fmt: skip


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
