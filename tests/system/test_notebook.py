"""docs/notebook.ipynb in a real Jupyter kernel: what a reader of it sees. Needs nbclient, ipykernel and ipywidgets."""

import os
from pathlib import Path

import pytest

from support.commands import ROOT

pytestmark = pytest.mark.slow


def test_the_notebook_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for package in ("ipykernel", "ipywidgets"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, sheet, rows, counts, mistake = [cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"]
    kinds = [kind for output in first for kind in output.get("data", [])]
    assert "application/vnd.jupyter.widget-view+json" in kinds, "no progress bar"
    assert "done: out" in "".join(output.get("text", "") for output in first if output.get("name") == "stdout")
    assert "image/png" in sheet[0]["data"] and "0 a red circle seed 0" in rows[0]["text"]
    assert "num_ok=1" in counts[-1]["data"]["text/plain"] and "num_skipped=12" in counts[-1]["data"]["text/plain"]
    assert "prompts, item 1: width is 70" in mistake[0]["text"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 13
