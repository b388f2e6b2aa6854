"""OutputFolder: which file is whose by its name, who holds the folder, and what of a ledger is read."""

import json
import os
from pathlib import Path

import pytest

from dglaunch.errors import UserError
from dglaunch.output import ownership
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, format_of
from dglaunch.output.lines import LineKind, read_lines, scan

NODE, RANK, BOTH = Part("-node0of2"), Part(rank="-rank1of4"), Part("-node0of2", "-rank1of4")


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(tmp_path)


def test_each_part_has_files_of_its_own(folder: OutputFolder) -> None:
    names = [
        folder.file(kind, part.ledger_suffix).name for part in (Part(), BOTH) for kind in (METADATA, FAILURES, RUN)
    ]
    assert names == [
        "metadata.jsonl", "failures.jsonl", "run.json",
        "metadata-node0of2-rank1of4.jsonl", "failures-node0of2-rank1of4.jsonl", "run-node0of2-rank1of4.json",
    ]  # fmt: skip
    assert folder.lock_file().name == ".dglaunch.lock"
    assert folder.lock_file(NODE.ledger_suffix).name == ".dglaunch-node0of2.lock"


@pytest.mark.parametrize(
    ("part", "taken_over"),
    [
        (Part(), {"-node0of2", "-node0of2-rank1of4", "-node1of2", "-rank1of4"}),
        (NODE, {"-node0of2-rank1of4"}),
        (RANK, set()),
        (BOTH, set()),
    ],
)
def test_rank_0_takes_over_what_was_written_beside_it(folder: OutputFolder, part: Part, taken_over: set[str]) -> None:
    for suffix in ("", "-node0of2", "-node0of2-rank1of4", "-node1of2", "-rank1of4", "-old", "_backup"):
        folder.file(METADATA, suffix).touch()
    found = {path.name for path in folder.files_beside(METADATA, part)}
    assert found == {f"metadata{suffix}.jsonl" for suffix in taken_over}
    assert len(folder.files(METADATA)) == 5, "all of dglaunch's are read, and none that is merely called alike"


def test_a_part_sweeps_only_its_own_temporary_files(folder: OutputFolder) -> None:
    end = "-0123456789abcdef.tmp"
    ours = {f".dglaunch-1{part}{end}" for part in ("", "-node0of2", "-node0of2-rank1of4", "-node1of2")}
    mine = {".dglaunch-1-notes.tmp", ".dglaunch-reserve", f".dglaunch-x{end}"}
    for name in ours | mine:
        (folder.path / name).touch()
    ownership.remove_temporary_files(folder, NODE)
    left = {path.name for path in folder.path.iterdir()}
    assert left == {f".dglaunch-1{end}", f".dglaunch-1-node1of2{end}"} | mine
    ownership.remove_temporary_files(folder, Part())
    assert {path.name for path in folder.path.iterdir()} == mine


def test_a_lock_keeps_out_who_would_take_the_part_over(folder: OutputFolder) -> None:
    with folder.lock(BOTH):
        for other in (Part(), NODE, BOTH):
            with pytest.raises(UserError, match="Another dglaunch"):
                folder.lock(other)
        with folder.lock(Part("-node1of2")):
            assert folder.is_held("-node1of2")
        with pytest.raises(UserError, match="is writing to"), folder.keep_runs_out():
            pass
    assert not folder.is_held()
    folder.lock(Part()).close()


def test_the_run_json_of_a_rank_counts_where_rank_0_has_none(folder: OutputFolder) -> None:
    for suffix, total in (("-rank1of4", 3), ("-node0of2", 5), ("-node0of2-rank1of4", 7), ("-node1of2", 4)):
        folder.file(RUN, suffix).write_text(json.dumps({"outcome": "done", "num_tasks": total}))
    folder.file(RUN, "-node2of3").write_text("[]")
    assert set(folder.runs()) == {"run-rank1of4.json", "run-node0of2.json", "run-node1of2.json"}
    assert (folder.num_tasks(), folder.num_tasks(node_rank=1), folder.num_tasks(9, node_rank=7)) == (5, 4, 9)
    folder.file(RUN).write_text('{"outcome": "done", "num_tasks": 1}')
    assert "run-rank1of4.json" not in folder.runs()


def line(**changed: object) -> str:
    """A ledger line, with what is wrong with it."""
    ours = {"file_name": "000000.png", "index": 0, "sample": 0, "key": "0" * 16, "sha256": "0" * 64, "bytes": 5}
    return json.dumps(ours | changed) + "\n"


BAD_NAMES = [
    "..",
    "",
    "a\0b.png",
    "x" * 300 + ".png",
    "\ud83d.png",
    "notes.txt",
    "run.json",
    "/etc/a.png",
    "a/b.png",
    7,
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_dglaunch_does_not_give_makes_a_bad_line(tmp_path: Path, name: object) -> None:
    (tmp_path / "metadata.jsonl").write_text(line(file_name=name) + line(file_name="000001.png", index=1))
    assert [line.kind for line in scan(tmp_path / "metadata.jsonl")] == [LineKind.BAD, LineKind.OURS]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (line(), LineKind.OURS),
        ('{"file_name": "mine.png", "text": "a caption"}\n', LineKind.FOREIGN),
        ('{"index": 0, "sam\n', LineKind.BAD),
        ("[]\n", LineKind.BAD),
        ("[" * 10_000 + "\n", LineKind.BAD),
        (line(index=True), LineKind.BAD),
        (line(index=-1), LineKind.BAD),
        (line(index=2**64), LineKind.BAD),
        (line(bytes="5"), LineKind.BAD),
        (line(sha256="../"), LineKind.BAD),
        ("\0\0\0\n", LineKind.BAD),
    ],
)
def test_what_a_line_is(tmp_path: Path, text: str, kind: LineKind) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    assert [line.kind for line in scan(tmp_path / "metadata.jsonl")] == [kind]


def test_lines_without_a_newline_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(line() + "not json\n" + line(index=1).strip())
    assert [text for text, _ in read_lines(path)] == [line(), line(index=1)]
    assert not list(read_lines(tmp_path / "none.jsonl"))


def test_a_ledger_that_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(UserError, match="it is no regular file"):
        list(scan(tmp_path / "metadata.jsonl"))


def test_a_name_on_a_page_stays_in_the_folder() -> None:
    assert ownership.path_inside("inputs/a.png") and ownership.path_inside("a/../../b") is None


def test_formats_by_suffix() -> None:
    found = [format_of(Path(name)) for name in ("a.PNG", "a.jpeg", "a.jpg", "a.webp", "a.gif", "a")]
    assert found == ["png", "jpg", "jpg", "webp", None, None]
