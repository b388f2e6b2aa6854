"""Tables of edits to tasks: lists of images, Parquet with bytes, chosen rows, and what is told of bad ones."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch import EditingConfig
from dglaunch.data.edits import read_edits
from dglaunch.data.task import Task
from dglaunch.errors import InputError, UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from support.edit_images import SIZES, picture, png, save_pictures
from support.results import write_jsonl


def editor(family: str = "flux1_kontext", **defaults: Any) -> Checkpoint:
    return as_editor(Checkpoint("fake", "fake", OTHER, defaults, {}, False), family)


def read(path: Path, family: str = "flux1_kontext", **flags: Any) -> list[Task]:
    checkpoint = editor(family, _auto_resize=False)
    return list(read_edits(EditingConfig(input=path, **flags), checkpoint))


def problems(path: Path, family: str = "flux1_kontext", **flags: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(path, family, **flags)
    return caught.value.problems


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
    assert [task.index for task in read(path, filter_rows="index > 6", limit=2)] == [7, 8]
    with pytest.raises(UserError, match=r"has no row 20:30; its indices are 0 to 9"):
        read(path, filter_rows="20:30")


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


@pytest.mark.parametrize(("size", "said"), [((48, 64), "too small for Flux2"), ((1024, 64), "takes at most 8:1")])
def test_what_the_pipeline_would_refuse_is_told_before(tmp_path: Path, size: tuple[int, int], said: str) -> None:
    picture(0, size).save(tmp_path / "a.png")
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}]), "flux2")
    assert task.error is not None and said in task.error


def test_a_photograph_that_is_too_large_is_its_rows_failure_and_names_the_flag(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    picture(1, (200, 200)).save(tmp_path / "large.png")
    rows = [{"input_images": name, "instruction": "x"} for name in ("large.png", "images/a.png")]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    large, small = read(path, max_pixels=39_999)
    assert large.error is not None and "more than 39,999 pixels" in large.error and "--max_pixels" in large.error
    assert small.error is None
    assert [task.error for task in read(path, max_pixels=40_000)] == [None, None]
    with pytest.raises(UserError, match="--max_pixels is 0"):
        EditingConfig(input=path, max_pixels=0)


def test_half_a_photograph_is_its_rows_failure_before_a_model_is_loaded(tmp_path: Path) -> None:
    picture(1, (200, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.jpg", "instruction": "x"}]))
    assert task.error is not None and "input image a.jpg is torn or damaged" in task.error


def test_a_result_that_a_file_cannot_hold_is_its_rows_failure(tmp_path: Path) -> None:
    """GLM-Image's results are as large as its input."""
    Image.new("1", (16_416, 64)).save(tmp_path / "long.png")
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "long.png", "instruction": "x"}])
    (task,) = read(path, "glm_image", output_format="webp")
    assert task.error is not None and "a webp has at most 16,383 pixels a side (take --output_format png)" in task.error
    (task,) = read(path, "glm_image")
    assert task.error is None
