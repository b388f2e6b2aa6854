"""--model_name x.safetensors: a whole checkpoint in one file, as diffusers' from_single_file draws it, and what that passes over."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.commands import dglaunch
from support.plain_diffusers import apart, made_images, plain_images, words_for
from support.results import run_json
from support.single_files import comfy_file, ldm_file, without_weights
from support.tiny_models import build
from support.versions import needs_diffusers
from support.weight_files import save, set_state, state_of


@pytest.fixture(scope="module")
def sdxl(families: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder, the same as one file, and its configurations without weights."""
    folder, model = tmp_path_factory.mktemp("single"), build("sdxl", families / "sdxl")
    return model, ldm_file(model, folder / "sdxl.safetensors"), without_weights(model, folder / "config")


def test_sdxl_as_stability_writes_it(sdxl: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Against diffusers' own reading of the file, and against the folder that it was made of. (diffusers tells SDXL's two encoders
    apart by their widths, which are one in the tiny checkpoint: its second one would be filled with the first one's weights.)"""
    import diffusers

    model, file, config = sdxl
    made = made_images("sdxl", file, tmp_path / "out", "--model_config", config)
    assert apart(plain_images("sdxl", model, lambda _: None), made) <= 2 / 255
    told = run_json(tmp_path / "out")
    assert all("sdxl.safetensors" in told["effects"][part] for part in ("unet", "vae"))
    (image, *_) = sorted((tmp_path / "out").glob("*.png"))
    again = dglaunch("replay", image, "--output", tmp_path / "again.png")
    assert again.code == 0, again.output
    needs_diffusers("0.39.0")  # which reads it beside transformers 5
    single = diffusers.StableDiffusionXLPipeline.from_single_file(str(file), config=str(config), local_files_only=True)

    def change(pipeline) -> None:
        for part in ("unet", "vae", "text_encoder"):
            setattr(pipeline, part, getattr(single, part))

    assert apart(plain_images("sdxl", model, change), made) <= 2 / 255


def test_what_the_file_lacks_comes_from_the_folder_or_a_flag(families: Path, tmp_path: Path) -> None:
    model = build("sd3", families / "sd3")
    file = comfy_file(model, tmp_path / "sd3.safetensors", without=("text_encoder_3",))
    config = without_weights(model, tmp_path / "config")
    words = words_for("sd3", file, tmp_path / "out")
    refused = dglaunch(*words, "--model_config", config)
    assert (
        refused.code == 2
        and "has no text_encoder_3" in refused.output
        and "--text_encoder text_encoder_3=FILE" in refused.output
    )
    plain = plain_images("sd3", model, lambda _: None)
    assert apart(plain, made_images("sd3", file, tmp_path / "folder", "--model_config", model)) <= 2 / 255
    t5 = save(state_of(model, "text_encoder_3"), tmp_path / "t5.safetensors")
    given = ["--model_config", config, "--text_encoder", f"text_encoder_3={t5}"]
    assert apart(plain, made_images("sd3", file, tmp_path / "flag", *given)) <= 2 / 255


def test_a_flag_wins_over_the_file(sdxl: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, file, config = sdxl
    state = {key: value * 0.9 if value.dim() > 1 else value for key, value in state_of(model, "vae").items()}
    vae = save(state, tmp_path / "vae.safetensors")
    made = made_images("sdxl", file, tmp_path / "out", "--model_config", config, "--vae", vae)
    assert apart(plain_images("sdxl", model, set_state("vae", state)), made) <= 2 / 255


def test_silent_faults_are_refused(sdxl: tuple[Path, Path, Path], families: Path, tmp_path: Path) -> None:
    _, file, config = sdxl
    state = load_file(file)

    def said(change: dict[str, torch.Tensor], *words: str | Path) -> str:
        changed = save(change, tmp_path / "x.safetensors")
        ended = dglaunch(*words_for("sdxl", changed, tmp_path / "out"), *words)
        assert ended.code == 2 and not (tmp_path / "out").exists(), ended.output
        return " ".join(ended.output.split())

    here = ("--model_config", config)
    assert "v_pred" in said(state | {"v_pred": torch.zeros(0)}, *here), "diffusers would draw noise"
    assert "other.weight" in said(state | {"other.weight": torch.zeros(2)}, *here)
    middle = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    assert "mid_block.resnets.0.conv1.weight" in said({k: v for k, v in state.items() if k != middle}, *here)
    extra = "model.diffusion_model.middle_block.0.extra.weight"
    assert "extra.weight" in said(state | {extra: torch.zeros(2, 2)}, *here)
    layer = "conditioner.embedders.1.model.ln_final.weight"
    assert "final_layer_norm" in said({k: v for k, v in state.items() if k != layer}, *here)
    assert "lora" in said(state | {"conditioner.embedders.1.model.lora.weight": torch.zeros(2)}, *here)
    assert "--model_config FOLDER_OR_HUB_ID" in said(state)
    flux = without_weights(build("flux", families / "flux"), tmp_path / "flux")
    assert "of no part of" in said(state, "--model_config", flux)
    assert "--transformer" in said(state_of(build("flux", families / "flux")), "--model_config", flux)


def test_a_folder_needs_no_configuration(families: Path, tmp_path: Path) -> None:
    model = build("flux", families / "flux")
    ended = dglaunch(*words_for("flux", model, tmp_path / "out"), "--model_config", model)
    assert ended.code == 2 and "Drop --model_config" in " ".join(ended.output.split())
