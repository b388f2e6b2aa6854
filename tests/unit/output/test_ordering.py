"""The ledger of a job that has ended stands in the order of index, whoever wrote it; what others wrote stays."""

import json
from pathlib import Path

import pytest

from dglaunch.output import ordering
from dglaunch.output.ledger import OutputFolder, Part
from support.commands import dglaunch
from support.results import ledger, write_jsonl


def line(index: int, sample: int = 0, **more: object) -> str:
    ours = {"file_name": f"{index}_{sample}.png", "index": index, "sample": sample, "key": "0" * 16, "sha256": "0" * 64}
    return json.dumps(ours | {"bytes": 5} | more) + "\n"


def failure(index: int) -> str:
    return json.dumps({"index": index, "sample": 0, "error": "no"}) + "\n"


def put(folder: Path, failed_now: set[tuple[int, int]] | None = None) -> str:
    ordering.put_in_order(OutputFolder(folder), Part(), failed_now or set())
    return (folder / "metadata.jsonl").read_text()


FOREIGN = '{"file_name": "mine.png", "text": "a caption"}\n'
REDONE = {"redo": "1" * 16, "redo_of": "0" * 16}


@pytest.mark.parametrize(
    ("lines", "ordered"),
    [
        ([line(0), line(1)], None),
        ([line(10), line(2, 1), line(2), line(0)], [line(0), line(2), line(2, 1), line(10)]),
        ([FOREIGN, line(1), line(0)], [line(0), line(1), FOREIGN]),
        ([FOREIGN, line(0), line(1)], None),
        ([line(0), line(1), line(0, **REDONE)], [line(0, **REDONE), line(1)]),
        ([line(1), line(0), "torn"], None),
        ([line(1), line(0).strip()], [line(0), line(1)]),
        ([], None),
    ],
)
def test_the_order_of_lines(tmp_path: Path, lines: list[str], ordered: list[str] | None) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(lines))
    before = path.stat().st_ino
    assert put(tmp_path) == "".join(lines if ordered is None else ordered)
    assert (path.stat().st_ino == before) == (ordered is None), "what is in order is not written again"


def test_failures_that_were_made_good_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(line(0) + line(1) + line(2))
    (tmp_path / "failures.jsonl").write_text(failure(4) + failure(1) + failure(3) + FOREIGN + failure(4) + failure(2))
    put(tmp_path, failed_now={(2, 0)})
    assert (tmp_path / "failures.jsonl").read_text() == failure(2) + failure(3) + failure(4) + FOREIGN


def test_every_writer_leaves_its_ledger_in_order(tmp_path: Path) -> None:
    """Images come out bucket by bucket, here large and small ones by turns."""
    rows = [{"prompt": f"{n}", "index": 20 - n, "width": 64 if n % 2 else 32, "height": 32} for n in range(8)]
    table = write_jsonl(tmp_path / "p.jsonl", rows)
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir"]
    assert dglaunch(*words, tmp_path / "one").code == 0
    for node in ("1", "0"):
        assert dglaunch(*words, tmp_path / "nodes", "--node_rank", node, "--num_nodes", "2").code == 0
    wanted = list(range(13, 21))
    assert [line["index"] for line in ledger(tmp_path / "one")] == wanted
    assert [line["index"] for line in ledger(tmp_path / "nodes")] == wanted
    parts = [[line["index"] for line in ledger(tmp_path / "nodes", f"metadata-node{n}of2.jsonl")] for n in (0, 1)]
    assert all(part and part == sorted(part) for part in parts)
    for folder in ("one", "nodes"):
        assert dglaunch("verify", tmp_path / folder).code == 0
        assert "8 are there already" in dglaunch(*words, tmp_path / folder).output
