"""The table of optimizations. Against the libraries' own names: torchrun/test_pipeline_optimizations.py."""

from dataclasses import fields

from dglaunch.backends.diffusers import optimizations as optimize
from dglaunch.config import OptimizationConfig
from dglaunch.models import optimizations
from dglaunch.models.families import FAMILIES

PARAMETERS = {"compile_scope", "cache_threshold", "cache_interval", "cache_warmup", "encode", "embedding_cache"}


def test_every_flag_is_a_row_or_a_parameter_of_one() -> None:
    flags = {item.name for item in fields(OptimizationConfig)}
    assert flags == {row.flag for row in optimizations.OPTIMIZATIONS} | PARAMETERS
    assert flags == optimize.ACTIONS.keys() | PARAMETERS


def test_rows_name_rows_and_families() -> None:
    names = {row.name for row in optimizations.OPTIMIZATIONS}
    for row in optimizations.OPTIMIZATIONS:
        assert set(row.excludes) <= names
    for family in FAMILIES.values():
        assert (family.takes or set()) <= names and (family.xdit is None or family.xdit.takes <= names)


def test_what_changes_the_images_is_another_job() -> None:
    for row in optimizations.OPTIMIZATIONS:
        if row.changes and row.flag != "attention_backend":
            config = OptimizationConfig(**{row.flag: row.value or True})
            assert row.flag in optimizations.image_settings(config)
    assert optimizations.image_settings(OptimizationConfig(attention_backend="flash")) == {}
    assert optimizations.image_settings(OptimizationConfig(attention_backend="sage")) == {"attention_backend": "sage"}
