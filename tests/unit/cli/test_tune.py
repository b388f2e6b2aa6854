"""`dglaunch tune`: the choice, and what is remembered for its own case and no other. A sweep: torchrun/test_tune.py."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dglaunch.cli import tune
from dglaunch.config import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig
from dglaunch.errors import UserError
from dglaunch.models.shape import Shape
from dglaunch.planning.gpus import find_gpu
from dglaunch.planning.tuned import REMEMBERED, Measured, describe, recall, remember, sweet_spot
from dglaunch.system import Machine
from support.commands import dglaunch
from support.results import write_jsonl


def measured(*speeds: float, parallel: str = "data parallel") -> list[Measured]:
    return [
        Measured(parallel=parallel, batch_size=2**n, images_per_s=speed, seconds_per_image=1 / speed)
        for n, speed in enumerate(speeds)
    ]


def test_the_smallest_batch_near_the_most_is_taken() -> None:
    best, reason = sweet_spot(measured(1, 1.9, 3.0, 3.03))
    assert best.batch_size == 4 and "batch 8 gives 1.0% more" in reason
    best, reason = sweet_spot([*measured(1, 2, 4), Measured(parallel="data parallel", batch_size=8, ended="oom")])
    assert best.batch_size == 4 and "did not fit" in reason
    best, _ = sweet_spot(measured(1, 2, 4) + measured(1, 4.05, parallel="ulysses 2"))
    assert (best.parallel, best.batch_size) == ("ulysses 2", 2)


def config(cache: Path, **optimization: object) -> T2IConfig:
    return T2IConfig(
        prompt="x", backend=BackendConfig(cache_dir=cache), optimization=OptimizationConfig(**optimization)
    )  # type: ignore[arg-type]


def test_a_result_is_used_for_its_own_case_only(tmp_path: Path) -> None:
    here = {"device": "NVIDIA H100", "dtype": "bfloat16", "shape": "1024x1024"}
    remember(config(tmp_path), here, measured(1, 2, 2.1) + measured(1, 1.5, parallel="ulysses 2"))
    machine = Machine(name="NVIDIA H100", memory=None, dtype="bfloat16")
    (found,) = recall(config(tmp_path), machine, ParallelConfig()).sizes.items()
    assert found[0] == Shape(1024, 1024) and found[1].size == 4
    assert "measured by tune on" in found[1].reason and "NVIDIA H100" in found[1].reason
    (split,) = recall(config(tmp_path), machine, ParallelConfig(ulysses_degree=2)).sizes.values()
    assert split.size == 2
    for other in (replace(machine, dtype="float16"), replace(machine, name="NVIDIA A100")):
        assert recall(config(tmp_path), other, ParallelConfig()).sizes == {}
    assert recall(config(tmp_path, quantization="fp8"), machine, ParallelConfig()).sizes == {}
    assert recall(config(tmp_path), machine, ParallelConfig(ring_degree=2)).sizes == {}


MACHINE = Machine(name="NVIDIA H100", memory=None, dtype="bfloat16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1, 2]", "it is not what dglaunch tune writes"),
        ('{"a": 1}', "1 of 1 entries are not as dglaunch tune writes them"),
        ('{"[]": {}, "{}": [], "[1,2,3,4,5,7]": {"batch_size": "x"}}', "3 of 3 entries"),
        ('{"[0,1,2,3,4,\\"64x64\\"]": {"batch_size": 1e999, "images_per_s": 1, "date": ""}}', "1 of 1 entries"),
        ('{"[0,1,2,3,4,\\"64x64\\"]": {"batch_size": -3, "images_per_s": 1, "date": ""}}', "1 of 1 entries"),
    ],
)
def test_a_file_of_another_shape_is_ignored_with_a_word(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / REMEMBERED).write_text(text)
    recalled = recall(config(tmp_path), MACHINE, ParallelConfig())
    (note,) = recalled.notes
    assert recalled.sizes == {} and said in note and str(tmp_path / REMEMBERED) in note and "ignored" in note
    words = ("t2i", "--backend", "fake", "--prompt", "x", "--output_dir", tmp_path / "out")
    ended = dglaunch(*words, DG_CACHE_DIR=str(tmp_path))
    assert ended.code == 0 and " ".join(note.split()) in " ".join(ended.output.split())
    given = dglaunch(*words, "--overwrite", "--batch_size", "2", DG_CACHE_DIR=str(tmp_path))
    assert given.code == 0 and "ignored" not in given.output


def test_no_file_is_no_news(tmp_path: Path) -> None:
    assert recall(config(tmp_path), MACHINE, ParallelConfig()).notes == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edit"], "tune measures t2i only"),
        (["t2i", "--prompt", "x", "--batch_size", "4"], "drop --batch_size"),
    ],
)
def test_what_tune_cannot_do_is_told(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tune.tune(["tune", *arguments], {})


@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
def test_the_configurations_of_xdit_are_those_that_hold(tmp_path: Path) -> None:
    """`tiny` has 4 heads and no CFG branch: Ulysses 8 and CFG parallel are left out, not refused."""
    wanted = T2IConfig(prompt="x", backend=BackendConfig(backend="xdit", cache_dir=tmp_path))
    found = tune.configurations(wanted, {}, {}, 8)
    assert [describe(variables) for variables in found] == ["data parallel", "ulysses 2", "ulysses 4"]
    with pytest.raises(UserError, match="attention heads"):
        tune.configurations(wanted, {}, {"DG_XDIT_ULYSSES_DEGREE": "8"}, 8)


def test_what_another_gpu_cannot_hold_does_not_count() -> None:
    rows = [replace(row, peak_memory=row.batch_size * 10 * 2**30) for row in measured(1, 1.9, 3.0, 5.0)]
    kept = tune.fitting(rows, find_gpu("40GiB"))
    assert [bool(row.images_per_s) for row in kept] == [True, True, False, False]
    assert "40.0 GiB are more than 36.0 of a GPU 40GiB" in kept[2].ended
    best, _ = sweet_spot(kept)
    assert best.batch_size == 2


def test_tune_for_another_gpu_is_not_remembered_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"device": "CPU", "dtype": "float32", "shape": "64x64"}
    given: list[object] = []

    def measure(words: object, *others: Any) -> dict[str, object]:
        given.append(words)
        others[-1].extend(replace(row, peak_memory=2**30) for row in measured(1, 2))
        return dict(machine)

    monkeypatch.setattr(tune, "_measure", measure)
    flags = ("--prompt", "x", "--num_gpus", "1", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out")
    ended = dglaunch("tune", "t2i", "--gpu", "H100", *flags)
    assert ended.code == 0 and "Not remembered: it was measured on CPU" in ended.output, ended.output
    assert not (tmp_path / "cache" / REMEMBERED).exists()
    assert "--gpu" not in str(given)
    assert '"--gpu"' in (tmp_path / "out" / "tune.json").read_text()


@pytest.mark.parametrize("name", ["tune.json", "tune.png"])
def test_tune_replaces_nothing_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    out = tmp_path / "out"
    measured_so_often: list[int] = []

    def measure(*given: Any) -> dict[str, object]:
        measured_so_often.append(1)
        given[-1].extend(measured(1, 2))
        return {"device": "CPU", "dtype": "float32", "shape": "64x64"}

    monkeypatch.setattr(tune, "_measure", measure)
    words = ("tune", "t2i", "--prompt", "x", "--num_gpus", "1", "--cache_dir", tmp_path / "cache", "--output_dir", out)
    assert [dglaunch(*words).code for _ in range(2)] == [0, 0]
    (out / name).unlink()
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    for put in (lambda: (out / name).write_bytes(b"mine"), lambda: (out / name).symlink_to(precious)):
        put()
        ended = dglaunch(*words)
        assert ended.code == 2 and name in ended.output and len(measured_so_often) == 2, ended.output
        assert (out / name).read_bytes() == precious.read_bytes() == b"mine"
        (out / name).unlink()


def test_what_ended_a_rank_is_told_and_not_that_torchrun_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    output = (
        "Traceback ...\nOSError: [Errno 5] Input/output error\ntorch.distributed...errors.ChildFailedError:\n=====\n"
    )
    monkeypatch.setattr(tune, "_run", lambda *_: (1, output))
    rows: list[Measured] = []
    tune._measure([], {}, {}, 2, rows)
    (row,) = rows
    assert row.ended == "torchrun left with 1: OSError: [Errno 5] Input/output error"


def test_a_sweep_that_is_stopped_says_what_is_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the configuration in the middle of which it was stopped; no other words follow."""

    def run(command: list[str], environ: object) -> tuple[int, str]:
        machine = {"device": "CPU", "dtype": "float32", "shape": "64x64"}
        rows = [{"batch_size": size, "images_per_s": speed} for size, speed in ((1, 1.0), (2, 3.0))]
        write_jsonl(Path(command[command.index("tune-rank") + 1]), [machine, *rows])
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_run", run)
    words = ("tune", "t2i", "--prompt", "a", "--num_gpus", "1", "--cache_dir", tmp_path)
    ended = dglaunch(*words, "--output_dir", tmp_path / "out")
    assert ended.code == 130
    assert ended.output.splitlines() == [
        "1 of 1: data parallel on 1 rank ...",
        "Stopped with 0 of 1 configurations measured. Best so far: data parallel, batch 2: 3 images/s. The same command begins "
        "again.",
    ]
