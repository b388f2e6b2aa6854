"""What a flag concerns is said on its field; the lists of flags follow from it."""

from dataclasses import dataclass

import pytest

from dglaunch.config import (
    COMMANDS,
    FILE,
    IDENTITY,
    IMAGE,
    LOCAL,
    REPLAY,
    ROW,
    TRUST,
    TUNING,
    Concern,
    OptimizationConfig,
    RunConfig,
    flags_that,
    leaf_fields,
    settings_that,
)
from dglaunch.data.task import SAMPLING


@pytest.mark.parametrize("config_type", COMMANDS.values())
def test_every_flag_says_what_it_concerns(config_type: type[RunConfig]) -> None:
    silent = [item.name for item in leaf_fields(config_type) if not isinstance(item.metadata.get("concerns"), Concern)]
    assert silent == [], "write flag(DEFAULT, CONCERNS) in dglaunch/config.py"


def test_a_flag_that_does_not_say_what_it_concerns_is_told_with_what_to_write() -> None:
    @dataclass
    class Silent:
        sparkle: int = 0

    with pytest.raises(TypeError, match=r"--sparkle does not say what it concerns; write sparkle = flag\(DEFAULT"):
        flags_that(Concern.IMAGE, Silent)


def test_what_changes_the_image_concerns_the_job_the_file_and_its_replay() -> None:
    assert set(flags_that(IMAGE)) <= set(flags_that(REPLAY)) & set(flags_that(TUNING))
    assert set(flags_that(FILE | IMAGE)) <= set(flags_that(REPLAY))
    assert set(flags_that(TRUST)) & set(flags_that(FILE | IMAGE | IDENTITY)) == {"pipeline"}, (
        "told by a file, and not taken"
    )
    assert "model_name" in flags_that(IDENTITY) and "output_dir" not in flags_that(IDENTITY)


def test_every_optimization_concerns_local_models_and_tuning() -> None:
    names = {item.name for item in leaf_fields(OptimizationConfig)}
    assert names <= set(flags_that(LOCAL)) and names <= set(flags_that(TUNING))


def test_a_row_may_set_what_the_flags_are_the_defaults_of() -> None:
    assert set(flags_that(ROW)) == set(SAMPLING)


def test_only_what_was_given_counts() -> None:
    config = OptimizationConfig(cache_type="pab", cache_interval=0 or None, enable_vae_tiling=False)
    assert settings_that(IMAGE, config) == {"cache_type": "pab"}
