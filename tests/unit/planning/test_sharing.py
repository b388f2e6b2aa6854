"""What plan says of the work and the traffic of ranks that share the weights; from the figures that dglaunch ships."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch import strict_json
from dglaunch.planning.gpus import find_gpu
from dglaunch.planning.speed import Work, seconds_of
from support.commands import dglaunch
from support.versions import pinned_diffusers

pytestmark = pinned_diffusers

FLUX2, QWEN, ZIMAGE = "black-forest-labs/FLUX.2-dev", "Qwen/Qwen-Image", "Tongyi-MAI/Z-Image"
TRANSFORMER = 61_461
"""MiB of FLUX.2-dev's."""


def planned(folder: Path, model: str, *words: str, ranks: int = 1) -> Any:
    degree = {"DG_SHARD_DEGREE": str(ranks)} if ranks > 1 else {}
    ended = dglaunch(
        "plan", "t2i", "--model_name", model, "--prompt", "x", "--height", "1024", "--width", "1024", "--batch_size", "1",
        "--output_dir", folder / "out", "--json", folder / "plan.json", "--world_size", str(ranks), *words, **degree,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    return strict_json.loads((folder / "plan.json").read_bytes())


def test_tensor_divides_the_work_and_counts_what_is_added_up(tmp_path: Path) -> None:
    """docs/sharing.md has what is added up: 3,456 MiB; of it a rank sends each part twice, but its own."""
    gpu = ("--gpu", "RTX 4090")
    one, eight = planned(tmp_path, FLUX2, *gpu), planned(tmp_path, FLUX2, *gpu, "--shard", "tensor", ranks=8)
    assert eight["work"]["sent_mib_a_step"] == pytest.approx(2 * 3456 * 7 / 8, rel=0.01)
    denoise = [found["time"]["stages"]["denoise"]["high"] for found in (one, eight)]
    assert denoise[1] == pytest.approx(denoise[0] / 8, rel=0.01)
    traffic = eight["time"]["stages"]["traffic"]
    assert traffic["high"] == pytest.approx(50 * 2 * 3456 * 7 / 8 * 2**20 / 32e9 / 0.5, rel=0.1)
    assert one["time"]["batch"]["seconds"]["low"] > 2 * eight["time"]["batch"]["seconds"]["low"]


def test_fsdp_computes_the_whole_image_and_gathers_the_weights(tmp_path: Path) -> None:
    one, four = (
        planned(tmp_path, FLUX2, "--gpu", "H100", *words, ranks=ranks)
        for words, ranks in (((), 1), (("--shard", "fsdp"), 4))
    )
    assert four["work"]["sent_mib_a_step"] == pytest.approx(TRANSFORMER * 3 / 4, rel=0.01)
    assert four["time"]["stages"]["denoise"] == one["time"]["stages"]["denoise"]
    encoders = sum(gib for name, gib in four["memory"]["components_gib"].items() if name.startswith("text_encoder"))
    sent = 50 * TRANSFORMER * 2**20 * 3 / 4 + encoders * 2**30 / 8 * 3 / 4
    assert four["time"]["stages"]["traffic"]["high"] == pytest.approx(sent / 450e9 / 0.5, rel=0.01)


def test_guidance_that_calls_the_transformer_twice_gathers_twice(tmp_path: Path) -> None:
    negative = ("--negative_prompt", "ugly", "--guidance_scale", "4")
    sent = [
        planned(tmp_path, QWEN, "--gpu", "H100", "--shard", "fsdp", *words, ranks=2)["work"]["sent_mib_a_step"]
        for words in ((), negative)
    ]
    assert sent[1] == 2 * sent[0]


def test_what_is_sent_beside_the_arithmetic_is_waited_for_where_it_takes_longer() -> None:
    card = find_gpu("RTX 4090")
    little, much = (
        seconds_of(Work(step_tflop=1, steps=1, sent_bytes_a_step=size, overlapped=True), card)
        for size in (10**6, 10**11)
    )
    assert little is not None and much is not None and little.traffic.low == 0
    assert much.a_batch.low == pytest.approx(100 / card.link / 0.9)
