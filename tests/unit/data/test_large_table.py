"""A large table is the same in columns as row by row: tasks, keys, what is told of its columns, and what is said of bad rows."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch.config import T2IConfig
from dglaunch.data import column_reader, many, shares, table_formats
from dglaunch.data.columns import Columns
from dglaunch.data.large_table import open_tasks, write_tasks
from dglaunch.data.prompts import RowReader
from dglaunch.data.shares import Part, Share
from dglaunch.data.tables import Table
from dglaunch.data.task import Bucket
from dglaunch.data.task_table import TaskTable, _Store
from dglaunch.errors import UserError

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "a red fox", "seed": 7, "width": 64, "height": 128, "steps": 4, "guidance_scale": 2.5,
        "negative_prompt": "blur", "style": "oil", "n": 1,
    },
    {"prompt": " ein Bär, größer als ein Haus ", "style": None, "n": 2},
    {
        "prompt": '狐狸 "quoted" \\ back', "seed": 2**62, "width": 64, "height": 64, "steps": 20, "guidance_scale": 0.1,
        "negative_prompt": "", "style": "ink", "n": 3,
    },
]  # fmt: skip
KEYS = {1: ["a4a880d99a160c87", "acf514580eaf57cb", "1db988af07384b11"],
        2: ["a4a880d99a160c87", "0bbf91da88160718", "a359ad197a87baf1", "af98680d00c9236b", "1db988af07384b11", "f71f6989e1b83c67"]}  # fmt: skip
"""By the number of images of a prompt: as the code before columns made them. They never change: folders go by them."""


def reader_of(path: Path, **flags: Any) -> tuple[RowReader, Table]:
    flags = {"num_images_per_prompt": 1} | flags
    config = T2IConfig(prompts_file=path, **flags)
    reader = RowReader(config, config.rows_from, 8, Columns(config))
    reader.table = Table(config.tables)
    return reader, reader.table


def in_columns(path: Path, **flags: Any) -> tuple[TaskTable, RowReader]:
    reader, table = reader_of(path, **flags)
    file = path.parent / "tasks.arrow"
    write_tasks(reader, table, str(file))
    return open_tasks(reader, str(file)), reader


def one_by_one(path: Path, **flags: Any) -> tuple[list[Any], RowReader]:
    reader, table = reader_of(path, **flags)
    return reader.read(table.rows()), reader


def saved(folder: Path, rows: "list[dict[str, Any]] | pa.Table") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row)) if isinstance(rows, list) else []
    table = pa.table({name: [row.get(name) for row in rows] for name in names}) if isinstance(rows, list) else rows
    pq.write_table(table, folder / "p.parquet")
    return folder / "p.parquet"


@pytest.mark.parametrize("samples", [1, 2])
def test_keys_are_those_of_every_version_before(tmp_path: Path, samples: int) -> None:
    flags: dict[str, Any] = {} if samples == 1 else {"seed": 5, "guidance_scale": 7.0, "negative_prompt": "bad"}
    path = saved(tmp_path, ROWS)
    tasks, _ = in_columns(path, num_images_per_prompt=samples, ignore_columns=("n",), **flags)
    assert [task.key for task in tasks] == KEYS[samples]


@pytest.fixture
def never_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that columns can say are not read one by one: it would take thirty times as long."""

    def refuse(self: RowReader, rows: object, first: int = 0) -> None:
        raise AssertionError(f"rows from {first} on are read one by one")

    monkeypatch.setattr(RowReader, "tasks_of", refuse)


SIMPLE: dict[str, dict[str, list[Any]]] = {
    "prompts alone": {"prompt": ["a", "b", "c"]},
    "seeds": {"prompt": ["a", "b", "c"], "seed": [3, None, 2**63 - 2]},
    "seeds that pandas wrote": {"prompt": ["a", "b"], "seed": [7.0, float("nan")]},
    "seeds that are texts": {"prompt": ["a", "b"], "seed": ["7", " +8 "]},
    "sizes": {"prompt": ["a", "b", "c"], "width": [64, 128, None], "height": [64, 64, 64]},
    "guidance": {"prompt": ["a", "b", "c"], "Guidance_Scale": [0.0, 1.5, float("nan")]},
    "negative": {"prompt": ["a", "b", "c"], "negative_prompt": ["", None, "blur"]},
    "index": {"prompt": ["a", "b", "c"], "index": [5, 1, 70]},
    "ids that are numbers": {"id": [5, 1, 70], "prompt": ["a", "b", "c"]},
    "ids that are texts": {"id": ["q1", "q2", "q3"], "prompt": ["a", "b", "c"]},
    "counts": {"prompt": ["a", "b", "c"], "num_images_per_prompt": [1, 3, None]},
    "kept": {"style": [None, "oil", "ink"], "prompt": ["a", "b", "c"], "tags": [["x", "y"], None, []], "ok": [True, False, None],
             "score": [0.5, float("nan"), 1e300], "box": [{"x": 1, "y": None}, None, {"x": 2, "y": "z"}]},
    "bytes": {"prompt": ["a", "b", "c"], "image": [b"x", None, b"y"]},
    "other letters": {"Prompt": ["狐狸", " a", "é"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize(
    "flags", [{}, {"limit": 2}, {"num_images_per_prompt": 2, "seed": 100}], ids=["", "limit", "samples"]
)
def test_columns_say_what_rows_say(
    tmp_path: Path, name: str, flags: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    path = saved(tmp_path, pa.table(SIMPLE[name]))
    expected, by_row = one_by_one(path, **flags)
    request.getfixturevalue("never_row_by_row")
    tasks, by_column = in_columns(path, **flags)
    assert list(tasks) == expected
    assert {*many.texts_of(tasks)} == {*many.texts_of(expected)}
    assert by_column.columns.record == by_row.columns.record
    assert by_column.columns.summary == by_row.columns.summary


BAD: dict[str, dict[str, list[Any]]] = {
    "blank": {"prompt": ["a", "  ", "\t", None]},
    "no text": {"prompt": [1, 2]},
    "seed": {"prompt": ["a", "b"], "seed": [-1, 3]},
    "a seed that is too large": {"prompt": ["a", "b"], "seed": [2**63 - 1, 3], "num_images_per_prompt": [2, 1]},
    "size": {"prompt": ["a", "b"], "width": [63, 64]},
    "guidance": {"prompt": ["a", "b"], "guidance_scale": [float("inf"), -1.0]},
    "twice": {"prompt": ["a", "b", "c", "d"], "index": [4, 1, 4, 1]},
    "ids, one of them missing": {"prompt": ["a", "b"], "id": [4, None]},
    "both steps": {"prompt": ["a"], "steps": [4], "num_inference_steps": [5]},
    "no JSON": {"prompt": ["a"], "score": [float("inf")]},
    "a misspelt column": {"prompt": ["a", "b"], "guidence_scale": [None, 3.0]},
    "two columns": {"prompt": ["a"], "Seed": [1], "SEED": [2]},
    "no prompts": {"text": ["a"]},
    "nothing": {"prompt": []},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_told_in_the_same_words(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, pa.table(BAD[name]))
    with pytest.raises(UserError) as by_row:
        one_by_one(path)
    with pytest.raises(UserError) as by_column:
        in_columns(path)
    assert str(by_column.value) == str(by_row.value)


def test_a_bad_row_is_found_among_many_and_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_formats, "BATCH", 16)
    for name, bad in (("a", 3), ("b", 40)):
        prompts = [f"{name}{n}" if n != bad else "" for n in range(50)]
        pq.write_table(pa.table({"prompt": prompts}), tmp_path / f"{name}.parquet")
    with pytest.raises(UserError) as by_row:
        one_by_one(tmp_path)
    with pytest.raises(UserError) as by_column:
        in_columns(tmp_path)
    assert str(by_column.value) == str(by_row.value)
    assert "row 3 of a.parquet" in str(by_column.value)
    assert "row 40 of b.parquet" in str(by_column.value)


def test_a_table_that_is_bad_from_end_to_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dglaunch.data.large_table.MOST_PROBLEMS", 20)
    monkeypatch.setattr("dglaunch.data.table_formats.BATCH", 16)
    path = saved(tmp_path, pa.table({"prompt": [""] * 500}))
    with pytest.raises(UserError, match=r"has 32 bad rows; nothing was run. Reading ended at row 31\."):
        in_columns(path)


FILTERS = [
    "3,7,11", "0:5,20:", 'style == "oil"', "seed > 30 and seed < 40", 'not style == "oil" or prompt == "p7"', '"p1" in prompt',
    "seed % 3 == 0", 'style in ["ink", "none"]', "style", "index >= 45", 'ROW["style"] == 1 or row["Style"] == "ink"', "seed == score",
    'negative_prompt == "bad"', 'style < "m"',
]  # fmt: skip


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_leaves_the_same_rows(tmp_path: Path, text: str) -> None:
    rows = pa.table({
        "prompt": [f"p{n}" for n in range(50)], "seed": list(range(50)), "style": ["oil", "ink", None, "", "no"] * 10,
        "score": [n * 1.0 if n % 2 else None for n in range(50)],
    })  # fmt: skip
    path = saved(tmp_path, rows)
    flags: dict[str, Any] = {"filter_rows": text, "negative_prompt": "bad"}
    try:
        expected, by_row = one_by_one(path, **flags)
    except UserError as error:
        with pytest.raises(UserError) as raised:
            in_columns(path, **flags)
        assert str(raised.value) == str(error)
        return
    tasks, by_column = in_columns(path, **flags)
    assert list(tasks) == expected
    assert by_column.columns.record == by_row.columns.record


@pytest.mark.parametrize("text", ["99", "3,60:70", "stile == 1", 'style == "gouache"'])
def test_a_filter_that_names_nothing_is_told_in_the_same_words(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, pa.table({"prompt": [f"p{n}" for n in range(50)], "style": ["oil"] * 50}))
    said = []
    for read in (one_by_one, in_columns):
        with pytest.raises(UserError) as raised:
            read(path, filter_rows=text)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_tables_of_text_come_into_columns_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "p.csv":
        path.write_text("prompt,seed,style\na fox,3,oil\na bear,,\n")
    else:
        path.write_text(
            '{"prompt": "a fox", "seed": 3, "tags": [1, "x"]}\n\n{"prompt": "a bear", "width": 64, "height": 64}\n'
        )
    for flags in ({}, {"num_images_per_prompt": 2}, {"grid": ("guidance_scale=1,2",)}):
        expected, by_row = one_by_one(path, **flags)
        tasks, by_column = in_columns(path, **flags)
        assert list(tasks) == expected
        assert [task.key for task in tasks] == [task.key for task in expected]
        assert by_column.columns.record == by_row.columns.record


def test_a_table_is_a_sequence_like_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dglaunch.data.table_formats.BATCH", 7)
    monkeypatch.setattr("dglaunch.data.task_table.LEAST_WRITTEN", 1)
    path = saved(
        tmp_path, pa.table({"prompt": [f"p{n}" for n in range(40)], "width": [64, 128] * 20, "height": [64] * 40})
    )
    expected, _ = one_by_one(path)
    tasks, _ = in_columns(path)
    assert len(tasks) == 40
    assert tasks[-1] == expected[-1]
    assert list(tasks[5:30]) == expected[5:30]
    assert list(tasks[5:30][::3]) == expected[5:30:3]
    assert list(tasks[5:30][3:9]) == expected[8:14]
    assert list(tasks.at([3, 30, 4])) == [expected[3], expected[30], expected[4]]
    done = {(3, 0), (7, 0), (99, 0), (4, 1)}
    assert list(tasks.without(done)) == [task for task in expected if task.id not in done]
    assert tasks.places_of(done) == [3, 7]
    assert [(kind.width, kind.index) for kind in tasks.kinds] == [(64, 0), (128, 1)]
    assert many.num_rows(tasks.kinds[1:], tasks.kinds) == 20
    wide = dict(tasks.by_kind([0, 1]))[1]
    assert list(wide) == expected[1::2]
    assert list(wide.without({(1, 0)})[:2]) == expected[3:7:2]
    assert [*tasks.ranges()] == [(0, 40, 1)]
    assert [*wide.ranges()] == [(n, n + 1, 1) for n in range(1, 40, 2)]


def test_rows_drawn_from_all_over_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they cost an image of a million rows twice what one of ten thousand costs."""
    monkeypatch.setattr("dglaunch.data.table_formats.BATCH", 10)
    monkeypatch.setattr("dglaunch.data.task_table.LEAST_WRITTEN", 1)
    path = saved(tmp_path, pa.table({"prompt": [f"p{n}" for n in range(40)]}))
    expected, _ = one_by_one(path)
    tasks, _ = in_columns(path)
    read: list[int] = []
    made = _Store.make_of
    monkeypatch.setattr(_Store, "make_of", lambda store, batch: read.append(batch.num_rows) or made(store, batch))
    order = [17, 3, 33, 18, 2, 39, 0, 16, 1, 31, 19]
    share = Share([Part(Bucket(), tasks.at(order), 2, 1.0)])
    assert [task for batch in share for task in batch.tasks] == [expected[n] for n in order]
    assert sorted(read) == [3, 4, 4], "of the four stretches of the table three, each once"
    monkeypatch.setattr(shares, "MADE_AT_ONCE", 4)
    whole = [[expected[n] for n in order[start : start + 2]] for start in range(0, 10, 2)] + [[expected[19]]]
    share = Share([Part(Bucket(), tasks.at(order), 2, 1.0), Part(Bucket(), tasks.at(order), 2, 1.0)])
    for number in (11, 10, 3, 9, 0, 4, 5, 1, 2, -1):
        assert list(share[number].tasks) == whole[number % 6]
    assert len(share) == 12 and Share([]).num_images == 0 and Part(Bucket(), [], 2, 1.0).batches(0, 0) == []


def test_texts_that_may_be_blank_are_found_by_their_first_byte() -> None:
    texts = pa.array(["a", "", " b", "\t", "é", "~"])
    assert column_reader._may_be_blank(texts) == [1, 2, 3, 4]
    assert column_reader._may_be_blank(texts.slice(2)) == [0, 1, 2]
    assert column_reader._may_be_blank(pa.array([""])) == [0]
