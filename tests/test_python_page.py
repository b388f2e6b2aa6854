"""docs/python.md is run as it stands: its Python blocks, in their order, in one process and one folder.

A block that begins with `# NAME.py` is written to that file instead. A block under `<!-- not yet: ... -->` shows what is
still to be built and is only parsed.
"""

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, clean_environment, write_jsonl
from edit_images import SINGLE, save_table

PAGE = ROOT / "docs" / "python.md"
BLOCK = re.compile(r"^(?P<mark><!-- not yet: .*? -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"a red circle, {n}"} for n in range(3)])
    save_table(tmp_path / "edits.csv", SINGLE[:2])
    script: list[str] = []
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        code = block["code"]
        compile(code, PAGE.name, "exec")
        if block["mark"] is not None:
            continue
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code, encoding="utf-8")
        else:
            script.append(code)
    assert script
    (tmp_path / "page.py").write_text("\n".join(script), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=clean_environment(), text=True, capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "--height is 0; it must be 1 or more." in ended.stdout
