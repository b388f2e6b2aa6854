"""A published model at its true size with seeded random weights: an ordinary diffusers folder, made where no hub is.

    python -m kernels_bench.seeded black-forest-labs/FLUX.1-dev /dev/shm/flux --device cuda      # 34 GB in half a minute
    dglaunch t2i --model_name /dev/shm/flux ...

The configurations are the catalog's (dglaunch/models/catalogue), the weights are drawn on the device. Such a checkpoint
costs and weighs what the real one does: loading, memory, seconds a step. Its pictures are noise, and its tokenizer makes
each byte of a prompt one token.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from dglaunch.models.building import build
from dglaunch.models.catalogue import Entry, known
from dglaunch.models.components import Component

SHARD = "5GB"
WINDOW = 512
"""Tokens at most, of tokenizers other than CLIP's."""
CLIP_WINDOW = 77
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_checkpoint(model: str, folder: Path, device: str, seed: int = 0) -> Path:
    """Write the folder, one network after the other, so that only one is in memory.

    Args:
        model: a name of the catalog.
        folder: is made; must not exist.
        device: where the weights are drawn, in bfloat16.

    Raises:
        ValueError: the catalog does not have the model.
    """
    entry = known(model)
    if entry is None:
        raise ValueError(f"the catalog has no {model}")
    folder.mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": entry.pipeline, "_diffusers_version": entry.diffusers}
    for name, component in entry.components.items():
        _part(component, device, seed).save_pretrained(folder / name, **_how(component))
        index[name] = (component.library, component.class_name)
    for name in _tokenizers(entry):
        window = CLIP_WINDOW if _is_clip(entry, name) else WINDOW
        tokenizer(window).save_pretrained(folder / name)
        index[name] = ("transformers", "PreTrainedTokenizerFast")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _part(component: Component, device: str, seed: int) -> Any:
    """The scheduler, or a network whose matrices are drawn so that inputs of unit size give outputs of unit size."""
    if component.name == "scheduler":
        import diffusers

        return getattr(diffusers, component.class_name).from_config(dict(component.config))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            network = build(component).eval().to(torch.bfloat16)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
    return network


def _how(component: Component) -> dict[str, Any]:
    return {} if component.name == "scheduler" else {"max_shard_size": SHARD, "safe_serialization": True}


def _tokenizers(entry: Entry) -> list[str]:
    import inspect

    import diffusers

    parameters = inspect.signature(getattr(diffusers, entry.pipeline)).parameters
    return [name for name in parameters if name.startswith("tokenizer")]


def _is_clip(entry: Entry, name: str) -> bool:
    encoder = entry.components.get(name.replace("tokenizer", "text_encoder"))
    return encoder is not None and "CLIP" in encoder.class_name


def tokenizer(window: int) -> Any:
    """Bytes as tokens, with the template and the special tokens that chat models' pipelines ask for."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIALS[0], bos_token=SPECIALS[1], eos_token=SPECIALS[2],
        unk_token=SPECIALS[0], chat_template=CHAT_TEMPLATE, model_max_length=window,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(write_checkpoint(given.model, given.folder, given.device, given.seed))


if __name__ == "__main__":
    main()
