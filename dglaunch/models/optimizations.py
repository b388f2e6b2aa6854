"""Which optimizations there are, what each needs and which go together: one table.

    for row in asked(config.optimization): print(row.name, row.does)

With which families they work stands in the families' rows (`takes`). All of it was measured with tiny random models
(the tests of the optimizations try it again). torch is not imported here.
"""

from dataclasses import dataclass

from dglaunch.config import IMAGE, OptimizationConfig, settings_that


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
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
    uncompiled: str = ""
    """Why it needs --enable_compile on a GPU."""
    xdit: str = ""
    """Why it cannot go with --backend xdit."""
    only_xdit: str = ""
    """What to take instead without --backend xdit, as it is xfuser's own."""
    lora: str = ""
    """Why it cannot go with --lora."""
    excludes: tuple[str, ...] = ()
    """Names of rows that cannot go with it."""
    variants: tuple[tuple[str, str], ...] = ()
    """Flags, and values of theirs, with which it is done in another way."""

    @property
    def name(self) -> str:
        return self.flag if self.value is None else f"{self.flag} {self.value}"


_DECIDES = (
    "it decides by what it sees, and each rank sees another part of the image: ranks that decide differently hang"
)
_MOVED = "weights that are moved between host and GPU while they are used"
_MOVING = ("enable_cpu_offload", "enable_group_offloading")
PINNED = 1.6
"""Bytes of page-locked host memory that group offloading takes for each of the transformer's: torch rounds each weight up to
a power of two (on the real shapes FLUX.1 comes to 1.56, Qwen-Image to 1.58, FLUX.2 to 1.57)."""
_NO_LORA = "nobody has measured what the two do together"
TORCHAO = ("torchao", "pip install 'dglaunch[quant]'")

OPTIMIZATIONS = (
    Optimization(flag="enable_vae_slicing", does="decodes the images of a batch one after the other: less memory"),
    Optimization(
        flag="enable_vae_tiling", does="decodes each image in tiles: far less memory for large images",
        changes="where an image is larger than a tile",
    ),
    Optimization(
        flag="attention_backend", does="another attention kernel", changes="sage and fp8 kernels: they quantize",
    ),
    Optimization(
        flag="cache_type", value="first_block_cache", does="skips a step's other blocks when the first changed little",
        changes="yes", xdit=_DECIDES,
    ),
    Optimization(
        flag="cache_type", value="taylor_seer", does="predicts features between fully computed steps", changes="yes",
    ),
    Optimization(
        flag="cache_type", value="faster_cache", does="reuses attention between steps", changes="yes",
    ),
    Optimization(
        flag="cache_type", value="pab", does="reuses attention between steps (pyramid attention broadcast)",
        changes="yes",
    ),
    Optimization(
        flag="cache_type", value="mag_cache", does="skips steps by FLUX.1's published magnitudes; 28 steps",
        changes="yes",
    ),
    Optimization(
        flag="cache_type", value="cache_dit", does="DBCache of the package cache-dit: compares the first blocks",
        changes="yes", package=("cache_dit", "pip install 'dglaunch[cache]'"),
        xdit="it averages what it decides by over all ranks of the world, so that replicas would meddle with each other's images "
        "(--cache_type fbcache, for Flux and Flux2, does not)",
    ),
    Optimization(
        flag="cache_type", value="fbcache", does="xfuser's first-block cache: the ranks of an image decide together",
        changes="yes", only_xdit="--cache_type first_block_cache",
        excludes=(
            "enable_compile", "enable_fuse_qkv", "enable_layerwise_casting", "quantization int8", "quantization fp8",
            "quantization nf4",
        ),
    ),
    Optimization(
        flag="enable_compile", does="torch.compile of the repeated blocks, or of the whole transformer", excludes=_MOVING,
        variants=(("compile_scope", "whole"),),
    ),
    Optimization(
        flag="quantization", value="int8", does="torchao: transformer's weights and activations in 8-bit integers",
        changes="yes", package=TORCHAO, excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
        uncompiled="torchao's eager int8 product prints each activation to tell what it is, which takes longer than bfloat16",
    ),
    Optimization(
        flag="quantization", value="fp8", does="torchao: transformer's weights and activations in 8-bit floats",
        changes="yes", package=TORCHAO, gpu="float8 matrix products exist there only", capability=(8, 9),
        dtypes=("bfloat16",), lora=_NO_LORA,
        excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
    ),
    Optimization(
        flag="quantization", value="nf4", does="bitsandbytes: transformer's weights in 4 bits, for memory",
        changes="yes", package=("bitsandbytes", "pip install 'dglaunch[quant]'"), gpu="bitsandbytes quantizes there only",
        lora=_NO_LORA, excludes=("enable_layerwise_casting", "enable_fuse_qkv", *_MOVING),
    ),
    Optimization(
        flag="enable_fuse_qkv", does="one matrix product for query, key and value",
        lora="the fused product leaves out the LoRAs of query, key and value, in silence (0.44 of 1 from right)",
    ),
    Optimization(
        flag="enable_layerwise_casting", does="keeps the transformer's weights in 8 bits and casts each as it is used",
        changes="yes", excludes=_MOVING,
    ),
    Optimization(
        flag="enable_cpu_offload", does="each network is on the GPU only while it runs: slower", gpu="the weights are in host memory already",
        xdit=_MOVED, lora=_NO_LORA, excludes=("enable_group_offloading",),
    ),
    Optimization(
        flag="enable_group_offloading", does="each layer of the transformer is on the GPU only while it runs: slower",
        gpu="the weights are in host memory already", xdit=_MOVED,
    ),
    Optimization(flag="enable_channels_last", does="the convolutions of VAE and U-Net in NHWC order"),
    Optimization(
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
    "fbcache": {"cache_threshold": "residual_diff_threshold"},
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

QUANTIZES = ("sage", "fp8", "fp4")
"""In the name of an attention kernel that rounds its inputs to fewer bits, and so changes the image."""


def image_settings(config: OptimizationConfig) -> dict[str, object]:
    """Return what was given that changes the images. (What was not given is left out: older folders do not name it.)"""
    given = settings_that(IMAGE, config)
    kernel = config.attention_backend or ""
    if any(word in kernel.lower() for word in QUANTIZES):
        given["attention_backend"] = kernel
    return given


def asked(config: OptimizationConfig) -> list[Optimization]:
    """The rows that a configuration asks for."""
    return [
        row for row in OPTIMIZATIONS
        if (value := getattr(config, row.flag)) not in (None, False) and row.value in (None, value)
    ]  # fmt: skip
