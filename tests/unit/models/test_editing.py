"""The families that edit: names, rules and sizes."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch.environment import known_flags
from dglaunch.errors import UserError
from dglaunch.models import editing
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.editing import STRATEGIES
from dglaunch.models.families import FAMILIES, OTHER


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
    rows = {row.name: row for row in STRATEGIES.values()}
    no_batch = [name for name, row in rows.items() if row.batch_disabled]
    assert no_batch == ["qwen", "longcat", "glm_image"]
    assert [n for n, row in rows.items() if row.shared_image_batch] == ["flux2", "flux2_klein", "flux1_kontext"]
    assert [n for n, row in rows.items() if row.equal_size_batch] == ["qwen_singleimg", "flux1_kontext"]
    assert [n for n, row in rows.items() if row.multi_image] == ["qwen", "flux2", "flux2_klein", "glm_image"]
    assert set(STRATEGIES) <= set(FAMILIES) and "model_type" in known_flags()
    source = (Path(editing.__file__).parent / "config.py").read_text()
    assert all(name in source for name in rows)
    assert editing.family_table().count("\n") == len(rows) + 1


def test_default_sizes(tmp_path: Path) -> None:
    kontext, flux2 = STRATEGIES["FluxKontextPipeline"], STRATEGIES["Flux2Pipeline"]
    assert kontext.input_size((1000, 1000), {}) == (1024, 1024)
    assert kontext.output_size is not None and kontext.output_size((3000, 2000), {}) == (1248, 832)
    assert kontext.output_size((100, 70), {"_auto_resize": False}) == (96, 64)
    assert kontext.output_size((128, 96), {"_auto_resize": False, "max_area": 64 * 64}) == (64, 48)
    assert flux2.input_size((100, 70), {}) == (96, 64)
    assert flux2.input_size((4000, 4000), {}) == (1024, 1024)
