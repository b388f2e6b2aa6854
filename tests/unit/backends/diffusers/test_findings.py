"""What a self-test found is kept under all that it depends on, and read only as it was written."""

from dataclasses import replace
from pathlib import Path

import pytest

from dglaunch import BackendConfig, OptimizationConfig, T2IConfig
from dglaunch.backends.diffusers.findings import Findings, file_of, keep, recall
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER

FOUND = Findings(multiple=16, why_single="because", by_global_state=True)


def place(folder: Path, device: str = "cpu", dtype: str = "float32", **optimization: object) -> Path:
    config = T2IConfig(prompt="x", backend=BackendConfig(cache_dir=folder / "cache"))
    config = replace(config, optimization=OptimizationConfig(**optimization))
    file = file_of(Checkpoint(str(folder / "m"), "NewPipeline", OTHER, {}, {}, True), config, device, dtype)
    assert file is not None
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m" / "transformer").mkdir(parents=True)
    (tmp_path / "m" / "model_index.json").write_text("{}")
    (tmp_path / "m" / "transformer" / "w.safetensors").write_bytes(b"1")
    return tmp_path


def test_it_comes_back(model: Path) -> None:
    file = place(model)
    assert recall(file) is None
    keep(file, FOUND)
    assert recall(file) == FOUND


def test_another_checkpoint_device_type_or_flag_is_another_file(model: Path) -> None:
    first = place(model)
    files = {first, place(model, device="cuda"), place(model, dtype="bfloat16"), place(model, enable_fuse_qkv=True)}
    assert len(files) == 4 and place(model, embedding_cache=model / "e") == first
    (model / "m" / "transformer" / "w.safetensors").write_bytes(b"22")
    assert place(model) not in files


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"multiple": "8"}', '{"multiple": 8, "more": 1}'])
def test_what_is_not_as_it_was_written_counts_as_nothing(model: Path, text: str) -> None:
    keep(file := place(model), FOUND)
    file.write_text(text)
    assert recall(file) is None


def test_what_anybody_may_have_written_counts_as_nothing(model: Path) -> None:
    keep(file := place(model), FOUND)
    file.chmod(0o666)
    assert recall(file) is None
