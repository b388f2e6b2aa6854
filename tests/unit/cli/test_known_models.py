"""`dglaunch plan` of every known model on a machine without a network."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.models import catalogue
from dglaunch.models.families import FAMILIES, OTHER
from support.commands import dglaunch
from support.hub_server import use_endpoint
from support.selection import rarely

NAMES = catalogue.names()


def entry_of(name: str) -> catalogue.Entry:
    found = catalogue.known(name)
    assert found is not None
    return found


ONE_OF_EACH = {entry_of(name).pipeline: name for name in NAMES}
"""Pipeline -> one of its models; the others run with `make soak`."""


def planned(name: str, folder: Path) -> tuple[str, ...]:
    """The words of a plan of one image."""
    if not FAMILIES.get(entry_of(name).pipeline, OTHER).only_edits:
        return ("t2i", "--prompt", "a red fox")
    Image.new("RGB", (64, 64)).save(folder / "in.png")
    (folder / "edits.jsonl").write_text(json.dumps({"input_images": ["in.png"], "instruction": "make it blue"}) + "\n")
    return ("edit", "--input", str(folder / "edits.jsonl"))


@pytest.mark.parametrize("name", rarely(NAMES, set(NAMES) - set(ONE_OF_EACH.values())))
def test_it_is_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    ended = dglaunch("plan", *planned(name, tmp_path), "--model_name", name, "--world_size", "8", "--output_dir", tmp_path / "out")  # fmt: skip
    assert ended.code == 0, ended.output
    assert "checkpoint from the catalog of dglaunch, as the hub cannot be reached" in ended.output
    assert "1 image in 1 batch" in ended.output and "memory a rank at" in ended.output


def test_prompts_that_may_not_share_a_batch_are_planned_without_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path
) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    words = ("--model_name", "Tongyi-MAI/Z-Image", "--prompts_file", prompts, "--backend", "xdit", "--world_size", "2")
    ended = dglaunch("plan", "t2i", *words, DG_XDIT_ULYSSES_DEGREE="2")
    assert ended.code == 0, ended.output
    assert "text_lengths taken as equal, as there is no tokenizer here" in ended.output
