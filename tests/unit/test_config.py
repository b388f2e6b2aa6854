"""What a flag concerns is said on its field; the lists of flags follow from it."""

import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from dglaunch.config import (
    COMMANDS,
    FILE,
    IDENTITY,
    IMAGE,
    LOCAL,
    MOST_FILES_PER_FOLDER,
    REPLAY,
    ROW,
    TRUST,
    TUNING,
    Concern,
    OptimizationConfig,
    RunConfig,
    T2IConfig,
    flags_that,
    leaf_fields,
    settings_that,
)
from dglaunch.data.task import INPUT_FIELDS, SAMPLING
from dglaunch.errors import UserError
from dglaunch.output.image_folders import ImageFolders


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
    assert set(flags_that(ROW)) == {*SAMPLING, *INPUT_FIELDS}


@pytest.mark.parametrize("config_type", COMMANDS.values())
def test_no_flag_takes_a_number_below_zero(config_type: type[RunConfig]) -> None:
    """No count, size, time or scale is negative; one that is taken does harm later, where nobody knows why."""
    needed = {name: Path("x.jsonl") for name in ("input", "prompts_file") if hasattr(config_type, name)}
    kinds_of_flags: list[tuple[Any, dict[str, Path]]] = [(config_type, needed)]
    kinds_of_flags += [(item.default_factory, {}) for item in fields(config_type) if is_dataclass(item.default_factory)]
    for group, base in kinds_of_flags:
        kinds = {item.name: re.sub("'.*?'", "", str(item.type)) for item in fields(group)}
        numbers = [name for name, kind in kinds.items() if re.search(r"\b(int|float)\b", kind)]
        for name in numbers:
            with pytest.raises(UserError, match=f"--{name} is -3"):
                group(**base, **{name: -3})


def test_files_of_a_folder_are_a_number_that_resume_reads_again() -> None:
    most = T2IConfig(prompt="x", files_per_folder=MOST_FILES_PER_FOLDER).files_per_folder
    folders = ImageFolders.chosen(most, 10, 1)
    assert folders is not None and ImageFolders.read(folders.record) == folders
    with pytest.raises(UserError, match="0 keeps all images in one folder"):
        T2IConfig(prompt="x", files_per_folder=MOST_FILES_PER_FOLDER + 1)


def test_only_what_was_given_counts() -> None:
    config = OptimizationConfig(cache_type="pab", cache_interval=0 or None, enable_vae_tiling=False)
    assert settings_that(IMAGE, config) == {"cache_type": "pab"}
