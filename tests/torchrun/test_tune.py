"""A sweep of the fake backend under torchrun, then `--batch_size auto` with what it found; a sweep of xDiT (slow)."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.commands import Ended, dglaunch
from support.results import write_jsonl


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Each batch takes 0.2 s whatever its size, and 5 images are too many."""
    folder = tmp_path_factory.mktemp("tune")
    write_jsonl(folder / "p.jsonl", [{"prompt": "[sleep 0.2] [oom 4] one"}] + [{"prompt": "more"}] * 7)
    return folder, dglaunch("tune", *words(folder), "--num_gpus", "2", "--output_dir", folder / "tuned")


def words(folder: Path) -> list[str | Path]:
    return ["t2i", "--backend", "fake", "--prompts_file", folder / "p.jsonl", "--cache_dir", folder / "cache"]


def test_out_of_memory_ends_the_row_and_not_the_sweep(swept: tuple[Path, Ended]) -> None:
    folder, ended = swept
    assert ended.code == 0, ended.output
    assert "sweet spot" in ended.output and "fake out of memory: 8 images" in ended.output
    record = json.loads((folder / "tuned" / "tune.json").read_text())
    assert [row["batch_size"] for row in record["rows"]] == [1, 2, 4, 8]
    assert record["rows"][-1]["ended"] and record["sweet_spot"]["batch_size"] == 4
    assert record["device"] == "fake" and record["shape"] == "64x64" and record["ranks"] == 2
    assert not list((folder / "tuned").glob("*.tmp"))


def test_the_plot_is_a_picture(swept: tuple[Path, Ended]) -> None:
    pytest.importorskip("matplotlib")
    assert (swept[0] / "tuned" / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_auto_uses_what_was_measured(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    run = dglaunch(*words(folder), "--output_dir", folder / "run")
    assert run.code == 0, run.output
    assert "batch_size 64x64 4: measured by tune on" in run.output
    plan = dglaunch("plan", *words(folder), "--height", "128")
    assert "measured by tune" not in plan.output and "batch_size 128x64" in plan.output
    given = dglaunch("plan", *words(folder), "--batch_size", "1")
    assert "batch_size 64x64 1: as given" in given.output


@pytest.mark.slow
@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
def test_a_sweep_of_xdit(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a red circle"}])
    flags = ["--backend", "xdit", "--num_inference_steps", "2", "--num_gpus", "2", "--cache_dir", tmp_path / "cache"]
    ended = dglaunch("tune", "t2i", "--prompts_file", prompts, *flags, "--output_dir", tmp_path)
    assert ended.code == 0, ended.output
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert {row["parallel"] for row in rows if row["images_per_s"]} == {"data parallel", "ulysses 2"}
