"""A run of a large table with input images: what comes of it is what comes of the same rows in a small one."""

import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.commands import dglaunch
from support.edit_images import picture
from support.input_tables import save_images
from support.ranks import World, on_ranks
from support.results import ledger, run_json

NUM_ROWS = 24


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """Images of two sizes; one is missing."""
    save_images(tmp_path)
    picture(1, (96, 64)).save(tmp_path / "wide.png")
    cells = [["i0.png", "wide.png", "i1.png"][n % 3] if n != 7 else "none.png" for n in range(NUM_ROWS)]
    rows = {
        "input_images": cells,
        "instruction": [f"make it {n}" for n in range(NUM_ROWS)],
        "style": ["oil", None] * 12,
    }
    pq.write_table(pa.table(rows), tmp_path / "e.parquet")
    return tmp_path / "e.parquet"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    save_images(tmp_path)
    rows = {
        "prompt": [f"a fox {n}" for n in range(NUM_ROWS)],
        "image": ["i0.png", None, "i1.png"] * 8,
        "mask": ["m0.png", None, None] * 8,
        "strength": [0.75, None, 0.5] * 8,
    }
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    return tmp_path / "p.parquet"


def edit(table: Path) -> list[str | Path]:
    return ["edit", "--backend", "fake", "--input", table, "--batch_size", "4"]


def draw(table: Path) -> list[str | Path]:
    flags = ["--image_column", "image", "--mask_column", "mask", "--num_inference_steps", "4"]
    return ["t2i", "--backend", "fake", "--prompts_file", table, "--batch_size", "4", *flags]


def lines_of(out: Path, name: str = "metadata.jsonl") -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "time" and "seconds" not in name}
        for line in ledger(out, name)
    ]


@pytest.mark.parametrize("command", [edit, draw])
def test_images_ledger_and_record_are_those_of_a_small_table(
    command: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = command(request.getfixturevalue("edits" if command is edit else "prompts"))
    code = 3 if command is edit else 0  # one image is missing
    flags = ["--num_images_per_prompt", "2", "--seed", "9", *(["--save_inputs"] if command is edit else [])]
    assert dglaunch(*words, *flags, "--output_dir", tmp_path / "small").code == code
    scratch = request.getfixturevalue("all_are_large")
    ended = dglaunch(*words, *flags, "--output_dir", tmp_path / "large")
    assert ended.code == code, ended.output
    for name in ("metadata.jsonl", *(["failures.jsonl"] if code else [])):
        assert lines_of(tmp_path / "large", name) == lines_of(tmp_path / "small", name)
    runs = [run_json(tmp_path / name) for name in ("small", "large")]
    for name in ("tasks", "num_tasks", "num_ok", "num_failed", "settings", "columns", "choices"):
        assert runs[0][name] == runs[1][name], name
    saved = [sorted(path.name for path in (tmp_path / name).glob("inputs/*")) for name in ("small", "large")]
    assert saved[0] == saved[1] and len(saved[0]) == (NUM_ROWS - 1 if command is edit else 0)
    assert not any(scratch.iterdir())


def test_a_folder_that_was_begun_row_by_row_goes_on_in_columns(
    edits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = [*edit(edits), "--output_dir", tmp_path / "out"]
    assert dglaunch(*words, "--limit", "5").code == 0
    before = {line["index"]: line["sha256"] for line in ledger(tmp_path / "out")}
    request.getfixturevalue("all_are_large")
    assert dglaunch(*words, "--filter_rows", 'style == "oil"').code == 0
    assert dglaunch(*words).code == 3
    shutil.copy(tmp_path / "i0.png", tmp_path / "none.png")
    ended = dglaunch(*words)
    assert ended.code == 0 and run_json(tmp_path / "out")["num_ok"] == 1, ended.output
    after = {line["index"]: line["sha256"] for line in ledger(tmp_path / "out")}
    assert len(after) == NUM_ROWS and {index: after[index] for index in before} == before
    picture(5).save(tmp_path / "i1.png")
    assert "input_sha256" in dglaunch(*words).output, "another content is another job"


@pytest.mark.parametrize("command", [edit, draw])
def test_plan_and_dry_run_say_the_same(command: Any, request: pytest.FixtureRequest) -> None:
    words = ["plan", *command(request.getfixturevalue("edits" if command is edit else "prompts")), "--world_size", "6"]
    small = dglaunch(*words)
    request.getfixturevalue("all_are_large")
    large = dglaunch(*words)
    assert small.code == 0, small.output
    assert large.output == small.output


def test_nodes_without_a_rendezvous_share_it_as_a_small_one(
    edits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = [*edit(edits), "--num_nodes", "3", "--node_rank", "1", "--output_dir"]
    dglaunch(*words, tmp_path / "small")
    request.getfixturevalue("all_are_large")
    dglaunch(*words, tmp_path / "large")
    assert lines_of(tmp_path / "large") == lines_of(tmp_path / "small")


def test_two_ranks_killed_and_resumed(tmp_path: Path) -> None:
    """A table that is large by itself, of which some rows are wanted: the first rank reads all of it."""
    save_images(tmp_path)
    (tmp_path / "scratch").mkdir()
    count, wanted = 50_000, 49_970
    cells = [f"i{n % 4}.png" for n in range(count)]
    cells[-3] = "none.png"
    texts = [f"make it {n} [sleep 0.1]" for n in range(count)]
    pq.write_table(pa.table({"input_images": cells, "instruction": texts}), tmp_path / "e.parquet")
    words = [*edit(tmp_path / "e.parquet"), "--filter_rows", f"{wanted}:", "--output_dir"]
    scratch = {"TMPDIR": str(tmp_path / "scratch")}
    world = World(tmp_path, 2, [*words, tmp_path / "out"], scratch)
    limit = time.monotonic() + 120
    while not ledger(tmp_path / "out") and world.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    world.kill()
    assert 0 < len(ledger(tmp_path / "out")) < count - wanted
    case = on_ranks(tmp_path, 2, *words, tmp_path / "out", **scratch)
    assert case.codes == [3, 3] and run_json(tmp_path / "out")["num_skipped"] > 0, case.output
    assert case.output.count("there is no file") == 1, "a failure is told once"
    made = {line["index"]: line["sha256"] for line in ledger(tmp_path / "out")}
    assert made.keys() == {*range(wanted, count)} - {count - 3}
    assert run_json(tmp_path / "out")["tasks_fingerprint"]
    assert not any((tmp_path / "scratch").iterdir())
