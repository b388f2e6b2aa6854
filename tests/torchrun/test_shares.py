"""Replicas that are through take batches of others: nothing is made twice, images are the same, and nobody waits long."""

from collections import Counter
from pathlib import Path

import pytest

from support.ranks import launch
from support.results import difference, ledger, run_json, write_jsonl

ROWS = 40


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The last rank takes three times as long for each row."""
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"row {n} [sleep 0.1] [lag 0.2]"} for n in range(ROWS)])


def made_by(folder: Path) -> Counter[object]:
    return Counter(line["rank"] for line in ledger(folder))


def test_a_slow_replica_s_batches_are_taken_by_the_others(tmp_path: Path, table: Path) -> None:
    command = ["t2i", "--backend", "fake", "--prompts_file", table, "--batch_size", "1", "--output_dir"]
    claimed, static = launch(
        tmp_path,
        4,
        [([*command, tmp_path / "claimed"], {}), ([*command, tmp_path / "static", "--shares", "static"], {})],
    )
    assert claimed.codes == static.codes == [0] * 4, claimed.output + static.output
    assert made_by(tmp_path / "static") == dict.fromkeys(range(4), ROWS // 4)
    ranks = made_by(tmp_path / "claimed")
    assert ranks.total() == ROWS and ranks[3] <= 7 and min(ranks[rank] for rank in range(3)) > ROWS // 4
    assert difference(tmp_path / "claimed", tmp_path / "static") == 0
    share = [run_json(tmp_path / name)["pipeline_share"] for name in ("claimed", "static")]
    assert share[0] > share[1]
