"""What a scheduler is called; whether it draws images is asked in tests/torchrun/test_schedulers.py."""

import pytest

from dglaunch.errors import UserError
from dglaunch.models.components import Component
from dglaunch.models.schedulers import class_of, is_flow, num_calls


@pytest.mark.parametrize(
    ("name", "flow", "found"),
    [
        ("UniPCMultistepScheduler", True, "UniPCMultistepScheduler"), ("unipc", False, "UniPCMultistepScheduler"),
        ("Euler", True, "FlowMatchEulerDiscreteScheduler"), ("euler", False, "EulerDiscreteScheduler"),
        ("Heun", True, "FlowMatchHeunDiscreteScheduler"), ("DPM++ 2M", False, "DPMSolverMultistepScheduler"),
        ("Euler a", True, "EulerAncestralDiscreteScheduler"), ("lcm", True, "FlowMatchLCMScheduler"),
        ("EulerDiscrete", True, "EulerDiscreteScheduler"),
    ],
)  # fmt: skip
def test_people_call_schedulers_by_many_names(name: str, flow: bool, found: str) -> None:
    assert class_of(name, flow) == found


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="nearest: UniPCMultistep"):
        class_of("UniPCMultistp", True)


@pytest.mark.parametrize(
    ("class_name", "config", "flow"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, True), ("EulerDiscreteScheduler", {}, False),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, True),
        ("DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, False),
    ],
)  # fmt: skip
def test_what_a_checkpoint_predicts_is_read_from_its_scheduler(
    class_name: str, config: dict[str, object], flow: bool
) -> None:
    assert is_flow(Component(name="scheduler", library="diffusers", class_name=class_name, config=config)) == flow


def test_calls_of_the_transformer() -> None:
    assert num_calls("EulerDiscreteScheduler", {}, 8) == 8
    assert num_calls("HeunDiscreteScheduler", {}, 8) == 15
    assert num_calls("PNDMScheduler", {}, 8) == 17 and num_calls("PNDMScheduler", {"skip_prk_steps": True}, 8) == 9
