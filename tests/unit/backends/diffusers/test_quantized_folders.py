"""Parts of a checkpoint that another tool has quantised already: what is refused before anything is loaded. That they load is in
torchrun/test_weight_files.py (torchao). One of bitsandbytes is refused without a GPU; with one it was not loaded yet."""

from pathlib import Path

import pytest

from dglaunch.backends.diffusers.weight_files import check_weight_files
from dglaunch.config import BackendConfig, OptimizationConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import resolve
from support.checkpoint_folders import checkpoint_folder, write_json


@pytest.mark.parametrize(
    ("method", "device", "said"),
    [
        (
            "bitsandbytes",
            "cpu",
            "bitsandbytes, whose weights diffusers loads where there is a GPU only. Take weights that",
        ),
        ("bitsandbytes_4bit", "cpu", "loads where there is a GPU only"),
        ("gptq", "cuda", "gptq, which dglaunch has not been tried with"),
    ],
)
@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_what_cannot_be_loaded_is_refused(tmp_path: Path, part: str, method: str, device: str, said: str) -> None:
    folder = checkpoint_folder(tmp_path)
    write_json(folder / part / "config.json", {"quantization_config": {"quant_method": method}})
    with pytest.raises(UserError, match=f"The {part} was quantised by .*{said}"):
        check_weight_files(resolve(BackendConfig(model_name=str(folder))), OptimizationConfig(), device, here=False)


def test_with_a_gpu_bitsandbytes_is_let_through(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path)
    write_json(folder / "transformer" / "config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    checkpoint = resolve(BackendConfig(model_name=str(folder)))
    check_weight_files(checkpoint, OptimizationConfig(), "cuda", here=False)
    with pytest.raises(
        UserError, match="--quantization does not go with a transformer that bitsandbytes has quantised"
    ):
        check_weight_files(checkpoint, OptimizationConfig(quantization="int8"), "cuda", here=False)
