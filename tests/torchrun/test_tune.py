"""A sweep of the fake backend, then `--batch_size auto` with what it found; a search of the optimizations of `tiny`: both on
ranks that are forks. Under torchrun a sweep of xDiT, and a search of all that there is, stopped in the middle (slow)."""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from dglaunch.cli import tune
from dglaunch.models.optimizations import OPTIMIZATIONS
from dglaunch.planning import candidates
from support.commands import Ended, descendants, dglaunch, end, start
from support.ranks import on_ranks
from support.results import PROMPTS, difference, images, run_json, write_jsonl

Run = Callable[[Sequence[str], Mapping[str, str]], tuple[int, str]]
"""What runs one of torchrun's command lines with these variables."""


def forks(folder: Path) -> Run:
    """On ranks that start in 0.1 s."""

    def run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
        ranks = int(command[command.index("--nproc_per_node") + 1])
        variables = {name: value for name, value in environ.items() if name.startswith("DG_")}
        case = on_ranks(folder, ranks, *command[command.index("dglaunch") + 1 :], **variables)
        return max(case.codes), case.output

    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Each batch takes 0.2 s whatever its size, and 5 images are too many."""
    folder = tmp_path_factory.mktemp("tune")
    write_jsonl(folder / "p.jsonl", [{"prompt": "[sleep 0.2] [oom 4] one"}] + [{"prompt": "more"}] * 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "_run", forks(folder))
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


# -- a search -----------------------------------------------------------------------------------------------------


def swept_already(run: Run) -> Run:
    """The same but for the sweep, whose end is given: batches of 2."""

    def run_or_tell(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
        if "tune-rank" in command:
            machine = {"device": "CPU", "dtype": "float32", "shape": "64x64"}
            rows = [{"batch_size": size, "images_per_s": 1.0 + size} for size in (1, 2)]
            write_jsonl(Path(command[command.index("tune-rank") + 1]), [machine, *rows])
            return 0, ""
        return run(command, environ)

    return run_or_tell


def test_a_search_of_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cache_type taylor_seer", "enable_fuse_qkv", "quantization fp8")
    monkeypatch.setattr(candidates, "OPTIMIZATIONS", [row for row in OPTIMIZATIONS if row.name in names])
    monkeypatch.setattr(tune, "_run", swept_already(forks(tmp_path)))
    monkeypatch.setattr(tune, "_plot", lambda *_: "")
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:4]])
    out = tmp_path / "out"
    words = [
        "--prompts_file",
        prompts,
        "--num_inference_steps",
        "6",
        "--num_gpus",
        "1",
        "--cache_dir",
        tmp_path / "cache",
    ]
    ended = dglaunch("tune", "t2i", "--search", *words, "--output_dir", out)
    assert ended.code == 0, ended.output
    found = json.loads((out / "search.json").read_text())
    trials = {trial["name"]: trial for trial in found["trials"]}
    assert {"as given", "cache_type taylor_seer", "enable_fuse_qkv"} <= trials.keys()
    assert all(trial["images_per_s"] > 0 and trial["peak_memory"] > 2**27 for trial in trials.values())
    plain, fused, cached = (out / "search" / name for name in ("as-given", "enable_fuse_qkv", "cache_type-taylor_seer"))
    assert trials["enable_fuse_qkv"]["greatest"] == difference(fused, plain) <= 2
    assert trials["cache_type taylor_seer"]["greatest"] == difference(cached, plain) > 2
    assert trials["cache_type taylor_seer"]["changes"] and trials["cache_type taylor_seer"]["psnr"] < 60
    assert len(images(plain)) == trials["as given"]["num_compared"] >= 8
    assert "fused projections" in run_json(fused)["effects"]["enable_fuse_qkv"]
    assert found["not_tried"][0]["names"] == ["quantization fp8"] and "not tried: quantization fp8" in ended.output
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    lossless, _ = found["choices"].values()
    assert lossless["name"] in ("as given", "enable_fuse_qkv") and lossless["command"] in ended.output


@pytest.mark.slow  # twenty starts of torchrun, and gcc
@pytest.mark.timeout(3000)
def test_a_search_of_all_that_there_is_stopped_in_the_middle(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:4]])
    words = ["tune", "t2i", "--search", "--prompts_file", prompts, "--num_gpus", "1", "--cache_dir", tmp_path / "cache"]
    command = [*words, "--output_dir", tmp_path / "out"]
    notebook = tmp_path / "out" / "search.json"
    process = start(command)
    limit = time.monotonic() + 1000
    while not notebook.exists() or len(json.loads(notebook.read_text())["trials"]) < 3:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    children = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    ended = end(process)
    assert ended.code == 130 and "Stopped with " in ended.output
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    before = json.loads(notebook.read_text())["trials"]
    ended = end(start(command), timeout=2800)
    assert ended.code == 0, ended.output
    found = json.loads(notebook.read_text())
    assert found["trials"][: len(before)] == before
    tried = {trial["name"]: trial for trial in found["trials"]}
    alone = {row.name for row in OPTIMIZATIONS if row.flag != "attention_backend"}
    assert alone <= tried.keys() | {name for reason in found["not_tried"] for name in reason["names"]}
    assert not any(trial["ended"] for trial in found["trials"])
    kept = [trial for trial in found["trials"] if not trial["changes"]]
    assert all(trial["greatest"] <= 2 for trial in kept) and len(kept) > 8
