"""Tables to tasks: every format, every oddity, and all bad rows told at once. Pure but for small files."""

import math
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dglaunch import T2IConfig
from dglaunch.data.prompts import read_prompts
from dglaunch.data.tables import read_pipe
from dglaunch.data.task import Task
from dglaunch.errors import InputError, UserError
from dglaunch.files import is_stream
from support.results import write_jsonl


def read(path: Path, multiple: int = 16, **flags: Any) -> Sequence[Task]:
    piped = read_pipe(path) if is_stream(path) else None
    return read_prompts(T2IConfig(prompts_file=path, **flags), multiple, piped)


def problems(path: Path, **flags: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(path, **flags)
    return caught.value.problems


def test_jsonl_fields_win_over_flags_and_unknown_ones_are_carried(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {
                "prompt": "a",
                "seed": 7,
                "width": 512,
                "steps": 4,
                "guidance_scale": 0,
                "negative_prompt": "",
                "tag": [1],
            },
            {"prompt": "b"},
        ],
    )
    first, second = read(path, width=256, height=128, num_inference_steps=20, negative_prompt="ugly", seed=100)
    assert (first.seed, first.width, first.height, first.num_inference_steps) == (7, 512, 128, 4)
    assert (first.guidance_scale, first.negative_prompt, first.extra) == (0.0, "", {"tag": [1]})
    assert (second.seed, second.width, second.num_inference_steps, second.negative_prompt) == (101, 256, 20, "ugly")
    assert (second.guidance_scale, second.extra, second.stem) == (None, None, "000001")


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_with_quotes_commas_and_newlines(tmp_path: Path, bom: str) -> None:
    path = tmp_path / "odd name, 'x' ü.csv"
    path.write_text(
        bom + 'prompt,seed,note\r\n"a ""red"" cat,\nsitting",3,x\r\nplain,,\r\n', encoding="utf-8", newline=""
    )
    first, second = read(path)
    assert (first.prompt, first.seed, first.extra) == ('a "red" cat,\nsitting', 3, {"note": "x"})
    assert (second.prompt, second.seed, second.extra) == ("plain", 1, None)


def test_a_csv_may_have_an_index_column(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("index,prompt\n30,a\n5,b\n")
    assert [(task.index, task.stem, task.seed) for task in read(path)] == [(30, "000030", 30), (5, "000005", 5)]


def test_txt_takes_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeffein Haus\n\n  zwei Bäume, 三只猫  \n", encoding="utf-8")
    assert [(task.index, task.prompt) for task in read(path)] == [(0, "ein Haus"), (1, "zwei Bäume, 三只猫")]


def test_parquet_with_gaps_as_pandas_writes_them(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", "b"], "seed": [7.0, float("nan")], "width": [None, 64]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert [(task.seed, task.width) for task in read(tmp_path / "p.parquet")] == [(7, None), (1, 64)]


def test_samples_have_seeds_and_names_of_their_own(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "seed": 9}, {"prompt": "c", "num_images_per_prompt": 1}]
    )
    tasks = read(path, num_images_per_prompt=2, seed=10)
    assert [task.seed for task in tasks] == [10, 11, 9, 10, 14]
    assert [task.stem for task in tasks] == ["000000_00", "000000_01", "000001_00", "000001_01", "000002"]
    assert len({task.key for task in tasks}) == 5


def test_integer_ids_are_the_index_and_other_ids_are_carried(tmp_path: Path) -> None:
    assert [
        t.index for t in read(write_jsonl(tmp_path / "a.jsonl", [{"id": "8", "prompt": "a"}, {"id": 2, "prompt": "b"}]))
    ] == [8, 2]
    (task,) = read(write_jsonl(tmp_path / "b.jsonl", [{"id": "q-1", "prompt": "a"}]))
    assert (task.index, task.extra) == (0, {"id": "q-1"})


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "good"}\n{"seed": 1}\n{"prompt": "a", "width": 100}\n{"prompt": "a", "seed": "x1"}\n'
        '{"prompt": "b", "index": 0}\n{"prompt": "a"\n[1]\n{"prompt": "   "}\n{"prompt": "a", "steps": 0}\n'
        '{"prompt": "a", "guidance_scale": -1}\n{"prompt": "a", "steps": 3, "num_inference_steps": 4}\n'
        '{"prompt": 5}\n{"prompt": "a", "seed": true}\n{"prompt": "a", "seed": -1}\n'
    )
    told = problems(path)
    lines = [int(text.split(":")[0].removeprefix("line ")) for text in told]
    assert lines == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert "nearest: 96 or 112" in told[1] and "used already in line 1" in told[3]


def test_a_ragged_csv_row_and_an_open_quote(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('prompt,seed\na, b,3\n"never closed,1\n')
    told = problems(path)
    assert told[0].startswith("line 2: 3 fields where the header has 2") and told[1].startswith("line 3: not valid CSV")


@pytest.mark.parametrize("name", ["../escape", "/abs", "a/b", "..", ".hidden", "a\x00b", "a\nb", "", "x" * 300, "a\\b"])
def test_output_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "name": name}])
    assert len(problems(path, output_name_column="name")) == 1


def test_output_names_must_differ_also_by_case_and_sample(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "name": "Cat.png"}, {"prompt": "b", "name": "cat"}, {"prompt": "c", "name": "dog", "num_images_per_prompt": 2},
            {"prompt": "d", "name": "dog_01"}]  # fmt: skip
    told = problems(write_jsonl(tmp_path / "p.jsonl", rows), output_name_column="name")
    assert [text.split(":")[0] for text in told] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("B\u00e4r", "Ba\u0308r"), ("STRASSE", "stra\u00dfe"), ("\u212b", "\u00e5.png"), ("\u03a3", "\u03c2"), ("\u1f82", "\u1f00\u0345\u0300")],
)  # fmt: skip
def test_output_names_must_differ_on_every_file_system(tmp_path: Path, first: str, second: str) -> None:
    rows = [{"prompt": "a", "name": first}, {"prompt": "b", "name": second}, {"prompt": "c", "name": "other"}]
    (told,) = problems(write_jsonl(tmp_path / "p.jsonl", rows), output_name_column="name")
    assert told.startswith("line 2: the output name") and "in line 1" in told and "file systems" in told


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_in_a_folder_of_prompts_is_a_bad_row(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text("a red fox")
    (tmp_path / "b.txt").write_text(content, encoding="utf-8")
    assert problems(tmp_path) == ["b.txt: the file is empty; write a prompt into it, or take it out of the folder"]


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [(b"", "e.jsonl", "no rows"), (b"\xff\xfe", "l.txt", "not UTF-8"), (b"x", "p.parquet", "no readable Parquet"), (b"", "p.xlsx", "none of the tables")],
)  # fmt: skip
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)


def test_the_key_covers_all_that_the_image_shows(tmp_path: Path) -> None:
    base: dict[str, Any] = {"prompt": "a"}
    changes = [
        {},
        {"prompt": "b"},
        {"seed": 9},
        {"width": 64},
        {"height": 64},
        {"steps": 9},
        {"guidance_scale": 1.5},
        {"negative_prompt": "x"},
        {"index": 4},
    ]
    keys = [read(write_jsonl(tmp_path / "p.jsonl", [base | change]))[0].key for change in changes]
    assert len(set(keys)) == len(changes)
    assert read(write_jsonl(tmp_path / "p.jsonl", [base | {"tag": 1}]))[0].key == keys[0]


NO_JSON = {
    '{"prompt": "a", "score": NaN}': "has NaN, which is no JSON",
    '{"prompt": "a", "seed": NaN}': "has NaN, which is no JSON",
    '{"prompt": "a", "tag": {"scores": [1, -Infinity]}}': "has -Infinity, which is no JSON",
    '{"prompt": "a", "score": 1e400}': "score has inf, which is no JSON",
    f'{{"prompt": "a", "hash": {2**64}}}': "hash has an integer beyond 64 bits",
    f'{{"prompt": "a", "hash": {"9" * 5000}}}': "not valid JSON|Exceeds the limit",
    f'{{"prompt": "a", "guidance_scale": {10**400}}}': "guidance_scale is 10000",
    '{"prompt": "a", "tag": ' + "[" * 950 + "]" * 950 + "}": "nested more than 64 levels deep",
    '{"prompt": ' + "[" * 950 + "]" * 950 + "}": "nested more than 64 levels deep",
    "[" * 100_000: "nested more than 64 levels deep",
}


@pytest.mark.parametrize("number", range(len(NO_JSON)))
def test_what_others_could_not_read_is_one_bad_row(tmp_path: Path, number: int) -> None:
    """These went into the ledger as they were, where no strict reader of JSON takes them, or ended in a RecursionError."""
    line, said = list(NO_JSON.items())[number]
    (tmp_path / "p.jsonl").write_text('{"prompt": "good"}\n' + line + "\n")
    (told,) = problems(tmp_path / "p.jsonl")
    assert told.startswith("line 2: ") and re.search(said, told), told[:200]


def test_nan_in_parquet_is_a_gap_and_what_is_no_json_a_bad_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    gaps = {"prompt": ["a", "b"], "score": [0.5, math.nan], "guidance_scale": [math.nan, 2.0]}
    parquet.write_table(pyarrow.table(gaps), tmp_path / "gaps.parquet")
    first, second = read(tmp_path / "gaps.parquet")
    assert (first.extra, first.guidance_scale) == ({"score": 0.5}, None)
    assert (second.extra, second.guidance_scale) == (None, 2.0)
    for score in (math.inf, [1.0, math.nan]):
        parquet.write_table(pyarrow.table({"prompt": ["a"], "score": [score]}), tmp_path / "bad.parquet")
        (told,) = problems(tmp_path / "bad.parquet")
        assert told.startswith("row 0: score has ")


def test_bytes_in_a_map_of_parquet_are_left_out_as_all_bytes(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    maps = pyarrow.array([[("a", b"x")]], pyarrow.map_(pyarrow.string(), pyarrow.binary()))
    parquet.write_table(pyarrow.table({"prompt": ["a"], "images": maps}), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet")[0].extra is None


# -- as people have them ------------------------------------------------------------------------------------------


def test_whole_numbers_as_pandas_writes_them(tmp_path: Path) -> None:
    """A column with a gap is one of floating point numbers, in CSV too."""
    path = tmp_path / "p.csv"
    path.write_text(
        "index,prompt,seed,width,height,steps,num_images_per_prompt\n"
        "5.0,a,7.0,64.0,32.0,4.0,2.0\n6.0,b,,,,,\n 7. ,c,8.000,,,,\n"
    )
    first, second, third, fourth = read(path)
    assert (first.index, first.seed, first.width, first.height, first.num_inference_steps) == (5, 7, 64, 32, 4)
    assert (second.sample, second.seed, third.index, third.seed) == (1, 8, 6, 6)
    assert (fourth.index, fourth.seed) == (7, 8)
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "3.0", "prompt": "a"}, {"id": 4.0, "prompt": "b"}])
    assert [task.index for task in read(path)] == [3, 4]


@pytest.mark.parametrize("value", ["7.5", "7.0.0", ".0", "1e3", 2.0**60, "inf"])
def test_what_is_no_whole_number_all_the_same(tmp_path: Path, value: object) -> None:
    """Of a floating point number beyond 2^53 the last digits are lost: two ids would become one."""
    (problem,) = problems(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "seed": value}]))
    assert problem.startswith("line 1: seed is ")


def test_empty_columns_and_rows_of_a_sheet(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,seed,,,\na,3,,,\n,,,,\nb,4,,,\n , ,,,\nc,5,,,,,\n,,,,\n")
    tasks = read(path)
    assert [(task.index, task.prompt, task.seed, task.extra) for task in tasks] == [
        (0, "a", 3, None),
        (1, "b", 4, None),
        (2, "c", 5, None),
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_with_excels_other_separators(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f'\ufeffprompt{mark}seed\r\n"a, b{mark}c"{mark}3\r\n', encoding="utf-8", newline="")
    assert [(task.prompt, task.seed) for task in read(path)] == [(f"a, b{mark}c", 3)]


def test_a_column_without_a_name_is_called_as_pandas_does(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(",prompt,\n0,a,\n1,b,x\n")
    assert [task.extra for task in read(path)] == [{"Unnamed: 0": "0"}, {"Unnamed: 0": "1", "Unnamed: 2": "x"}]


def test_empty_rows_of_other_tables(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", None, "b"], "seed": [7.0, float("nan"), 8.0]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert [(task.index, task.prompt) for task in read(tmp_path / "p.parquet")] == [(0, "a"), (2, "b")]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": None, "seed": None}, {"prompt": "b"}])
    assert [task.prompt for task in read(path)] == ["a", "b"]
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a"}, {}])
    assert problems(path) == ["line 2: a JSON object with columns was expected"]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,tag,tag\na,b,c\n")
    assert problems(tmp_path / "p.csv") == ["line 1: two columns have the same name; rename one of them"]


def test_a_folder_of_prompts_as_other_systems_leave_it(tmp_path: Path) -> None:
    for name, text in (("b.TXT", "two"), ("a.txt", "one"), ("c.Txt", "three"), ("notes.md", "no")):
        (tmp_path / name).write_text(text)
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    assert [(task.prompt, task.extra) for task in read(tmp_path)] == [
        ("one", {"prompt_file": "a"}),
        ("two", {"prompt_file": "b"}),
        ("three", {"prompt_file": "c"}),
    ]


SEEDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "of the row": ({"seed": 2**63 - 2}, {"num_images_per_prompt": 3}, "too large for 3 images"),
    "of the row alone": ({"seed": 2**63}, {}, "not between 0 and 9223372036854775807"),
    "of the id": ({"id": 8_999_999_999_999_999_999}, {"num_images_per_prompt": 4}, "give it a seed of its own"),
    "of the id and --seed": ({"id": 2**63 - 1}, {"seed": 1}, "the seed 9223372036854775808 is too large"),
    "of the samples of the row": ({"seed": 2**63 - 2, "num_images_per_prompt": 3}, {}, "take a smaller one"),
}


@pytest.mark.parametrize("what", SEEDS)
def test_seeds_that_no_generator_takes_are_told_before(tmp_path: Path, what: str) -> None:
    row, flags, said = SEEDS[what]
    (problem,) = problems(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"} | row]), **flags)
    assert problem.startswith("line 1: ") and said in problem


def test_the_largest_seeds_are_taken(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "seed": 2**63 - 2}, {"prompt": "b", "seed": 0}])
    assert [task.seed for task in read(path, num_images_per_prompt=2)] == [2**63 - 2, 2**63 - 1, 0, 1]
    (task,) = read(write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "id": 2**63 - 1}]))
    assert task.seed == task.index == 2**63 - 1


def test_a_side_that_a_file_cannot_have_is_told_before(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "width": 16384}, {"prompt": "a", "height": 16368}])
    (problem,) = problems(path, output_format="webp")
    assert "line 1: width is 16384; a webp has at most 16,383 pixels a side (take --output_format png)" in problem
    assert len(read(path, output_format="jpg")) == len(read(path)) == 2
    with pytest.raises(UserError, match="--height is 16384; a webp has at most"):
        read(write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a"}]), height=16384, output_format="webp")


# -- pipes --------------------------------------------------------------------------------------------------------


def piped(path: Path, data: bytes, *, name: str = "pipe") -> Path:
    """A FIFO into which somebody writes this, once."""
    fifo = path / name
    os.mkfifo(fifo)
    threading.Thread(target=fifo.write_bytes, args=(data,), daemon=True).start()
    return fifo


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pipe", b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "b"}\n'),
        ("pipe", b"a\n\nb"),
        ("p.csv", b"prompt\na\nb\n"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}'),
        ("p.txt", b"a\r\nb\r\n"),
    ],
)
def test_prompts_from_a_pipe(tmp_path: Path, name: str, data: bytes) -> None:
    assert [task.prompt for task in read(piped(tmp_path, data, name=name))] == ["a", "b"]


def test_a_pipe_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dglaunch.files.read_once.__defaults__", (1000,))
    with pytest.raises(UserError, match="more than 1,000 bytes come out of it"):
        read(Path("/dev/zero"))
    with pytest.raises(UserError, match="has no rows"):
        read(Path("/dev/null"))


def test_bytes_that_are_no_text_come_out_of_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        read(piped(tmp_path, b"\xff\xfe"))


def test_a_table_that_is_no_file(tmp_path: Path) -> None:
    for path, said in ((tmp_path / ("x" * 300 + ".txt"), "cannot be read: File name too long"), (tmp_path / "q.txt", "There is no file")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read(path)


def test_rows_are_chosen_by_index_column_and_number(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "style": "oil" if n % 2 else "ink"} for n in range(10)]
    path = write_jsonl(tmp_path / "p.jsonl", [*rows, {"prompt": "", "style": "none"}])
    assert [task.index for task in read(path, filter_rows="3,7,2")] == [2, 3, 7]
    assert [task.index for task in read(path, filter_rows='style == "oil" and seed > 103', seed=100)] == [5, 7, 9]
    assert [task.index for task in read(path, filter_rows="5:10", limit=2, num_images_per_prompt=2)] == [5, 5, 6, 6]
    assert [task.index for task in read(path, limit=3)] == [0, 1, 2], "what comes after them is not looked at"
    assert [task.index for task in read(path, limit=2, grid=("num_inference_steps=4,8",))] == [0, 1, 2, 3], "whole rows"
    for text, said in [("3,11", "has no row 11; its indices are 0 to 10"), ("styl == 'x'", "The nearest is style"),
                       ("style == 'pen'", "leaves none of the 11 rows of"), ("2,12", "has no row 12;")]:  # fmt: skip
        with pytest.raises(UserError, match=re.escape(said)):
            read(path, filter_rows=text, limit=1)
    with pytest.raises(UserError, match="with --prompt drop them"):
        T2IConfig(prompt="a", limit=1)


def test_columns_of_a_csv_are_compared_as_what_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,score,index\na,9,10\nb,10,20\nc,,30\n")
    assert [task.index for task in read(tmp_path / "p.csv", filter_rows="score > 8")] == [10, 20]
    assert [task.index for task in read(tmp_path / "p.csv", filter_rows="score == None")] == [30]
