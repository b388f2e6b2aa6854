"""A command that also keeps each image's numbers as its pipeline gave them, before they become 8 bits: what a split changes
is far below one of those.

launch(folder, 2, [(["support.raw_pixels:kept", "t2i", ..., "--output_dir", folder / "a"], {})])
raw_difference(folder / "a", folder / "b")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dglaunch.backends.diffusers import backend, pixels
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.data.task import Batch


def kept(*words: str) -> int:
    """Run a command; the numbers of its images are in `raw.npz` files beside its output folder."""
    from dglaunch.cli.main import main

    folder = Path(words[words.index("--output_dir") + 1] + ".raw")
    generate, to_slots = DiffusersBackend.generate, pixels.to_slots

    def keep(self: DiffusersBackend, batch: Batch) -> Any:
        given: list[np.ndarray] = []

        def looked_at(output: Any, *rest: Any) -> Any:
            given.extend(
                np.asarray(image.float() if isinstance(image, torch.Tensor) else image) for image in output.images
            )
            return to_slots(output, *rest)

        with mock.patch.object(backend, "to_slots", looked_at):
            slots = generate(self, batch)
        if self.context.topology.is_leader:
            _save(folder, batch, given)
        return slots

    with mock.patch.object(DiffusersBackend, "generate", keep):
        return main(list(words))


def _save(folder: Path, batch: Batch, given: Sequence[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    for task, numbers in zip(batch.tasks, given, strict=True):
        np.save(folder / f"{task.index:06d}-{task.sample}.npy", numbers)


def raw_difference(one: Path, other: Path) -> float:
    """The greatest difference of a number, in [0, 1], between the images of two runs."""
    files = {path.name: path for path in Path(f"{one}.raw").glob("*.npy")}
    theirs = {path.name: path for path in Path(f"{other}.raw").glob("*.npy")}
    assert files.keys() == theirs.keys() and files, (sorted(files), sorted(theirs))
    return max(float(abs(np.load(path) - np.load(theirs[name])).max()) for name, path in files.items())
