"""Model families as data: a row is chosen by the pipeline class that a checkpoint's model_index.json names."""

from dataclasses import dataclass
from typing import Any, Literal

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


_QWEN = XDiT(in_place="dglaunch.backends.xdit.exact:wrap_qwen", ring=False, image_unit="any")


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
        xdit=XDiT(in_place="dglaunch.backends.xdit.exact:wrap_zimage", cfg=True, image_unit="any"),
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
