"""What a checkpoint is, read from its JSON files: its family, default size, heads and weight. torch is not imported.

A family is a row in `FAMILIES`, chosen by the pipeline class that the checkpoint's model_index.json names, never by
the model's name. The rules of xDiT in these rows were measured (see tests/test_xfuser_parity.py, which checks them).
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models.families import FAMILIES, OTHER, Family

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Checkpoint:
    """A resolved --model_name."""

    source: str
    """Local folder, or hub id."""
    pipeline_class: str
    family: Family
    defaults: dict[str, Any]
    """The checkpoint's own dglaunch.json: height, width, num_inference_steps, guidance_scale, max_sequence_length."""
    transformer: dict[str, Any]
    """The config of the transformer (or U-Net), {} if unknown."""
    local: bool

    @property
    def heads(self) -> int | None:
        """Attention heads of the transformer, which the Ulysses degree must divide."""
        return self._number("num_attention_heads") or self._number("n_heads")

    def encodes_ahead(self, mode: str) -> bool:
        """Whether a run with this --encode encodes its prompts before its first batch."""
        return mode != "inline" and bool(self.family.text_outputs)

    @property
    def width_of_model(self) -> int | None:
        """Channels of the transformer's hidden state."""
        heads, dim = self.heads, self._number("attention_head_dim")
        return heads * dim if heads and dim else None

    def _number(self, name: str) -> int | None:
        """A whole number of the transformer's config; U-Nets have lists there, one entry a level."""
        value = self.transformer.get(name)
        return value if isinstance(value, int) else None

    def size(self, side: Literal["height", "width"], given: int | None) -> int:
        """Pixels that the pipeline will use for this side."""
        return given if given is not None else self.defaults.get(side, self.family.default_size)

    def text_length(self, given: int | None) -> int:
        """Tokens that the prompt is padded to."""
        return given if given is not None else self.defaults.get("max_sequence_length", self.family.max_sequence_length)

    def image_tokens(self, height: int, width: int) -> int:
        return math.ceil(height / 16) * math.ceil(width / 16)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of weights of each component, from the headers of the safetensors files; {} if not on this machine."""
        return {
            folder.name: sum(_parameters_in(file) for file in files)
            for folder in sorted(Path(self.source).glob("*/"))
            if self.local and (files := sorted(folder.glob("*.safetensors")))
        }

    def step_tflop(self, height: int, width: int, text_tokens: int) -> float | None:
        """Work of one denoising step of one image in TFLOP; None if the transformer is not on this machine.

        Linear layers: 2 operations a weight and token, where in a double-stream transformer about 54 % of the weights
        meet each token (the rest is the other stream's, and modulation). Attention: 4 x tokens^2 x width a layer. For
        FLUX.1-dev at 1024x1024 that is 60 + 14.9, as counted layer by layer.
        """
        weights = self.parameters.get("transformer") or self.parameters.get("unet")
        if not weights or self.width_of_model is None:
            return None
        tokens = self.image_tokens(height, width) + text_tokens
        layers = sum(self._number(name) or 0 for name in ("num_layers", "num_single_layers"))
        return (2 * 0.54 * weights * tokens + 4 * layers * tokens**2 * self.width_of_model) / 1e12


def _parameters_in(file: Path) -> int:
    """Weights in one safetensors file: 8 bytes of header length, then the header as JSON."""
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        header = json.loads(data.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def resolve(config: BackendConfig) -> Checkpoint:
    """Find a checkpoint and read its JSON files; from the hub only those are fetched.

    Raises:
        UserError: there is no such folder, or it is no diffusers checkpoint, or the hub does not have it.
    """
    if config.model_name == "tiny":
        from dglaunch.tiny.folder import checkpoint

        return _from_folder(checkpoint(config.cache_dir))
    folder = Path(config.model_name).expanduser()
    if folder.is_dir():
        return _from_folder(folder)
    if folder.is_absolute() or config.model_name.startswith(".") or config.model_name.count("/") != 1:
        raise UserError(
            f"--model_name {config.model_name} is no folder here and no hub id (owner/name). Correct the path, or use "
            "`tiny`, which ships with dglaunch."
        )
    return _from_hub(config)


def _from_folder(folder: Path) -> Checkpoint:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} has no model_index.json, so it is no diffusers checkpoint. Give the folder that holds it (single "
            "files must be converted first: DiffusionPipeline.from_single_file(...).save_pretrained(...))."
        )
    configs = [folder / name / "config.json" for name in ("transformer", "unet")]
    transformer = next((_json(file) for file in configs if file.is_file()), {})
    own = folder / "dglaunch.json"
    return _checkpoint(str(folder), _json(index), transformer, _json(own) if own.is_file() else {}, local=True)


def _from_hub(config: BackendConfig) -> Checkpoint:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(name: str) -> dict[str, Any]:
        return _json(Path(hf_hub_download(config.model_name, name, revision=config.revision)))

    try:
        index = fetch("model_index.json")
    except LocalEntryNotFoundError:
        raise UserError(
            f"{config.model_name} is not in this machine's hub cache and the hub cannot be reached. Download it where "
            f"there is a network (hf download {config.model_name}), or give a local folder."
        ) from None
    except (HfHubHTTPError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The hub does not give {config.model_name}: {reason} Check the name; for a gated model accept its terms "
            "and log in (hf auth login)."
        ) from None
    transformer: dict[str, Any] = {}
    for name in ("transformer", "unet"):
        try:
            transformer = fetch(f"{name}/config.json")
            break
        except EntryNotFoundError:
            continue
    return _checkpoint(config.model_name, index, transformer, {}, local=False)


def _checkpoint(source: str, index: dict, transformer: dict, defaults: dict, local: bool) -> Checkpoint:
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"The model_index.json of {source} names no pipeline class (_class_name); it cannot be loaded.")
    family = FAMILIES.get(name, OTHER)
    if name in (
        "PixArtSigmaPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionPipeline",
    ):
        side = (transformer.get("sample_size") or 128) * 8
        defaults = {"height": side, "width": side} | defaults
    return Checkpoint(source, name, family, defaults, transformer, local)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); fetch the checkpoint again.") from None


def token_lengths(checkpoint: Checkpoint, prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt as the family's pipeline counts them (up to a constant for its template)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.source, subfolder="tokenizer")
    if checkpoint.family.name == "ZImage":
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for prompt in prompts
        ]
    return [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
