"""docs/HOW_DO_I.md tells a reader what to type; here it is typed, in its order, in one folder. The fake backend stands in
for the checkpoints (DG_BACKEND=fake), one rank for torchrun's; what asks an API is planned only."""

import re
import shlex
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.commands import ROOT
from support.edit_images import SINGLE, save_table
from support.results import ledger, write_jsonl

PAGE = ROOT / "docs" / "HOW_DO_I.md"


def commands() -> list[str]:
    return re.findall(r"^ {4}(\S.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def prepare(folder: Path) -> None:
    """The files that the page takes for granted."""
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(5)])
    write_jsonl(folder / "evaluation_metadata.jsonl", [{"prompt": "a bench", "tag": "single_object", "include": []}])
    save_table(folder / "edits.csv", SINGLE[:3], task="make it new")
    (folder / "dpg_bench" / "prompts").mkdir(parents=True)
    (folder / "dpg_bench" / "prompts" / "7.txt").write_text("a long prompt")
    (folder / "color_val.txt").write_text("a green bench and a blue bowl\n")


def type_in(command: str) -> int:
    words = shlex.split(command)
    if words[0] == "rm":
        Path(words[1]).unlink()
        return 0
    assert words[0] in ("dglaunch", "torchrun"), command
    words = words[words.index("dglaunch") + 1 :]
    return main(["plan", *words] if "--backend" in words else words)


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands():
        with monkeypatch.context() as variables:
            if "--backend" not in command:
                variables.setenv("DG_BACKEND", "fake")
            assert type_in(command) == 0, command
    assert len(commands()) > 20
    assert len(ledger(Path("out"))) == len(ledger(Path("shared"))) == 5
    assert Path("out/000002.png").exists() and Path("variation.png").exists() and Path("edit-again.png").exists()
    views = ("bench/geneval/00000/samples/00003.png", "dpg/dpg/7.png", "out/webdataset/00000.tar")
    assert all(Path(name).exists() for name in views) and len(list(Path("color/t2i_compbench/samples").iterdir())) == 10


def test_every_topic_is_there_and_the_readme_leads_to_it() -> None:
    topics = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert topics == ["spread a job over nodes", "resume", "redo one image", "choose a batch size", "edit a table",
                      "use an API", "generate for GenEval", "run a pipeline of my own"]  # fmt: skip
    assert "(docs/HOW_DO_I.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
