"""`edit`: tables and images to tasks, tasks to batches, the command with the fake backend. Real models are in
test_edit_models.py. Layers, cheapest first."""

import hashlib
import io
import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch import EditingConfig, config
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.backends.profiles import edit_bucket
from dglaunch.data.edits import parse_ranges, read_edits
from dglaunch.data.images import BadImage, Cell, InputImage, decode, probe
from dglaunch.data.task import BatchSize, Task
from dglaunch.environment import known_flags
from dglaunch.errors import InputError, UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.editing import at_most_a_megapixel, kontext_input, kontext_output
from dglaunch.models.families import FAMILIES, OTHER
from dglaunch.models.shape import Shape
from dglaunch.planning import batches as plan
from support.commands import dglaunch, kill_group, start
from support.edit_images import MULTI, SINGLE, SIZES, bomb, picture, png, save_pictures, save_table
from support.results import difference, images, ledger, run_json, write_jsonl

FAKE = ["edit", "--backend", "fake"]


def editor(family: str = "flux1_kontext", **defaults: Any) -> Checkpoint:
    return as_editor(Checkpoint("fake", "fake", OTHER, defaults, {}, False), family)


def read(path: Path, family: str = "flux1_kontext", **flags: Any) -> list[Task]:
    checkpoint = editor(family, _auto_resize=False)
    return read_edits(EditingConfig(input=path, **flags), checkpoint)


def problems(path: Path, family: str = "flux1_kontext", **flags: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(path, family, **flags)
    return caught.value.problems


# -- tables -------------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_task_with_its_images_instruction_and_size(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    path = write_jsonl(
        tmp_path / "t.jsonl",
        [
            {"input_images": "images/c.png", "instruction": "make it red", "seed": 7, "steps": 3, "tag": "x"},
            {"input_images": "images/c.png", "instruction": "make it red", "width": 128, "height": 32},
        ],
    )
    first, second = read(path, num_images_per_prompt=1, negative_prompt="ugly")
    assert (first.prompt, first.seed, first.num_inference_steps, first.extra) == ("make it red", 7, 3, {"tag": "x"})
    assert (first.width, first.height, second.width, second.height) == (96, 64, 128, 32)
    assert first.negative_prompt == "ugly" and first.input_tokens == 24
    assert [image.name for image in first.images] == ["images/c.png"] and first.images[0] is second.images[0]
    assert first.content()["input_sha256"] == [first.images[0].sha256]


@pytest.mark.parametrize(
    "cell",
    [
        "images/a.png,images/c.png",
        " images/a.png , images/c.png ",
        '["images/a.png", "images/c.png"]',
        ["images/a.png", "images/c.png"],
        [{"path": "images/a.png", "bytes": None}, {"path": "images/c.png"}],
    ],
)
def test_lists_of_images(tmp_path: Path, cell: Any) -> None:
    save_pictures(tmp_path / "images")
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": cell, "instruction": "x"}])
    (task,) = read(path, "flux2")
    assert task.error is None and [(i.shape.width, i.shape.height) for i in task.images] == [SIZES["a"], SIZES["c"]]


@pytest.mark.parametrize("name", ["one, two.png", "[odd].png", "ü 'q\" space.png"])
def test_a_file_of_that_very_name_wins(tmp_path: Path, name: str) -> None:
    picture(1).save(tmp_path / name)
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": name, "instruction": "x"}]))
    assert task.error is None and [image.name for image in task.images] == [name]


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("shape", ["bytes", "list", "hugging face"])
def test_parquet_with_images_as_bytes(tmp_path: Path, shape: str) -> None:
    """GenArena's layout among them: `instruction` and `input_images` as bytes, in row groups of any size."""
    data = [png(n, (64 + 16 * (n % 3), 64)) for n in range(50)]
    wrap = {"bytes": lambda d: d, "list": lambda d: [d, d], "hugging face": lambda d: [{"bytes": d, "path": "x.png"}]}
    rows = [{"instruction": f"edit {n}", "input_images": wrap[shape](d), "thumb": d} for n, d in enumerate(data)]
    tasks = read(parquet(tmp_path / "t.parquet", rows, row_group_size=20), "flux2")
    assert [task.images[0].shape.width for task in tasks[:3]] == [64, 80, 96] and tasks[0].extra is None
    order = list(range(50))
    random.Random(0).shuffle(order)
    for n in [*range(50), *order]:
        assert tasks[n].images[-1].read() == data[n]


def test_rows_can_be_chosen_by_index_and_the_others_are_not_looked_at(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    rows = [{"input_images": "images/a.png", "instruction": f"{n}"} for n in range(10)]
    rows[5] = {"input_images": "nowhere.png", "instruction": ""}
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [task.index for task in read(path, filter_rows="0:3, 7 ,9:")] == [0, 1, 2, 7, 9]
    with pytest.raises(UserError, match=r"leaves none of the 10 rows of .*whose indices are 0 to 9"):
        read(path, filter_rows="20:30")


@pytest.mark.parametrize("text", ["", "a", "1:2:3", "1,", "-1", "1-3"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--filter_rows"):
        parse_ranges(text)


BAD_TABLES: dict[str, tuple[str, str, str]] = {
    "no instruction": ('{"input_images": "a.png"}', "line 1", "no instruction"),
    "blank instruction": ('{"input_images": "a.png", "instruction": "  "}', "line 1", "not a text"),
    "wrong column": ('{"image": "a.png", "instruction": "x"}', "line 1", "no input_images (there are: image"),
    "broken line": ('{"input_images": "a.png", "instruction": "x"', "line 1", "not valid JSON"),
    "broken list": ('{"input_images": "[\\"a.png\\"", "instruction": "x"}', "line 1", "no valid JSON list"),
    "a number for a path": ('{"input_images": [5], "instruction": "x"}', "line 1", "has 5 where a path is needed"),
    "a width for a pipeline that sets it": ('{"input_images": "a.png", "instruction": "x", "width": 64}', "line 1", "cannot be set"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TABLES)
def test_bad_tables_are_told_before_anything_runs(tmp_path: Path, what: str) -> None:
    line, place, said = BAD_TABLES[what]
    (tmp_path / "t.jsonl").write_text(line + "\n")
    (problem,) = problems(tmp_path / "t.jsonl", "longcat")
    assert problem.startswith(place) and said in problem


def test_an_unknown_family_and_a_checkpoint_that_does_not_edit() -> None:
    with pytest.raises(UserError, match=r"flux3 is no editing family\. The nearest: flux2"):
        editor("flux3")
    flux = Checkpoint("/models/flux", "FluxPipeline", FAMILIES["FluxPipeline"], {}, {}, True)
    with pytest.raises(UserError, match=r"does not edit images.*--model_type \(flux1_kontext has the same parts\)"):
        as_editor(flux, None)
    assert as_editor(flux, "flux1_kontext").pipeline_class == "FluxKontextPipeline"
    # `tiny` says of itself that it edits.
    tiny = Checkpoint("/tiny", "FluxPipeline", FAMILIES["FluxPipeline"], {"edit": {"_auto_resize": False}}, {}, True)
    assert as_editor(tiny, None).defaults == {"_auto_resize": False}


# -- images -------------------------------------------------------------------------------------------------------


def bad_images(folder: Path) -> dict[str, tuple[Any, str]]:
    """Cell and what is said of it, for images that cannot be used."""
    good = png(1)
    jpeg = io.BytesIO()
    picture(2, (256, 256)).save(jpeg, "JPEG", quality=95)
    files = {
        "torn.png": good[: len(good) // 2],
        "torn.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "empty.png": b"",
        "bomb.png": bomb(),
        "small_bomb.png": bomb(10_000, 10_000),
        "text.png": b"this is no image, whatever its name",
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    return {
        "missing": ("bad/nowhere.png", "input image bad/nowhere.png there is no file"),
        "truncated PNG": ("bad/torn.png", "input image bad/torn.png is torn or damaged"),
        "truncated JPEG": ("bad/torn.jpg", "input image bad/torn.jpg is torn or damaged"),
        "0 bytes": ("bad/empty.png", "input image bad/empty.png is empty (0 bytes)"),
        "bomb": ("bad/bomb.png", "as a decompression bomb has"),
        "bomb that Pillow only warns of": ("bad/small_bomb.png", "as a decompression bomb has"),
        "no image": ("bad/text.png", "is no image that can be read"),
        "a folder": ("bad/folder.png", "cannot be read: Is a directory"),
        "two images": ("images/a.png, images/b.png", "2 input images, but flux1_kontext (FluxKontextPipeline) takes"),
        "none": ([], "0 input images"),
        "a URL": ("https://example.org/a.png", "there is no file"),
    }


def test_bad_images_fail_their_rows_and_the_others_are_made(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    bad = bad_images(tmp_path / "bad")
    cells = [cell for what in bad for cell in ("images/a.png", bad[what][0])]
    rows = [{"input_images": cell, "instruction": f"edit {n}"} for n, cell in enumerate(cells)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    arguments = [*FAKE, "--input", path, "--batch_size", "4", "--output_dir", tmp_path / "out"]
    ended = dglaunch(*arguments, nproc=2)
    assert ended.code == 1 and run_json(tmp_path / "out")["outcome"] == "failed", ended.output
    failures = {line["index"]: line for line in ledger(tmp_path / "out", "failures.jsonl")}
    assert sorted(failures) == list(range(1, 2 * len(bad), 2))
    for (what, (_, said)), index in zip(bad.items(), sorted(failures)):
        error = failures[index]["error"]
        assert error.startswith(f"{path}, line {index + 1}: ") and said in error, (what, error)
        assert failures[index]["instruction"] == f"edit {index}"
    assert sorted(line["index"] for line in ledger(tmp_path / "out")) == list(range(0, 2 * len(bad), 2))
    told = run_json(tmp_path / "out")
    assert (told["num_ok"], told["num_failed"], told["num_total"]) == (len(bad), len(bad), 2 * len(bad))
    # All but the JPEG are known before a model is loaded, as `plan` shows.
    planned = dglaunch("plan", *arguments)
    assert planned.code == 0 and f"{len(bad) + 1} images in" in planned.output, planned.output
    assert "cannot be made: " in planned.output and "more rows that cannot be made" in planned.output
    # What is mended is made by the same command.
    shutil.copy(tmp_path / "images" / "b.png", tmp_path / "bad" / "nowhere.png")
    again = dglaunch(*arguments)
    assert again.code == 3 and run_json(tmp_path / "out")["num_ok"] == 1, again.output


def test_when_no_row_can_be_made_no_model_is_loaded(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "nowhere.png", "instruction": "x"}])
    ended = dglaunch(*FAKE, "--input", path, "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "there is no file" in ended.output
    assert run_json(tmp_path / "out")["seconds"]["load"] == 0


@pytest.mark.parametrize(("size", "said"), [((48, 64), "too small for Flux2"), ((1024, 64), "takes at most 8:1")])
def test_what_the_pipeline_would_refuse_is_told_before(tmp_path: Path, size: tuple[int, int], said: str) -> None:
    picture(0, size).save(tmp_path / "a.png")
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}]), "flux2")
    assert task.error is not None and said in task.error


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(3, (96, 64))
    data = encoded(stored, kind, exif=exif)
    turned = decode(data)
    shape = probe("x", Path("x"), data).shape
    assert (shape.width, shape.height) == turned.size == ((64, 96) if orientation >= 5 else (96, 64))
    ways = Image.Transpose
    way = {2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE, 6: ways.ROTATE_270,
           7: ways.TRANSVERSE, 8: ways.ROTATE_90}.get(orientation)  # fmt: skip
    expected = np.asarray(stored.transpose(way) if way is not None else stored).astype(int)
    assert abs(np.asarray(turned) - expected).mean() < 6


def test_alpha_greyscale_palette_and_16_bit() -> None:
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(rgba)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (8, 8), (0, 128))
    assert decode(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(picture(1, mode="L"))).getpixel((5, 5)) == (picture(1, mode="L").getpixel((5, 5)),) * 3
    palette = picture(1).convert("P")
    assert decode(encoded(palette)).tobytes() == palette.convert("RGB").tobytes()
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    deep = np.asarray(decode(encoded(Image.fromarray(ramp))))[..., 0].astype(int)
    assert abs(deep.ravel() - np.arange(256)).max() <= 1
    cmyk = decode(encoded(picture(1).convert("CMYK"), "JPEG"))
    assert cmyk.mode == "RGB" and cmyk.size == (64, 64)
    unit = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert decode(encoded(unit, "TIFF")).getpixel((7, 7)) == (255, 255, 255)


def test_an_image_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}]))
    loader = InputPrefetcher()
    assert loader.load([task]) == {} and loader.images(task)[0].size == (64, 64)
    (tmp_path / "a.png").write_bytes(png(2))
    assert loader.load([task]) == {}, "it is kept for the next batch"
    assert "was changed since the run began" in InputPrefetcher().load([task])[0]


def test_each_image_is_decoded_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.data import images as inputs

    decoded: list[int] = []
    monkeypatch.setattr(inputs, "decode", lambda data: decoded.append(len(data)) or picture(0))
    tasks = read(save_table(tmp_path / "t.csv", SINGLE))
    loader = InputPrefetcher()
    loader.load(tasks)
    assert len(decoded) == len(SIZES)
    loader.load(tasks[:2])
    assert len(decoded) == len(SIZES)


def test_the_images_of_the_next_batch_are_decoded_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.backends import input_prefetch as inputs
    from dglaunch.data.task import Batch

    decoded: dict[str, str] = {}
    whole = inputs._decode

    def noted(image: InputImage) -> Any:
        assert image.name not in decoded, "twice"
        decoded[image.name] = threading.current_thread().name
        return whole(image)

    monkeypatch.setattr(inputs, "_decode", noted)
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [{"input_images": f"{n}.png", "instruction": "x"} for n in range(4)]
    tasks = read(write_jsonl(tmp_path / "t.jsonl", rows))
    batches = [Batch(tuple(tasks[:2])), Batch(tuple(tasks[2:]))]
    loader = InputPrefetcher(batches)
    loader.load(tasks[:2])
    assert loader.load(tasks[2:3]) == loader.load(tasks[3:]) == {}, "a batch may come in parts"
    threads = {name: thread == threading.main_thread().name for name, thread in decoded.items()}
    assert threads == {"0.png": True, "1.png": True, "2.png": False, "3.png": False}


def test_cells_of_a_table_are_probed_too() -> None:
    with pytest.raises(BadImage, match="is empty"):
        probe("x", Cell(Path("t.parquet"), "input_images", 0, 0), b"")


# -- families and batches -----------------------------------------------------------------------------------------


def test_the_families_are_those_of_the_table_and_of_the_help_text() -> None:
    rows = {family.edit.name: family.edit for family in FAMILIES.values() if family.edit is not None}
    no_batch = [name for name, row in rows.items() if row.batch_disabled]
    assert no_batch == ["qwen", "longcat", "glm_image"]
    assert [n for n, row in rows.items() if row.shared_image_batch] == ["flux1_kontext", "flux2", "flux2_klein"]
    assert [n for n, row in rows.items() if row.equal_size_batch] == ["flux1_kontext", "qwen_singleimg"]
    assert [n for n, row in rows.items() if row.multi_image] == ["flux2", "flux2_klein", "qwen", "glm_image"]
    assert "model_type" in known_flags()
    source = Path(config.__file__).read_text()
    assert all(name in source for name in rows)


def plan_of(path: Path, family: str, batch_size: int, replicas: int = 1) -> plan.Plan:
    checkpoint = editor(family, _auto_resize=False)
    tasks = read_edits(EditingConfig(input=path), checkpoint)
    size = batch_size if checkpoint.family.batch else 1
    return plan.build(tasks, replicas, lambda _: BatchSize(size, ""), edit_bucket(checkpoint))


def test_batches_share_their_images_or_their_size(tmp_path: Path) -> None:
    single = save_table(tmp_path / "s.csv", SINGLE)
    multi = save_table(tmp_path / "m.csv", MULTI)
    # 64x64: 4 a and 3 b make 2 batches of 4; 3 c and 2 d make 1 each.
    made = plan_of(single, "flux1_kontext", 4)
    assert (made.num_batches, made.num_extra_batches) == (4, 1)
    assert plan_of(single, "qwen_singleimg", 4).num_batches == 4
    # Sets: a x3, ac x3, b x2, acd x2, d, ca.
    made = plan_of(multi, "flux2", 4)
    assert (made.num_batches, made.num_extra_batches) == (6, 3)
    for batch in made.batches[0]:
        assert len({tuple(image.sha256 for image in task.images) for task in batch.tasks}) == 1
    assert [len(batch) for batch in plan_of(multi, "qwen", 4).batches[0]] == [1] * 12
    # Of 12 rows of one image each, seven rows at 3 take three calls: balanced.
    assert [len(b) for b in plan_of(single, "flux1_kontext", 3).batches[0]] == [3, 2, 2, 3, 2]


def test_default_sizes(tmp_path: Path) -> None:
    assert kontext_input(Shape(1000, 1000), {}) == Shape(1024, 1024)
    assert kontext_output(Shape(2000, 3000), {}) == Shape(832, 1248)
    assert kontext_output(Shape(70, 100), {"_auto_resize": False}) == Shape(64, 96)
    assert kontext_output(Shape(96, 128), {"_auto_resize": False, "max_area": 64 * 64}) == Shape(48, 64)
    assert at_most_a_megapixel(Shape(70, 100), {}) == Shape(64, 96)
    assert at_most_a_megapixel(Shape(4000, 4000), {}) == Shape(1024, 1024)


# -- the command with the fake backend ----------------------------------------------------------------------------


def test_three_orders_give_the_same_image_for_each_row(tmp_path: Path) -> None:
    orders = [list(range(12)), list(range(12))[::-1], random.Random(1).sample(range(12), 12)]
    for number, order in enumerate(orders):
        path = save_table(tmp_path / f"t{number}.csv", MULTI, order)
        ended = dglaunch(
            *FAKE,
            "--model_type",
            "flux2",
            "--input",
            path,
            "--batch_size",
            "4",
            "--output_dir",
            tmp_path / f"o{number}",
        )
        assert ended.code == 0, ended.output
        assert difference(tmp_path / f"o{number}", tmp_path / "o0") == 0
        assert sorted(images(tmp_path / f"o{number}")) == [f"{n:06d}.png" for n in range(12)]


def test_ledger_saved_inputs_and_overwrite(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", MULTI)
    out = tmp_path / "out"
    arguments = [*FAKE, "--model_type", "flux2", "--input", path, "--save_inputs", "--output_dir", out]
    assert dglaunch(*arguments, nproc=2).code == 0
    lines = {line["index"]: line for line in ledger(out)}
    assert lines[4]["input_images"] == [f"images/{name}.png" for name in "acd"]
    assert lines[4]["instruction"] == lines[4]["prompt"] == "make it snow"
    for line in lines.values():
        for name, copy, digest in zip(line["input_images"], line["input_file_names"], line["input_sha256"]):
            data = (out / copy).read_bytes()
            assert data == (tmp_path / name).read_bytes() and hashlib.sha256(data).hexdigest() == digest
    assert sorted(p.name for p in (out / "inputs").iterdir())[:3] == ["000000_0.png", "000001_0.png", "000001_1.png"]
    assert run_json(out)["num_batches"] in (6, 7), "the cut between two equal shares may fall into a set"
    (out / "inputs" / "mine.txt").write_text("stays")
    (out / "inputs" / "000009_0.png").unlink()
    assert dglaunch(*arguments, "--overwrite").code == 0
    assert (out / "inputs" / "000009_0.png").exists() and (out / "inputs" / "mine.txt").exists()


def test_a_changed_image_is_another_job_and_a_removed_one_is_not(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    arguments = [*FAKE, "--input", path, "--output_dir", tmp_path / "out"]
    assert dglaunch(*arguments).code == 0
    (tmp_path / "images" / "d.png").unlink()
    again = dglaunch(*arguments)
    assert again.code == 0 and run_json(tmp_path / "out")["num_skipped"] == 12, again.output
    picture(99, SIZES["d"]).save(tmp_path / "images" / "d.png")
    ended = dglaunch(*arguments)
    assert ended.code == 2 and "row 4, input_sha256: [" in ended.output, ended.output
    other = dglaunch(*arguments[:-1], tmp_path / "out", "--model_type", "qwen_singleimg")
    assert other.code == 2 and "editing_pipeline" in other.output


def test_no_batch_is_told_once_with_the_reason(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    ended = dglaunch(
        *FAKE, "--model_type", "longcat", "--input", path, "--batch_size", "4", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 0, ended.output
    assert ended.output.count("not the 4 asked for") == 1 and "refuses a second prompt" in ended.output
    assert run_json(tmp_path / "out")["choices"]["batch_size"].startswith("1: not the 4 asked for")
    assert {line["batch_size"] for line in ledger(tmp_path / "out")} == {1}


def test_a_failing_batch_is_run_one_by_one(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    rows = [{"input_images": "images/a.png", "instruction": f"{n}{' [raise]' * (n == 5)}"} for n in range(8)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    ended = dglaunch(*FAKE, "--input", path, "--batch_size", "8", "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "run one by one" in ended.output
    (failure,) = ledger(tmp_path / "out", "failures.jsonl")
    assert failure["index"] == 5 and len(images(tmp_path / "out")) == 7


def test_sigkill_and_resume_on_another_world_size(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    rows = [
        {"input_images": [f"images/{n}.png" for n in MULTI[r % 12]], "instruction": f"{r} [sleep 0.15]"}
        for r in range(24)
    ]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    arguments = [*FAKE, "--model_type", "flux2", "--input", path, "--save_inputs"]
    assert dglaunch(*arguments, "--output_dir", tmp_path / "reference").code == 0
    for number in range(2):
        out = tmp_path / f"kill{number}"
        process = start([*arguments, "--batch_size", "2", "--output_dir", out], nproc=2)
        limit = time.monotonic() + 60
        while not ledger(out) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(random.Random(number).uniform(0, 0.5))
        kill_group(process)
        process.communicate()
        assert len(ledger(out)) < 24
        ended = dglaunch(*arguments, "--batch_size", "3", "--output_dir", out)
        assert ended.code == 0 and run_json(out)["num_skipped"] > 0, ended.output
        assert difference(out, tmp_path / "reference") == 0
        assert sorted(line["index"] for line in ledger(out)) == list(range(24))
        assert difference(out / "inputs", tmp_path / "reference" / "inputs") == 0


def test_plan_says_what_the_images_cost(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", MULTI)
    ended = dglaunch("plan", *FAKE, "--model_type", "flux2", "--input", path, "--batch_size", "4")
    assert ended.code == 0, ended.output
    said = "12 images in 6 batches; 3 more than if all rows had one size and the same input images"
    assert said in ended.output


def test_wrong_uses(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", SINGLE)
    out = ["--output_dir", tmp_path / "out"]
    for arguments, said in (
        (["edit"], "Give --input TABLE"),
        ([*FAKE, "--input", tmp_path / "nowhere.csv"], "There is no file"),
        ([*FAKE, "--input", path, "--model_type", "flux3"], "is no editing family"),
        ([*FAKE, "--input", path, "--instruction_key", "text"], "no text (there are: "),
        ([*FAKE, "--input", path, "--model_type", "longcat", "--width", "64"], "--width cannot be set"),
    ):
        ended = dglaunch(*arguments, *out)
        assert ended.code == 2 and said in ended.output and "Traceback" not in ended.output, ended.output


def test_json_of_the_ledger_is_whole(tmp_path: Path) -> None:
    """Bytes of a Parquet table do not end in the ledger."""
    rows = [{"instruction": f"{n}", "input_images": [png(n)], "id": f"r{n}"} for n in range(3)]
    path = parquet(tmp_path / "genarena.parquet", rows)
    ended = dglaunch(*FAKE, "--input", path, "--output_dir", tmp_path / "out", "--save_inputs", nproc=2)
    assert ended.code == 0, ended.output
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [line["input_images"] for line in lines] == [["input_images[0]"]] * 3 and lines[1]["id"] == "r1"
    assert (tmp_path / "out" / lines[2]["input_file_names"][0]).read_bytes() == png(2)
    assert max(len(json.dumps(line)) for line in lines) < 2000
