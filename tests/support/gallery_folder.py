"""A folder of results for the tests of the gallery: what is in it tries to escape from the page."""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from dglaunch.cli.main import main
from support.results import write_jsonl

EVIL = """</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">'"&amp;{{ 7*7 }}\u2028"""


BIG_SEED = 2**62 + 1


def data_of(page: Path) -> dict[str, Any]:
    """What a page's script gets."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def line(index: int, **values: Any) -> dict[str, Any]:
    """A line of metadata.jsonl."""
    base = {"file_name": f"{index:06d}.png", "index": index, "sample": 0, "prompt": f"prompt {index}", "seed": index}
    sizes = {"width": 64, "height": 48, "num_inference_steps": 4, "rank": index % 2, "seconds": 1.5, "bytes": 1}
    return base | sizes | {"key": "0" * 16, "sha256": "0" * 64} | values


def failure(index: int, **values: Any) -> dict[str, Any]:
    kept = line(index, error="RuntimeError: it broke", **values)
    return {name: value for name, value in kept.items() if name != "file_name"}


def paint(path: Path, colour: str, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(folder: Path) -> Path:
    """Two images, one of them from a prompt that tries to escape; an edit; a failure; a failure made good later."""
    for index, colour in enumerate(("red", "green", "blue")):
        paint(folder / f"{index:06d}.png", colour)
    paint(folder / "inputs" / "000002_0.png", "yellow")
    edit = line(2, prompt="make it blue", instruction="make it blue", input_images=["a cat.png"], input_sha256=["00"])
    edit["input_file_names"] = ["inputs/000002_0.png"]
    rows = [edit, line(0, seed=BIG_SEED), line(1, prompt=EVIL, column={"nan": float("nan")}, error="a column")]
    write_jsonl(folder / "metadata.jsonl", rows)
    write_jsonl(folder / "failures.jsonl", [failure(3, prompt="a wolf"), failure(0)])
    run: dict[str, Any] = {"outcome": "failed", "num_tasks": 4}
    run |= {"settings": {"model_name": EVIL}, "config": {"seed": {"value": 7, "from": "flag"}}}
    (folder / "run.json").write_text(json.dumps(run))
    assert main(["gallery", str(folder)]) == 0
    return folder
