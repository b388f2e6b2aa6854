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

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


TextOutput = Literal["row", "same", "list", "padded", "mask"]
"""One of the values that a pipeline's encode_prompt returns: a tensor with a row for each prompt, one that is the same
for all, a list with a tensor for each, a tensor padded to the longest prompt, and the mask of that padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XDiT:
    """How xfuser 0.7 runs a family, and where it would be wrong in silence."""

    wrapper: str | None = None
    """`module:Class` of the transformer inside a plain diffusers pipeline; every rank returns images."""
    in_place: str | None = None
    """`module:function` that turns the transformer of a loaded plain pipeline into xfuser's; every rank returns images."""
    pipeline: str | None = None
    """`module:Class` of an xfuser pipeline; only the last rank of a replica returns images."""
    ring: bool = True
    """Whether ring attention is right whatever the prompts' lengths."""
    cfg: bool = False
    """Whether the two branches of classifier-free guidance can go to two halves of the replica."""
    pipefusion: bool = False
    splits_text: bool = False
    """Whether the text (padded to max_sequence_length) is split, so that the degree must divide it."""
    image_unit: Literal["tokens", "rows", "any"] = "tokens"
    """What of the image the sequence-parallel degree must divide: its tokens, its rows of tokens, or nothing (padded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family: what its pipeline needs to be given and how xfuser runs it. What an editing family does with its
    input images stands in editing.py."""

    name: str
    size_multiple: int = 16
    """Width and height must be multiples of it: VAE scale x patch size."""
    default_size: int = 1024
    max_sequence_length: int = 512
    guidance: str = "guidance_scale"
    """What the pipeline calls the scale that --guidance_scale sets."""
    takes_negative: bool = True
    """Whether a negative prompt changes the image."""
    guidance_needs_negative: bool = False
    batch: bool = True
    """Whether a batch of prompts equals the same prompts one by one."""
    batch_reason: str = "its pipeline is not right with several prompts at once"
    """Why not, where it does not."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Passed on every call, to switch off what would change what the user asked for."""
    text_bucket: int = 0
    """Under xDiT, prompts share a forward pass only if their token lengths, rounded up to this, are equal (0: always)."""
    text_outputs: tuple[TextOutput, ...] = ()
    """What encode_prompt returns; () where prompts are not encoded ahead (they depend on an image, or it is unknown)."""
    only_edits: bool = False
    """Whether the pipeline needs an input image: `edit` runs it, `t2i` cannot."""
    xdit: XDiT | None = None


_TRANSFORMERS = "xfuser.model_executor.models.transformers"
_FLUX_TEXT: tuple[TextOutput, ...] = ("row", "row", "same")
_GUIDED_TEXT: tuple[TextOutput, ...] = ("row",) * 4
"""Positive and negative, each with its pooled embedding or its mask."""
_FLUX = XDiT(wrapper=f"{_TRANSFORMERS}.transformer_flux:xFuserFlux1Transformer2DWrapper", splits_text=True)
_QWEN = XDiT(in_place="dglaunch.backends.xfuser_exact:wrap_qwen", ring=False, image_unit="any")
FAMILIES: dict[str, Family] = {
    "FluxPipeline": Family(name="Flux", takes_negative=False, text_outputs=_FLUX_TEXT, xdit=_FLUX),
    "FluxKontextPipeline": Family(
        name="FluxKontext", takes_negative=False, text_outputs=_FLUX_TEXT, xdit=_FLUX, only_edits=True
    ),
    "Flux2Pipeline": Family(
        name="Flux2",
        takes_negative=False,
        text_outputs=("row", "row"),
        xdit=XDiT(wrapper=f"{_TRANSFORMERS}.transformer_flux2:xFuserFlux2Transformer2DWrapper", splits_text=True),
    ),
    "Flux2KleinPipeline": Family(
        name="Flux2Klein",
        takes_negative=False,
        text_outputs=("row", "row"),
        xdit=XDiT(wrapper=f"{_TRANSFORMERS}.transformer_flux2:xFuserFlux2Transformer2DWrapper", splits_text=True),
    ),
    "QwenImagePipeline": Family(
        name="QwenImage",
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        text_bucket=1,
        text_outputs=("padded", "mask"),
        xdit=_QWEN,
    ),
    "QwenImageEditPipeline": Family(
        name="QwenImageEdit",
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        text_bucket=1,
        xdit=_QWEN,
        only_edits=True,
    ),
    "QwenImageEditPlusPipeline": Family(
        name="QwenImageEditPlus", guidance="true_cfg_scale", guidance_needs_negative=True, only_edits=True
    ),
    "LongCatImageEditPipeline": Family(name="LongCatImageEdit", only_edits=True),
    "ZImagePipeline": Family(
        name="ZImage",
        text_bucket=32,
        text_outputs=("list", "list"),
        xdit=XDiT(in_place="dglaunch.backends.xfuser_exact:wrap_zimage", cfg=True, image_unit="any"),
    ),
    "StableDiffusion3Pipeline": Family(
        name="SD3",
        max_sequence_length=256,
        text_outputs=_GUIDED_TEXT,
        xdit=XDiT(pipeline="xfuser:xFuserStableDiffusion3Pipeline", cfg=True, pipefusion=True, image_unit="rows"),
    ),
    "PixArtSigmaPipeline": Family(
        name="PixArtSigma",
        max_sequence_length=300,
        arguments=(("use_resolution_binning", False),),
        text_outputs=_GUIDED_TEXT,
        xdit=XDiT(pipeline="xfuser:xFuserPixArtSigmaPipeline", cfg=True, pipefusion=True, image_unit="rows"),
    ),
    "PixArtAlphaPipeline": Family(
        name="PixArtAlpha", arguments=(("use_resolution_binning", False),), text_outputs=_GUIDED_TEXT
    ),
    "SanaPipeline": Family(
        name="Sana", size_multiple=32, arguments=(("use_resolution_binning", False),), text_outputs=_GUIDED_TEXT
    ),
    "CogView4Pipeline": Family(name="CogView4", batch=False),
    "GlmImagePipeline": Family(name="GlmImage", size_multiple=32, batch=False),
}
"""Pipeline class -> family. A class that is not here runs with the backend diffusers under `OTHER`'s rules."""
OTHER = Family(name="other", size_multiple=8)


def xdit_families() -> list[str]:
    """Those that draw from text alone."""
    return [family.name for family in FAMILIES.values() if family.xdit is not None and not family.only_edits]


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
        from dglaunch.tiny import checkpoint

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
