"""Files to rows: every format, packed or not, several at a time, and what is damaged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch.data.table_formats import NO_OBJECT, guess
from dglaunch.data.tables import Table, base_of, files_there, rows_of_pipe
from dglaunch.errors import UserError
from dglaunch.files import unpacked

ROWS = [{"prompt": "a", "seed": "3"}, {"prompt": "b; c", "seed": "4"}]


def rows(*paths: Path) -> list[Any]:
    return [row for _, row in Table(paths).rows()]


CELLS = {
    "p.csv": 'prompt,seed\na,3\n"b; c",4\n',
    "semicolons.csv": 'prompt;seed\na;3\n"b; c";4\n',
    "tabs.csv": "prompt\tseed\na\t3\nb; c\t4\n",
    "p.tsv": "prompt\tseed\na\t3\nb; c\t4\n",
    "excel.csv": 'sep=;\nprompt;seed\na;3\n"b; c";4\n',
    "p.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "p.json": json.dumps(ROWS, indent=2),
    "keyed.json": json.dumps({"version": 2, "prompts": ROWS}, indent=2),
    "lines.json": "".join(json.dumps(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_also_packed(tmp_path: Path, name: str, packed: bool) -> None:
    data = CELLS[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert rows(path) == ROWS
    assert [row for _, row in rows_of_pipe(Path("-"), path.read_bytes())] == ROWS


def test_a_header_with_commas_in_quotes_and_semicolons(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt;"note, in short, or long";seed\na;x;3\n')
    assert rows(tmp_path / "p.csv") == [{"prompt": "a", "note, in short, or long": "x", "seed": "3"}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (["a", "b"], [{"prompt": "a"}, {"prompt": "b"}]),
        ({"prompts": ["a"]}, [{"prompt": "a"}]),
        ({"prompt": "a", "tags": ["x", "y"]}, [{"prompt": "a", "tags": ["x", "y"]}]),
        ({"prompt": "a"}, [{"prompt": "a"}]),
        ([{"prompt": "a"}, 5, {}], [{"prompt": "a"}, NO_OBJECT, NO_OBJECT]),
    ],
)  # fmt: skip
def test_what_a_json_file_may_be(tmp_path: Path, value: Any, wanted: Any) -> None:
    (tmp_path / "p.json").write_text(json.dumps(value))
    assert rows(tmp_path / "p.json") == wanted


def test_half_a_character_in_a_json_file_is_its_rows_error(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('["whole", "half \\ud83d", {"prompt": "\\ud83e\\udd8a"}]')
    whole, half, pair = rows(tmp_path / "p.json")
    assert whole == {"prompt": "whole"} and "half a character" in half and pair == {"prompt": "\U0001f98a"}


@pytest.mark.parametrize("text", ['[{"prompt": "a",}]', '[{"prompt": NaN}]', '[{"prompt": "a"', "[" * 100_000])
def test_a_json_file_that_is_none_is_one_bad_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    (said,) = rows(tmp_path / "p.json")
    assert isinstance(said, str)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"a red fox, in the snow\nPrompt", ".txt"), (b"prompt\na", ".txt"), (b"Prompt;Seed\na;1", ".csv"), (b"id,\"Prompt\"\r\n1,a", ".csv"),
        (b'{"prompt": "a"}\n{"prompt": "b"}', ".jsonl"), (b'{\n"prompts": []}', ".json"), (b"[raise] a fox", ".txt"), (b'[\n{"prompt"', ".json"),
    ],
)  # fmt: skip
def test_what_comes_out_of_a_pipe_is_known_by_its_beginning(data: bytes, kind: str) -> None:
    assert guess(data, "prompt") == kind


def test_several_files_and_patterns_are_one_table(tmp_path: Path) -> None:
    for name, text in (("b.csv", "prompt\nb1\nb2\n"), ("a.csv", "Prompt\na1\n"), ("z.txt", "z1\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "[odd].txt").write_text("odd\n")
    table = Table([tmp_path / "*.csv", tmp_path / "z.txt", tmp_path / "[odd].txt"])
    found = list(table.rows())
    assert [label for label, _ in found] == ["line 2 of a.csv", "line 2 of b.csv", "line 3 of b.csv", "line 1 of z.txt", "line 1 of [odd].txt"]  # fmt: skip
    assert table.place(2) == (tmp_path / "b.csv", 1) and table.place(3) == (tmp_path / "z.txt", 0)
    assert files_there([tmp_path / "*.csv", tmp_path / "none.csv"]) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(UserError, match=r"There is no file that .*none fits"):
        rows(tmp_path / "*.none")


def test_what_paths_are_relative_to_does_not_depend_on_which_files_there_are(tmp_path: Path) -> None:
    assert base_of([tmp_path / "a" / "*" / "t*.csv"]) == base_of([tmp_path / "a" / "**"]) == tmp_path / "a"
    assert base_of([tmp_path / "a" / "x.csv", tmp_path / "b" / "y.csv"]) == tmp_path
    assert base_of([Path("x.csv"), Path("y.csv")]) == Path()
    table = Table([tmp_path / "a" / "x.csv", tmp_path / "b" / "y.csv"])
    assert table.name_of(tmp_path / "b" / "y.csv", "1.png") == "b/1.png"
    assert table.name_of(tmp_path / "b" / "y.csv", "/photos/1.png") == "/photos/1.png"
    assert Table([tmp_path / "a" / "x.csv"]).name_of(tmp_path / "a" / "x.csv", "../1.png") == "../1.png"


def test_a_packed_file_that_is_torn_or_has_no_end(tmp_path: Path) -> None:
    whole = gzip.compress(CELLS["p.csv"].encode() * 1000)
    for data in (whole[:-20], b"no gzip at all", whole[:40] + bytes(40) + whole[80:]):
        (tmp_path / "p.csv.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"p\.csv\.gz cannot be read: "):
            rows(tmp_path / "p.csv.gz")
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(OSError, match="unpacks to more than 5,000 bytes"):
        unpacked((tmp_path / "p.csv.gz").open("rb"), 5_000).read()


@pytest.mark.parametrize("name", ["p.xlsx", "p.gz", "p.parquet.gz", "p"])
def test_what_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="is none of the tables"):
        rows(tmp_path / name)


def test_a_folder_is_of_the_kind_that_its_files_are(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / ".hidden.txt").write_text("x")
        (tmp_path / kind / "README.md").write_text("x")
    (tmp_path / "csv" / "b.csv").write_text("prompt\nthree\n")
    (tmp_path / "csv" / "a.csv.gz").write_bytes(gzip.compress(b"prompt\none\ntwo\n"))
    (tmp_path / "jsonl" / "a.jsonl").write_text('{"prompt": "one"}')
    assert [row["prompt"] for row in rows(tmp_path / "csv") if isinstance(row, dict)] == ["one", "two", "three"]
    assert rows(tmp_path / "jsonl", tmp_path / "csv" / "b.csv") == [{"prompt": "one"}, {"prompt": "three"}]


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.jsonl"):
        (tmp_path / name).write_text("prompt\none\n")
    said = rf"has tables of several kinds \(2 \.csv, 1 \.jsonl\)\. Name those that are meant: '{tmp_path}/\*\.csv' or"
    with pytest.raises(UserError, match=said):
        rows(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no tables \(\.jsonl.*or a pattern such as"):
        rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["prompt", "sed"], "no seed and sed besides"),
        (["prompt"], "no seed"),
        (["prompt", "seed", "style"], "style besides"),
        (["seed", "prompt"], None),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".csv.gz"])
def test_a_shard_with_other_columns_than_the_first_is_refused(
    tmp_path: Path, columns: list[str], said: str | None, suffix: str
) -> None:
    first, second = (tmp_path / f"part-{number}{suffix}" for number in (0, 1))
    write_columns(first, ["prompt", "seed"])
    write_columns(second, columns)
    for named in (tmp_path, tmp_path / "part-*"):
        if said is None:
            assert len(rows(named)) == 2
        else:
            with pytest.raises(UserError) as refused:
                rows(named)
            assert str(refused.value).startswith(f"{second} has other columns than {first}: {said}. ")
    assert len(rows(first, second)) == 2


def test_a_torn_parquet_file_says_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 100}), tmp_path / "whole.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-40])
    with pytest.raises(UserError, match="write or fetch it again") as refused:
        rows(tmp_path)
    assert ".." not in str(refused.value).replace(str(tmp_path), "")


def write_columns(path: Path, names: list[str]) -> None:
    """Write a table of one row."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: ["1"] for name in names}), path)
        return
    mark = "\t" if path.suffix == ".tsv" else ","
    data = f"{mark.join(names)}\n{mark.join('1' for _ in names)}\n".encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_empty_columns_of_excel_and_rows_of_json_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,seed\na,1\n")
    (tmp_path / "b.csv").write_text("seed,prompt,,\n1,b,,\n")
    (tmp_path / "c.jsonl").write_text('{"prompt": "c"}\n')
    (tmp_path / "d.jsonl").write_text('{"prompt": "d", "style": "oil"}\n')
    assert [row["prompt"] for row in rows(tmp_path / "*.csv")] == ["a", "b"]
    assert [row["prompt"] for row in rows(tmp_path / "*.jsonl")] == ["c", "d"]
