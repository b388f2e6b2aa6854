"""A large job in small: segments are closed, indexed and published while its process is killed at any moment (`make million`)."""

import random
from pathlib import Path

import pytest

from dglaunch.output import segments
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ledger_index import LedgerIndex
from support.commands import dglaunch
from support.killed import KILLED, killed_after
from support.results import ledger, write_jsonl

NUM = 300


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    monkeypatch.setattr(segments, "SEGMENT_LINES", 7)
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p {n}"} for n in range(NUM)])
    out = tmp_path / "out"
    words = ["t2i", "--backend", "fake", "--prompts_file", table, "--files_per_folder", "50", "--output_dir", out]
    dice, num_killed = random.Random(3), 0
    for _ in range(kills):
        ended = killed_after(dice.uniform(0.2, 1.2), *words)
        assert ended in (0, KILLED)
        num_killed += ended == KILLED
    assert num_killed
    assert dglaunch(*words).code == 0
    assert f"{NUM} images are right" in dglaunch("verify", out).output
    assert [line["index"] for n in range(6) for line in ledger(out / f"000{n}")] == list(range(NUM))
    index = LedgerIndex.read(OutputFolder(out))
    assert len(index) == NUM and all(file.is_kept for file in index.files)
    assert not segments.closed(out) and not (out / "metadata.jsonl").exists()
