"""What optimizations do to the modules of a tiny pipeline, in this process; and the libraries' own names of them."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dglaunch.backends.diffusers import optimizations
from dglaunch.config import OptimizationConfig
from dglaunch.models import optimizations as table


@pytest.fixture(scope="module")
def tiny_flux(families: Path) -> Iterator[Any]:
    """Makes a new pipeline of the tiny random FLUX.1 at each call."""
    from diffusers import FluxPipeline

    from support.tiny_models import build

    folder = build("flux", families / "flux")

    def load() -> Any:
        pipeline = FluxPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    yield load


def draw(pipeline: Any) -> Any:
    import torch

    with torch.inference_mode():
        return pipeline(
            prompt=["a red circle", "b"], height=64, width=64, num_inference_steps=6, max_sequence_length=32,
            output_type="np", generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        ).images  # fmt: skip


def test_an_attention_backend_does_not_leak_into_the_process(tiny_flux: Any) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    pipeline = tiny_flux()
    effects = optimizations.apply(pipeline, OptimizationConfig(attention_backend="_native_math"), "cpu", ExitStack())
    assert effects == {"attention_backend": "4 attention processors: _native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE
    assert {block.attn.processor._attention_backend for block in pipeline.transformer.transformer_blocks} == {
        "_native_math"
    }
    other = tiny_flux()
    assert {block.attn.processor._attention_backend for block in other.transformer.transformer_blocks} == {None}


def test_compiled_blocks_draw_the_same(tiny_flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and then run as it is: what the compiler makes of it takes gcc a minute (make soak)."""
    import torch

    graphs: list[Any] = []

    def as_it_is(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is))
    pipeline = tiny_flux()
    effects = optimizations.apply(pipeline, OptimizationConfig(enable_compile=True), "cpu", ExitStack())
    assert "blocks (FluxTransformerBlock, FluxSingleTransformerBlock)" in effects["enable_compile"]
    assert abs(draw(pipeline) - draw(tiny_flux())).max() < 2e-6
    assert graphs, "nothing was traced"


def test_group_offloading_moves_layers_and_not_the_image(tiny_flux: Any) -> None:
    """On a GPU alone it saves memory; that its hooks are there and right shows on a CPU too."""
    config = OptimizationConfig(enable_group_offloading=True)
    pipeline = tiny_flux()
    effects = optimizations.apply(pipeline, config, "cpu", ExitStack())
    assert int(effects["enable_group_offloading"].split()[0]) > 50
    assert abs(draw(pipeline) - draw(tiny_flux())).max() < 2e-6


@pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")
def test_cache_dit_takes_hold_and_lets_go(tiny_flux: Any) -> None:
    plain = draw(tiny_flux())
    pipeline = tiny_flux()
    config = OptimizationConfig(cache_type="cache_dit", cache_threshold=50.0, cache_warmup=1)
    with ExitStack() as undo:
        effects = optimizations.apply(pipeline, config, "cpu", undo)
        assert effects["cache_type"] == "DBCache(Fn_compute_blocks=1, residual_diff_threshold=50.0, max_warmup_steps=1)"
        assert abs(draw(pipeline) - plain).max() > 0.01
    assert abs(draw(tiny_flux()) - plain).max() == 0


def test_a_cache_forgets_a_call_that_broke_off(tiny_flux: Any) -> None:
    pipeline = tiny_flux()
    config = OptimizationConfig(cache_type="first_block_cache", cache_threshold=100.0)
    optimizations.apply(pipeline, config, "cpu", ExitStack())
    expected = draw(pipeline)
    call, calls = pipeline.transformer.forward, []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return call(*args, **kwargs)

    pipeline.transformer.forward = breaks
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(pipeline)
    pipeline.transformer.forward = call
    optimizations.forget_steps(pipeline)
    assert abs(draw(pipeline) - expected).max() == 0


def test_the_attention_backends_are_the_libraries_own() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert table.ATTENTION.keys() == {name.value for name in AttentionBackendName}
    if find_spec("xfuser"):
        from dglaunch.backends.xdit.cpu import import_xfuser

        import_xfuser()
        from xfuser.core.distributed.attention_backend import AttentionBackendType

        assert table.XFUSER_ATTENTION.keys() <= AttentionBackendType.__members__.keys()


def test_which_attention_kernels_take_no_mask() -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    refusing = {
        str(name.value) for name, kernel in Registry._backends.items()
        if "`attn_mask` is not supported" in inspect.getsource(inspect.unwrap(kernel))
    }  # fmt: skip
    assert refusing == table.WITHOUT_MASK
