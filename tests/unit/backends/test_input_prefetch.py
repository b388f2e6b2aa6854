"""Input images of a batch: decoded once, and those of the next batch meanwhile."""

import threading
from pathlib import Path
from typing import Any

import pytest

from dglaunch import EditingConfig
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.data.edits import read_edits
from dglaunch.data.images import InputImage
from dglaunch.data.task import Task
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from support.edit_images import SINGLE, SIZES, picture, png, save_table
from support.results import write_jsonl


def editor(family: str = "flux1_kontext", **defaults: Any) -> Checkpoint:
    return as_editor(Checkpoint("fake", "fake", OTHER, defaults, {}, False), family)


def read(path: Path, family: str = "flux1_kontext", **flags: Any) -> list[Task]:
    checkpoint = editor(family, _auto_resize=False)
    return list(read_edits(EditingConfig(input=path, **flags), checkpoint))


def test_an_image_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (task,) = read(write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}]))
    loader = InputPrefetcher()
    assert loader.load([task]) == {} and loader.images(task)[0].size == (64, 64)
    (tmp_path / "a.png").write_bytes(png(2))
    assert loader.load([task]) == {}, "it is kept for the next batch"
    assert "was changed since the run began" in InputPrefetcher().load([task])[0]


def test_each_image_is_decoded_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.data import images as inputs

    decoded: list[int] = []
    monkeypatch.setattr(inputs, "decode", lambda data, _most: decoded.append(len(data)) or picture(0))
    tasks = read(save_table(tmp_path / "t.csv", SINGLE))
    loader = InputPrefetcher()
    loader.load(tasks)
    assert len(decoded) == len(SIZES)
    loader.load(tasks[:2])
    assert len(decoded) == len(SIZES)


def test_the_images_of_the_next_batch_are_decoded_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.backends import input_prefetch as inputs
    from dglaunch.data.task import Batch

    decoded: dict[str, str] = {}
    whole = inputs._decode

    def noted(key: Any, image: InputImage) -> Any:
        assert image.name not in decoded, "twice"
        decoded[image.name] = threading.current_thread().name
        return whole(key, image)

    monkeypatch.setattr(inputs, "_decode", noted)
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [{"input_images": f"{n}.png", "instruction": "x"} for n in range(4)]
    tasks = read(write_jsonl(tmp_path / "t.jsonl", rows))
    batches = [Batch(tuple(tasks[:2])), Batch(tuple(tasks[2:]))]
    loader = InputPrefetcher(batches)
    loader.load(tasks[:2])
    assert loader.load(tasks[2:3]) == loader.load(tasks[3:]) == {}, "a batch may come in parts"
    threads = {name: thread == threading.main_thread().name for name, thread in decoded.items()}
    assert threads == {"0.png": True, "1.png": True, "2.png": False, "3.png": False}
