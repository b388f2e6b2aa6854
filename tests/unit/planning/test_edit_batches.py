"""Batches of edits: what may share a call of each pipeline."""

from pathlib import Path
from typing import Any

from dglaunch import EditingConfig
from dglaunch.backends.profiles import edit_bucket
from dglaunch.data.edits import read_edits
from dglaunch.data.task import BatchSize
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from dglaunch.planning import batches
from support.edit_images import MULTI, SINGLE, save_table


def editor(family: str = "flux1_kontext", **defaults: Any) -> Checkpoint:
    return as_editor(Checkpoint("fake", "fake", OTHER, defaults, {}, False), family)


def plan_of(path: Path, family: str, batch_size: int, replicas: int = 1) -> batches.Plan:
    checkpoint = editor(family, _auto_resize=False)
    tasks = read_edits(EditingConfig(input=path), checkpoint)
    size = batch_size if checkpoint.family.batch else 1
    return batches.build(tasks, replicas, lambda _: BatchSize(size, ""), edit_bucket(checkpoint))


def test_batches_share_their_images_or_their_size(tmp_path: Path) -> None:
    single = save_table(tmp_path / "s.csv", SINGLE)
    multi = save_table(tmp_path / "m.csv", MULTI)
    # 64x64: 4 a and 3 b make 2 batches of 4; 3 c and 2 d make 1 each.
    made = plan_of(single, "flux1_kontext", 4)
    assert (made.num_batches, made.num_extra_batches) == (4, 1)
    assert plan_of(single, "qwen_singleimg", 4).num_batches == 4
    # Sets: a x3, ac x3, b x2, acd x2, d, ca.
    made = plan_of(multi, "flux2", 4)
    assert (made.num_batches, made.num_extra_batches) == (6, 3)
    for batch in made.batches[0]:
        assert len({tuple(image.sha256 for image in task.images) for task in batch.tasks}) == 1
    assert [len(batch) for batch in plan_of(multi, "qwen", 4).batches[0]] == [1] * 12
    # Of 12 rows of one image each, seven rows at 3 take three calls: balanced.
    assert [len(b) for b in plan_of(single, "flux1_kontext", 3).batches[0]] == [3, 2, 2, 3, 2]
