"""The newer text-to-image families: what dglaunch draws in batches is what their plain pipelines draw one by one.

One process. `make soak` tries all of them; always run are one whose pipeline would rewrite prompts at random, and refusals.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from dglaunch import BackendConfig
from dglaunch.models.checkpoint import resolve
from support.new_family_runs import CASES, NEGATIVE, PROMPTS, TOLERANCE, plain, t2i
from support.results import images, ledger
from support.selection import rarely
from support.tiny_models import build

pytestmark = pytest.mark.timeout(1800)

OFTEN = ("ernie_image",)


@pytest.mark.parametrize("family", rarely(CASES, set(CASES) - set(OFTEN)))
def test_a_batch_is_what_the_plain_pipeline_draws_one_by_one(families: Path, tmp_path: Path, family: str) -> None:
    case, model = CASES[family], build(family, families / family)
    ended = t2i(model, tmp_path, *case.words, side=case.side)
    assert ended.code == 0, ended.output
    assert "no row in dglaunch's table" not in ended.output
    found, expected = list(images(tmp_path / "out").values()), plain(model, case)
    apart = [np.abs(a.astype(float) - b).max() for a, b in zip(found, expected)]
    assert len(found) == len(PROMPTS) and max(apart) <= TOLERANCE, apart
    assert np.abs(found[0].astype(int) - found[1]).max() > 10 * TOLERANCE, "else the comparison could not fail"
    batch = 3 if resolve(BackendConfig(model_name=str(model))).family.batch else 1
    assert {line["batch_size"] for line in ledger(tmp_path / "out")} == {batch}


REFUSED = [
    ("flux2_klein_kv", ("--guidance_scale", "4"), "the call of Flux2KleinKVPipeline has no parameter for it"),
    ("flux2_klein_kv", NEGATIVE, "Flux2KleinKVPipeline takes none"),
    ("qwenimage21", ("--guidance_scale", "4"), "guidance scale but no negative prompt"),
    ("qwenimage21", ("--height", "80"), "multiple"),
    ("ideogram4", (), "is a schedule of 48 steps"),
    ("ideogram4", NEGATIVE, "Ideogram4Pipeline takes none"),
    ("hunyuan_image", ("--guidance_scale", "4"), "does not look at it (guidance_embeds"),
    ("hunyuan_image_distilled", NEGATIVE, "takes none without a guider, and this checkpoint has none"),
]


@pytest.mark.parametrize(
    ("family", "words", "said"), rarely(REFUSED, [each for each in REFUSED if each[0] != "flux2_klein_kv"])
)
def test_what_would_do_nothing_is_refused(
    families: Path, tmp_path: Path, family: str, words: tuple[str, ...], said: str
) -> None:
    """QwenImage 2.1 and FLUX.2-klein-KV lose guidance without a word, as plain diffusers have them."""
    ended = t2i(build(family, families / family), tmp_path, *words)
    assert ended.code == 2 and said in " ".join(ended.output.split()), ended.output


def test_a_package_that_a_pipeline_needs_is_asked_for_before_it_is_loaded(
    families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRX's call ends with a NameError otherwise."""
    model = build("prx", families / "prx")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    ended = t2i(model, tmp_path)
    assert ended.code == 2 and "pip install 'dglaunch[prx]'" in ended.output, ended.output
