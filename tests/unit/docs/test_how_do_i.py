"""docs/HOW_DO_I.md tells a reader what to type; here it is typed, in its order, in one folder. The fake backend stands in
for the checkpoints (DG_BACKEND=fake), one rank for torchrun's; what asks an API is planned only."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.cli.main import main
from support.commands import ROOT
from support.edit_images import SINGLE, picture, save_table
from support.results import ledger, write_jsonl

PAGE = ROOT / "docs" / "HOW_DO_I.md"


FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return re.findall(r"^ {4}(\S.*)$", FENCED.sub("", PAGE.read_text(encoding="utf-8")), re.MULTILINE)


def prepare(folder: Path) -> None:
    """The files that the page takes for granted."""
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(5)])
    write_jsonl(folder / "evaluation_metadata.jsonl", [{"prompt": "a bench", "tag": "single_object", "include": []}])
    save_table(folder / "edits.csv", SINGLE[:3], task="make it new")
    for name in ("IMG_2.jpg", "IMG_10.jpg", "day/a.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(folder / "photos" / name)
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
    assert sorted(path.name for path in Path("night").glob("*.png")) == ["IMG_10.png", "IMG_2.png"]
    assert Path("snow/a.png").exists() and Path("one/IMG_2.png").exists()
    assert "Steps: 1, " in Image.open("viewers/000000.png").text["parameters"]  # type: ignore[attr-defined]
    views = ("bench/geneval/00000/samples/00003.png", "dpg/dpg/7.png", "out/webdataset/00000.tar")
    assert all(Path(name).exists() for name in views) and len(list(Path("color/t2i_compbench/samples").iterdir())) == 10


def test_work_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "".join(FENCED.findall(PAGE.read_text(encoding="utf-8"))).replace(
        'model_name="black-forest-labs/FLUX.1-dev"', 'backend="fake"'
    )
    exec(compile(code, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "a red fox 0 (64, 64)\na cat in the rain 7 (64, 64)\n" in said and "noted/000001.png')] 0\n" in said


def test_every_topic_is_there_and_the_readme_leads_to_it() -> None:
    topics = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert topics == ["spread a job over nodes", "resume", "redo one image", "choose a batch size", "edit a table",
                      "use an API", "generate for GenEval", "edit a folder of photos", "work in a notebook", "see the settings in other viewers"]  # fmt: skip
    assert "(docs/HOW_DO_I.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
