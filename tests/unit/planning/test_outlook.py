"""What `plan` says of well-known models on named GPUs, from the figures that dglaunch ships; no model, GPU or network."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dglaunch import strict_json
from dglaunch.cli import plan
from support.commands import dglaunch
from support.results import write_jsonl
from support.selection import rarely
from support.versions import pinned_diffusers

pytestmark = pinned_diffusers  # which the figures that are shipped were traced with

FLUX, FLUX2 = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.2-dev"


def planned(
    folder: Path, model: str, *words: str, rows: Mapping[str, object] | None = None, images: int = 16, **variables: str
) -> Any:
    """What `plan --json` says, and on the terminal."""
    table = write_jsonl(folder / "p.jsonl", [{"prompt": f"prompt {n}", **(rows or {})} for n in range(images)])
    file = folder / "plan.json"
    ended = dglaunch(
        "plan", "t2i", "--model_name", model, "--prompts_file", table, "--output_dir", folder / "out", "--json", file,
        "--cache_dir", folder / "cache", *words, **variables,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    found: Any = strict_json.loads(file.read_bytes())
    return found | {"said": " ".join(ended.output.split())}


@pytest.mark.parametrize(
    ("model", "rows", "step_tflop", "decode_gib"),
    [
        (FLUX, {}, 74.4, 1.5),
        ("Qwen/Qwen-Image", {"negative_prompt": "ugly", "guidance_scale": 4}, 141.2, 3.38),
        ("stabilityai/stable-diffusion-3.5-large", {}, 62.2, 1.5),
        ("stabilityai/stable-diffusion-xl-base-1.0", {}, 13.5, 1.5),
        ("Tongyi-MAI/Z-Image", {}, 113.2, 1.5),
        ("black-forest-labs/FLUX.2-dev", {}, 282.6, 1.53),
    ],
)
def test_work_and_memory_of_well_known_models(
    tmp_path: Path, model: str, rows: dict[str, object], step_tflop: float, decode_gib: float
) -> None:
    found = planned(tmp_path, model, "--gpu", "H200", "--batch_size", "1", rows=rows)
    assert found["work"]["source"] == "traced" and found["memory"]["source"] == "traced"
    assert found["work"]["step_tflop"] == pytest.approx(step_tflop, rel=0.02)
    decode = found["memory"]["stages"]["decode"]
    assert decode["peak_gib"] - decode["weights_gib"] == pytest.approx(decode_gib, rel=0.02)
    assert found["time"]["seconds"]["low"] < found["time"]["seconds"]["high"] and found["time"]["basis"]


def test_flux_fits_an_h100_and_says_what_is_left(tmp_path: Path) -> None:
    found = planned(tmp_path, FLUX, "--gpu", "H100", "--batch_size", "1")
    memory = found["memory"]
    assert memory["weights_gib"] == pytest.approx(22.3, rel=0.01) and memory["peak_gib"] == pytest.approx(
        23.8, rel=0.01
    )
    assert memory["fits"] and memory["peak_stage"] == "decode"
    assert "fits into 79.1 GiB; 55.3 GiB are left" in found["said"]
    assert found["gpu"] == "H100 SXM" and found["family"] == "FluxPipeline"


def test_what_does_not_fit_is_said_with_the_flags_that_make_it_fit(tmp_path: Path) -> None:
    found = planned(tmp_path, FLUX, "--gpu", "RTX 4090")
    assert found["memory"]["fits"] is False and found["batch_size"] == 1
    assert "does not fit: 23.6 GiB are 0.2 too few" in found["said"]
    advice = " ".join(found["advice"])
    assert "--quantization fp8: 12." in advice and "formula over traced parts" in advice
    assert "--enable_group_offloading: " in advice and "only while it runs: slower" in advice
    assert "hold 1 image" not in found["said"]


OFFLOADED, FSDP, TENSOR = ("--enable_cpu_offload",), ("--shard", "fsdp"), ("--shard", "tensor")


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is shipped is known: a trace takes seconds."""

    def trace(_: object) -> None:
        raise RuntimeError("no trace in this test")

    monkeypatch.setattr(plan, "in_this_process", lambda *_: trace)


ADVISED: list[tuple[str, str, int, tuple[str, ...]]] = [
    (FLUX2, "RTX 4090", 8, ()), (FLUX2, "RTX 4090", 1, ()), (FLUX, "RTX 4090", 1, ("--encode", "inline")),
    (FLUX, "A100-80GB", 1, OFFLOADED), (FLUX, "A100-80GB", 4, FSDP), (FLUX, "A100-80GB", 4, TENSOR), (FLUX2, "24GiB", 4, FSDP),
    (FLUX, "RTX 3090", 2, ("--enable_fuse_qkv",)), (FLUX, "H100", 1, ("--encode", "inline", *OFFLOADED)),
]  # fmt: skip


@pytest.mark.parametrize(("model", "gpu", "world", "flags"), rarely(ADVISED, [*ADVISED[1:3], *ADVISED[5:]]))
def test_all_that_is_advised_is_taken_and_fits(
    tmp_path: Path, untraced: None, model: str, gpu: str, world: int, flags: tuple[str, ...]
) -> None:
    place = ["--gpu", gpu, "--world_size", str(world), "--batch_size", "1"]
    degree = {"DG_SHARD_DEGREE": str(world)} if "--shard" in flags else {}
    found = planned(tmp_path, model, *place, *flags, **degree)
    advised = [line.partition(": ")[0].split() for line in found["advice"] if line.startswith(("--", "DG_"))]
    assert all("--enable_compile" not in words for words in advised) or flags[:1] not in (OFFLOADED, FSDP[:1])
    for words in advised:
        given = [flag for flag in flags if flag != "--encode" and flag != "inline"] if "--encode" in words else [*flags]
        if "--shard" in words and "--shard" in given:
            given = given[2:]
        variables = degree | {name: value for name, _, value in (w.partition("=") for w in words if "=" in w)}
        followed = planned(tmp_path, model, *place, *given, *(w for w in words if "=" not in w), **variables)
        assert followed["memory"]["fits"] or found["memory"]["fits"], words


def test_several_gpus_that_hold_one_model_are_among_the_flags(tmp_path: Path, untraced: None) -> None:
    found = planned(tmp_path, FLUX2, "--gpu", "RTX 4090", "--world_size", "8")
    assert found["memory"]["fits"] is False
    tensor, fsdp = (line for line in found["advice"] if "--shard" in line)
    assert tensor.startswith("DG_SHARD_DEGREE=4 --shard tensor: 18.7 GiB for one image")
    assert fsdp.startswith("DG_SHARD_DEGREE=8 --shard fsdp: 14.7 GiB") and "8 GPUs then make the images of one" in fsdp
    alone = planned(tmp_path, FLUX2, "--gpu", "RTX 4090")
    assert not any("--shard" in line for line in alone["advice"])


def test_prompts_ahead_are_among_the_flags(tmp_path: Path, untraced: None) -> None:
    found = planned(tmp_path, FLUX, "--gpu", "32GiB", "--encode", "inline")
    assert found["memory"]["fits"] is False
    assert any(line.startswith("--encode ahead: 23.8 GiB for one image") for line in found["advice"])


def test_layouts_stand_side_by_side(tmp_path: Path) -> None:
    found = planned(tmp_path, FLUX, "--gpu", "H100", "--world_size", "8", "--compare", "--backend", "xdit", images=64)
    layouts = {layout["name"]: layout for layout in found["layouts"]}
    data, ulysses = layouts["8 replicas of one GPU"], layouts["1 replica of ulysses 8"]
    assert data["images_per_second"]["high"] > ulysses["images_per_second"]["high"]
    assert ulysses["image_seconds"]["high"] < data["image_seconds"]["high"]
    assert "no second guidance branch" in layouts["4 replicas of cfg 2"]["refused"]
    assert layouts["4 replicas of context 2"]["words"] == "DG_PARALLEL_DEGREE=2 --parallel context --backend diffusers"
    assert layouts["4 replicas of context 2"]["image_seconds"]["high"] < data["image_seconds"]["high"]
    for way in ("tensor", "fsdp"):
        assert layouts[f"2 replicas of {way} 4"]["peak_gib"] < 0.6 * data["peak_gib"]
    assert found["recommended"] == "8 replicas of one GPU"


def test_a_layout_that_a_job_has_stands_beside_the_others(tmp_path: Path) -> None:
    """What its flags ask for is taken away of the others, as a run with both would be refused."""
    place = ["--gpu", "24GiB", "--world_size", "4", "--compare", "--batch_size", "1"]
    found = planned(tmp_path, FLUX, *place, *TENSOR, DG_SHARD_DEGREE="4")
    layouts = {layout["name"]: layout for layout in found["layouts"]}
    assert layouts["1 replica of tensor 4"]["peak_gib"] == pytest.approx(found["memory"]["peak_gib"])
    assert not layouts["4 replicas of one GPU"]["fits"] and "refused" not in layouts["2 replicas of ulysses 2"]


def test_prompts_that_are_encoded_in_each_batch_keep_the_text_encoders(tmp_path: Path) -> None:
    ahead, inline = (planned(tmp_path, FLUX, "--gpu", "H100", "--encode", mode) for mode in ("ahead", "inline"))
    assert inline["memory"]["peak_gib"] - ahead["memory"]["peak_gib"] == pytest.approx(9.35, abs=0.2)
    assert any(line.startswith("--encode ahead: 9.3 GiB less") for line in inline["advice"])


def test_a_model_that_is_not_here_is_planned_for_an_h100(tmp_path: Path) -> None:
    found = planned(tmp_path, FLUX)
    assert found["gpu"] == "H100 SXM" and found["dtype"] == "bfloat16"


def test_what_cannot_be_traced_is_a_formula_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long to fail again."""

    def trace(_: object) -> None:
        pytest.fail("traced")

    monkeypatch.setattr(plan, "in_this_process", lambda *_: trace)
    found = planned(tmp_path, "zai-org/GLM-Image", "--gpu", "H100")
    assert found["memory"]["source"] == "formula" and found["time"]["seconds"] is None
    assert "a formula, as it could not be traced: " in found["said"]


def test_known_figures_need_nothing_that_is_slow_to_import(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a cat"}])
    words = ["plan", "t2i", "--model_name", FLUX, "--prompts_file", str(table), "--output_dir", str(tmp_path / "out")]
    slow = {"torch", "numpy", "http.client"}
    script = f"import sys\nfrom dglaunch.cli.main import main\nmain({words!r})\nassert not {slow!r}.intersection(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "GiB at its worst" in ended.stdout
