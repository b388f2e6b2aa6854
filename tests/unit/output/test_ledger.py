"""OutputFolder: which file is whose by its name, who holds the folder, and what of a ledger is read."""

import json
from pathlib import Path

import pytest

from dglaunch.errors import UserError
from dglaunch.output import ownership
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, count_lines, format_of, read_lines

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
    assert len(folder.files(METADATA)) == 7, "but all are read"


def test_a_part_sweeps_only_its_own_temporary_files(folder: OutputFolder) -> None:
    for name in ("1-aa.tmp", "1-node0of2-aa.tmp", "1-node0of2-rank1of4-aa.tmp", "1-node1of2-aa.tmp"):
        (folder.path / f".dglaunch-{name}").touch()
    (folder.path / ".dglaunch-reserve").touch()
    ownership.remove_temporary_files(folder, NODE)
    left = {path.name for path in folder.path.iterdir()}
    assert left == {".dglaunch-1-aa.tmp", ".dglaunch-1-node1of2-aa.tmp", ".dglaunch-reserve"}
    ownership.remove_temporary_files(folder, Part())
    assert {path.name for path in folder.path.iterdir()} == {".dglaunch-reserve"}


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
        folder.file(RUN, suffix).write_text(json.dumps({"num_tasks": total}))
    folder.file(RUN, "-node2of3").write_text("[]")
    assert set(folder.runs()) == {"run-rank1of4.json", "run-node0of2.json", "run-node1of2.json"}
    assert (folder.num_tasks(), folder.num_tasks(node_rank=1), folder.num_tasks(9, node_rank=7)) == (5, 4, 9)
    folder.file(RUN).write_text("{}")
    assert "run-rank1of4.json" not in folder.runs()


def test_only_names_that_dglaunch_gives_are_removed(folder: OutputFolder) -> None:
    outside = folder.path.parent / "outside.png"
    outside.touch()
    names = ["000000.png", "../outside.png", "..", "", "sub/000000.png"]
    (folder.path / "000000.png").touch()
    ownership.remove_images(folder, names)
    assert outside.exists() and not (folder.path / "000000.png").exists()
    assert ownership.is_image_name("000017_03.webp") and not ownership.is_image_name("17.png")
    assert ownership.path_inside("inputs/a.png") and ownership.path_inside("a/../../b") is None


def test_lines_without_a_newline_are_counted_and_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"index": 0, "sample": 0}\nnot json\n{"index": 1, "sample": 0}')
    assert count_lines(path) == 3
    assert [text for text, _ in read_lines(path)] == ['{"index": 0, "sample": 0}\n', '{"index": 1, "sample": 0}\n']
    path.write_text("")
    assert count_lines(path) == 0 and not list(read_lines(tmp_path / "none.jsonl"))


def test_formats_by_suffix() -> None:
    found = [format_of(Path(name)) for name in ("a.PNG", "a.jpeg", "a.jpg", "a.webp", "a.gif", "a")]
    assert found == ["png", "jpg", "jpg", "webp", None, None]
