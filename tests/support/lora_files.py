"""LoRA files for the tests: small ones of numbers alone, and ones that fit a tiny checkpoint.

write_lora(folder / "style.safetensors")                                    # of two layers of FLUX, for what needs no torch
fitting_lora(families / "flux", folder / "style.safetensors", seed=1)       # of all layers of its transformer
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = ("transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k")


def write_lora(
    file: Path, layers: tuple[str, ...] = LAYERS, *, rank: int = 4, width: int = 64, seed: int = 0,
    names: tuple[str, str] = ("lora_A", "lora_B"), alpha: float | None = None, change: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Factors of these layers, drawn from the seed; `change` replaces tensors by key, or takes them out (None)."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for layer in layers:
        tensors[f"{layer}.{names[0]}.weight"] = draw.normal(size=(rank, width)).astype(np.float32)
        tensors[f"{layer}.{names[1]}.weight"] = draw.normal(size=(width, rank)).astype(np.float32)
        if alpha is not None:
            tensors[f"{layer}.alpha"] = np.array(alpha, np.float32)
    tensors |= change or {}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value for key, value in tensors.items() if value is not None}, file, metadata=metadata)
    return file


def fitting_lora(
    checkpoint: Path, file: Path, *, seed: int, parts: tuple[str, ...] = ("transformer",), rank: int = 4, strength: float = 0.5,
    alpha: float | None = None, names: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """A LoRA of every linear layer in the blocks of a tiny checkpoint's networks, as diffusers saves one.

    Args:
        parts: of the pipeline; "unet" of SDXL.
        names: words of which a layer's name must have one; any, if there are none.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, (rows, columns) in _linear_layers(checkpoint, part):
            if names and not any(word in name for word in names):
                continue
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            tensors[f"{part}.{name}.lora_A.weight"] = down
            tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * strength
            if alpha is not None:
                tensors[f"{part}.{name}.alpha"] = torch.tensor(alpha)
    assert tensors, "no layer of that name"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def _linear_layers(checkpoint: Path, part: str) -> list[tuple[str, tuple[int, int]]]:
    """The linear layers in a network's blocks, with their shapes."""
    import diffusers
    import torch
    import transformers

    library, cls = json.loads((checkpoint / "model_index.json").read_text())[part]
    network: Any = getattr(diffusers if library == "diffusers" else transformers, cls)
    loaded = network.from_pretrained(checkpoint, subfolder=part)
    return [
        (name, tuple(module.weight.shape))
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and any(word.isdigit() for word in name.split("."))
    ]
