"""The table of optimizations, against the libraries' own names."""

import inspect
from dataclasses import fields
from importlib.util import find_spec

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


def test_the_attention_backends_are_the_libraries_own() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert optimizations.ATTENTION.keys() == {name.value for name in AttentionBackendName}
    if find_spec("xfuser"):
        from dglaunch.backends.xdit.cpu import import_xfuser

        import_xfuser()
        from xfuser.core.distributed.attention_backend import AttentionBackendType

        assert optimizations.XFUSER_ATTENTION.keys() <= AttentionBackendType.__members__.keys()


def test_which_attention_kernels_take_no_mask() -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    refusing = {
        str(name.value) for name, kernel in Registry._backends.items()
        if "`attn_mask` is not supported" in inspect.getsource(inspect.unwrap(kernel))
    }  # fmt: skip
    assert refusing == optimizations.WITHOUT_MASK
