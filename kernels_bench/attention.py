"""Attention backends at the shapes of FLUX, Qwen-Image and SD3.5: TFLOP/s, and the share of a large matrix product's.

    python -m kernels_bench attention --plot attention.png

All names that diffusers knows are tried; one that is not installed, or does not run on this device, is listed with its
own words. Reference: the definition in float64. Work: 4 x heads x tokens^2 x dim, two matrix products of 2 x tokens^2 x
dim a head (FlashAttention-2, arXiv:2307.08691, section 4.1, without a mask).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels_bench import measure

SHAPES: dict[str, dict[str, tuple[int, int, int]]] = {
    # (heads, tokens, dim), from each model's transformer/config.json; 1024x1024 pixels are 4096 tokens, then the text
    "FLUX.1": {"full": (24, 4096 + 512, 128), "scaled": (4, 1152, 128), "quick": (2, 96, 128)},
    "Qwen-Image": {"full": (24, 4096 + 128, 128), "scaled": (4, 1056, 128)},
    "SD3.5-large": {"full": (38, 4096 + 333, 64), "scaled": (8, 1107, 64)},
}
MATRIX = {"full": 8192, "scaled": 1536, "quick": 256}
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Allowed |output - reference| / |reference|."""
QUANTISED_LIMIT = 0.1
"""For the backends that compute in int8 or fp8 (sage)."""
COLUMNS = {
    "shape": "{shape}",
    "backend": "{backend}",
    "ms": "{ms[p50]:.2f} ({ms[p20]:.2f}-{ms[p80]:.2f})",
    "TFLOP/s": "{tflops[p50]:.3g}",
    "of peak": "{share:.0%}",
    "error": "{error:.1e}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench attention`."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """A process for each shape; in it the backends and the matrix product take turns."""
    rows: list[measure.Row] = []
    notes = []
    for shape, sizes in SHAPES.items():
        if options.size not in sizes:
            continue
        payload = options.shared() | {"shape": shape, "dims": sizes[options.size], "matrix": MATRIX[options.size]}
        told = measure.in_process("kernels_bench.attention:work", payload, options)
        rows += [row for row in told["rows"] if row not in rows]  # why a backend does not run is the same at each shape
        notes.append(
            f"{shape}: {'x'.join(map(str, payload['dims']))} (heads x tokens x dim), {options.dtype}; peak "
            f"{told['peak_tflops']:.4g} TFLOP/s, the median of a {payload['matrix']}^2 matrix product"
        )
    return rows, notes


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """All backends at one shape: tried, checked, timed."""
    import torch

    heads, tokens, dim = payload["dims"]
    device, dtype = payload["device"], getattr(torch, payload["dtype"])
    generator = torch.Generator(device).manual_seed(payload["seed"])

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def fresh() -> tuple[torch.Tensor, ...]:
        return random(1, tokens, heads, dim), random(1, tokens, heads, dim), random(1, tokens, heads, dim)

    given = fresh()
    expected = reference(*given)
    usable, errors, not_run = try_all(given, expected, payload)
    size = payload["matrix"]
    left, right = random(size, size), random(size, size)
    cases = {**usable, "matrix product": lambda *_: left @ right}
    with torch.inference_mode():
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        taken = measure.seconds(cases, fresh, payload["repeats"], payload["warm_up"], wait)
    peak = 2 * size**3 / measure.spread(taken.pop("matrix product"))["p50"] / 1e12
    rows = [row(payload, name, taken[name], errors[name], peak) for name in usable]
    return {"rows": rows + not_run, "peak_tflops": peak}


def row(payload: dict[str, Any], backend: str, taken: list[float], error: float, peak: float) -> measure.Row:
    heads, tokens, dim = payload["dims"]
    tflops = measure.spread([4 * heads * tokens**2 * dim / s / 1e12 for s in taken])
    return {
        "name": f"{payload['shape']} {backend}", "shape": payload["shape"], "dims": payload["dims"], "backend": backend,
        "dtype": payload["dtype"], "ms": measure.spread([s * 1e3 for s in taken]), "tflops": tflops,
        "share": tflops["p50"] / peak, "peak_tflops": peak, "error": error,
    }  # fmt: skip


def reference(query: Any, key: Any, value: Any) -> Any:
    """softmax(Q K^T / sqrt(dim)) V in float64, a head at a time: all scores at once would be gigabytes."""
    import torch

    query, key, value = (t.double().transpose(1, 2) for t in (query, key, value))
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head].transpose(-1, -2) * query.shape[-1] ** -0.5
        out[:, head] = scores.softmax(-1) @ value[:, head]
    return out.transpose(1, 2)


def try_all(
    given: tuple[Any, ...], expected: Any, payload: dict[str, Any]
) -> tuple[dict[str, Callable[..., Any]], dict[str, float], list[measure.Row]]:
    """Each backend once: those that run and are right, their errors, and why the others do not run.

    Raises:
        WrongOutput: one runs and is wrong.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    usable, errors, not_run = {}, {}, []
    for name in (backend.value for backend in AttentionBackendName):
        function = caller(name)
        try:
            output = function(*given)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            not_run.append({"name": name, "backend": name, "not_run": reason})
            continue
        output = measure.spoil(output, payload["damage"]).double()
        limit = QUANTISED_LIMIT if "sage" in name else LIMITS[payload["dtype"]]
        error = float((output - expected).norm() / expected.norm())
        errors[name] = measure.require(f"{payload['shape']} {name}", error, limit)
        usable[name] = function
    return usable, errors, not_run


def caller(name: str) -> Callable[..., Any]:
    """The backend as the models call it; entering the context also checks that it is installed."""
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    def call(*tensors: Any) -> Any:
        with torch.inference_mode(), attention_backend(name):
            return dispatch_attention_fn(*tensors)

    return call


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "tflops", "TFLOP/s (line: the matrix product's median)")
    for peak in {row["peak_tflops"] for row in rows}:
        axes.axvline(peak, color="grey", linestyle=":")
