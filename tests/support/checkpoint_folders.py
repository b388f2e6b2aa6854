"""Checkpoint folders of JSON files and safetensors headers, with no weights behind them: for what is read without torch."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
    "hidden_layers": [10, 20],
    "requires_aesthetics_score": False,
}
CONFIGS: dict[str, dict[str, object]] = {
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "text_encoder/config.json": {"d_model": 8, "torch_dtype": "bfloat16"},
    "transformer/config.json": {"_class_name": "FluxTransformer2DModel", "num_attention_heads": 24},
    "vae/config.json": {"_class_name": "AutoencoderKL", "latent_channels": 16},
}
WEIGHTS = {
    "text_encoder/model.safetensors": 1000,
    "transformer/diffusion_pytorch_model.safetensors": 5000,
    "vae/diffusion_pytorch_model.safetensors": 200,
}


def checkpoint_folder(folder: Path, weights: Mapping[str, int] = WEIGHTS, dtype: str = "BF16", **index: object) -> Path:
    """A FLUX checkpoint's folder, with so many weights in each file; `index` replaces parts of its model_index.json."""
    for name, content in {"model_index.json": INDEX | index, **CONFIGS}.items():
        write_json(folder / name, content)
    for name, count in weights.items():
        write_safetensors(folder / name, count, dtype)
    return folder


def modular_index(source: str, **where: dict[str, object]) -> dict[str, object]:
    """The modular_model_index.json of the same checkpoint.

    Args:
        source: the folder or hub id that it says its parts lie in.
        where: what it says instead of some parts.
    """
    found: dict[str, object] = {"_class_name": "FluxModularPipeline", "is_distilled": True}
    for name in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
        spec = {"pretrained_model_name_or_path": source, "subfolder": name, "revision": None, "type_hint": INDEX[name]}
        found[name] = [None, None, spec | where.get(name, {})]
    found["image_encoder"] = [None, None, {"pretrained_model_name_or_path": None, "type_hint": [None, None]}]
    return found


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def write_safetensors(file: Path, count: int, dtype: str = "BF16") -> None:
    """A whole safetensors file of one tensor, whose bytes are a hole."""
    size = count * {"F32": 4, "BF16": 2, "F16": 2}[dtype]
    header = json.dumps({"weight": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as data:
        data.write(struct.pack("<Q", len(header)) + header)
        data.truncate(8 + len(header) + size)
