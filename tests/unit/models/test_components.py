"""The parts of a checkpoint, and how many weights each has: from a folder's own files."""

import json
from pathlib import Path

import pytest

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, resolve
from support.checkpoint_folders import CONFIGS, WEIGHTS, checkpoint_folder, write_json, write_safetensors

TRANSFORMER = "transformer/diffusion_pytorch_model"


def resolved(folder: Path) -> Checkpoint:
    return resolve(BackendConfig(model_name=str(folder)))


def test_every_part_has_its_class_and_its_configuration(tmp_path: Path) -> None:
    found = resolved(checkpoint_folder(tmp_path)).components
    assert sorted(found) == ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    assert found["transformer"].library == "diffusers"
    assert found["transformer"].class_name == "FluxTransformer2DModel"
    assert found["transformer"].config == CONFIGS["transformer/config.json"]
    assert found["scheduler"].config == CONFIGS["scheduler/scheduler_config.json"]
    assert found["tokenizer"].config == {}


def test_the_embedded_checkpoint_has_parts_too() -> None:
    tiny = resolve(BackendConfig(model_name="tiny"))
    assert {"transformer", "vae", "text_encoder", "text_encoder_2", "scheduler"} <= tiny.components.keys()
    assert tiny.parameters.keys() == {"transformer", "vae", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize(
    "value", [["diffusers"], ["diffusers", "AutoencoderKL", "x"], ["diffusers", 5], [7, 8], "AutoencoderKL", {}]
)
def test_a_part_of_another_shape_is_named_with_its_file(tmp_path: Path, value: object) -> None:
    checkpoint_folder(tmp_path, vae=value)
    with pytest.raises(UserError, match=r"model_index\.json: vae must be .* Fetch the checkpoint again"):
        resolved(tmp_path)


def test_settings_of_the_pipeline_are_no_parts(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path, hidden_states_layers=[10, 20, 30], names=[], is_distilled=True, text_encoder_2=None)
    assert sorted(resolved(tmp_path).components) == ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def test_parts_that_have_no_config_json_are_none_the_less_parts(tmp_path: Path) -> None:
    """ERNIE-Image's second tokenizer, HunyuanImage's guiders: a run with --transformer or --scheduler was refused for them."""
    index = {"pe_tokenizer": ["transformers", "T5TokenizerFast"], "ocr_guider": ["diffusers", "ClassifierFreeGuidance"]}
    checkpoint_folder(tmp_path, **index)
    write_json(tmp_path / "ocr_guider/guider_config.json", {"guidance_scale": 3.5})
    found = resolved(tmp_path)
    assert found.components["pe_tokenizer"].config == {}
    assert found.components["ocr_guider"].config == {"guidance_scale": 3.5}
    assert sorted(found.parameters) == ["text_encoder", "transformer", "vae"]


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path)
    (tmp_path / "vae/config.json").unlink()
    with pytest.raises(UserError, match=r"has no vae/config\.json.*Fetch the checkpoint again"):
        _ = resolved(tmp_path).components


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path)
    (tmp_path / "vae/config.json").write_text('{"latent_channels": ')
    with pytest.raises(UserError, match=r"vae/config\.json is not valid JSON"):
        _ = resolved(tmp_path).components


# -- weights ------------------------------------------------------------------------------------------------------


def test_weights_are_counted_from_the_headers(tmp_path: Path) -> None:
    counted = resolved(checkpoint_folder(tmp_path)).parameters
    assert counted == {"text_encoder": 1000, "transformer": 5000, "vae": 200}


def test_other_copies_of_the_weights_are_not_counted_again(tmp_path: Path) -> None:
    """As in published checkpoints: half precision beside single, EMA beside those to draw with, other formats."""
    checkpoint_folder(tmp_path)
    write_safetensors(tmp_path / f"{TRANSFORMER}.fp16.safetensors", 5000, "F16")
    write_safetensors(tmp_path / f"{TRANSFORMER}.non_ema.safetensors", 5000)
    write_safetensors(tmp_path / "text_encoder/model.fp16.safetensors", 1000)
    write_safetensors(tmp_path / "text_encoder/openvino_model.safetensors", 1000)
    assert resolved(tmp_path).parameters == {"text_encoder": 1000, "transformer": 5000, "vae": 200}


def shards(folder: Path, stem: str, counts: list[int]) -> None:
    names = [f"{stem}-{n + 1:05}-of-{len(counts):05}.safetensors" for n in range(len(counts))]
    for name, count in zip(names, counts):
        write_safetensors(folder / name, count)
    index = {"weight_map": {f"w{n}": Path(name).name for n, name in enumerate(names)}}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def test_shards_and_one_file_are_the_same_weights(tmp_path: Path) -> None:
    """diffusers reads the shards then, transformers the one file."""
    checkpoint_folder(tmp_path)
    shards(tmp_path, TRANSFORMER, [3000, 1999])
    shards(tmp_path, "text_encoder/model", [600, 399])
    assert resolved(tmp_path).parameters == {"text_encoder": 1000, "transformer": 4999, "vae": 200}


def test_shards_of_another_saving_are_not_counted(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path, {name: count for name, count in WEIGHTS.items() if "transformer" not in name})
    shards(tmp_path, TRANSFORMER, [2000, 2000, 1000])
    shards(tmp_path, TRANSFORMER, [3000, 2000])
    assert resolved(tmp_path).parameters["transformer"] == 5000


def test_an_index_without_files_is_named(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path)
    write_json(tmp_path / f"{TRANSFORMER}.safetensors.index.json", {"metadata": {}})
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors\.index\.json: weight_map must"):
        _ = resolved(tmp_path).parameters


def test_parts_that_the_pipeline_does_not_load_are_not_counted(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path)
    write_safetensors(tmp_path / "image_encoder/model.safetensors", 70)  # [null, null] in the model_index.json
    write_safetensors(tmp_path / "prior/model.safetensors", 70)
    assert json.loads((tmp_path / "model_index.json").read_text())["image_encoder"] == [None, None]
    assert sum(resolved(tmp_path).parameters.values()) == 6200
