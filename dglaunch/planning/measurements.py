"""How long others' runs took, as they published it: what times are fitted to, and what stands beside them in the docs.

Left out: pages that do not name the GPU, and those whose figures need more than its peak, such as FLUX.1-dev with 30 steps
in 6.2 s on an RTX 4090, which is twice what its data sheet allows.
"""

from dataclasses import dataclass

FLUX, FLUX_512, QWEN, SD35_LARGE, SDXL, SD15 = 74.4, 21.5, 70.6, 31.1, 6.76, 0.80
ZIMAGE, FLUX_2, KLEIN_4B = 56.6, 282.6, 34.8
"""TFLOP of one pass of the model for one image, at 1024x1024 but SD15 and FLUX_512 (512x512), with 512 text tokens (Qwen
128, SD 3.5 333), counted on the real classes on torch's meta device."""
ENDS = 15.4
"""TFLOP of encoding a prompt with T5 (4.9) and decoding an image of 1024x1024 (10.5)."""

PEERS = "cache-dit's table of diffusers on H100s, read in November 2026"
SGLANG = "SGLang's CI references of 18 October 2026, the most of six runs + 5 %"
XDIT = "https://github.com/xdit-project/xDiT/blob/main/docs/performance/flux.md"
ORT = "https://github.com/microsoft/onnxruntime/pull/22986"
TORCH = "https://docs.pytorch.org/devlogs/inductor/2026-05-11-torch-compile-and-diffusers/"
BENCHMARK_FLUX = "https://github.com/varadrane1707/BenchmarkFlux"
FAST_DIFFUSION = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"
HF_BENCHMARKS = "https://huggingface.co/datasets/diffusers/benchmarks"
FLUX_FASTER = "https://github.com/xlite-dev/flux-faster"
CACHE_DIT = "https://github.com/vipshop/cache-dit"
PARA_ATTN = "https://huggingface.co/docs/diffusers/optimization/para_attn"
PRUNA = "https://pruna.ai/blog/comparison-flux-torch-compile-tensor-rt-pruna"
SDXL_TENSORRT = "https://huggingface.co/stabilityai/stable-diffusion-xl-1.0-tensorrt"
FAL = "https://github.com/fal-ai/stable-diffusion-benchmarks"
FLUMINA = "https://huggingface.co/fireworks-ai/FLUX.1-dev-fp8-flumina"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One published figure, of one image on one GPU if nothing else is said."""

    gpu: str
    """A name of planning/gpus.py."""
    model: str
    """The hub's name of it, without its owner."""
    size: int = 1024
    steps: int
    seconds: float
    tflop: float
    """Of one step: of guidance that runs the model twice, both passes."""
    ends: float = ENDS
    """TFLOP beside the steps that the seconds contain; 0 if only the model itself was timed."""
    launches: int = 0
    """Kernels that one step of it starts, if nothing is compiled; 0 if not counted."""
    launch_bound: bool = False
    """Whether starting the kernels takes as long as all of it, or that at most."""
    dtype: str = "bfloat16"
    engine: str = "diffusers"
    on: tuple[str, ...] = ()
    """What was switched on: compile, a cache, an attention kernel, a quantization, several GPUs."""
    source: str

    @property
    def compiled(self) -> bool:
        return "compile" in self.on

    @property
    def plain(self) -> bool:
        """Whether it is diffusers as it comes, or that compiled: what a plan's times are fitted to."""
        return self.engine == "diffusers" and self.dtype == "bfloat16" and set(self.on) <= {"compile"}

    @property
    def rate(self) -> float:
        """TFLOP/s."""
        return (self.steps * self.tflop + self.ends) / self.seconds

    @property
    def setup(self) -> tuple[str, str, int, bool]:
        """What is equal in several sources' figures for the same thing."""
        return self.gpu, self.model, self.size, self.compiled


COMPILE = ("compile",)
_H100, _A100, _L20, _L40S = "H100 SXM", "A100 80GB SXM", "L20", "L40S"
"""BenchmarkFlux does not say which A100 (all have the same peaks). HF_BENCHMARKS says L40, of which the compiled FLUX.1-dev
would need 199 of 181 TFLOP/s, on a machine with 128 GB as Amazon's with an L40S: it is taken for one."""
_DEV, _SCHNELL, _QWEN = "FLUX.1-dev", "FLUX.1-schnell", "Qwen-Image"
_SD35, _SDXL = "stable-diffusion-3.5-large", "stable-diffusion-xl-base-1.0"

MEASUREMENTS = (
    # -- diffusers as it comes --
    Run(gpu=_H100, model=_DEV, steps=50, seconds=9.30, tflop=FLUX, launches=3795, source=PEERS),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=6.71, tflop=FLUX, launches=3795, source=XDIT),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=6.7, tflop=FLUX, launches=3795, source=TORCH),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=7.11, tflop=FLUX, launches=3795, source=BENCHMARK_FLUX),
    Run(gpu=_H100, model=_DEV, steps=50, seconds=12.339, tflop=FLUX, launches=3795, source=ORT),
    Run(gpu=_H100, model=_SCHNELL, steps=4, seconds=1.120, tflop=FLUX, launches=3795, source=ORT),
    Run(gpu=_H100, model=_SD35, steps=50, seconds=11.615, tflop=2 * SD35_LARGE, launches=3172, source=ORT),
    Run(gpu=_H100, model=_QWEN, steps=50, seconds=18.5, tflop=2 * QWEN, launches=2 * 5497, source=PEERS),
    Run(gpu=_A100, model=_DEV, steps=28, seconds=15.65, tflop=FLUX, launches=3795, source=BENCHMARK_FLUX),
    Run(gpu=_A100, model=_SDXL, steps=30, seconds=3.31, tflop=2 * SDXL, launches=2006, source=FAST_DIFFUSION),
    Run(gpu=_L20, model=_DEV, steps=28, seconds=26.36, tflop=FLUX, launches=3795, source=PARA_ATTN),
    Run(gpu=_L20, model=_DEV, steps=28, seconds=24.94, tflop=FLUX, launches=3795, source=FLUX_FASTER),
    Run(gpu=_L20, model=_DEV, steps=28, seconds=24.85, tflop=FLUX, launches=3795, source=CACHE_DIT),
    Run(gpu=_L20, model=_DEV, steps=50, seconds=42.63, tflop=FLUX, launches=3795, source=CACHE_DIT),
    Run(gpu=_L40S, model=_DEV, steps=1, seconds=0.493, tflop=FLUX, ends=0, launches=3795, source=HF_BENCHMARKS),
    Run(gpu=_L40S, model=_DEV, steps=1, seconds=0.547, tflop=FLUX, ends=0, launches=3795, source=HF_BENCHMARKS),
    Run(gpu=_L40S, model=_DEV, size=512, steps=50, seconds=8.71, tflop=FLUX_512, ends=7.4, launches=3795, source=PRUNA),
    Run(gpu=_L40S, model=_SDXL, steps=1, seconds=0.067, tflop=SDXL, ends=0, launches=1995, launch_bound=True,
        source=HF_BENCHMARKS),
    Run(gpu=_L40S, model=_SDXL, steps=1, seconds=0.076, tflop=SDXL, ends=0, launches=1995, launch_bound=True,
        source=HF_BENCHMARKS),
    # -- compiled --
    Run(gpu=_H100, model=_DEV, steps=28, seconds=4.30, tflop=FLUX, launches=3795, on=COMPILE, source=XDIT),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=4.5, tflop=FLUX, launches=3795, on=COMPILE, source=TORCH),
    Run(gpu=_H100, model=_DEV, steps=50, seconds=8.198, tflop=FLUX, launches=3795, on=COMPILE, source=ORT),
    Run(gpu=_H100, model=_SCHNELL, steps=4, seconds=0.775, tflop=FLUX, launches=3795, on=COMPILE, source=ORT),
    Run(gpu=_H100, model=_SD35, steps=50, seconds=7.466, tflop=2 * SD35_LARGE, launches=3172, on=COMPILE, source=ORT),
    Run(gpu=_A100, model=_SDXL, steps=30, seconds=2.54, tflop=2 * SDXL, launches=2006, on=COMPILE,
        source=FAST_DIFFUSION),
    Run(gpu=_L20, model=_DEV, steps=28, seconds=20.24, tflop=FLUX, launches=3795, on=COMPILE, source=FLUX_FASTER),
    Run(gpu=_L40S, model=_DEV, steps=1, seconds=0.374, tflop=FLUX, ends=0, launches=3795, on=COMPILE,
        source=HF_BENCHMARKS),
    Run(gpu=_L40S, model=_SDXL, steps=1, seconds=0.055, tflop=SDXL, ends=0, launches=1995, launch_bound=True,
        on=COMPILE, source=HF_BENCHMARKS),
    # -- other engines and types, caches, other kernels, several GPUs: shown, and not fitted to --
    Run(gpu=_A100, model="stable-diffusion-v1-5", size=512, steps=50, seconds=1.604, tflop=2 * SD15, ends=0, launches=760,
        launch_bound=True, dtype="float16", source=FAL),
    Run(gpu=_A100, model=_SDXL, steps=50, seconds=5.916, tflop=2 * SDXL, launches=2006, dtype="float16", source=FAL),
    Run(gpu="A10", model=_SDXL, steps=30, seconds=9.399, tflop=2 * SDXL, launches=2006, dtype="float16",
        engine="not optimized", source=SDXL_TENSORRT),
    Run(gpu=_A100, model=_SDXL, steps=30, seconds=3.704, tflop=2 * SDXL, launches=2006, dtype="float16",
        engine="not optimized", source=SDXL_TENSORRT),
    Run(gpu=_H100, model=_SDXL, steps=30, seconds=2.496, tflop=2 * SDXL, launches=2006, dtype="float16",
        launch_bound=True, engine="not optimized", source=SDXL_TENSORRT),
    Run(gpu=_A100, model=_DEV, steps=28, seconds=14.29, tflop=FLUX, launches=3795, on=("FlashAttention 2",),
        source=BENCHMARK_FLUX),
    Run(gpu=_A100, model=_DEV, steps=28, seconds=5.09, tflop=FLUX, launches=3795, on=("first-block cache 0.15",),
        source=BENCHMARK_FLUX),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=3.21, tflop=FLUX, launches=3795, on=("first-block cache 0.15",),
        source=BENCHMARK_FLUX),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=7.28, tflop=FLUX, launches=3795, dtype="fp8", on=("torchao",),
        source=BENCHMARK_FLUX),
    Run(gpu=_H100, model=_DEV, steps=1, seconds=1 / 6.1, tflop=FLUX, ends=0, launches=3795, dtype="fp8",
        engine="flumina", source=FLUMINA),
    Run(gpu="RTX 4090", model=_DEV, steps=1, seconds=1 / 2.55, tflop=FLUX, ends=0, launches=3795, dtype="fp8",
        engine="flumina", source=FLUMINA),
    Run(gpu="RTX 6000 Ada", model=_DEV, steps=1, seconds=1 / 1.74, tflop=FLUX, ends=0, launches=3795,
        engine="Black Forest Labs' own", source=FLUMINA),
    Run(gpu=_H100, model=_DEV, steps=50, seconds=10.762, tflop=FLUX, launches=3795, dtype="float16",
        engine="ONNX Runtime", source=ORT),
    Run(gpu=_H100, model=_DEV, steps=50, seconds=6.69, tflop=FLUX, launches=3795, engine="SGLang", source=SGLANG),
    Run(gpu=_H100, model="FLUX.2-dev", steps=50, seconds=23.1, tflop=FLUX_2, engine="SGLang", source=SGLANG),
    Run(gpu=_H100, model="FLUX.2-klein-4B", steps=4, seconds=0.40, tflop=KLEIN_4B, launches=1509, engine="SGLang",
        source=SGLANG),
    Run(gpu=_H100, model=_QWEN, steps=50, seconds=12.8, tflop=2 * QWEN, launches=2 * 5497, engine="SGLang",
        source=SGLANG),
    Run(gpu=_H100, model="Z-Image-Turbo", steps=9, seconds=0.906, tflop=ZIMAGE, engine="SGLang", source=SGLANG),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=4.24, tflop=FLUX / 4, launches=3795, launch_bound=True, engine="xDiT",
        on=("Ulysses 4",), source=XDIT),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=1.63, tflop=FLUX / 4, launches=3795, engine="xDiT",
        on=("compile", "Ulysses 4"), source=XDIT, launch_bound=True),
    Run(gpu=_H100, model=_DEV, steps=28, seconds=2.68, tflop=FLUX / 2, launches=3795, engine="xDiT",
        on=("compile", "Ulysses 2"), source=XDIT),
    Run(gpu=_H100, model=_DEV, steps=50, seconds=6.04, tflop=FLUX / 2, launches=3795, launch_bound=True,
        on=("Ulysses 2",), source=PEERS),
)  # fmt: skip
