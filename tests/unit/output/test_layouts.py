"""--layout: each evaluation's own prompt file is read, and each view is read back as its evaluation or loader reads it.
The walks below do what those scripts do; the fake backend makes the images."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.cli.main import main
from dglaunch.errors import UserError
from dglaunch.output import layouts
from support.commands import dglaunch
from support.edit_images import png
from support.results import ledger as unsorted_ledger
from support.results import write_jsonl

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "color_attr", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"},
    {
        "tag": "counting",
        "include": [{"class": "car", "count": 3}],
        "exclude": [{"class": "car", "count": 4}],
        "prompt": "a photo of three cars",
    },
]


def run(layout: str, prompts: Path, out: Path, *flags: str, code: int = 0) -> Path:
    words = ["t2i", "--backend", "fake", "--prompts_file", str(prompts), "--output_dir", str(out), "--layout", layout]
    assert main([*words, *flags]) == code
    return out / layout


def ledger(folder: Path) -> list[dict[str, Any]]:
    """In the order of the rows; the file has them as they were finished."""
    return sorted(unsorted_ledger(folder), key=lambda line: (line["index"], line["sample"]))


def pixels(path: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_geneval_as_its_script_walks_it(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    view = run("geneval", prompts, tmp_path / "out")
    found: dict[int, Any] = {}
    for folder in view.iterdir():
        if not folder.is_dir() or not folder.name.isdigit():
            continue
        metadata = json.loads((folder / "metadata.jsonl").read_text())
        images = [p for p in (folder / "samples").iterdir() if p.is_file() and re.match(r"\d+\.png", p.name)]
        found[int(folder.name)] = metadata, sorted(image.name for image in images)
    assert found == {n: (row, [f"{sample:05d}.png" for sample in range(4)]) for n, row in enumerate(GENEVAL)}
    for line in ledger(tmp_path / "out"):
        sample = view / f"{line['index']:05d}" / "samples" / f"{line['sample']:05d}.png"
        assert sample.samefile(tmp_path / "out" / line["file_name"])


def test_dpg_as_its_script_cuts_it(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for n, name in enumerate(("1", "COCOval2014000000000042", "partiprompts7")):
        (prompts / f"{name}.txt").write_text(f"a long prompt {n},\nof two lines\n")
    view = run("dpg", prompts, tmp_path / "out")
    lines = ledger(tmp_path / "out")
    assert {path.name.split(".")[0] for path in view.iterdir()} == {path.stem for path in prompts.iterdir()}
    assert lines[0]["prompt"] == "a long prompt 0, of two lines"
    side = lines[0]["width"]
    for path in view.iterdir():
        own = [line for line in lines if line["prompt_file"] == path.stem]
        for line in own:
            left, top = line["sample"] % 2 * side, line["sample"] // 2 * side
            cut = np.asarray(Image.open(path).crop((left, top, left + side, top + side)))
            assert np.array_equal(cut, pixels(tmp_path / "out" / line["file_name"])) and len(own) == 4
    single = run("dpg", prompts, tmp_path / "single", "--num_images_per_prompt", "1")
    assert (single / "1.png").samefile(tmp_path / "single" / "000000.png")


def test_t2i_compbench_as_its_scripts_sort_and_split_it(tmp_path: Path) -> None:
    prompts = ["a green bench and a blue bowl", "either/or, ../../up and_under\tanother column", "word " * 60, "Bär 🐻"]
    (tmp_path / "color_val.txt").write_text("\n".join(prompts), encoding="utf-8")
    view = run("t2i_compbench", tmp_path / "color_val.txt", tmp_path / "out")
    names = sorted(
        (p.name for p in (view / "samples").iterdir()), key=lambda name: int(name.split("_")[-1].split(".")[0])
    )
    assert len(names) == 40 and [int(name[-10:-4]) for name in names] == list(range(40))
    asked = [names[10 * n].split("_")[0] for n in range(4)]
    assert asked[0] == prompts[0] and asked[1] == "either or, .. .. up and under" and asked[3] == prompts[3]
    assert asked[2] == ("word " * 60)[: len(asked[2])] and all(len(name.encode()) <= 255 for name in names)
    assert {line["prompt"] for line in ledger(tmp_path / "out")} == {text.split("\t")[0].strip() for text in prompts}
    for line in ledger(tmp_path / "out"):
        path = view / "samples" / names[line["index"] * 10 + line["sample"]]
        assert path.samefile(tmp_path / "out" / line["file_name"])


def genarena_tables(folder: Path, sizes: tuple[int, ...], **more: Any) -> Path:
    """data-*.parquet with index, instruction and images as bytes, as GenArena's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    number = 0
    for part, size in enumerate(sizes):
        rows = [
            {"index": 100 + n, "task_type": "edit", "instruction": f"make it {n}",
             "input_images": [{"bytes": png(n), "path": None}]} | more for n in range(number, number + size)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / f"data-{part:05d}.parquet")
        number += size
    return folder


def test_genarena_reads_its_tables_and_finds_each_index(tmp_path: Path) -> None:
    data = genarena_tables(tmp_path / "basic", (3, 2))
    words = ["edit", "--backend", "fake", "--input", str(data), "--layout", "genarena", "--save_inputs"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    view = tmp_path / "out" / "genarena"
    assert {int(path.stem) for path in view.iterdir()} == set(range(100, 105))
    for n, line in enumerate(ledger(tmp_path / "out")):
        assert (tmp_path / "out" / line["input_file_names"][0]).read_bytes() == png(n), "the bytes of its own part"
        assert line["instruction"] == f"make it {n}"
    drawn = genarena_tables(tmp_path / "drawn", (2,), input_images=[])
    assert len(list(run("genarena", drawn, tmp_path / "t2i").iterdir())) == 2
    assert [line["prompt"] for line in ledger(tmp_path / "t2i")] == ["make it 0", "make it 1"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    named = [{"prompt": f"prompt {n}, ü", "name": f"a.b {n}", "tag": {"n": n}} for n in range(5)]
    return write_jsonl(tmp_path / "rows.jsonl", [*named, {"prompt": "two", "name": "c", "num_images_per_prompt": 2}])


def test_webdataset_shards(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "SHARD_IMAGES", 3)
    view = run("webdataset", rows, tmp_path / "out", "--output_name_column", "name", "--output_format", "webp")
    assert sorted(path.name for path in view.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(view.iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()  # type: ignore[union-attr]
    lines = ledger(tmp_path / "out")
    assert list(found) == [f"{n:06d}" for n in range(5)] + ["000005_00", "000005_01"]
    for line, sample in zip(lines, found.values()):
        assert json.loads(sample["json"]) == line and sample["txt"].decode() == line["prompt"]
        assert sample["webp"] == (tmp_path / "out" / line["file_name"]).read_bytes()
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(view.iterdir())]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == list(found)
    assert np.array_equal(samples[6]["webp"], pixels(tmp_path / "out" / lines[6]["file_name"]))
    before = [path.read_bytes() for path in sorted(view.iterdir())]
    run("webdataset", rows, tmp_path / "out", "--output_name_column", "name", "--output_format", "webp")
    assert [path.read_bytes() for path in sorted(view.iterdir())] == before, "the same folder gives the same bytes"


def test_parquet_with_the_images_in_it(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(layouts, "SHARD_BYTES", sum(line["bytes"] for line in ledger(made(tmp_path, rows))[:4]))
    view = run("parquet", rows, tmp_path / "out")
    files = sorted(view.iterdir())
    assert [path.name for path in files] == ["00000.parquet", "00001.parquet"]
    found = [row for path in files for row in pq.read_table(path).to_pylist()]
    lines = ledger(tmp_path / "out")
    assert len(found) == len(lines) == 7
    for row, line in zip(found, lines):
        assert row["image"]["path"] == line["file_name"] and json.loads(row["ledger"]) == line
        assert np.array_equal(pixels(io.BytesIO(row["image"]["bytes"])), pixels(tmp_path / "out" / line["file_name"]))
        assert (row["index"], row["prompt"], row["seed"]) == (line["index"], line["prompt"], line["seed"])
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}}, "what tells datasets to decode the column"


def made(tmp_path: Path, rows: Path) -> Path:
    run("indexed", rows, tmp_path / "first")
    assert not (tmp_path / "first" / "indexed").exists()
    return tmp_path / "first"


# -- the folder stays what it is ----------------------------------------------------------------------------------


def test_a_failed_image_is_missing_and_its_grid_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, text in (("a", "fine"), ("b", "[raise]")):
        (prompts / f"{name}.txt").write_text(text)
    view = run("dpg", prompts, tmp_path / "out", code=3)
    assert [path.name for path in view.iterdir()] == ["a.png"]
    assert "4 are missing" in capsys.readouterr().err


def test_images_of_another_job_are_never_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    view = run("geneval", write_jsonl(tmp_path / "three.jsonl", GENEVAL), out)
    (view / "results.jsonl").write_text("what an evaluation wrote there")
    run("geneval", write_jsonl(tmp_path / "two.jsonl", GENEVAL[:2]), out, "--overwrite", code=2)
    assert "00002/samples/00000.png" in capsys.readouterr().err and len(ledger(out)) == 12, (
        "told before anything is made"
    )
    shutil.rmtree(view / "00002")
    run("geneval", tmp_path / "two.jsonl", out, "--overwrite")
    assert (view / "results.jsonl").exists() and len(list(view.rglob("*.png"))) == 8


def test_nodes_without_a_rendezvous_write_it_once_all_is_done(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", GENEVAL)
    for node in (0, 1):
        view = run("geneval", prompts, tmp_path / "out", "--node_rank", str(node), "--num_nodes", "2")
        assert view.exists() == (node == 1)
    assert len(list(view.rglob("*.png"))) == 12


@pytest.mark.parametrize(
    ("layout", "row", "flags", "says"),
    [
        ("geneval", {"prompt": "a"}, [], "no 'tag'"),
        ("geneval", GENEVAL[0], ["--output_format", "jpg"], ".png files only"),
        ("dpg", {"prompt": "a"}, [], "no 'prompt_file'"),
        ("dpg", {"prompt": "a", "prompt_file": "../../up"}, [], "has a dot, a slash"),
        ("dpg", {"prompt": "a", "prompt_file": "x"}, ["--num_images_per_prompt", "3"], "takes 1 or 4 a prompt"),
        ("dpg", {"prompt": "a", "prompt_file": "x", "width": 64, "height": 96}, [], "cuts out squares"),
        ("genarena", {"prompt": "a", "num_images_per_prompt": 2}, [], "takes 1 a prompt"),
        ("genarena", {"instruction": "a", "input_images": ["x.png"]}, [], "it is an edit"),
    ],
)
def test_what_an_evaluation_would_stumble_over_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, row: dict[str, Any], flags: list[str], says: str
) -> None:
    run(layout, write_jsonl(tmp_path / "p.jsonl", [row]), tmp_path / "out", *flags, code=2)
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("a", "A"), ("ä", "a\u0308")])
def test_prompt_files_of_one_name_are_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    rows = [{"prompt": name, "prompt_file": name} for name in names]
    run("dpg", write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "out", code=2)
    assert "rows 0 and 1 have the same prompt_file" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_edits_have_no_text_to_image_layouts() -> None:
    from dglaunch import EditingConfig
    from dglaunch.data.evaluations import num_images_per_prompt

    with pytest.raises(UserError, match="for text to image"):
        num_images_per_prompt(EditingConfig(input=Path("t.csv"), layout="geneval"))


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "/", "..", "\0", "a\nb", ".hidden", "ü" * 300, "🐻" * 90])
def test_a_prompt_stays_in_the_folder(tmp_path: Path, prompt: str) -> None:
    name = f"{layouts.name_of(prompt)}_000000.png"
    assert Path(name).name == name and len(name.encode()) <= 255 and "\0" not in name
    (tmp_path / name).touch()


def test_the_help_is_still_quick_to_import() -> None:
    ended = dglaunch("t2i", "--help", "all")
    assert ended.code == 0 and "geneval" in ended.output
