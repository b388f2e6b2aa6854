"""docs/python.md is run as it stands: its Python blocks, in their order, in one process and one folder, and after them the
cells of docs/notebook.ipynb (in a real Jupyter: tests/system/test_notebook.py).

A block that begins with `# NAME.py` is written to that file instead; `groups.py` is a script of its own, which is run on two
ranks. They are forks, which have imported everything; with `make soak` new interpreters, and a real torchrun.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.ranks import on_ranks, run_forked
from support.selection import rarely

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(folder: Path, *words: str) -> str:
    """What a new interpreter says that must end well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DG_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *words]
    ended = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def run_as(way: str, folder: Path) -> list[str]:
    """What page.py says; after it groups.py has run on two ranks."""
    if way == "interpreters":
        said = run(folder, "page.py")
        run(folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "groups.py")
        return said.splitlines()
    ended = run_forked(folder, "support.scripts:run", folder, "page.py")
    assert ended.code == 0, ended.output
    case = on_ranks(folder, 2, "support.scripts:run", folder, "groups.py")
    assert case.codes == [0, 0], case.output
    return (folder / "page.py.said.0").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("way", rarely(["forks", "interpreters"], ["interpreters"]))
def test_the_blocks_of_the_page_run(tmp_path: Path, way: str) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a small green star"}\n')
    (tmp_path / "edits.csv").write_text("input_images,instruction\ndemo.png,make the background red\n")
    shutil.copy(ROOT / "docs" / "demo.png", tmp_path / "demo.png")
    script: list[str] = []
    for code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code, encoding="utf-8")
        else:
            script.append(code)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script.append(code.replace('output_dir="out"', 'output_dir="noted"'))
    (tmp_path / "page.py").write_text("\n".join(script), encoding="utf-8")
    said = run_as(way, tmp_path)
    assert said[:1] == ["done 2 of 2"] and "0 failed; noted/000000.png" in said
    assert said[-1:] == [
        "  prompts, item 1: width is 70, not a multiple of 16 as this model needs; the nearest: 64 or 80"
    ]
    assert "--height is 0; it must be 1 or more." in said
    assert {"0 a red circle 0 (64, 64)", "1 a small green star 7 (64, 64)"} <= set(said)
    assert len(list((tmp_path / "edited").glob("*.png"))) == 1 and len(list((tmp_path / "echoed").glob("*.png"))) == 2
    assert len(list((tmp_path / "shared").glob("*.png"))) == 2
