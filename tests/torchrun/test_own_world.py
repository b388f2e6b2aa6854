"""Ranks of a process group that a script has made by itself, without torchrun's variables: dglaunch uses that world."""

import json
from pathlib import Path

from support.ranks import World
from support.results import ledger, run_json, write_jsonl


def test_a_world_without_torchrun_is_used_and_left(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"p{n}"} for n in range(9)])
    words = ["support.own_world:run", tmp_path]
    for world in [World(tmp_path, 1, [*words, str(rank)], distributed=False) for rank in range(2)]:
        assert world.wait() == 0, world.output()
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert (rank["outcome"], rank["num_ok"], rank["rows"]) == ("done", 9, 9), "the same on both"
    assert sorted(ranks[0]["seen"] + ranks[1]["seen"]) == list(range(9)) and ranks[0]["seen"] and ranks[1]["seen"]
    for folder in (tmp_path / "first", tmp_path / "second"):
        assert {line["rank"] for line in ledger(folder)} == {0, 1}
        assert run_json(folder)["topology"]["world_size"] == 2
