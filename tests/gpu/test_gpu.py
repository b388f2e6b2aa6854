"""What only a GPU can show; `make gpu` runs it where there is one, everywhere else it is skipped with a word.

tests/test_pretended_gpu.py shows what can be shown without one. What has been seen on which GPU: docs/throughput.md. Three
parts: `dglaunch certify` on all GPUs, of the model that CERTIFY_MODEL names or `tiny`; the flags that a CPU refuses, on `tiny`;
and FLUX.1-dev's true size (`python -m kernels_bench true_size`), whose row is appended to kernels_bench/results with the
hardware's name.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.commands import ROOT, Ended, clean_environment, end, run_process
from support.results import PROMPTS, difference, run_json, write_jsonl

FLAGS: dict[str, tuple[list[str], str, str]] = {
    "cpu_offload": (["--enable_cpu_offload"], "on the GPU only while they run", ""),
    "group_offloading": (["--enable_group_offloading"], "modules onloaded", ""),
    "compile": (["--enable_compile"], "FluxTransformerBlock", ""),
    "native_cudnn": (["--attention_backend", "_native_cudnn"], "_native_cudnn", ""),
    "tf32": (["--enable_tf32", "--torch_dtype", "float32"], "high", ""),
    "int8": (["--quantization", "int8", "--enable_compile"], "Int8Tensor", "torchao"),
    "fp8": (["--quantization", "fp8"], "Float8Tensor", "torchao"),
    "nf4": (["--quantization", "nf4"], "Params4bit", "bitsandbytes"),
}
"""Flags, what the effect says, and the package they need."""
LOSSLESS = ("cpu_offload", "group_offloading")
GOAL_IDLE = 0.02


@pytest.fixture(scope="module", autouse=True)
def gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here")
    return torch.cuda.get_device_name()


@pytest.fixture(scope="module")
def runs(gpu: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended]]:
    """The plain run and one with each flag, side by side: `tiny` leaves room for all of them."""
    folder = tmp_path_factory.mktemp("gpu")
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--prompts_file", prompts, "--batch_size", "2", "--device", "cuda"]
    wanted = {"plain": []} | {name: words for name, (words, _, needs) in FLAGS.items() if not needs or find_spec(needs)}
    with ThreadPoolExecutor() as pool:
        ended = pool.map(lambda name: run_process(*base, *wanted[name], "--output_dir", folder / name), wanted)
        return {name: (folder / name, each) for name, each in zip(wanted, ended)}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_takes_effect(runs: dict[str, tuple[Path, Ended]], name: str) -> None:
    _, says, needs = FLAGS[name]
    if name not in runs:
        pytest.skip(f"{needs} is not installed")
    folder, ended = runs[name]
    assert ended.code == 0, ended.output
    assert any(says in effect for effect in run_json(folder)["effects"].values())


@pytest.mark.parametrize("name", LOSSLESS)
def test_moving_weights_does_not_change_the_image(runs: dict[str, tuple[Path, Ended]], name: str) -> None:
    assert difference(runs[name][0], runs["plain"][0]) <= 2


# -- every way to run a model --------------------------------------------------------------------------------------


@pytest.mark.timeout(6 * 3600)
def test_every_way_to_run_the_model_draws_the_same(gpu: str) -> None:
    """Interrupted and started again, it goes on; outputs/certify keeps the page."""
    model = os.environ.get("CERTIFY_MODEL") or "tiny"
    words = ["certify", "--model_name", model, "--device", "cuda", "--output_dir", ROOT / "outputs" / "certify"]
    ended = run_process(*words, timeout=6 * 3600, HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "0"))
    print(ended.output)
    assert ended.code == 0, ended.output


# -- FLUX.1-dev's true size ---------------------------------------------------------------------------------------


CASES = ("plain", "plain again", "batch of 2", "compiled", "fp8, compiled", "int8, compiled", "halving", "idle")


@pytest.fixture(scope="module")
def true_size(gpu: str) -> dict[str, Any]:
    """The record that the bench appended, by the names of its rows."""
    words = [sys.executable, "-m", "kernels_bench", "true_size", "--device", "cuda", "--steps", "28", "--cases", *CASES]
    process = subprocess.Popen(
        words, env=clean_environment(), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    ended = end(process, timeout=3000)
    assert ended.code == 0, ended.output
    print(ended.output)
    record = json.loads(ended.output.splitlines()[-1])
    assert record["hardware"]["gpus"]
    return {row["name"]: row for row in record["rows"]}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_each_case_makes_its_images(true_size: dict[str, Any], name: str) -> None:
    assert "not_run" not in true_size[name], true_size[name]


@pytest.mark.parametrize("name", ["plain", "batch of 2"])
@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_memory_is_as_planned(true_size: dict[str, Any], name: str, stage: str) -> None:
    row = true_size[name]
    assert row["measured"][stage] == pytest.approx(row["planned"][stage], rel=0.05)


def test_the_same_command_draws_the_same(true_size: dict[str, Any]) -> None:
    assert true_size["plain again"]["psnr"] == "equal"


def test_compiling_does_not_change_the_image_much(true_size: dict[str, Any]) -> None:
    told = true_size["compiled"]["psnr"]
    assert told == "equal" or float(told) > 25


def test_the_gpu_is_not_idle_between_images(true_size: dict[str, Any]) -> None:
    assert true_size["idle"]["idle_share"] < GOAL_IDLE, true_size["idle"]["events"]
