"""The catalog of known models as data: what each entry must say, and that reading it is quick."""

import re
import time

import pytest

from dglaunch.models import catalogue
from dglaunch.models.families import FAMILIES
from support.commands import dglaunch

NAMES = catalogue.names()


def entry_of(name: str) -> catalogue.Entry:
    found = catalogue.known(name)
    assert found is not None
    return found


def test_it_has_the_models_that_it_is_for() -> None:
    assert len(NAMES) >= 35
    assert {"black-forest-labs/FLUX.1-dev", "Qwen/Qwen-Image", "Tongyi-MAI/Z-Image"} <= set(NAMES)
    assert catalogue.known("someone/unknown") is None and catalogue.known("../../etc/passwd") is None


@pytest.mark.parametrize("name", NAMES)
def test_what_an_entry_says_has_a_source(name: str) -> None:
    entry = entry_of(name)
    described = entry.described
    allowed = {"pipeline", "diffusers", "license", "gated", "confidence", "notes", "components", "defaults", "settings", "published", "sources"}  # fmt: skip
    assert described.keys() <= allowed
    assert entry.confidence in ("checked", "from defaults", "unverified")
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry.diffusers)
    assert described["sources"].keys() >= {"pipeline", "diffusers", "defaults"}
    for claim in ("license", "gated", "settings"):
        assert (claim in described) == (claim in described["sources"]), claim
    for part, details in described["components"].items():
        assert details["source"], part
        assert ("parameters" in details) == (part != "scheduler"), part
        assert details.get("checked", "exact") == "exact" or "differs" in details["checked"]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_has_what_a_plan_needs(name: str) -> None:
    entry = entry_of(name)
    assert {"transformer", "unet"} & entry.components.keys() and {"vae", "scheduler"} <= entry.components.keys()
    assert entry.parameters["vae"] < min(entry.parameters.get("transformer", 1 << 60), 1 << 40)
    assert {"num_inference_steps", "guidance_scale", "height", "width"} - {"guidance_scale"} <= entry.defaults.keys()


def test_every_family_that_ships_a_known_model_is_there() -> None:
    pipelines = {entry_of(name).pipeline for name in NAMES}
    assert len(pipelines & FAMILIES.keys()) >= 12


def test_one_entry_is_read_in_milliseconds() -> None:
    took = []
    for name in NAMES[:5]:
        start = time.perf_counter()
        assert entry_of(name).components
        took.append(time.perf_counter() - start)
    assert min(took) < 0.02


def test_help_reads_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", None)  # whatever looks for an entry fails
    shown = dglaunch("t2i", "--help")
    assert shown.code == 0 and "--model_name" in shown.output
