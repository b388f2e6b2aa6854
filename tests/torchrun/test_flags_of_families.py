"""No flag that changes the image does nothing in silence: with each family's tiny checkpoint, each of them is given two
values, and there are two images, or a refusal. Which of the two is what docs/models.md says.

The whole matrix takes half an hour (`make soak`); always run are cases that are refused, and a few that are not.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dglaunch.config import API, CALL, IMAGE, ROW, BackendConfig, EditingConfig, T2IConfig, flags_that
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve
from support.commands import ROOT, Ended, dglaunch
from support.flag_values import GUIDED, VALUES, WIDE, WIDER, command, small
from support.results import images
from support.selection import rarely
from support.tiny_models import FAMILIES, build

sys.path.insert(0, str(ROOT / "docs"))
import generate

pytestmark = pytest.mark.timeout(1800)

CASES = [(family, flag) for family in FAMILIES for flag in VALUES]
OFTEN = [
    ("flux_schnell", "guidance_scale"),
    ("flux2_klein", "guidance_scale"),
    ("flux", "negative_prompt"),
    ("longcat_edit", "max_sequence_length"),
    ("longcat_edit", "height"),
    ("lumina2", "cache_type pab"),
    ("sd3", "negative_prompt"),
]


class Runs:
    """Runs of tiny checkpoints, each done once."""

    def __init__(self, folder: Path, families: Path) -> None:
        self.folder, self.families = folder, families
        self.done: dict[tuple[str, ...], tuple[Ended, Path]] = {}

    def __call__(self, family: str, *words: str) -> tuple[Ended, Path]:
        key = family, *sorted(words)
        if key not in self.done:
            out = self.folder / str(len(self.done))
            start = command(model := self.families / family, self.folder, edits=checkpoint_of(model).family.only_edits)
            self.done[key] = dglaunch(*start, *words, "--output_dir", out), out
        return self.done[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, families: Path) -> Iterator[Runs]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Runs(tmp_path_factory.mktemp("flags"), families)
    torch.set_num_threads(before)


def checkpoint_of(folder: Path) -> Checkpoint:
    """As the command runs it that can."""
    found = resolve(BackendConfig(model_name=str(folder)))
    return as_editor(found, None) if found.family.only_edits else found


def takes(checkpoint: Checkpoint, flag: str) -> bool:
    """Whether the page says that the flag does something."""
    said = generate.effect(checkpoint.family, flag)
    return said != "no" and (flag != "guidance_scale" or checkpoint.is_guided)


@pytest.mark.parametrize(("family", "flag"), rarely(CASES, set(CASES) - set(OFTEN)))
def test_another_value_is_another_image_or_is_refused(runs: Runs, families: Path, family: str, flag: str) -> None:
    checkpoint = checkpoint_of(build(family, families / family))
    row, values = checkpoint.family, VALUES[flag]
    sizes, texts = row.edit is None or row.edit.sets_size, row.takes_text_length and row.name != "other"
    words = [*small(values, sizes=sizes, texts=texts), *values.both]
    if row.name.startswith("Flux2"):
        words = [WIDER if word == WIDE else word for word in words]
    if not sizes:
        words = [word for word in words if word != WIDE]
    if not row.takes_negative:
        words = [word for word in words if word not in GUIDED]
    if row.guidance_needs_negative and flag == "guidance_scale":
        words.append("--negative_prompt=ugly")
    second, there = runs(family, *words, *values.second)
    if "GPUs only" not in second.output and row.name != "other":
        assert (second.code == 0) == takes(checkpoint, flag), second.output
    if second.code == 0:
        first, here = runs(family, *words, *values.first)
        assert first.code == 0, first.output
        assert differ(here, there), f"--{flag} did nothing: {second.output}"
    else:
        assert (
            second.code == 2
            and flag.split()[-1] in second.output
            and re.search("[Dd]rop|Remove|leave it out", second.output)
        )


def differ(here: Path, there: Path) -> bool:
    (a,), (b,) = images(here).values(), images(there).values()
    return a.shape != b.shape or not np.array_equal(a, b)


def test_every_flag_that_changes_the_image_has_two_values() -> None:
    """A new one fails here until it is tried. What an API is asked for has tests of its own (system/test_api_own.py)."""
    elsewhere = {
        "scheduler",
        "scheduler_options",
        "strength",
        "control_scale",
    }  # test_schedulers.py, test_input_models.py
    named = {name.split()[0] for name in VALUES} | elsewhere
    assert named == set(flags_that(IMAGE | CALL | ROW, T2IConfig, EditingConfig)) - set(flags_that(API))
