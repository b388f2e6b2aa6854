"""Tables with input images are the same in columns as row by row: tasks, keys, what is told, and what is said of bad rows."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch import EditingConfig
from dglaunch.addresses import Address
from dglaunch.backends.profiles import edit_bucket
from dglaunch.config import BackendConfig, T2IConfig
from dglaunch.data import many
from dglaunch.data.columns import Columns
from dglaunch.data.edits import EditReader
from dglaunch.data.image_rows import ImageRowReader
from dglaunch.data.large_table import open_tasks, write_tasks
from dglaunch.data.prompt_inputs import InputReader
from dglaunch.data.prompts import RowReader
from dglaunch.data.tables import Table
from dglaunch.data.task import Task
from dglaunch.data.task_table import TaskTable
from dglaunch.errors import MissingPackage, UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from dglaunch.models.input_pipelines import FLUX
from dglaunch.planning.batches import into_buckets
from support.edit_images import bomb, picture, png
from support.input_tables import save_images
from support.results import write_jsonl

Make = Callable[[Path], tuple[ImageRowReader, Table]]


def edits(family: str = "flux2", takes_mask: bool = False, **flags: Any) -> Make:
    """What makes a reader of a table of edits."""

    def make(path: Path) -> tuple[ImageRowReader, Table]:
        config = EditingConfig(**{"input": path, "num_images_per_prompt": 1, **flags})
        checkpoint = as_editor(Checkpoint("fake", "fake", OTHER, {"_auto_resize": False}, {}, False), family)
        assert checkpoint.family.edit is not None
        rules = replace(checkpoint.family.edit, takes_mask=takes_mask or checkpoint.family.edit.takes_mask)
        checkpoint = replace(checkpoint, family=replace(checkpoint.family, edit=rules))
        table = Table(config.tables)
        return EditReader(config, checkpoint, table, Columns(config)), table

    return make


def prompts(**flags: Any) -> Make:
    """What makes a reader of a table of prompts with input images."""

    def make(path: Path) -> tuple[ImageRowReader, Table]:
        given: dict[str, Any] = {"num_images_per_prompt": 1, "num_inference_steps": 4, "image_column": "image"} | flags
        config = T2IConfig(prompts_file=path, **given)
        family = replace(OTHER, size_multiple=16, with_inputs=FLUX, own_steps=28)
        checkpoint = Checkpoint("fake", "fake", family, {"height": 64, "width": 64}, {}, False)
        reader = InputReader(config, config.rows_from, 16, Columns(config), checkpoint=checkpoint)
        reader.table = Table(config.tables)
        return reader, reader.table

    return make


ALL = {"mask_column": "mask", "control_column": "control", "backend": BackendConfig(controlnet="any/net")}


def one_by_one(make: Make, path: Path) -> tuple[list[Task], RowReader]:
    reader, table = make(path)
    return reader.read(table.rows()), reader


def in_columns(make: Make, path: Path) -> tuple[TaskTable, RowReader]:
    reader, table = make(path)
    write_tasks(reader, table, "tasks.arrow")
    return open_tasks(reader, "tasks.arrow"), reader


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i0.png to i3.png with masks and control images, others of other sizes, and some that cannot be used."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path)
    picture(1, (96, 64)).save("wide.png")
    picture(2, (48, 64)).save("small.png")
    picture(3, (64, 64)).save("one, two.png")
    picture(4, (64, 80)).convert("RGBA").save("tall.webp", lossless=True)
    Path("torn.png").write_bytes(Path("i0.png").read_bytes()[:300])
    Path("bomb.png").write_bytes(bomb())


def saved(rows: dict[str, Any], name: str = "t.parquet") -> Path:
    pq.write_table(pa.table(rows), name)
    return Path(name)


def words(count: int) -> list[str]:
    return [f"make it {n}" for n in range(count)]


def of_images(cells: list[Any], **columns: Any) -> dict[str, Any]:
    return {"input_images": cells, "instruction": words(len(cells)), **columns}


HF = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "paths": (of_images(["i0.png", "wide.png", "i0.png"], seed=[3, None, 5], tag=["x", None, "y"]), {}, True),
    "sizes": (of_images(["i0.png", "wide.png"], width=[128, None], height=[64, None], steps=[None, 7]), {}, True),
    "the same file by several names": (of_images(["./i0.png", "i0.png", str(Path("i1.png"))]), {}, True),
    "lists in texts": (of_images(["i0.png, wide.png", '["i1.png", "i0.png"]', "one, two.png"]), {}, True),
    "lists": (of_images([["i0.png", "wide.png"], ["i1.png"], ["wide.png", "i0.png", "i0.png"]]), {}, True),
    "bytes": (of_images([png(n, (64 + 16 * (n % 3), 64)) for n in range(20)]), {}, False),
    "bytes of a data set": (of_images(pa.array([[{"bytes": png(n), "path": f"{n}.png"}] * 2 for n in range(3)], HF)), {}, False),
    "images that cannot be used": (
        of_images(["i0.png", "none.png", "torn.png", "bomb.png", "small.png", "i0.png,torn.png", "i1.png", "none.png"]), {}, True,
    ),
    "too many": (of_images(["i0.png", "i0.png,i1.png"]), {"family": "flux1_kontext"}, True),
    "none in a list": (of_images(["i0.png", "[]"]), {}, True),
    "masks": (of_images(["i0.png", "i1.png", "i0.png", "i2.png"], mask=["m0.png", None, "m1.png", "torn.png"]),
              {"takes_mask": True}, True),
    "within masks": (
        of_images(["i0.png", "i1.png", "i0.png", "i2.png"], mask=["m0.png", None, "m1.png", "torn.png"], strength=[0.5, None, None, 0.9]),
        {"family": "flux1_kontext", "mask_column": "mask"}, True,
    ),
    "samples": (of_images(["i0.png", "none.png", "wide.png"]), {"num_images_per_prompt": 2, "seed": 100}, True),
    "limit": (of_images(["i0.png", "wide.png", "none.png"]), {"limit": 2}, True),
    "filter": (of_images(["i0.png", "wide.png", "none.png", "i2.png"], tag=["a", "b", "a", "a"]), {"filter_rows": 'tag == "a"'}, True),
    "shuffle": (of_images([f"i{n % 4}.png" for n in range(30)]), {"limit": 7, "shuffle_seed": 3}, True),
    "grid": (of_images(["i0.png", "wide.png", "none.png"]), {"grid": ("guidance_scale=1,2", "seed=4,5")}, False),
    "template": (of_images(["i0.png", "wide.png"], color=["red", "blue"]), {"prompt_template": "paint it {color}"}, False),
    "instruction": ({"input_images": ["i0.png", "wide.png"]}, {"instruction": "make it red"}, False),
    "index": (of_images(["i0.png", "wide.png"], index=[70, 5]), {}, True),
    "pixels": (of_images(["i0.png", "wide.png"]), {"max_pixels": 5000}, True),
}  # fmt: skip


def same(make: Make, path: Path) -> tuple[TaskTable, list[Task]]:
    """Read a table in both ways."""
    expected, by_row = one_by_one(make, path)
    tasks, by_column = in_columns(make, path)
    assert list(tasks) == expected
    assert [task.key for task in tasks] == [task.key for task in expected]
    assert [task.origin() for task in tasks] == [task.origin() for task in expected]
    assert list(tasks.makeable) == [task for task in expected if task.error is None]
    assert list(tasks.unmakeable) == [task for task in expected if task.error is not None]
    assert {*many.input_files(tasks)} == {*many.input_files(expected)}
    assert by_column.columns.record == by_row.columns.record
    assert by_column.columns.told == by_row.columns.told
    return tasks, expected


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, flags, is_fast = EDITS[name]
    make, path = edits(**flags), saved(rows)
    tasks, expected = same(make, path)
    bucket_of = edit_bucket(make(path)[0].checkpoint)  # type: ignore[attr-defined]
    buckets = into_buckets(tasks.makeable, bucket_of)
    assert {bucket: list(some) for bucket, some in buckets.items()} == dict(
        into_buckets([task for task in expected if task.error is None], bucket_of)
    )
    if is_fast:  # row by row it takes ten times as long
        monkeypatch.setattr(RowReader, "_row", None)
        assert list(in_columns(make, path)[0]) == expected


def test_edits_of_text_tables_are_the_same() -> None:
    cells: list[Any] = ["i0.png", ["wide.png", "i0.png"], "none.png", [{"path": "i1.png"}], "tall.webp"]
    rows = [{"input_images": cell, "instruction": f"edit {n}", "tag": n} for n, cell in enumerate(cells)]
    for flags in ({}, {"num_images_per_prompt": 2}, {"grid": ("guidance_scale=1,2",)}, {"filter_rows": "1:4"}):
        same(edits(**flags), write_jsonl(Path("t.jsonl"), rows))


def test_a_folder_may_have_a_name_that_is_no_text() -> None:
    save_images(Path(os.fsdecode(b"odd\xff")), 1)
    rows = [{"input_images": name, "instruction": "x"} for name in ("i0.png", "none.png")]
    tasks, _ = same(edits(), write_jsonl(Path(os.fsdecode(b"odd\xff/t.jsonl")), rows))
    assert tasks[0].images[0].read() == Path("i0.png").read_bytes()


def test_parts_of_a_table_in_folders_name_images_beside_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / "parts" / name, 2)
        saved(of_images(["i0.png", "i1.png", "../b/i0.png"]), f"parts/{name}/t.parquet")
    tasks, _ = same(edits(input=(Path("parts/a/t.parquet"), Path("parts/b/t.parquet"))), Path("parts/x"))
    assert [task.images[0].name for task in tasks] == [
        "a/i0.png",
        "a/i1.png",
        "b/i0.png",
        "b/i0.png",
        "b/i1.png",
        "b/i0.png",
    ]


PROMPTS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "images": ({"image": ["i0.png", None, "wide.png", "i0.png"]}, {}, True),
    "all": (
        {"image": ["i0.png", "i1.png", None, "i0.png", None], "mask": ["m0.png", None, None, "m1.png", None],
         "control": ["c0.png", None, "c1.png", None, None], "strength": [0.75, None, None, 0.5, None],
         "control_scale": [None, None, 0.4, None, None]}, ALL, True,
    ),
    "flags": ({"image": ["i0.png", None]}, {"strength": 0.5}, True),
    "sizes": ({"image": ["i0.png", "wide.png"], "width": [128, None], "height": [128, None]}, {}, True),
    "images that cannot be used": ({"image": ["i0.png", "none.png", "torn.png", "i1.png"], "mask": [None, None, None, "torn.png"]},
                                   {"mask_column": "mask"}, True),
    "bytes": ({"image": [png(1), None, png(2, (96, 64))]}, {}, False),
    "lists of one": ({"image": [["i0.png"], [], ["wide.png"]]}, {}, False),
    "empty texts": ({"image": ["i0.png", "", "wide.png"]}, {}, False),
    "samples": ({"image": ["i0.png", None, "wide.png"]}, {"num_images_per_prompt": 3}, True),
    "shuffle": ({"image": ["i0.png", None, "small.png"] * 10}, {"limit": 7, "shuffle_seed": 3}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_with_images_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, flags, is_fast = PROMPTS[name]
    path = saved({"prompt": words(len(columns["image"])), **columns})
    tasks, expected = same(prompts(**flags), path)
    kinds = {(task.roles, task.width, task.height, task.strength, task.control_scale) for task in expected}
    assert {(task.roles, task.width, task.height, task.strength, task.control_scale) for task in tasks.kinds} == kinds
    if is_fast:
        monkeypatch.setattr(RowReader, "_row", None)
        assert list(in_columns(prompts(**flags), path)[0]) == expected


BAD: dict[str, tuple[Make, dict[str, Any]]] = {
    "no instruction": (edits(), {"input_images": ["i0.png", "i1.png"], "instruction": ["x", None]}),
    "no image": (edits(), of_images(["i0.png", None, "i1.png"])),
    "no column": (edits(), {"image": ["i0.png"], "instruction": ["x"]}),
    "blank paths": (edits(), of_images(["i0.png", " ", "i0.png,,i1.png"])),
    "numbers": (edits(), of_images([1, 2])),
    "broken lists": (edits(), of_images(['["i0.png"', "i0.png"])),
    "addresses that are none": (edits(), of_images(["ftp://x/i.png", "i0.png"])),
    "a size": (edits("longcat"), of_images(["i0.png"], width=[64], height=[64])),
    "an instruction that does nothing": (edits(instruction="x"), of_images(["i0.png"])),
    "a misspelt column": (edits(), of_images(["none.png"], guidence_scale=[2.0])),
    "nothing": (edits(), of_images([])),
    "edits whose masks have no hole": (edits("flux1_kontext", mask_column="mask"), of_images(["i0.png"] * 2, mask=["m0.png", "black.png"])),
    "edits with an idle strength": (
        edits("flux1_kontext", mask_column="mask"), of_images(["i0.png"] * 2, mask=["m0.png", None], strength=[0.5, 0.5]),
    ),
    "masks of nothing": (prompts(**ALL), {"prompt": ["a", "b"], "image": [None, "i0.png"], "mask": ["m0.png", None]}),
    "strength of nothing": (prompts(), {"prompt": ["a", "b"], "image": [None, "i0.png"], "strength": [0.5, 0.5]}),
    "strengths": (prompts(), {"prompt": ["a", "b", "c"], "image": ["i0.png"] * 3, "strength": [0.0, 1.0, 0.1]}),
    "sizes of masks": (prompts(**ALL), {"prompt": ["a", "b"], "image": ["i0.png", "wide.png"], "mask": ["m0.png", "m0.png"]}),
    "masks without a hole": (prompts(**ALL), {"prompt": ["a", "b"], "image": ["i0.png"] * 2, "mask": ["m0.png", "black.png"]}),
    "images for all rows are missing": (prompts(), {"prompt": ["a"], "picture": ["i0.png"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_told_in_the_same_words(name: str) -> None:
    make, rows = BAD[name]
    picture(1).convert("L").point([0] * 256).save("black.png")
    path, said = saved(rows), []
    for read in (one_by_one, in_columns):
        with pytest.raises(UserError) as raised:
            read(make, path)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_a_table_whose_images_are_all_wrong_is_not_looked_at_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dglaunch.data.large_table.MOST_PROBLEMS", 20)
    monkeypatch.setattr("dglaunch.data.task_table.MADE_AT_ONCE", 16)
    path = saved({"prompt": ["a"] * 100, "image": ["i0.png"] * 100, "strength": [1.0] * 100})
    with pytest.raises(UserError, match=r"has 32 bad rows; nothing was run. Reading ended at row 31\."):
        in_columns(prompts(), path)


def test_a_package_that_is_missing_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    Path("a.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    for read in (one_by_one, in_columns):
        with pytest.raises(MissingPackage, match=r"Reading 1 JPEG XL image of t\.parquet"):
            read(edits(), saved(of_images(["i0.png", "a.jxl", "a.jxl"])))


def test_images_of_rows_that_stand_apart_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dglaunch.data.input_columns.WRITTEN_AT_ONCE", 7)
    monkeypatch.setattr("dglaunch.data.task_table.LEAST_WRITTEN", 1)
    monkeypatch.setattr("dglaunch.data.table_formats.BATCH", 8)
    for n in range(40):
        picture(n, (64 + 16 * (n % 3), 64)).save(f"p{n}.png")
    tasks, expected = same(edits(), saved(of_images([f"p{n * 7 % 40}.png" for n in range(60)])))
    order = [17, 3, 59, 18, 2, 39, 0, 16, 41]
    assert list(tasks.at(order)) == [expected[n] for n in order]
    assert tasks.find((41, 0)) == expected[41]
    assert [image.read() for task in tasks.at(order) for image in task.images] == [
        Path(f"p{n * 7 % 40}.png").read_bytes() for n in order
    ]
    assert len(tasks.kinds) == 3


def test_what_is_asked_for_twice_is_known_by_its_images() -> None:
    Path("copy.png").write_bytes(Path("i0.png").read_bytes())
    rows = {
        "input_images": ["i0.png", "i1.png", "copy.png", "i0.png,i1.png"],
        "instruction": ["x"] * 4,
        "seed": [1] * 4,
    }
    tasks, _ = in_columns(edits(), saved(rows))
    digests = tasks.digests().tolist()
    assert digests[0] == digests[2]
    assert len({*digests}) == 3


def test_addresses_are_read_by_their_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind a question mark signs an address: it is asked for, and never shown."""
    asked: list[str] = []

    def read(path: Address) -> bytes:
        asked.append(path.full)
        return Path(path.name).read_bytes()

    monkeypatch.setattr("dglaunch.data.images.read", read)
    cells = ["https://host.org/i0.png?sign=a,b", "s3://bucket/x/wide.png", "s3://bucket/none.png", "i1.png"]
    tasks, _ = same(edits(), saved(of_images(cells)))
    asked.clear()
    contents = [image.read() for task in tasks[:2] for image in task.images]
    assert contents == [Path("i0.png").read_bytes(), Path("wide.png").read_bytes()]
    assert asked == ["https://host.org/i0.png?sign=a,b", "s3://bucket/x/wide.png"]
    assert tasks[0].images[0].name == "https://host.org/i0.png"
    assert [task.error is not None for task in tasks] == [False, False, True, False]


def test_another_content_is_another_table() -> None:
    path = saved(of_images(["i0.png", "i1.png"]))
    before = in_columns(edits(), path)[0].fingerprint()
    assert in_columns(edits(), path)[0].fingerprint() == before
    picture(77).save("i1.png")
    assert in_columns(edits(), path)[0].fingerprint() != before
