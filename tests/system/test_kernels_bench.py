"""The benches: that they run, record, and refuse a wrong output. Never how fast anything is.

Layers, cheapest first: quantiles, turns and the record; the comparisons on made-up pictures; every bench as a command in
its smallest size, and once more with its outputs spoilt.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dglaunch.config import BackendConfig
from kernels_bench import end_to_end, measure, true_size
from kernels_bench.__main__ import BENCHES, main
from support.commands import Ended, dglaunch, in_process
from support.selection import rarely

CARRIED = {"bench", "date", "hardware", "command", "commit", "uncommitted", "versions", "options", "rows", "notes"}
CAUGHT = {
    "attention": "FLUX.1 flex: the output differs",
    "exchange": "ulysses all-to-all, share of the values: the output differs",
    "vae": "whole against float64: the output differs",
    "encode": "PNG 1, mean square error of a pixel: the output differs",
    "scale": "read, rows: the output differs",
    "tail": "tail, batches that were handed out: the output differs",
    "gather": "gather, share of the images: the output differs",
    "store": "share of the images that are as their line says: the output differs",
    "batch": "a batch of 1 at 64x64 against its images alone: the output differs",
    "lora": "a batch of 2 at 64x64 against its images alone: the output differs",
    "optimizations": "plain, the same batch twice: the output differs",
}
"""What each bench says to spoilt outputs; end_to_end, whose runs take longer, is tried on made-up pictures."""
SLOW = ("vae", "store", "scale", "batch", "lora", "end_to_end", "optimizations", "attention", "exchange", "gather")
"""A minute and more each, with their processes and models; make soak runs them. true_size has a test of its own."""
RUN = [bench for bench in BENCHES if bench != "true_size"]


# -- the shared code --------------------------------------------------------------------------------------------------


def test_quantiles_are_linear_between_neighbours() -> None:
    assert measure.spread([4, 1, 3, 2, 5]) == {"p20": pytest.approx(1.8), "p50": 3, "p80": pytest.approx(4.2), "n": 5}
    assert measure.spread([7]) == {"p20": 7, "p50": 7, "p80": 7, "n": 1}


def test_cases_take_turns_on_fresh_inputs_and_warm_up_does_not_count() -> None:
    made, seen = iter(range(100)), []
    cases = {name: lambda n, name=name: seen.append((name, n)) for name in "abc"}
    taken = measure.seconds(cases, lambda: (next(made),), repeats=3, warm_up=1)
    assert "".join(name for name, _ in seen) == "abcbcacababc"
    assert [n for _, n in seen] == list(range(12))
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("error", [0.2, float("nan"), float("inf")])
def test_an_error_beyond_its_limit_is_refused(error: float) -> None:
    assert measure.require("x", 0.1, 0.1) == 0.1
    with pytest.raises(measure.WrongOutput, match="x: the output differs"):
        measure.require("x", error, 0.1)


def test_spoiling_reaches_any_memory_layout() -> None:
    array = np.ones((4, 8, 3)).transpose(2, 0, 1)
    assert (measure.spoil(array, True) == 0).sum() == 6
    assert measure.spoil(array, False) is array and array.all()


def test_the_record_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "encode.jsonl"
    path.parent.mkdir()
    path.write_text("not even JSON\n")
    measure.append(path, {"rows": ["é"]})
    assert path.read_text(encoding="utf-8") == 'not even JSON\n{"rows": ["é"]}\n'


def test_an_unknown_bench_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atention"]) == 2
    assert "the nearest is attention" in capsys.readouterr().err


# -- end_to_end's comparison ------------------------------------------------------------------------------------------


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same two pictures twice."""
    for name in ("expected", "out"):
        (tmp_path / name).mkdir()
        for n in range(2):
            Image.fromarray(np.full((16, 16, 3), 40 * n + 10, np.uint8)).save(tmp_path / name / f"{n:06d}.png")
    return tmp_path / "expected", tmp_path / "out"


def compare(folders: tuple[Path, Path], program: str = "dglaunch", **options: object) -> tuple[float | None, int]:
    contender = end_to_end.Contender(program, 2)
    return end_to_end.compare(contender, *folders, 2, end_to_end.Options(**options))  # type: ignore[arg-type]


def test_equal_pictures_pass_and_spoilt_ones_do_not(two_folders: tuple[Path, Path]) -> None:
    assert compare(two_folders) == (0, 0)
    with pytest.raises(measure.WrongOutput, match="dglaunch, batch 2 against the plain loop"):
        compare(two_folders, damage=True)


@pytest.mark.parametrize("wrong", ["missing", "another size", "one pixel"])
def test_a_wrong_picture_is_caught(two_folders: tuple[Path, Path], wrong: str) -> None:
    path = two_folders[1] / "000001.png"
    pixels = np.array(Image.open(path))
    if wrong == "missing":
        path.unlink()
    else:
        pixels[3, 3, 0] += 3
        Image.fromarray(pixels[:8] if wrong == "another size" else pixels).save(path)
    with pytest.raises(measure.WrongOutput):
        compare(two_folders)


def test_what_diffgentor_loses_is_counted(two_folders: tuple[Path, Path]) -> None:
    (two_folders[1] / "000001.png").unlink()
    assert compare(two_folders, "diffgentor") == (0, 1)


# -- the commands -----------------------------------------------------------------------------------------------------


def command(bench: str, folder: Path, *flags: str) -> Ended:
    """A bench in its smallest size; it starts processes of its own for what it measures."""
    return in_process(main, bench, "--quick", "--results", folder, *flags)


@pytest.mark.parametrize("bench", rarely(RUN, SLOW))
def test_a_bench_prints_and_appends_its_row(tmp_path: Path, bench: str) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"{bench}.png"
    ended = command(bench, tmp_path, "--plot", str(plot))
    assert ended.code == 0, ended.output
    printed = json.loads(ended.output.splitlines()[-1])
    appended = (tmp_path / f"{bench}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in appended] == [printed]
    check_record(printed, bench)
    assert f"{bench} on " in ended.output
    assert Image.open(plot).format == "PNG"


@pytest.mark.slow
def test_the_gpu_checks_run_through_at_toy_size(tmp_path: Path) -> None:
    cases = ("plain", "plain again", "batch of 2", "compiled", "halving", "idle")
    ended = command("true_size", tmp_path, "--cases", *cases)
    assert ended.code == 0, ended.output
    record = json.loads(ended.output.splitlines()[-1])
    check_record(record, "true_size")
    rows = {row["name"]: row for row in record["rows"]}
    assert rows.keys() == set(cases) and not any("not_run" in row for row in rows.values())
    assert rows["plain again"]["psnr"] == rows["batch of 2"]["psnr"] == "equal"
    assert 0 <= rows["idle"]["idle_share"] < 1


def test_a_model_of_the_catalog_is_written_as_an_ordinary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a block a network: the run's own code reads what a true size has, too."""
    from dglaunch.models.catalogue import known
    from dglaunch.models.checkpoint import resolve
    from kernels_bench import seeded

    small = {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6],
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "d_model": 32, "d_ff": 32, "d_kv": 16, "num_heads": 2, "block_out_channels": [32, 32, 32, 32],
    }  # fmt: skip
    entry = known("black-forest-labs/FLUX.1-dev")
    assert entry is not None
    parts = {
        name: replace(part, config={key: small.get(key, value) for key, value in part.config.items()})
        for name, part in entry.components.items()
    }
    fake = SimpleNamespace(pipeline=entry.pipeline, diffusers=entry.diffusers, components=parts)
    monkeypatch.setattr(seeded, "known", lambda _: fake)
    folder = seeded.write_checkpoint("black-forest-labs/FLUX.1-dev", tmp_path / "flux", "cpu")
    made = dglaunch(
        "t2i", "--model_name", folder, "--prompt", "a red fox", "--height", "64", "--width", "64", "--num_inference_steps",
        "1", "--device", "cpu", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert made.code == 0, made.output
    assert resolve(BackendConfig(model_name=str(folder))).family.name == "Flux"


def test_idle_is_what_no_kernel_covers() -> None:
    share, longest = true_size.idle_share([(0, 4), (1, 2), (3, 5), (7, 10)])
    assert share == pytest.approx(0.2) and longest == pytest.approx(2e-9)


@pytest.mark.parametrize("bench", rarely(CAUGHT, set(SLOW) & CAUGHT.keys()))
def test_a_wrong_output_is_caught_and_not_recorded(tmp_path: Path, bench: str) -> None:
    ended = command(bench, tmp_path, "--damage")
    assert ended.code == 1, ended.output
    assert CAUGHT[bench] in ended.output
    assert not (tmp_path / f"{bench}.jsonl").exists()


FORMER = {"optimizations": "optimisations"}
"""What a bench was called when rows were recorded: rows are never edited."""


def check_record(record: dict, bench: str) -> None:
    """STYLE.md 25: hardware, command, commit, versions, date, and quantiles in every row that has numbers."""
    assert record.keys() >= CARRIED and record["bench"] in (bench, FORMER.get(bench))
    assert record["command"].startswith(f"python -m kernels_bench {record['bench']}")
    assert record["hardware"]["cores"] and record["versions"]["torch"] and len(record["commit"]) in (0, 40)
    measured = [row for row in record["rows"] if "not_run" not in row]
    assert measured
    for row in measured:
        spreads = [value for value in row.values() if isinstance(value, dict) and "p50" in value]
        assert spreads and all(spread["p20"] <= spread["p50"] <= spread["p80"] for spread in spreads)


@pytest.mark.parametrize("bench", BENCHES)
def test_what_is_committed_can_be_traced(bench: str) -> None:
    path = measure.RESULTS / f"{bench}.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        check_record(json.loads(line), bench)
        assert "--quick" not in json.loads(line)["command"]
