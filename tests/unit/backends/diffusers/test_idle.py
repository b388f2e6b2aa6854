"""Values for which the call of a pipeline has no parameter, given by flags and by rows; no model is loaded."""

from dataclasses import replace
from typing import Any

import pytest

from dglaunch import T2IConfig
from dglaunch.backends.diffusers.idle import idle_arguments, idle_negatives, without_parameter
from dglaunch.data.task import Task
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES
from dglaunch.models.unlisted import unlisted

ALL = {"prompt": "", "height": None, "width": None, "num_inference_steps": 8, "guidance_scale": 4.0,
       "max_sequence_length": 64, "negative_prompt": None, "generator": None}  # fmt: skip


def checkpoint(*without: str, **more: object) -> Checkpoint:
    takes = {name: value for name, value in ALL.items() if name not in without} | more
    return Checkpoint("x", "NewPipeline", unlisted("NewPipeline", takes), {}, {}, True, takes=takes)


def tasks(*rows: dict[str, Any]) -> list[Task]:
    return [Task(index=n, prompt="x", seed=n, stem=str(n), **row) for n, row in enumerate(rows)]


def mistakes(of: Checkpoint, rows: list[Task], **flags: Any) -> list[str]:
    return [idle.mistake for idle in idle_arguments(of, replace(T2IConfig(prompt="x"), **flags), rows)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("negative_prompt", "blurry"), ("height", 64), ("num_inference_steps", 4), ("guidance_scale", 3.0)],
)
def test_a_rows_value_without_a_parameter_is_told_with_the_row(name: str, value: Any) -> None:
    rows = tasks({}, {name: value})
    assert mistakes(checkpoint(), rows) == []
    (said,) = mistakes(checkpoint(name), rows)
    assert said.startswith(f"{name} would do nothing in row 1: the call of NewPipeline has no parameter for it")
    assert said.endswith(f"Remove it (the column, or --{name}).")
    assert not list(idle_negatives(checkpoint(name), T2IConfig(prompt="x"), rows)), "it is told once"


def test_a_flag_without_a_parameter_is_told() -> None:
    (said,) = mistakes(checkpoint("max_sequence_length"), tasks({}), max_sequence_length=32)
    assert said.startswith("max_sequence_length would do nothing: the call of NewPipeline")


def test_no_guidance_is_what_a_pipeline_without_guidance_gives() -> None:
    assert mistakes(checkpoint("guidance_scale"), tasks({"guidance_scale": 1.0}, {"guidance_scale": 0.0})) == []


def test_the_guidance_scale_is_looked_up_by_the_pipelines_name() -> None:
    assert mistakes(checkpoint("guidance_scale", true_cfg_scale=1.0), tasks({"guidance_scale": 3.0})) == []
    qwen = Checkpoint("x", "QwenImagePipeline", FAMILIES["QwenImagePipeline"], {}, {}, True)
    config, rows = T2IConfig(prompt="x"), tasks({"guidance_scale": 2.0})
    assert not list(without_parameter(qwen, config, rows, {"true_cfg_scale"}))
    assert list(without_parameter(qwen, config, rows, {"guidance_scale"}))
