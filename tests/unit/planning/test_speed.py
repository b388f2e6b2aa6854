"""Times are met without having been fitted to themselves, are ranges, and say what they rest on."""

from dataclasses import replace

import pytest

from dglaunch.planning.fit import left_out
from dglaunch.planning.gpus import GPUS, find_gpu
from dglaunch.planning.measurements import FLUX, MEASUREMENTS, QWEN, Run
from dglaunch.planning.speed import (
    Seconds,
    Span,
    Work,
    gain_of_compiling,
    launch_seconds,
    seconds_of,
    share_of_peak,
)

LIMIT = 0.25
SETUPS = list(dict.fromkeys(run.setup for run in MEASUREMENTS if run.plain))
HARD = {("L40S", "stable-diffusion-xl-base-1.0", 1024, True)}
"""A U-Net compiled: its convolutions stay kernels of their own, which no other compiled run here has."""


def seconds(work: Work, gpu: str, **options: object) -> Seconds:
    found = seconds_of(work, find_gpu(gpu), **options)
    assert found is not None
    return found


FLUX_28 = Work(model="FLUX.1-dev", encode_tflop=4.9, step_tflop=FLUX, steps=28, decode_tflop=10.5, launches_a_step=3795)


# -- against what others measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [setup for setup in SETUPS if setup not in HARD], ids=str)
def test_published_times_of_plain_diffusers_are_met_within_a_quarter(setup: tuple[str, str, int, bool]) -> None:
    """Each (GPU, model, size, compiled or not) is predicted from the other ones alone. Where sources conflict, they span a
    range, and its middle is what must be met; the range that is shown must then reach into theirs."""
    check = left_out(setup)
    assert abs(check.likely / check.published.middle - 1) <= LIMIT, check
    assert check.predicted.low <= check.published.high and check.predicted.high >= check.published.low * (1 - LIMIT)


def test_every_plain_run_but_a_conflicting_one_is_met_by_itself() -> None:
    """cache-dit's 9.30 s for 50 steps of FLUX.1-dev on an H100 are a quarter less than what four other sources say."""
    beyond = []
    for setup in SETUPS:
        check = left_out(setup)
        beyond += [run.source for run, ratio in check.ratios if abs(ratio - 1) > LIMIT and setup not in HARD]
    assert len(beyond) == 1 and "cache-dit" in beyond[0]


def test_qwen_at_512_gains_from_batches_and_at_1024_does_not() -> None:
    """Published for an H200, compiled: batch 8 is 3.1 times batch 1 at 512x512, batch 2 1.02 times at 1024x1024."""

    def gain(step: float, batch: int) -> float:
        works = [Work(step_tflop=count * step, steps=20, launches_a_step=5497) for count in (1, batch)]
        one, many = (seconds(work, "H200", compiled=True).likely for work in works)
        return batch * one / many

    assert gain(16.65, 8) == pytest.approx(3.1, rel=0.25)
    assert gain(QWEN, 2) == pytest.approx(1.02, abs=0.03)


def test_the_data_support_what_is_fitted() -> None:
    assert 1.2 < gain_of_compiling() < 1.6
    eager, compiled = launch_seconds(False), launch_seconds(True)
    assert 2e-5 < eager.low < eager.high < 6e-5 and compiled.middle < eager.middle
    for run in MEASUREMENTS:
        assert find_gpu(run.gpu).name == run.gpu and run.source, run
        if run.plain:
            assert run.rate < find_gpu(run.gpu).peaks["bfloat16"], run


# -- what a range is made of --------------------------------------------------------------------------------------


def test_a_time_is_a_range_and_says_what_it_rests_on() -> None:
    h100 = seconds(FLUX_28, "H100")
    assert h100.a_batch.low < 6.7 < h100.a_batch.high < 1.8 * h100.a_batch.low
    (basis,) = h100.basis
    assert basis.startswith("FLUX.1-dev on one H100 SXM, eager: published 9.3 s (50 steps), 6.71 s (28 steps)")
    assert h100.a_batch.low < h100.likely < h100.a_batch.high
    assert seconds(replace(FLUX_28, model="black-forest-labs/FLUX.1-dev"), "H100") == h100
    other = seconds(Work(step_tflop=56.6, steps=9), "H100")
    assert "FLUX.1-dev, 28 steps" in other.basis[0] and "Qwen-Image, 50 steps" in other.basis[0]
    (h200,) = seconds(FLUX_28, "H200").basis
    assert "on one H100 SXM, which computes as fast as the H200" in h200
    (unseen,) = seconds(FLUX_28, "RTX 4090").basis
    assert unseen.startswith("no run on the RTX 4090 is published")


def test_less_knowledge_makes_a_wider_range() -> None:
    def width(gpu: str, model: str) -> float:
        span = share_of_peak(find_gpu(gpu), model, False).range
        return span.high / span.low

    assert width("A100-80GB", "FLUX.1-dev") < width("A100-80GB", "another") < width("MI300X", "another")


def test_every_gpu_has_a_time_and_none_is_beyond_its_peak() -> None:
    for gpu in GPUS:
        for compiled in (False, True):
            for dtype in ("bfloat16", "float16", "float32"):
                found = seconds_of(FLUX_28, gpu, dtype=dtype, compiled=compiled)
                assert found is not None
                assert found.denoise.low >= 28 * FLUX / gpu.peaks[dtype], gpu.name
    assert seconds(FLUX_28, "H100", compiled=True).denoise.high < seconds(FLUX_28, "H100").denoise.high
    assert "float32" in seconds(FLUX_28, "H100", dtype="float32").basis[1]


def test_the_stages_add_up() -> None:
    work = Work(
        encode_tflop=5,
        step_tflop=9.3,
        steps=28,
        decode_tflop=10.5,
        sent_bytes_a_step=769 * 2**20,
        weights_bytes=24 * 10**9,
    )
    found = seconds(work, "H100", compiled=True)
    stages = (found.encode, found.denoise, found.traffic, found.decode)
    assert found.a_batch.low == pytest.approx(sum(stage.low for stage in stages))
    assert found.total(3).high == pytest.approx(found.load.high + found.compiling.high + 3 * found.a_batch.high)
    assert found.load.low > 24 / 7 and found.load.high > 24 / 0.5
    assert seconds(Work(step_tflop=1, steps=1), "H100").load == Span(0, 0)


def test_traffic_takes_the_link_and_may_hide_behind_the_arithmetic() -> None:
    """Ulysses 8 of FLUX.1-dev sends 769 MiB a rank and step: nothing over NVLink, much over PCIe."""
    work = Work(step_tflop=9.3, steps=28, sent_bytes_a_step=769 * 2**20)
    nvlink, pcie = seconds(work, "H100"), seconds(work, "L40S")
    assert nvlink.traffic.high < 0.2 * nvlink.denoise.low
    assert pcie.traffic.low > 28 * 769 * 2**20 / 32e9
    ring = replace(work, overlapped=True)
    assert seconds(ring, "L40S").traffic.low == 0.0 < seconds(ring, "L40S").traffic.high


def test_small_images_are_bound_by_starting_kernels_and_it_says_so() -> None:
    small = Work(step_tflop=6.0, steps=28, launches_a_step=3795)
    found = seconds(small, "H100")
    assert "bound by starting its 3,795 kernels" in found.basis[1]
    twice = seconds(replace(small, step_tflop=12.0), "H100")
    assert twice.denoise.low == found.denoise.low


def test_of_a_memory_alone_the_time_spans_the_gpus_that_have_it() -> None:
    any_80 = seconds(FLUX_28, "80GiB")
    assert any_80.a_batch.low == seconds(FLUX_28, "H100").a_batch.low
    assert any_80.a_batch.high >= seconds(FLUX_28, "A100-80GB").a_batch.high
    assert "A100 80GB SXM, A100 80GB PCIe, H100 SXM, H100 PCIe" in any_80.basis[0]
    assert seconds_of(FLUX_28, find_gpu("13GiB")) is None


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span(5.123, 7.88), "5.1 to 7.9"),
        (Span(123.4, 1567.0), "120 to 1,600"),
        (Span(0.0612, 0.0618), "0.061 to 0.062"),
        (Span(0.0, 3.0), "0 to 3.0"),
        (Span(2.01, 2.02), "2.0"),
    ],
)
def test_a_range_is_shown_with_two_digits(span: Span, text: str) -> None:
    assert str(span) == text


def test_a_run_without_its_own_gpu_is_within_the_range_of_the_others() -> None:
    """So wide must a range be where nothing is published: each GPU is predicted with all its runs left out."""
    for gpu in {run.gpu for run in MEASUREMENTS if run.plain}:
        others = [run for run in MEASUREMENTS if run.gpu != gpu]
        for compiled in (False, True):
            alone = share_of_peak(find_gpu(gpu), "", compiled)
            unseen = share_of_peak(find_gpu(gpu), "", compiled, others)
            assert "no run on the" in unseen.basis
            assert unseen.range.low <= alone.likely <= unseen.range.high, (gpu, compiled)


def test_a_run_that_is_not_plain_fits_nothing() -> None:
    fast = Run(gpu="B200", model="x", steps=1, seconds=0.01, tflop=74.4, engine="another", source="x")
    cached = Run(gpu="B200", model="x", steps=1, seconds=0.01, tflop=74.4, on=("a cache",), source="x")
    b200 = find_gpu("B200")
    assert share_of_peak(b200, "x", False, (*MEASUREMENTS, fast, cached)) == share_of_peak(b200, "x", False)
