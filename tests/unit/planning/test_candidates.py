"""Which optimizations a search tries: all of the table, by the rules that refuse runs; nothing is left out in silence."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from dglaunch.config import BackendConfig, OptimizationConfig, T2IConfig
from dglaunch.models.optimizations import ATTENTION, CACHE_FLAGS, OPTIMIZATIONS, XFUSER_ATTENTION
from dglaunch.planning.candidates import PLAIN, Candidate, pairs, reasons, singles
from dglaunch.planning.job import Job, prepare
from dglaunch.system import Machine


def job(tmp_path: Path, origins: dict[str, str] | None = None, **flags: object) -> Job:
    backend = BackendConfig(cache_dir=tmp_path, backend=flags.pop("backend", "diffusers"))
    optimization = OptimizationConfig(**flags.pop("optimization", {}))
    config = T2IConfig(prompt="a red circle", backend=backend, optimization=optimization, **flags)
    return prepare(config, origins or {}, {}, 1)


def by_name(found: list[Candidate]) -> dict[str, Candidate]:
    assert len({candidate.name for candidate in found}) == len({candidate.folder for candidate in found}) == len(found)
    return {candidate.name: candidate for candidate in found}


def test_every_row_and_every_value_is_there_or_has_its_reason(tmp_path: Path) -> None:
    found = by_name(singles(job(tmp_path)))
    names = {row.name for row in OPTIMIZATIONS if row.flag != "attention_backend"}
    names |= {f"attention_backend {name}" for name in ATTENTION} | {"enable_compile + compile_scope whole"}
    assert found.keys() == names
    assert not found["enable_fuse_qkv"].refused and not found["cache_type pab"].refused
    assert "runs on GPUs only" in found["quantization fp8"].refused
    assert "pip install xformers" in found["attention_backend xformers"].refused
    assert "--num_inference_steps 28" in found["cache_type mag_cache"].refused
    assert found["cache_type pab"].flags == ["--cache_type", "pab"]
    assert found["enable_compile + compile_scope whole"].flags == ["--enable_compile", "--compile_scope", "whole"]


def test_what_changes_images_is_what_makes_another_job(tmp_path: Path) -> None:
    found = by_name(singles(job(tmp_path)))
    changing = {name for name, candidate in found.items() if candidate.changes}
    caches = {f"cache_type {name}" for name in CACHE_FLAGS}
    assert caches <= changing and {"quantization int8", "attention_backend sage", "enable_vae_tiling"} <= changing
    assert not changing & {
        "enable_compile",
        "enable_fuse_qkv",
        "attention_backend _native_flash",
        "enable_channels_last",
    }


def test_reasons_are_told_once_with_all_their_names(tmp_path: Path) -> None:
    refused = [candidate for candidate in singles(job(tmp_path)) if candidate.refused]
    found = reasons(refused)
    assert sorted(name for names in found.values() for name in names) == sorted(c.name for c in refused)
    (flash,) = [names for reason, names in found.items() if "package flash_attn," in reason]
    assert flash == ["attention_backend flash", "attention_backend flash_varlen"]
    assert all(reason[0].isupper() and "--attention_backend" not in reason for reason in found)


def test_what_the_command_sets_itself_is_in_every_run(tmp_path: Path) -> None:
    found = by_name(singles(job(tmp_path, {"cache_type": "flag"}, optimization={"cache_type": "pab"})))
    assert all("the command sets --cache_type itself" in found[f"cache_type {name}"].refused for name in CACHE_FLAGS)
    assert not found["enable_fuse_qkv"].refused and not found["enable_fuse_qkv"].changes


def test_on_a_gpu_what_needs_compiling_is_compiled(tmp_path: Path) -> None:
    there = job(tmp_path)
    machine = Machine(name="NVIDIA A100", memory=None, dtype="bfloat16", capability=(8, 0))
    gpu = replace(there, target=replace(there.target, device="cuda", machine=machine))
    found = by_name(singles(gpu))
    assert found["quantization int8 + enable_compile"].flags == ["--quantization", "int8", "--enable_compile"]
    assert "compute capability 8.9" in found["quantization fp8"].refused
    assert not found["enable_cpu_offload"].refused and not found["attention_backend _native_cudnn"].refused


@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
def test_with_xdit_the_kernels_are_xfusers(tmp_path: Path) -> None:
    found = by_name(singles(job(tmp_path, backend="xdit")))
    assert {name.split()[1] for name in found if name.startswith("attention")} == XFUSER_ATTENTION.keys()
    assert "over all ranks of the world" in found["cache_type cache_dit"].refused


def test_a_model_without_named_blocks_is_compiled_as_a_whole(tmp_path: Path) -> None:
    there = job(tmp_path)
    family = replace(there.checkpoint.family, takes=frozenset())
    sd3 = replace(there, target=replace(there.target, checkpoint=replace(there.checkpoint, family=family)))
    found = by_name(singles(sd3))
    assert "--compile_scope whole" in found["enable_compile"].refused
    assert not found["enable_compile + compile_scope whole"].refused


def test_pairs_are_those_that_go_together(tmp_path: Path) -> None:
    there = job(tmp_path)
    known = by_name(singles(there))
    names = ("cache_type pab", "cache_type taylor_seer", "enable_compile", "enable_compile + compile_scope whole",
             "quantization int8", "enable_fuse_qkv")  # fmt: skip
    found = by_name(pairs(there, [known[name] for name in names], known))
    assert "cache_type pab + enable_compile" in found and "enable_compile + quantization int8" in found
    assert "cache_type pab + enable_compile + compile_scope whole" in found
    assert not any("pab" in name and "taylor" in name for name in found), "one cache at a time"
    assert not known.keys() & found.keys()
    assert "do not go together" in found["quantization int8 + enable_fuse_qkv"].refused
    (reason,) = reasons([found["quantization int8 + enable_fuse_qkv"]])
    assert reason.startswith("--quantization int8 and --enable_fuse_qkv do not go together")
    assert found["cache_type pab + enable_fuse_qkv"].changes and not found["enable_compile + enable_fuse_qkv"].changes


def test_the_plain_run_and_batches_of_another_size_have_names() -> None:
    assert Candidate().name == PLAIN and Candidate().flags == []
    assert Candidate(batch_size=2).name == "in batches of 2" and Candidate(batch_size=2).folder == "in-batches-of-2"
