"""An array of independent nodes with holes: a share that no one took is told, and made by a later --node_rank."""

import json
import re
import shlex
from pathlib import Path

from dglaunch.output.holes import holes_of
from support.commands import dglaunch
from support.results import ledger, run_json, write_jsonl

NUM, NODES = 16, 4


def words(folder: Path, node_rank: int, out: str = "out") -> list[str | Path]:
    table = folder / "p.jsonl"
    if not table.exists():
        write_jsonl(table, [{"prompt": f"prompt {n}"} for n in range(NUM)])
    base = ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", folder / out]
    return [*base, "--node_rank", str(node_rank), "--num_nodes", str(NODES)]


def test_the_missing_share_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for node_rank in (0, 3):
        assert dglaunch(*words(tmp_path, node_rank)).code == 0
    for expected in ("1, 2", "2"):
        told = dglaunch("status", out)
        assert (
            told.code == 130
            and f"No one has taken the share{'s' * ('1' in expected)} of --node_rank {expected} of" in told.output
        )
        assert f"sbatch --array={expected.replace(' ', '')}" in told.output
        command = re.search(r"with: dglaunch (.*)$", told.output, re.MULTILINE)
        assert command is not None, told.output
        assert dglaunch(*shlex.split(command[1])).code == 0
    told = dglaunch("status", out)
    assert told.code == 0 and "No one has taken" not in told.output
    assert [line["index"] for line in ledger(out)] == list(range(NUM)), "the last one joins the shares"


def test_merge_tells_it_too(tmp_path: Path) -> None:
    """Folders of machines that share no file system; started here without a command line of their own."""
    for node_rank in (0, 1, 3):
        assert dglaunch(*words(tmp_path, node_rank, f"out{node_rank}")).code == 0
    told = dglaunch("merge", *(tmp_path / f"out{n}" for n in (0, 1, 3)), "--output_dir", tmp_path / "all")
    assert told.code == 1 and "No one has taken the share of --node_rank 2 of --num_nodes 4" in told.output
    assert dglaunch(*words(tmp_path, 2, "out2")).code == 0
    told = dglaunch("merge", *(tmp_path / f"out{n}" for n in range(NODES)), "--output_dir", tmp_path / "whole")
    assert told.code == 0 and len(ledger(tmp_path / "whole")) == NUM


def test_a_command_that_lets_code_run_is_not_taken_from_a_file(tmp_path: Path) -> None:
    assert dglaunch(*words(tmp_path, 0)).code == 0
    file = tmp_path / "out" / "run-node0of4.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"command": [*said["command"], "--trust_remote_code"]}))
    told = dglaunch("status", tmp_path / "out").output
    assert "a machine with the job's own command and --node_rank 1 --num_nodes 4" in told and "trust" not in told


def test_what_is_no_array_has_no_holes(tmp_path: Path) -> None:
    assert dglaunch(*words(tmp_path, 0)[:-4]).code == 0
    assert holes_of([run_json(tmp_path / "out")]) is None and holes_of([]) is None
    assert holes_of([{"topology": {"node": 0, "num_nodes": 2}}, {"topology": {"node": 0, "num_nodes": 4}}]) is None
    assert holes_of([{"topology": {"node": "0", "num_nodes": 2}}]) is None
