"""A batch to the keyword arguments of a call, for pipelines that take this and that; no model is loaded."""

from typing import Any

import torch

from dglaunch import T2IConfig
from dglaunch.backends.diffusers.arguments import call_arguments, call_defaults
from dglaunch.data.task import Batch, Task
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER, Family

PLAIN = frozenset({"prompt", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length",
                   "negative_prompt", "generator", "output_type", "callback_on_step_end"})  # fmt: skip


def on_step_end(_pipeline: object, _step: int, _time: object, values: dict[str, object]) -> dict[str, object]:
    return values


def checkpoint(family: Family = FAMILIES["FluxPipeline"], **defaults: object) -> Checkpoint:
    return Checkpoint(source="x", pipeline_class="X", family=family, defaults=defaults, transformer={}, local=True)


def batch(count: int = 2, **settings: Any) -> Batch:
    return Batch(tuple(Task(index=n, prompt=f"p{n}", seed=7 + n, stem=str(n), **settings) for n in range(count)))


def arguments(
    of: Batch, family: Checkpoint | None = None, takes: frozenset[str] = PLAIN, config: T2IConfig | None = None
) -> dict[str, Any]:
    made = call_arguments(of, config or T2IConfig(prompt="x"), family or checkpoint(), takes, on_step_end)
    assert {"prompt", "generator"} <= made.keys()
    return made


def test_what_was_given_is_passed_and_nothing_else() -> None:
    made = arguments(batch(height=64, width=128, num_inference_steps=4, guidance_scale=0.0))
    assert made.pop("generator") and made.pop("callback_on_step_end") is on_step_end
    assert made == {
        "prompt": ["p0", "p1"], "height": 64, "width": 128, "num_inference_steps": 4, "guidance_scale": 0.0,
        "output_type": "pt",
    }  # fmt: skip
    assert arguments(batch()).keys() == {"prompt", "generator", "callback_on_step_end", "output_type"}


def test_the_task_comes_before_the_checkpoints_defaults_and_both_before_the_pipelines() -> None:
    tiny = checkpoint(height=64, num_inference_steps=8, max_sequence_length=32, edit="not an argument")
    made = arguments(batch(num_inference_steps=4), tiny)
    assert (made["height"], made["num_inference_steps"], made["max_sequence_length"]) == (64, 4, 32)
    assert "width" not in made and "edit" not in made
    given = T2IConfig(prompt="x", max_sequence_length=48)
    assert arguments(batch(), tiny, config=given)["max_sequence_length"] == 48


def test_an_image_has_a_generator_of_its_own_that_depends_on_its_seed_alone() -> None:
    def noise(generator: torch.Generator) -> torch.Tensor:
        return torch.rand(4, generator=generator)

    together = [noise(generator) for generator in arguments(batch(3))["generator"]]
    (alone,) = arguments(Batch(batch(3).tasks[1:2]))["generator"]
    assert torch.equal(noise(alone), together[1]) and not torch.equal(together[0], together[1])


def test_a_pipeline_gets_a_list_of_prompts_that_it_may_write_into() -> None:
    tasks = batch()
    arguments(tasks)["prompt"][0] = "changed"
    assert arguments(tasks)["prompt"] == ["p0", "p1"]


def test_the_guidance_scale_goes_by_the_pipelines_name_for_it() -> None:
    qwen = checkpoint(FAMILIES["QwenImagePipeline"], guidance_scale=4.0)
    assert qwen.family.guidance == "true_cfg_scale"
    takes = PLAIN | {"true_cfg_scale"}
    made = arguments(batch(guidance_scale=2.5, negative_prompt="blurry"), qwen, takes)
    assert made["true_cfg_scale"] == 2.5 and "guidance_scale" not in made
    assert made["negative_prompt"] == ["blurry", "blurry"]
    assert arguments(batch(), qwen, takes)["true_cfg_scale"] == 4.0


def test_kontext_keeps_the_size_that_was_asked_for() -> None:
    kontext = checkpoint(FAMILIES["FluxKontextPipeline"])
    assert arguments(batch(height=64, width=96), kontext, PLAIN | {"max_area"})["max_area"] == 64 * 96


def test_what_the_family_switches_off_is_passed_to_a_pipeline_that_has_it() -> None:
    sana = checkpoint(FAMILIES["SanaPipeline"])
    assert arguments(batch(), sana, PLAIN | {"use_resolution_binning"})["use_resolution_binning"] is False
    assert "use_resolution_binning" not in arguments(batch(), sana)  # of a user's own, by the signature of its call


def test_a_pipeline_that_is_in_no_table_gives_the_images_as_it_does() -> None:
    made = arguments(batch(), checkpoint(OTHER), frozenset({"prompt", "generator"}))
    assert made.keys() == {"prompt", "generator"}


def test_the_ledger_names_what_a_call_without_arguments_uses() -> None:
    import inspect

    def call(num_inference_steps: int = 28, guidance_scale: float = 3.5) -> None:
        pass

    parameters = inspect.signature(call).parameters
    expected = {"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5}
    assert call_defaults(checkpoint(), parameters) == expected
    assert call_defaults(checkpoint(height=64, guidance_scale=1.0), parameters) == expected | {
        "height": 64, "guidance_scale": 1.0
    }  # fmt: skip
    assert call_defaults(checkpoint(), {})["num_inference_steps"] is None
