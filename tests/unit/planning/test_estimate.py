"""What the plan says that a run will cost."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch import T2IConfig
from dglaunch.config import OptimizationConfig
from dglaunch.data.task import BatchSize, Task
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER
from dglaunch.planning.batches import build
from dglaunch.planning.estimate import TAKEN_IN_MPIXELS, bottleneck
from support.commands import dglaunch


def tasks(count: int) -> list[Task]:
    return [Task(index=n, prompt=f"p{n}", seed=n, stem=f"{n:06d}", height=64, width=64) for n in range(count)]


def test_plan_says_when_rank_0_cannot_take_in_what_is_made() -> None:
    plan = build(tasks(100), 8, lambda _: BatchSize(1, ""))
    pixels = 100 * 64 * 64 / 1e6
    enough, too_little = pixels / TAKEN_IN_MPIXELS * 1.1, pixels / TAKEN_IN_MPIXELS / 3
    checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False)
    place = Topology(world_size=8)
    assert bottleneck(checkpoint, place, plan, enough) is None
    assert "3.0 times what one rank 0 was measured" in (bottleneck(checkpoint, place, plan, too_little) or "")
    assert bottleneck(checkpoint, Topology(world_size=8, mode="rank"), plan, too_little) is None


def test_the_estimate_counts_what_is_on_the_device() -> None:
    """FLUX.1-dev's sizes in bfloat16: 24 GB transformer, 10 GB text encoders that leave before it comes."""
    from dglaunch.models.shape import Shape
    from dglaunch.planning.estimate import memory_of

    checkpoint = Checkpoint("x", "FluxPipeline", FAMILIES["FluxPipeline"], {}, {}, True)
    checkpoint.__dict__["parameters"] = {"transformer": 12 * 10**9, "text_encoder_2": 5 * 10**9, "vae": 10**8}

    def weights(**flags: Any) -> float:
        config = T2IConfig(prompt="x", optimization=OptimizationConfig(**flags))
        memory = memory_of(checkpoint, config, Topology(), "bfloat16", Shape(1024, 1024))
        assert memory is not None
        return max(stage.weights for stage in memory.stages.values()) / 1e9

    assert weights() == pytest.approx(24.2) and weights(encode="inline") == pytest.approx(34.2)
    assert weights(quantization="fp8") == weights(enable_layerwise_casting=True) == pytest.approx(12.2)
    assert weights(quantization="nf4", encode="inline") == pytest.approx(6.72 + 10.2)
    assert weights(enable_group_offloading=True) == pytest.approx(10) and weights(enable_cpu_offload=True) == 24


@pytest.mark.parametrize(("way", "transformer", "text_encoder"), [("fsdp", 17.2, 13.0), ("tensor", 16.4, 13.0)])
def test_ranks_that_share_the_weights_hold_parts(way: Any, transformer: float, text_encoder: float) -> None:
    """FLUX.2-dev's sizes in bfloat16, over four ranks; the VAE is whole on each."""
    from dglaunch.config import BackendConfig, ParallelConfig
    from dglaunch.planning.estimate import gathered_a_step, on_each_rank

    checkpoint = Checkpoint("x", "Flux2Pipeline", FAMILIES["Flux2Pipeline"], {}, {}, True)
    config = T2IConfig(prompt="x", backend=BackendConfig(shard=way))
    place = Topology(world_size=4, parallel=ParallelConfig(shard_degree=4))
    whole = {"transformer": 60 * 10**9, "text_encoder": 45 * 10**9, "vae": 10**8}
    held = {name: size / 1e9 for name, size in on_each_rank(whole, checkpoint, config, place).items()}
    assert held["vae"] == 0.1 and held["text_encoder"] == pytest.approx(text_encoder, abs=0.1)
    assert held["transformer"] == pytest.approx(transformer, abs=0.1)
    assert gathered_a_step(whole, config, place) == (45 * 10**9 if way == "fsdp" else 0)
    assert on_each_rank(whole, checkpoint, T2IConfig(prompt="x"), Topology()) == whole


@pytest.mark.parametrize(
    ("model", "side", "images"),
    [("black-forest-labs/FLUX.1-dev", 1024, 2), ("Qwen/Qwen-Image", 1024, 1), ("black-forest-labs/FLUX.1-dev", 512, 8), ("Qwen/Qwen-Image", 512, 4)],
)  # fmt: skip
def test_auto_takes_as_many_as_gain_something(tmp_path: Path, model: str, side: int, images: int) -> None:
    """A batch of Qwen-Image masks the attention where prompts differ in length, and then costs more than it gains."""
    words = ["--model_name", model, "--height", side, "--width", side, "--prompt", "x", "--num_images_per_prompt", 16]
    told = dglaunch("plan", "t2i", *words, "--gpu", "H200", "--output_dir", tmp_path / "out")
    assert f"batch_size {side}x{side} {images}:" in told.output
    assert ("advice: --batch_size" not in told.output) or "FLUX" in model
