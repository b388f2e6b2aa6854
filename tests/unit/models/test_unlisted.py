"""The row of a pipeline that the table does not have, from the source of the installed diffusers; nothing of it is run."""

import inspect
from pathlib import Path

import pytest

from dglaunch.models.unlisted import Unsaid, takes_in, takes_of, unlisted


@pytest.mark.parametrize(
    ("name", "guidance", "off"),
    [
        ("FluxPipeline", "true_cfg_scale", []),
        ("SanaSprintPipeline", "guidance_scale", ["use_resolution_binning"]),
        ("LongCatImagePipeline", "guidance_scale", ["enable_prompt_rewrite"]),
        ("AuraFlowPipeline", "guidance_scale", []),
    ],
)
def test_what_a_signature_says(name: str, guidance: str, off: list[str]) -> None:
    row = unlisted(name, takes_of(name))
    assert row.guidance == guidance and row.arguments == tuple((switch, False) for switch in off)
    assert row.takes_negative == (name != "SanaSprintPipeline")
    assert not row.is_measured and row.num_steps is not None


def test_it_is_what_python_itself_says() -> None:
    import diffusers

    for name in ("FluxPipeline", "StableDiffusionXLPipeline", "HunyuanDiTPipeline"):
        parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
        takes = takes_of(name)
        assert takes is not None and list(takes) == [each for each in parameters if each not in ("self", "kwargs")]
        for each, default in takes.items():
            if not isinstance(default, Unsaid):
                assert default == parameters[each].default


def test_a_class_that_there_is_not_is_not_known() -> None:
    assert takes_of("NoSuchPipeline") is None
    assert not unlisted("NoSuchPipeline", None).is_measured


def test_a_call_that_hands_on_takes_what_its_base_takes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import diffusers\n"
        "class Base(diffusers.DiffusionPipeline):\n"
        "    def __call__(self, prompt, *, generator=None, height=512, scale=2 ** 3): pass\n"
        "class Mine(Base):\n"
        "    def __call__(self, *args, height=256, **rest): pass\n"
        "class Silent(diffusers.DiffusionPipeline): pass\n"
    )
    assert takes_in(file, "Mine") == {
        "height": 256, "prompt": Unsaid.REQUIRED, "generator": None, "scale": Unsaid.COMPUTED,
    }  # fmt: skip
    assert takes_in(file, "Silent") is None and takes_in(file, "Other") is None
