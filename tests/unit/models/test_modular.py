"""Where the parts of a modular checkpoint lie: its index as their save_pretrained writes it. No torch."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch.errors import UserError
from dglaunch.models.components import parts_of, read_components
from dglaunch.models.folder import Folder
from dglaunch.models.modular_files import ModularFiles, place_parts
from support.checkpoint_folders import checkpoint_folder, modular_index

PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae", "guider", "image_encoder")


def placed(folder: Path, source: str, **where: dict[str, Any]) -> ModularFiles:
    return place_parts(Folder(folder), modular_index(source, **where), PARTS, None)


def test_it_looks_like_an_ordinary_checkpoint(tmp_path: Path) -> None:
    """A local copy of a model of the hub, whose index goes on pointing there."""
    folder = checkpoint_folder(tmp_path / "model")
    (folder / "tokenizer").mkdir()
    files = placed(folder, "owner/model")
    assert parts_of(files)["transformer"] == ("diffusers", "FluxTransformer2DModel") and not files.elsewhere
    assert read_components(files)["transformer"].config["num_attention_heads"] == 24
    assert files.count() == {"text_encoder": 1000, "transformer": 5000, "vae": 200}


def test_a_part_in_another_folder(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "model", {})
    other = checkpoint_folder(tmp_path / "other", {"transformer/diffusion_pytorch_model.safetensors": 7})
    (other / "transformer").rename(other / "net")
    (folder / "transformer" / "config.json").unlink()
    (folder / "transformer").rmdir()
    there = {"pretrained_model_name_or_path": str(other), "subfolder": "net"}
    files = placed(folder, str(folder), transformer=there)
    assert files.elsewhere == [str(other)] and files.count() == {"transformer": 7}
    assert read_components(files)["transformer"].config["num_attention_heads"] == 24


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/model", "no folder here and no hub id"),
        ("owner/model/x.safetensors", "Save it as a folder"),
    ],
)
def test_a_part_that_is_nowhere(tmp_path: Path, source: str, said: str) -> None:
    folder = checkpoint_folder(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        placed(folder, str(folder), vae={"pretrained_model_name_or_path": source, "subfolder": "apart"})
