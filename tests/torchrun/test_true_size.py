"""What a trace on fake tensors says of real models at their true size, against figures that were measured otherwise: a whole
pipeline call, on fake tensors on a pretended GPU and on "meta" (the README of shared/simulation)."""

from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dglaunch.config import BackendConfig, EditingConfig, T2IConfig
from dglaunch.models.catalogue import names
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve
from dglaunch.models.figures import Figures, Request
from dglaunch.models.shape import Shape
from support.family_runs import T2I
from support.selection import rarely
from support.tiny_models import build

pytestmark = pytest.mark.usefixtures("published_size")

GIB = 2**30
FLUX, QWEN, SD35 = "black-forest-labs/FLUX.1-dev", "Qwen/Qwen-Image", "stabilityai/stable-diffusion-3.5-large"
ZIMAGE, FLUX2, SDXL = "Tongyi-MAI/Z-Image", "black-forest-labs/FLUX.2-dev", "stabilityai/stable-diffusion-xl-base-1.0"

KNOWN = {
    # model, size, what is asked: TFLOP a step, GiB of denoising and of decoding an image, MiB sent a step
    (FLUX, 1024, ()): (74.4, 0.457, 1.505, 0),
    (QWEN, 1024, ()): (70.6, 0.361, 3.383, 0),
    (QWEN, 1024, ("has_negative",)): (141.2, 0.368, 3.389, 0),
    (SD35, 1024, ()): (62.2, 0.503, 1.513, 0),
    (SDXL, 1024, ()): (13.5, 0.309, 1.502, 0),
    (ZIMAGE, 1024, ()): (113.2, 0.959, 1.503, 0),
    (FLUX2, 1024, ()): (282.6, 1.153, 1.533, 0),
    (FLUX, 1024, ("ulysses_degree=8",)): (9.30, 0.068, 1.505, 769),
    (FLUX, 1024, ("ulysses_degree=4", "ring_degree=2")): (9.30, 0.091, 1.505, 769 + 385),
    (FLUX, 1024, ("ring_degree=8",)): (9.30, 0.157, 1.505, 385),
    # An eighth of 70.6; the README has 8.66 and 730, of prompts that are shorter than 128 tokens.
    (QWEN, 1024, ("ulysses_degree=8",)): (8.83, 0.077, 3.383, 737),
    (FLUX2, 1024, ("ulysses_degree=8",)): (35.3, 0.163, 1.533, 1512),
    (ZIMAGE, 1024, ("ulysses_degree=2", "use_cfg_parallel")): (27.8, 0.270, 1.503, 2012),
}
USUAL = [(FLUX, 1024, ("ulysses_degree=8",))]


CONTEXT = [(FLUX, 2), (QWEN, 2), (QWEN, 4), (FLUX2, 2)]


@cache
def traced(model: str, size: int, asked: tuple[str, ...], flags: tuple[str, ...] = ()) -> Figures:
    from dglaunch.simulation.trace import trace

    return trace(*wanted(model, size, asked, flags))


def wanted(
    model: str, size: int, asked: tuple[str, ...], flags: tuple[str, ...] = ()
) -> tuple[Checkpoint, T2IConfig, Request]:
    given = {name: int(value) if value else True for name, _, value in (each.partition("=") for each in asked)}
    backend = BackendConfig(
        model_name=model, backend="xdit" if "ulysses" in str(asked) or "ring" in str(asked) else "diffusers"
    )
    request = Request(shape=Shape(size, size), dtype="bfloat16", text_tokens=128, flags=flags, **given)  # type: ignore[arg-type]
    return resolve(backend), T2IConfig(backend=backend, prompts_file=Path("unused")), request


@pytest.mark.parametrize(("model", "size", "asked"), rarely(KNOWN, KNOWN.keys() - USUAL))
def test_work_and_memory_are_those_of_a_whole_call(model: str, size: int, asked: tuple[str, ...]) -> None:
    step, denoise, decode, sent = KNOWN[model, size, asked]
    figures = traced(model, size, asked)
    weights = sum(bytes for name, bytes in figures.weights.items() if not name.startswith("text_encoder"))
    assert figures.denoise.flops / 1e12 == pytest.approx(step, rel=0.02)
    for stage, known in ((figures.denoise, denoise), (figures.decode, decode)):
        assert weights + stage.peak(1) == pytest.approx(weights + known * GIB, rel=0.05)
        assert stage.peak(1) / GIB == pytest.approx(known, rel=0.15)
    assert figures.denoise.sent_bytes / 2**20 == pytest.approx(sent, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "degree"), CONTEXT)
def test_what_diffusers_shares_is_traced_as_with_all_blocks(model: str, degree: int) -> None:
    """Qwen-Image's plan cuts within the first block; what was run twice, to see what one more block takes, was cut twice."""
    from dglaunch.simulation.trace import _Tracing

    asked = (f"context_degree={degree}",)
    found, whole = traced(model, 1024, asked), _Tracing(*wanted(model, 1024, asked), cut=("nothing",)).figures()
    for name in ("encode", "denoise", "decode"):
        one, other = getattr(found, name), getattr(whole, name)
        assert (one.flops, one.sent_bytes) == pytest.approx((other.flops, other.sent_bytes), rel=0.001)
        assert one.peak(1) == pytest.approx(other.peak(1), rel=0.04 if name == "encode" else 0.02)
    assert found.weights == whole.weights
    assert found.denoise.flops == pytest.approx(traced(model, 1024, ()).denoise.flops / degree, rel=0.01)


@pytest.mark.parametrize("family", rarely(T2I, set(T2I) - {"flux"}))
def test_a_folder_with_tokenizers_is_traced_too(families: Path, family: str) -> None:
    """The backend counts what its tokenizers make of long prompts; the catalog's models have none."""
    from dglaunch.simulation.trace import trace

    build(family, families / family)
    backend = BackendConfig(model_name=str(families / family))
    request = Request(shape=Shape(64, 64), dtype="float32", text_tokens=20)
    figures = trace(resolve(backend), T2IConfig(backend=backend, prompts_file=Path("unused")), request)
    assert figures.encode.flops > 0 and figures.denoise.flops > 0 and figures.decode.flops > 0


SEEN = {
    # What transformers' processor makes of the image that the pipeline gives to its text encoder: squares of 28 pixels
    ("Qwen/Qwen-Image-Edit", Shape(1024, 1024)): 37 * 37,  # of 1024 x 1024
    ("Qwen/Qwen-Image-Edit", Shape(height=1024, width=768)): 42 * 32,  # of 1184 x 896
    ("Qwen/Qwen-Image-Edit-2509", Shape(1024, 1024)): 14 * 14,  # of 384 x 384
    ("Qwen/Qwen-Image-Edit-2509", Shape(height=1024, width=768)): 16 * 11,  # of 448 x 320
}


@pytest.mark.parametrize(("model", "shape"), rarely(SEEN, list(SEEN)[:-1]))
def test_what_the_text_encoder_sees_of_an_image_is_part_of_its_text(model: str, shape: Shape) -> None:
    """Neither that nor the template, which the pipeline cuts off again, was counted once: it was cut out of the prompt."""
    import diffusers

    from dglaunch.simulation.trace import trace

    lengths: set[int] = set()
    forward = diffusers.QwenImageTransformer2DModel.forward

    @wraps(forward)
    def noted(*args: Any, **given: Any) -> Any:
        lengths.add(given["encoder_hidden_states"].shape[1])
        return forward(*args, **given)

    backend = BackendConfig(model_name=model)
    config = EditingConfig(backend=backend, input=Path("unused"))
    request = Request(shape=Shape(1024, 1024), dtype="bfloat16", text_tokens=128, input_shapes=(shape,))
    with mock.patch.object(diffusers.QwenImageTransformer2DModel, "forward", noted):
        figures = trace(as_editor(resolve(backend), None), config, request)
    assert lengths == {128 + SEEN[model, shape]}
    assert figures.encode.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Qwen/Qwen-Image-Edit-2509", SDXL, SD35, QWEN])
def test_encoding_takes_what_it_takes_with_all_blocks(model: str) -> None:
    """A text encoder's memory is not added to that of another one, or of the VAE that encodes an image, which run at another time
    (SDXL: a quarter too much). What its output keeps for a moment after it is left out: 3 MiB, 3 %, of Qwen-Image."""
    from dglaunch.planning.shipping import checkpoint_of, usual_requests
    from dglaunch.simulation.trace import _Tracing, trace

    checkpoint, config = checkpoint_of(model)
    request = next(usual_requests(checkpoint, config))
    found = trace(checkpoint, config, request).encode
    whole = _Tracing(checkpoint, config, request, cut=("nothing",)).figures().encode
    assert found.peak(1) == pytest.approx(whole.peak(1), rel=0.04)
    assert found.flops == pytest.approx(whole.flops, rel=0.002)


@pytest.mark.slow
def test_a_sliced_batch_is_decoded_image_by_image() -> None:
    plain, sliced = traced(ZIMAGE, 1024, ()), traced(ZIMAGE, 1024, (), ("enable_vae_slicing",))
    assert plain.decode.peak(4) == pytest.approx(4 * plain.decode.peak(1), rel=0.02)
    assert sliced.decode.peak(4) < 1.1 * plain.decode.peak(1)


@pytest.mark.slow
def test_weights_kept_in_eight_bits_are_half_as_many_bytes() -> None:
    plain, cast = traced(ZIMAGE, 1024, ()), traced(ZIMAGE, 1024, (), ("enable_layerwise_casting",))
    assert cast.weights["transformer"] == pytest.approx(plain.weights["transformer"] / 2, rel=0.03)
    assert cast.weights["vae"] == plain.weights["vae"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["Alpha-VLLM/Lumina-Image-2.0", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "baidu/ERNIE-Image-Turbo",
     "hunyuanvideo-community/HunyuanImage-2.1-Diffusers", "Kwai-Kolors/Kolors-diffusers"],
)  # fmt: skip
def test_other_ways_to_call_an_encoder_or_an_attention(model: str) -> None:
    """Language models that keep keys and values, token ids as lists, attention without heads, tokens that are numbered."""
    figures = traced(model, 1024, ())
    for stage in (figures.encode, figures.denoise, figures.decode):
        assert stage.flops > 0 and stage.peak(1) > 0


NOT_TRACED = "GLM"
DRAWING = [name for name in names() if not any(part in name for part in ("Edit", "Kontext", NOT_TRACED))]
"""Models of text to image that a trace can follow."""
FEW_ROWS = 16
"""CUDA's product of 8-bit integers takes only more (seen on an H100)."""


def _sees_few_rows(model: str) -> dict[str, bool]:
    """Of each linear layer in the blocks of a model's transformer, whether it is given few rows for one image."""
    import torch

    rows: dict[torch.nn.Module, int] = {}
    seen: list[torch.nn.Module] = []

    def note(module: torch.nn.Module, given: tuple[object, ...]) -> None:
        seen.append(module)
        if isinstance(module, torch.nn.Linear) and given:
            rows[module] = max(rows.get(module, 0), given[0].numel() // given[0].shape[-1])  # type: ignore[attr-defined]

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        traced.__wrapped__(model, 512, ())
    finally:
        hook.remove()
    parts = resolve(BackendConfig(model_name=model)).components
    denoiser = next(parts[name].class_name for name in ("transformer", "unet") if name in parts)
    roots = {id(module): module for module in seen if type(module).__name__ == denoiser}
    return {
        f"{name}.{inner}": rows[layer] <= FEW_ROWS
        for root in roots.values()
        for name, blocks in root.named_children()
        if isinstance(blocks, torch.nn.ModuleList)
        for inner, layer in blocks.named_modules()
        if layer in rows
    }


@pytest.mark.parametrize("model", rarely(DRAWING, set(DRAWING) - {FLUX}))
def test_layers_that_see_few_rows_are_told_by_their_names(model: str) -> None:
    """int8 multiplies integers in all others: a run of FLUX.1-dev ended with an error on the first GPU that it saw."""
    from dglaunch.backends.diffusers.optimizations import sees_a_row_an_image

    found = _sees_few_rows(model)
    assert len(found) > 5
    assert {name for name in found if sees_a_row_an_image(name)} == {name for name, few in found.items() if few}
