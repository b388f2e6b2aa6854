"""Replay with the fake backend: the same, a variation, and every way a file can be wrong."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch import system
from dglaunch.cli.main import main
from dglaunch.cli.replay import read_description
from dglaunch.data.tables import Table
from dglaunch.output import encode, inputs
from dglaunch.output.ledger import OutputFolder
from support.edit_images import png, save_pictures
from support.results import write_jsonl

ROWS = [{"prompt": f"prompt {n}", "seed": 100 + n} for n in range(3)] + [
    {
        "prompt": "ein Bär 🐻",
        "width": 96,
        "height": 80,
        "negative_prompt": "\"quotes\" & 'such'",
        "guidance_scale": 0.0,
    },
    {"prompt": "several", "num_images_per_prompt": 3},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    table = write_jsonl(folder / "rows.jsonl", ROWS)
    for output_format in ("png", "jpg", "webp"):
        words = ["t2i", "--backend", "fake", "--prompts_file", str(table), "--output_dir", str(folder / output_format)]
        assert main([*words, "--output_format", output_format]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = main(["replay", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out + told.err


@pytest.mark.parametrize("name", ["000000", "000002", "000003", "000004_00", "000004_02"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_same(made: Path, name: str, suffix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = said(capsys, made / suffix / f"{name}.{suffix}")
    assert (code, "the same, pixel for pixel" in text) == (0, True), text
    replayed = tmp_path / f"{name}-replay.{suffix}"
    before, after = read_description(made / suffix / f"{name}.{suffix}"), read_description(replayed)
    assert {n: v for n, v in before.items() if n != "sample"} == {n: v for n, v in after.items() if n != "sample"}


def test_a_variation(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = ["--set", "seed=8", "--set", "guidance_scale=5.5", "--set", "negative_prompt=", "--output", "other.webp"]
    code, text = said(capsys, made / "png" / "000003.png", *changes)
    assert (code, "a variation" in text) == (0, True), text
    told = read_description(tmp_path / "other.webp")
    assert (told["seed"], told["guidance_scale"], told["width"], told["prompt"]) == (8, 5.5, 96, "ein Bär 🐻")
    assert "negative_prompt" not in told


def test_another_image_is_told_and_fails(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Image.open(made / "png" / "000000.png") as image:
        described = encode.decode_description(image)
        assert described is not None
        other = image.point(lambda value: 255 - value)
    (tmp_path / "false.png").write_bytes(encode.encode(other, "png", described))
    code, text = said(capsys, "false.png")
    assert (code, "NOT the same" in text) == (1, True), text
    assert said(capsys, "false.png", "--tolerance", "255")[0] == 0


def written(text: dict[str, Any]) -> bytes:
    return encode.encode(Image.new("RGB", (64, 64)), "png", text)


def stripped() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = {"prompt": "a", "seed": 1, "model": "fake", "backend": "fake", "index": 0, "sample": 0, "defaults": []}
WRONG: dict[str, tuple[bytes, list[str], str]] = {
    "no text": (stripped(), [], "does not carry what made it"),
    "another program's text": (written({"prompt": "a"}), [], "does not carry what made it"),
    "no image": (b"\x89PNG nothing", [], "is no image that can be read"),
    "torn": (written(GOOD)[:-200], [], "is torn or damaged"),
    "a seed that is none": (written(GOOD | {"seed": "x"}), [], "seed is 'x', not a whole number"),
    "a side that is none": (written(GOOD | {"width": {"a": 1}}), [], "width is {'a': 1}, not a whole number"),
    "a backend that is none": (written(GOOD | {"backend": "os.system"}), [], "'os.system' is not one of"),
    "an API's": (written(GOOD | {"backend": "openai"}), [], "was made by an API (fake)"),
    "an edit without hashes": (written(GOOD | {"input_images": ["a.png"]}), [], "does not say which input images"),
    "an edit of what is gone": (
        written(GOOD | {"input_images": ["a.png"], "input_sha256": ["0"]}),
        [],
        "a.png was not found",
    ),
    "pixels for what is no edit": (written(GOOD), ["--set", "max_pixels=5"], "made from text alone"),
    "a family for what is no edit": (written(GOOD), ["--set", "model_type=qwen"], "made from text alone"),
    "a change of nothing": (written(GOOD), ["--set", "stepz=3"], "nothing called 'stepz' to set"),
    "a change without a value": (written(GOOD), ["--set", "seed"], "a name and a value are needed"),
    "a change that does not parse": (written(GOOD), ["--set", "seed=3O"], "'3O' is not a whole number"),
    "its own place": (written(GOOD), ["--output", "file.png"], "is the image itself"),
    "another kind of file": (written(GOOD), ["--output", "file.gif"], "name a .png"),
    "a model that is gone": (written(GOOD | {"backend": "diffusers"}), [], "is no folder here and no hub id"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_and_uses(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, words, says = WRONG[name]
    (tmp_path / "file.png").write_bytes(data)
    code, text = said(capsys, "file.png", *words)
    assert (code, says in text) == (2, True), text
    assert "Traceback" not in text and [path.name for path in tmp_path.iterdir()] == ["file.png"]


def test_a_file_cannot_allow_what_runs_code(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(
        written(GOOD | {"trust_remote_code": True, "allow_pickle": True, "cache_dir": "/"})
    )
    assert read_description(tmp_path / "file.png").keys().isdisjoint({"trust_remote_code", "allow_pickle", "cache_dir"})


def renamed(made: Path, target: Path, versions: object, invert: bool = False) -> Path:
    """An image that says of itself that other versions made it."""
    with Image.open(made / "png" / "000000.png") as image:
        described = encode.decode_description(image)
        assert described is not None
        pixels = image.point(lambda value: 255 - value) if invert else image.copy()
    described.pop("versions")
    target.write_bytes(encode.encode(pixels, "png", described | ({} if versions is None else {"versions": versions})))
    return target


def test_a_file_says_which_versions_made_it(made: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        told = read_description(made / suffix / f"000000.{suffix}")["versions"]
        assert told == {"dglaunch": system.versions()["dglaunch"]}  # the fake backend has no torch; and no host or rank


def test_other_versions_are_told_and_those_that_run_now(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = system.versions()
    old = {"dglaunch": "0.0.7", "torch": "1.13.1+cu117", "pillow": here["pillow"], "xfuser": "0.0.1"}
    code, text = said(capsys, renamed(made, tmp_path / "old.png", old))
    assert code == 0 and "the same, pixel for pixel" in text
    now = {name: here.get(name, "not installed") for name in old}
    for name in ("dglaunch", "torch", "xfuser"):
        assert f"{name} {old[name]}, here it is {now[name]}" in text
    assert "pillow" not in text


def test_an_upgrade_is_told_from_damage(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"dglaunch": system.versions()["dglaunch"]}
    code, text = said(capsys, renamed(made, tmp_path / "old.png", {"dglaunch": "0.0.7"}, invert=True))
    assert code == 1 and "NOT the same" in text and "may be no damage" in text and "dglaunch 0.0.7, here it is" in text
    code, text = said(capsys, renamed(made, tmp_path / "damaged.png", same, invert=True))
    assert code == 1 and "The same versions made it" in text and "here it is" not in text
    code, text = said(capsys, renamed(made, tmp_path / "older.png", None, invert=True))
    assert code == 1 and "versions" not in text


@pytest.mark.parametrize(
    "versions", [None, [], "1", {"torch": ["x"]}, {"torch": "\x1b[31m[red]"}, {"torch": "9" * 999}, {"rm -rf": "1"}, {}]
)
def test_a_file_without_versions_or_with_nonsense_replays_as_before(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], versions: object
) -> None:
    code, text = said(capsys, renamed(made, tmp_path / "older.png", versions))
    assert (code, "the same, pixel for pixel" in text) == (0, True) and "versions" not in text and "\x1b" not in text


def test_an_image_that_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(written(GOOD | {"prompt": "[raise]"}))
    assert said(capsys, "file.png") == (
        1,
        "dglaunch: The image could not be made: RuntimeError: a poisoned prompt, as asked\n",
    )


def test_not_under_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    assert said(capsys, "file.png")[0] == 2


# -- edits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """Rows of one and of two images, from a table that lies elsewhere than the results."""
    save_pictures(tmp_path / "table" / "images")
    rows = [
        {"input_images": ["images/a.png", "images/c.png"], "instruction": "join them", "seed": 7},
        {"input_images": "images/d.png", "instruction": "make it red", "num_images_per_prompt": 2},
    ]
    table = write_jsonl(tmp_path / "table" / "rows.jsonl", rows)
    words = ["edit", "--backend", "fake", "--model_type", "flux2", "--input", str(table)]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert main([*words, "--output_dir", str(tmp_path / "saved"), "--save_inputs"]) == 0
    return tmp_path


def test_an_edit_is_the_same(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out/000000.png", "out/000001_01.png", "saved/000001_00.png"):
        code, text = said(capsys, edited / name, "--output", "again.png")
        assert (code, "the same, pixel for pixel" in text) == (0, True), text
        assert read_description(Path("again.png")) == read_description(edited / name)
    code, text = said(capsys, edited / "out" / "000000.png", "--set", "instruction=part them", "--output", "other.png")
    assert (code, "a variation" in text) == (0, True), text
    assert read_description(Path("other.png"))["instruction"] == "part them"


def test_an_edit_from_its_saved_inputs_when_the_table_is_gone(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(edited / "table", edited / "moved")
    code, text = said(capsys, edited / "saved" / "000000.png")
    assert (code, "the same, pixel for pixel" in text) == (0, True), text
    code, text = said(capsys, edited / "out" / "000000.png")
    assert code == 2 and "images/a.png was not found" in text and "images/c.png was not found" in text
    shutil.copytree(edited / "moved" / "images", "images")
    assert said(capsys, edited / "out" / "000000.png", "--output", "here.png")[0] == 0, (
        "relative to where it is started"
    )


def test_an_edit_says_how_many_pixels_are_decoded(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, edited / "out" / "000000.png", "--set", "max_pixels=100", "--output", "again.png")
    assert code == 1 and "more than 100 pixels" in text and "--max_pixels" in text
    assert said(capsys, edited / "out" / "000000.png", "--set", "max_pixels=10000", "--output", "again.png")[0] == 0


def test_an_edit_of_an_image_that_was_changed(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(edited / "table" / "images" / "a.png", edited / "table" / "images" / "c.png")
    code, text = said(capsys, edited / "out" / "000000.png")
    assert code == 2 and "images/c.png is not the one it was" in text and "images/a.png" not in text
    assert said(capsys, edited / "out" / "000001_00.png")[0] == 0, "its own image is as it was"


def test_an_edit_of_bytes_in_a_parquet_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"make it {n}", "input_images": [{"bytes": png(n), "path": None}]} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    words = ["edit", "--backend", "fake", "--input", str(tmp_path / "table.parquet"), "--layout", "genarena"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    for name in ("000002.png", "genarena/000001.png"):
        code, text = said(capsys, tmp_path / "out" / name)
        assert (code, "the same, pixel for pixel" in text) == (0, True), text


def test_the_ledger_and_the_table_are_read_once_for_all_images_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": png(n), "path": f"{n}"} for n in range(40)]
    pq.write_table(pa.Table.from_pylist([{"instruction": "x", "input_images": images}] * 2), tmp_path / "t.parquet")
    words = ["edit", "--backend", "fake", "--input", str(tmp_path / "t.parquet"), "--model_type", "flux2"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    reads: list[str] = []

    def counting(name: str, read: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        return lambda *arguments: (reads.append(name), read(*arguments))[1]

    monkeypatch.setattr("dglaunch.output.inputs.Table.rows", counting("table", Table.rows))
    monkeypatch.setattr(OutputFolder, "records", counting("ledger", OutputFolder.records))
    file = tmp_path / "out" / "000000.png"
    assert inputs.find_inputs(file, read_description(file)) == [image["bytes"] for image in images]
    assert sorted(reads) == ["ledger", "table"]
