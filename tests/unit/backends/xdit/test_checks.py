"""Which splits are let through, at the true numbers of heads of the published models. Pure: nothing is loaded or imported."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from dglaunch.backends.xdit import checks
from dglaunch.config import ParallelConfig, T2IConfig
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES

XFUSER = importlib.util.find_spec("xfuser")
pytestmark = pytest.mark.skipif(XFUSER is None, reason="xfuser is not installed")
HEADS: dict[str, tuple[str, dict[str, object], list[int]]] = {
    "FLUX.1-dev": ("FluxPipeline", {"num_attention_heads": 24}, [1, 2, 4, 8]),
    "FLUX.2-dev": ("Flux2Pipeline", {"num_attention_heads": 48}, [1, 2, 4, 8, 16]),
    "FLUX.2-klein-9B": ("Flux2KleinPipeline", {"num_attention_heads": 32}, [1, 2, 4, 8, 16]),
    "Qwen-Image": ("QwenImagePipeline", {"num_attention_heads": 24}, [1, 2, 3, 4, 6, 8, 12]),
    "Z-Image": ("ZImagePipeline", {"n_heads": 30, "n_kv_heads": 30}, [1, 2, 4, 8, 16]),
    "SD 3.5 large": ("StableDiffusion3Pipeline", {"num_attention_heads": 38}, [1, 2]),
    "SD 3.5 medium": ("StableDiffusion3Pipeline", {"num_attention_heads": 24, "dual_attention_layers": [0, 1, 2]}, [1]),
    "PixArt-Sigma": ("PixArtSigmaPipeline", {"num_attention_heads": 16}, [1, 2, 4, 8, 16]),
    "Lumina-Image 2.0": ("Lumina2Pipeline", {"num_attention_heads": 24, "num_kv_heads": 8}, [1, 2, 4, 8]),
}
"""Heads of the transformer, and the Ulysses degrees of 1 to 16 that a 1024x1024 image is split by."""


def passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


@pytest.mark.parametrize("model", HEADS)
def test_the_ulysses_degrees_of_the_published_models(model: str) -> None:
    pipeline, transformer, degrees = HEADS[model]
    checkpoint = Checkpoint(model, pipeline, FAMILIES[pipeline], {}, transformer, False)
    task = Task(index=0, prompt="a fox", seed=1, stem="0", height=1024, width=1024)
    config = T2IConfig(prompt="a fox")

    def let_through(degree: int) -> bool:
        topology = Topology(world_size=degree, parallel=ParallelConfig(ulysses_degree=degree))
        return passes(lambda: checks.check_degrees(checkpoint, config, topology)) and passes(
            lambda: checks.check_split(checkpoint, config, topology, [task])
        )

    assert [degree for degree in range(1, 17) if let_through(degree)] == degrees


def test_whose_text_length_xfuser_drops() -> None:
    assert XFUSER is not None and XFUSER.origin is not None
    folder = Path(XFUSER.origin).parent / "model_executor" / "pipelines"
    sources = [path.read_text(encoding="utf-8") for path in folder.glob("pipeline_*.py")]
    for family in FAMILIES.values():
        if family.xdit is not None and family.xdit.pipeline is not None:
            (source,) = [text for text in sources if f"class {family.xdit.pipeline.split(':')[1]}(" in text]
            assert family.xdit.fixed_text_length == ("max_sequence_length" not in source), family.name
