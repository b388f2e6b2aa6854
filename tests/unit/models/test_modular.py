"""Checkpoints of diffusers' modular pipelines, as their save_pretrained writes them."""

import shutil
from pathlib import Path

import pytest

from support.checkpoint_folders import checkpoint_folder, write_json
from support.commands import dglaunch


def modular(folder: Path, source: str) -> Path:
    checkpoint_folder(folder)
    spec = {"pretrained_model_name_or_path": source, "revision": None, "subfolder": "vae", "variant": None}
    parts = {"vae": ["diffusers", "AutoencoderKL", spec], "guider": [None, None, spec | {"repo": None}]}
    index = {"_blocks_class_name": "FluxAutoBlocks", "_class_name": "FluxModularPipeline", **parts}
    write_json(folder / "modular_model_index.json", index)
    return folder


@pytest.mark.parametrize("command", ["t2i", "plan"])
def test_a_modular_checkpoint_is_refused_with_where_its_parts_come_from(tmp_path: Path, command: str) -> None:
    folder = modular(tmp_path / "modular", "black-forest-labs/FLUX.1-dev")
    (folder / "model_index.json").unlink()
    words = ["plan", "t2i"] if command == "plan" else ["t2i"]
    ended = dglaunch(*words, "--model_name", folder, "--prompt", "a", "--output_dir", tmp_path / "out")
    said = " ".join(ended.output.split())
    assert ended.code == 2 and not (tmp_path / "out").exists()
    assert "FluxModularPipeline" in said and "such as black-forest-labs/FLUX.1-dev" in said


def test_one_that_is_a_pipeline_too_is_taken_as_that(tmp_path: Path) -> None:
    folder = modular(tmp_path / "both", str(tmp_path / "both"))
    ended = dglaunch("plan", "t2i", "--model_name", folder, "--prompt", "a", "--cache_dir", tmp_path / "cache")
    assert "modular" not in ended.output.replace(str(tmp_path), "")
    shutil.rmtree(folder)
