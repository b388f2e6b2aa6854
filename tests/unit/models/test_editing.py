"""The families that edit: names, rules and sizes."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch import config
from dglaunch.environment import known_flags
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.editing import at_most_a_megapixel, kontext_input, kontext_output
from dglaunch.models.families import FAMILIES, OTHER
from dglaunch.models.shape import Shape


def editor(family: str = "flux1_kontext", **defaults: Any) -> Checkpoint:
    return as_editor(Checkpoint("fake", "fake", OTHER, defaults, {}, False), family)


def test_an_unknown_family_and_a_checkpoint_that_does_not_edit() -> None:
    with pytest.raises(UserError, match=r"flux3 is no editing family\. The nearest: flux2"):
        editor("flux3")
    flux = Checkpoint("/models/flux", "FluxPipeline", FAMILIES["FluxPipeline"], {}, {}, True)
    with pytest.raises(UserError, match=r"does not edit images.*--model_type \(flux1_kontext has the same parts\)"):
        as_editor(flux, None)
    assert as_editor(flux, "flux1_kontext").pipeline_class == "FluxKontextPipeline"
    # `tiny` says of itself that it edits.
    tiny = Checkpoint("/tiny", "FluxPipeline", FAMILIES["FluxPipeline"], {"edit": {"_auto_resize": False}}, {}, True)
    assert as_editor(tiny, None).defaults == {"_auto_resize": False}


def test_the_families_are_those_of_the_table_and_of_the_help_text() -> None:
    rows = {family.edit.name: family.edit for family in FAMILIES.values() if family.edit is not None}
    no_batch = [name for name, row in rows.items() if row.batch_disabled]
    assert no_batch == ["qwen", "longcat", "glm_image"]
    assert [n for n, row in rows.items() if row.shared_image_batch] == ["flux1_kontext", "flux2", "flux2_klein"]
    assert [n for n, row in rows.items() if row.equal_size_batch] == ["flux1_kontext", "qwen_singleimg"]
    assert [n for n, row in rows.items() if row.multi_image] == ["flux2", "flux2_klein", "qwen", "glm_image"]
    assert "model_type" in known_flags()
    source = Path(config.__file__).read_text()
    assert all(name in source for name in rows)


def test_default_sizes(tmp_path: Path) -> None:
    assert kontext_input(Shape(1000, 1000), {}) == Shape(1024, 1024)
    assert kontext_output(Shape(2000, 3000), {}) == Shape(832, 1248)
    assert kontext_output(Shape(70, 100), {"_auto_resize": False}) == Shape(64, 96)
    assert kontext_output(Shape(96, 128), {"_auto_resize": False, "max_area": 64 * 64}) == Shape(48, 64)
    assert at_most_a_megapixel(Shape(70, 100), {}) == Shape(64, 96)
    assert at_most_a_megapixel(Shape(4000, 4000), {}) == Shape(1024, 1024)
