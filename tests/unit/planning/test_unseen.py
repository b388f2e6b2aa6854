"""What stands beside a time that does not know all flags: each of the table's rows, and LoRAs."""

from pathlib import Path

import pytest

from dglaunch import strict_json
from dglaunch.config import OptimizationConfig
from dglaunch.models.optimizations import OPTIMIZATIONS
from dglaunch.planning.gpus import find_gpu
from dglaunch.planning.speed import Work, seconds_of
from dglaunch.planning.unseen import IN_TIME, not_in_time, with_loras
from support.commands import dglaunch
from support.versions import pinned_diffusers


@pytest.mark.parametrize("row", OPTIMIZATIONS, ids=lambda row: row.name)
def test_a_time_knows_an_optimization_or_says_that_it_does_not(row: object) -> None:
    flag, value = row.flag, row.value  # type: ignore[attr-defined]
    wanted = OptimizationConfig(**{flag: value or ("flash" if flag == "attention_backend" else True)})
    said = not_in_time(wanted)
    assert len(said) == (0 if flag in IN_TIME else 1)
    assert all(line.startswith(f"as without --{flag}") for line in said)


def test_what_others_published_is_said_with_its_source() -> None:
    (cached,) = not_in_time(OptimizationConfig(cache_type="first_block_cache"))
    assert "2.2 times as fast is published of FLUX.1-dev on one H100 SXM" in cached and "BenchmarkFlux" in cached
    (rounded,) = not_in_time(OptimizationConfig(quantization="fp8"))
    assert "0.98 times as fast" in rounded and "torchao" in rounded
    (moved,) = not_in_time(OptimizationConfig(enable_cpu_offload=True))
    assert moved.endswith("no run with it is published") and "slower" in moved


@pinned_diffusers
def test_the_output_and_its_json_say_it(tmp_path: Path) -> None:
    told = dglaunch(
        "plan", "t2i", "--model_name", "black-forest-labs/FLUX.1-dev", "--prompt", "x", "--gpu", "H100", "--quantization", "fp8",
        "--output_dir", tmp_path / "out", "--json", tmp_path / "plan.json",
    )  # fmt: skip
    found = strict_json.loads((tmp_path / "plan.json").read_bytes())
    assert isinstance(found, dict)
    (line,) = (sentence for sentence in found["time"]["basis"] if sentence.startswith("as without --quantization fp8"))
    assert line in " ".join(told.output.split())


def test_loras_widen_a_time_and_are_compiled_each() -> None:
    work, card = Work(step_tflop=74.4, steps=28, decode_tflop=10), find_gpu("H100")
    plain, compiled = (seconds_of(work, card, compiled=compiling) for compiling in (False, True))
    assert plain is not None and compiled is not None
    found = with_loras(plain, 8)
    assert found.a_batch.low == plain.a_batch.low and found.decode == plain.decode
    assert found.denoise.high == pytest.approx(plain.denoise.high / 0.56)
    assert "docs/lora.md" in found.basis[-1] and "compiled" not in found.basis[-1]
    several = with_loras(compiled, 8)
    assert several.compiling == compiled.compiling.times(8) and "8 sets" in several.basis[-1]
