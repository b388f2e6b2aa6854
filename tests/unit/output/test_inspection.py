"""`verify` on all cores: its helpers see what it has read, and say what one process would."""

import os
import signal
from pathlib import Path

import pytest

from dglaunch.errors import OutputError
from dglaunch.output import inspection
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ledger_index import LedgerIndex
from support.commands import dglaunch
from support.results import write_jsonl

NUM = 12


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p {n}"} for n in range(NUM)])
    assert dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out").code == 0
    monkeypatch.setattr(inspection, "MOST_ALONE", 2)
    monkeypatch.setattr(inspection, "AT_A_TIME", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return tmp_path / "out"


def test_several_processes_say_what_one_says(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "000003.png").unlink()
    os.truncate(out / "000007.png", 5)
    changed = bytearray((out / "000009.png").read_bytes())
    changed[-20] ^= 1
    (out / "000009.png").write_bytes(changed)
    several = inspection.inspect(OutputFolder(out))
    monkeypatch.setattr(inspection, "MOST_ALONE", NUM + 1)
    alone = inspection.inspect(OutputFolder(out))
    assert several.problems == alone.problems
    assert [text.partition(" ")[0] for text in alone.problems] == ["000003.png", "000007.png", "000009.png"]
    assert several.right.keys() == alone.right.keys() and len(alone.right) == NUM - 3


def test_a_line_that_was_replaced_meanwhile_is_no_image_s_fault(out: Path) -> None:
    index = LedgerIndex.read(OutputFolder(out))
    lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
    (out / "metadata.jsonl").write_text("".join([*lines[:8], lines[10], *lines[9:]]))
    found = list(inspection.problems_with(index, index.last()))
    assert found[:8] == [None] * 8
    assert found[8] == f"{out / 'metadata.jsonl'} was changed meanwhile"


def test_a_helper_that_is_killed_is_told_in_a_sentence(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def killed(*given: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(inspection, "_problem_with", killed)
    with pytest.raises(OutputError, match="was killed, as where memory ran out"):
        inspection.inspect(OutputFolder(out))
