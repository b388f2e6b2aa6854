"""`dglaunch redo` on several ranks."""

from pathlib import Path

from support.ranks import launch
from support.redone import is_right, words_of
from support.results import ledger


def test_ranks_that_write_for_themselves(tmp_path: Path) -> None:
    """Their ledgers become one; a mistake in the rows is told by one rank."""
    out = tmp_path / "ranks"
    again = ["redo", out, "--filter_rows", "1,2,3", "--seed_offset", "100"]
    mistake = ["redo", out, "--filter_rows", "1,9"]
    made, redone, refused = launch(tmp_path, 2, [(words_of(out, "--writer", "rank"), {}), (again, {}), (mistake, {})])
    assert made.codes == redone.codes == [0, 0], redone.output
    assert refused.codes == [2, 2] and refused.output.count("has no row 9") == 1, refused.output
    assert [line["seed"] for line in ledger(out)] == [0, 101, 102, 103, 4] and is_right(out)
    assert [path.name for path in out.glob("metadata*.jsonl")] == ["metadata.jsonl"]
