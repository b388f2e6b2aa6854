"""What `plan` and `rehearse` say of rows with input images: the VAE encodes them, and a ControlNet has weights and work."""

from pathlib import Path

import pytest

from dglaunch.config import BackendConfig, EditingConfig, T2IConfig
from dglaunch.models.checkpoint import as_editor, resolve
from dglaunch.models.figures import Figures, Request
from dglaunch.models.input_roles import Role
from dglaunch.models.shape import Shape
from dglaunch.simulation.trace import trace
from support.tiny_controlnets import build_controlnet
from support.tiny_models import build

pytestmark = pytest.mark.timeout(600)


def figures(families: Path, roles: tuple[Role, ...]) -> Figures:
    controlnet = str(build_controlnet("flux", families / "flux-controlnet"))
    backend = BackendConfig(model_name=str(build("flux", families / "flux")), controlnet=controlnet)
    config = T2IConfig(backend=backend, prompts_file=Path("none"), control_column="control", image_column="image")
    request = Request(shape=Shape(128, 128), dtype="float32", text_tokens=128, roles=roles)
    return trace(resolve(backend), config, request)


@pytest.mark.slow
def test_the_encoder_of_the_vae_and_the_controlnet_are_counted(families: Path) -> None:
    text, image, control = (figures(families, roles) for roles in ((), ("image",), ("control",)))  # type: ignore[arg-type]
    assert text.weights["controlnet"] == control.weights["controlnet"] > 0, "it is loaded for the whole job"
    assert image.encode.flops > 1.5 * text.encode.flops
    assert image.denoise.flops == pytest.approx(text.denoise.flops, rel=0.01)
    assert control.denoise.flops > 1.2 * text.denoise.flops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "encodes_twice"), [("flux_kontext", True), ("flux2_klein", False), ("qwenimage_edit", True)]
)
def test_an_edit_within_a_mask_is_counted(families: Path, checkpoint: str, encodes_twice: bool) -> None:
    """The inpainting pipelines compute the same tokens; two of them encode the image once more without what the mask cuts out."""
    backend = BackendConfig(model_name=str(build(checkpoint, families / checkpoint)))
    config = EditingConfig(backend=backend, input=Path("none"), mask_column="mask")
    editor, shape = as_editor(resolve(backend), None), Shape(128, 128)
    whole, masked = (
        trace(
            editor, config, Request(shape=shape, dtype="float32", text_tokens=128, input_shapes=(shape,), roles=roles)
        )
        for roles in ((), ("image", "mask"))  # type: ignore[arg-type]
    )
    assert (masked.encode.flops > 1.2 * whole.encode.flops) == encodes_twice
    assert encodes_twice or masked.encode.flops == pytest.approx(whole.encode.flops, rel=0.01)
    assert masked.denoise.flops == pytest.approx(whole.denoise.flops, rel=0.01)
