"""`dglaunch rehearse`: a job's own backend as every rank of a replica, on fake tensors; and faults that it must find."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ended, dglaunch
from support.results import write_jsonl

SPLIT = {"DG_XDIT_ULYSSES_DEGREE": "2"}


def rehearse(folder: Path, *flags: str | Path, rows: list[dict[str, object]] | None = None, **split: str) -> Ended:
    """As two ranks that split an image, if nothing else is said."""
    table = write_jsonl(folder / "prompts.jsonl", rows or [{"prompt": "a red circle"}])
    usual = ("--model_name", "tiny", "--backend", "xdit", "--world_size", "2", "--gpu", "80GiB")
    return dglaunch(
        "rehearse", "t2i", "--prompts_file", table, "--output_dir", folder / "out", *usual, *flags, **(split or SPLIT)
    )


def in_each_call(monkeypatch: pytest.MonkeyPatch, rank: int, fault: Any) -> None:
    """Let one rank do something else before it denoises."""
    from dglaunch.backends.xdit.backend import XDiTEngine

    prepare = XDiTEngine.prepare

    def with_fault(self: XDiTEngine, pipeline: Any, batch: Any, arguments: Any) -> Any:
        if self.context.topology.rank == rank:
            fault(pipeline)
        return prepare(self, pipeline, batch, arguments)

    monkeypatch.setattr(XDiTEngine, "prepare", with_fault)


@pytest.mark.slow
def test_a_job_that_runs_ends_with_what_each_stage_holds(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a red circle"}, {"prompt": "two"}, {"prompt": "a blue square"}]
    said = tmp_path / "said.json"
    ended = rehearse(tmp_path, "--batch_size", "2", "--json", said, rows=rows)
    assert ended.code == 0, ended.output
    assert "fits" in ended.output and "MiB sent" in ended.output and "not seen: values" in ended.output
    found = json.loads(said.read_text())
    assert [batch["images"] for batch in found["batches"]] == [2, 1] and not found["problems"]
    for batch in found["batches"]:
        assert batch["stages"].keys() == {"encode", "denoise", "decode"}
        assert batch["stages"]["denoise"]["sent_bytes"] > 0 == batch["stages"]["decode"]["sent_bytes"]
    assert found["peak"] > sum(found["weights"].values()) > 0


@pytest.mark.slow
def test_a_wrong_split_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks are two, and the engine splits by one."""
    from dglaunch.backends.xdit.backend import XDiTEngine

    degrees = {"data_parallel_degree": 2, "ulysses_degree": 1, "ring_degree": 1}
    monkeypatch.setattr(XDiTEngine, "_degrees", lambda _: degrees)
    ended = rehearse(tmp_path)
    assert ended.code == 2
    assert "would crash: rank 0, 1, load: " in ended.output, ended.output


def test_a_rank_that_exchanges_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.distributed as dist

    in_each_call(monkeypatch, 1, lambda _: dist.all_reduce(torch.zeros(1)))
    ended = rehearse(tmp_path)
    assert ended.code == 2
    assert "the ranks do not agree on 1 of 64x64" in ended.output and "allreduce" in ended.output, ended.output


@pytest.mark.slow
def test_a_rank_of_another_type_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    in_each_call(monkeypatch, 1, lambda pipeline: pipeline.transformer.to(torch.float32))
    ended = rehearse(tmp_path)
    assert ended.code == 2
    assert "would crash" in ended.output or "do not agree" in ended.output, ended.output


def test_what_cannot_be_rehearsed_is_refused_with_what_to_do(tmp_path: Path) -> None:
    alone = {"DG_XDIT_ULYSSES_DEGREE": "1"}
    offload = rehearse(tmp_path, "--backend", "diffusers", "--enable_cpu_offload", **alone)
    assert offload.code == 2 and "--enable_cpu_offload cannot be rehearsed" in offload.output
    no_gpu = dglaunch("rehearse", "t2i", "--prompt", "a", "--model_name", "tiny", "--output_dir", tmp_path / "out")
    assert no_gpu.code == 2 and "--gpu H100" in no_gpu.output
    no_model = dglaunch("rehearse", "t2i", "--prompt", "a", "--backend", "fake", "--output_dir", tmp_path / "out")
    assert no_model.code == 2 and "runs no model here" in no_model.output


@pytest.mark.slow
def test_what_does_not_fit_is_no_success(tmp_path: Path) -> None:
    ended = rehearse(
        tmp_path, "--model_name", "black-forest-labs/FLUX.1-dev", "--backend", "diffusers", "--world_size", "1",
        "--gpu", "16GiB", "--height", "512", "--width", "512", "--batch_size", "1", DG_XDIT_ULYSSES_DEGREE="1",
    )  # fmt: skip
    assert ended.code == 2
    assert "does not fit: it takes 22." in ended.output, ended.output


def test_a_weight_that_ranks_share_takes_the_memory_of_its_part() -> None:
    """A DTensor says that it is as large as the whole; nothing on the meta device takes any."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    from dglaunch.config import ParallelConfig
    from dglaunch.distributed.topology import Topology
    from dglaunch.simulation.meter import Meter
    from dglaunch.simulation.rehearsal import simulating

    meter, four = Meter(), ParallelConfig(shard_degree=4)
    with simulating(meter, Topology(world_size=4, local_world_size=4, distributed=True, parallel=four)):
        mesh = init_device_mesh("cpu", (4,))
        part = meter.empty(torch.empty(256, 1024, device="meta"), torch.bfloat16)
        weight = torch.nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False), requires_grad=False)
        assert weight.nbytes == 4 * part.nbytes and part.nbytes <= meter.peak < 2 * part.nbytes


FITS_24_GB = {
    "FLUX.2-dev": ("black-forest-labs/FLUX.2-dev", "tensor", 19.5),
    "Qwen-Image": ("Qwen/Qwen-Image", "fsdp", 15.0),
}
"""A model, how four cards share it, and the GiB that it takes at most, of 21.6 (docs/sharing.md)."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FITS_24_GB)
def test_large_models_fit_four_cards_of_24_gb(tmp_path: Path, name: str) -> None:
    model, way, most = FITS_24_GB[name]
    said = tmp_path / "said.json"
    ended = rehearse(
        tmp_path, "--backend", "diffusers", "--model_name", model, "--shard", way, "--world_size", "4", "--gpu", "24GiB",
        "--batch_size", "1", "--json", said, DG_SHARD_DEGREE="4",
    )  # fmt: skip
    assert ended.code == 0 and "fits: " in ended.output, ended.output
    assert 10 < json.loads(said.read_text())["peak"] / 2**30 < most


# -- do ranks agree: without a model ------------------------------------------------------------------------------


def exchange(*ranks: int, kind: str = "alltoall_base", shape: tuple[int, ...] = (2, 4), dtype: str = "bfloat16") -> Any:
    from dglaunch.simulation.meter import Collective

    return Collective(kind=kind, ranks=ranks, shapes=(shape,), dtype=dtype, num_bytes=16)


def message(kind: str, peer: int, shape: tuple[int, ...] = (2, 4)) -> Any:
    from dglaunch.simulation.meter import Collective

    return Collective(kind=kind, ranks=(0, 1), shapes=(shape,), dtype="bfloat16", num_bytes=16, peer=peer)


def disagreement(*calls: list[Any]) -> str | None:
    from dglaunch.simulation import agreement

    return agreement.disagreement(dict(enumerate(calls)))


def test_ranks_that_meet_in_the_same_order_agree() -> None:
    pair, everyone = exchange(0, 1), exchange(0, 1, 2)
    assert disagreement([pair, everyone], [pair, everyone], [everyone]) is None
    assert disagreement([message("send", 1), message("recv", 1)], [message("recv", 0), message("send", 0)]) is None


DISAGREEMENTS: dict[str, tuple[Callable[[], list[list[Any]]], str]] = {
    "skipped": (lambda: [[exchange(0, 1)], []], "they wait for one another: rank 0 in"),
    "crossed": (
        lambda: [
            [exchange(0, 1), exchange(0, 1, 2)],
            [exchange(0, 1, 2), exchange(0, 1)],
            [exchange(0, 1, 2)],
        ],
        "they wait for one another",
    ),
    "shape": (lambda: [[exchange(0, 1)], [exchange(0, 1, shape=(2, 5))]], "not alike"),
    "type": (lambda: [[exchange(0, 1)], [exchange(0, 1, dtype="float16")]], "not alike"),
    "kind": (lambda: [[exchange(0, 1)], [exchange(0, 1, kind="allgather_base")]], "not alike"),
    "message": (lambda: [[message("send", 1)], [message("recv", 0, (4, 2))]], "rank 1 expects"),
    "both wait": (
        lambda: [[message("recv", 1), message("send", 1)], [message("recv", 0), message("send", 0)]],
        "they wait for one another",
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_ranks_that_do_not_meet_are_told(case: str) -> None:
    calls, said = DISAGREEMENTS[case]
    assert said in (disagreement(*calls()) or "")


@pytest.mark.slow
def test_ranks_that_cut_the_weights_share_the_work(tmp_path: Path) -> None:
    """DTensor makes operations on its parts of those on the whole: these are counted, and not those by which it plans them."""

    def stages(way: str) -> Any:
        said, table = tmp_path / f"{way}.json", write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a red circle"}])
        words = ["--model_name", "tiny", "--world_size", "2", "--gpu", "80GiB", "--shard", way, "--json", said]
        ended = dglaunch(
            "rehearse", "t2i", "--prompts_file", table, "--output_dir", tmp_path / "out", *words, DG_SHARD_DEGREE="2"
        )
        assert ended.code == 0, ended.output
        (batch,) = json.loads(said.read_text())["batches"]
        return batch["stages"]

    tensor, whole = stages("tensor"), stages("fsdp")
    assert whole["denoise"]["flops"] / 2 < tensor["denoise"]["flops"] < whole["denoise"]["flops"]
    assert tensor["denoise"]["peak_bytes"] < whole["denoise"]["peak_bytes"]
    assert tensor["decode"] == whole["decode"]


def test_what_only_a_tokenizer_can_answer_is_no_crash_of_the_job(tmp_path: Path) -> None:
    """It was called one, of a job that runs."""
    words = ("--prompt", "a", "--model_name", "zai-org/GLM-Image", "--gpu", "H100", "--output_dir", tmp_path / "out")
    ended = dglaunch("rehearse", "t2i", *words)
    assert ended.code == 2 and "would crash" not in ended.output
    assert "cannot be rehearsed here: a language model draws the image's tokens first" in ended.output
    assert "dglaunch plan estimates it" in ended.output
