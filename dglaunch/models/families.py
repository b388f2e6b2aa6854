"""Model families as data: ONE row a family, chosen by the pipeline class that a checkpoint's model_index.json names.

A row says what the pipeline needs to be given, how xfuser runs it, what `edit` does with its input images, and which of
the optimizations were measured to work with it. The rules of xDiT were measured (tests of the parity with xfuser check
them). torch is not imported here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dglaunch.models import input_pipelines as inputs
from dglaunch.models.editing import EditRules, a_megapixel, at_most_a_megapixel, down_to, kontext_input, kontext_output
from dglaunch.models.input_roles import InputPipeline, Role

TextOutput = Literal["row", "same", "list", "padded", "mask"]
"""One of the values that a pipeline's encode_prompt returns: a tensor with a row for each prompt, one that is the same
for all, a list with a tensor for each, a tensor padded to the longest prompt, and the mask of that padding."""


GUIDED = 4.0
"""A guidance scale that stands for all with which there is guidance: they cost the same."""


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
    splits_text: bool = False
    """Whether the text (padded to max_sequence_length) is split, so that the degree must divide it."""
    fixed_text_length: bool = False
    """Whether xfuser's pipeline drops max_sequence_length and always uses the family's own."""
    pads_heads: bool = False
    """Whether the attention heads are padded, so that the Ulysses degree need not divide them."""
    token_multiple: int | None = None
    """Tokens are padded to multiples of it, which the sequence-parallel degree must then divide."""
    masked_attention: str = ""
    """The kernel to which attention with a mask goes, whatever --attention_backend says."""
    image_unit: Literal["tokens", "rows", "any"] = "tokens"
    """What of the image the sequence-parallel degree must divide: its tokens, its rows of tokens, or nothing (padded)."""
    takes: frozenset[str] = frozenset()
    """Optimizations that reach xfuser's transformer and give diffusers' images, of those that depend on the family."""
    inputs: frozenset[str] = frozenset()
    """Pipelines of `with_inputs` that give diffusers' images with its transformer."""
    no_inputs: str = "its ControlNet's output is not split as the transformer is"
    """Why the others do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRules:
    """What of --lora a family was measured to do right."""

    mixes: bool = True
    """Whether rows with different LoRAs may share a call of the pipeline."""
    apart: tuple[str, ...] = ()
    """Modules that get the tokens of all rows as one sequence, so that with a LoRA there rows may not share a call."""
    encoders: tuple[str, ...] = ()
    """The text encoders that diffusers loads a LoRA into; tensors for others would be dropped in silence."""
    xdit: Literal["after", "before", "fused"] = "after"
    """When it is loaded where xfuser runs the model: after xfuser has taken the transformer, before that, or before and
    added to the weights, which then is one LoRA (or one set) for all rows."""
    mixes_xdit: bool = False
    """Whether rows with different LoRAs may share a call there, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWindow:
    """How much of a prompt one of a pipeline's text encoders reads: max_sequence_length tokens, if nothing else is said."""

    tokenizer: str = "tokenizer"
    """The pipeline's name for the tokenizer, and for its folder."""
    own: bool = False
    """Whether it reads as much as the tokenizer itself says (CLIP: 77 tokens)."""
    before: str = ""
    """What the pipeline puts before a prompt, but not before a negative one, within the window."""
    chat: bool = False
    """Whether it puts a prompt into the tokenizer's chat template, within the window."""
    system: str | None = None
    """`module:attribute` of the system message of that chat."""
    lower: bool = False
    """Whether it reads a prompt in small letters."""
    reserved: int = 0
    """Tokens of the window that the prompt does not get."""
    spells_quotes: bool = False
    """Whether quoted words are tokenized letter by letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSwitch:
    """An entry of a checkpoint's files that says whether its model looks at the guidance scale at all: distilled ones of the
    same pipeline do not."""

    where: Literal["transformer", "pipeline"]
    """In the transformer's config.json, or in the model_index.json."""
    key: str
    guided: bool
    """Its value where the scale changes the image."""
    default: bool
    """Its value where the file does not say: the class's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family: what its pipeline needs to be given, and what it can do."""

    name: str
    size_multiple: int = 16
    """Width and height must be multiples of it: VAE scale x patch size."""
    default_size: int = 1024
    sized_by_transformer: bool = False
    """Whether the pipeline's own default size is the sample_size of its transformer, in latents of 8 pixels."""
    max_sequence_length: int = 512
    takes_text_length: bool = True
    """Whether its pipeline takes max_sequence_length, and cuts prompts at it."""
    max_sequence_limit: int | None = None
    """The longest that the pipeline's check_inputs lets through; None: any."""
    guidance: str = "guidance_scale"
    """What the pipeline calls the scale that --guidance_scale sets; "" where it takes none."""
    guidance_switch: GuidanceSwitch | None = None
    """What tells its distilled checkpoints, which ignore the guidance scale; None where all look at it."""
    guided_above: float | None = 1.0
    """Up to this scale there is no guidance, and so nothing that a negative prompt is for; None where it is not known."""
    with_guidance: tuple[tuple[str, object], ...] = ()
    """Passed along with a guidance scale: what else the call would go by."""
    schedule_steps: int | None = None
    """The denoising steps of which the pipeline's own schedule of guidance scales consists; None where there is none."""
    takes_negative: bool = True
    """Whether a negative prompt changes the image."""
    negative_part: str = ""
    """The part of a checkpoint without which no negative prompt is looked at."""
    guidance_needs_negative: bool = False
    """Whether guidance is applied against a given negative prompt only."""
    masked_guidance: float | None = None
    """The pipeline's own guidance scale, where a prompt and its negative one share a call that needs an attention mask."""
    batch: bool = True
    """Whether a batch of prompts equals the same prompts one by one."""
    batch_reason: str = "its pipeline is not right with several prompts at once"
    """Why not, where it does not."""
    masks_lengths: bool = False
    """Whether prompts of different lengths in one call put a mask on the attention over the image, too, which costs time."""
    since: str = ""
    """The first diffusers that has its pipeline, where that is not the oldest one that dglaunch goes with."""
    package: tuple[str, str] | None = None
    """A package that its pipeline needs beside diffusers and transformers, and the extra that brings it."""
    area_attribute: str = ""
    """What of the pipeline holds the side, in latents of 8 pixels, of the square to whose area it scales every size; it is
    set to what was asked for."""
    is_measured: bool = True
    """Whether the row says what was measured; else a self-test on the loaded model finds out what it cannot say."""
    num_steps: int | None = None
    """Denoising steps of a call that is not told how many; None where nobody looked."""
    arguments: tuple[tuple[str, object], ...] = ()
    """Passed on every call, to switch off what would change what the user asked for."""
    text_bucket: int = 0
    """Under xDiT, prompts share a forward pass only if their token lengths, rounded up to this, are equal (0: always)."""
    chat_template: bool = False
    """Whether the pipeline puts a prompt into the tokenizer's chat template before it counts its tokens."""
    windows: tuple[TextWindow, ...] | None = None
    """What each text encoder reads of a prompt; () where they read all of it, None where it is not known."""
    cuts_prompts: bool = True
    """Whether its pipeline cuts a prompt that is too long; LongCat's fails instead (len(len(...)) in its warning)."""
    text_outputs: tuple[TextOutput, ...] = ()
    """What encode_prompt returns; () where prompts are not encoded ahead (they depend on an image, or it is unknown)."""
    tensor_output: bool = True
    """Whether images are asked for as tensors (`output_type="pt"`); only the pipelines of this table are known to."""
    only_edits: bool = False
    """Whether the pipeline needs an input image: `edit` runs it, `t2i` cannot."""
    edit: EditRules | None = None
    """What `edit` does with input images; None where the pipeline takes none."""
    with_inputs: tuple[InputPipeline, ...] = ()
    """The pipelines with which t2i draws from images, within masks and after control images; () where there are none."""
    no_inputs: str = "dglaunch knows no pipeline of diffusers that does it for this family"
    """Why there are none."""
    own_steps: int = 50
    """Denoising steps of its text-to-image pipeline where nobody says how many: what a strength is a share of."""
    xdit: XDiT | None = None
    """How xfuser runs it; None where it does not."""
    lora: LoraRules | None = None
    """What --lora does with it; None where diffusers loads none into its pipeline."""
    takes: frozenset[str] | None = None
    """Of the optimizations that depend on the family, those that were measured to work (tests/torchrun/test_optimizations.py
    tries them again). None: nobody measured, so each is let through and the loaded modules decide."""
    shares: frozenset[str] = frozenset()
    """The ways in which the ranks of a replica were measured to share it by diffusers itself: the values of --parallel and
    --shard (tests/torchrun/test_sharing.py tries them again)."""
    whole_under_tensor: float = 0.0
    """Share of the transformer's weights that --shard tensor leaves whole on each rank: what diffusers' plan does not name, by
    the published configuration."""

    guides_in_one_call: bool = False
    """Whether guidance calls the transformer once, with both branches in the batch, and not twice."""

    def guidance_of(self, scale: float | None, steps: int) -> float | None:
        """Return the guidance scale to pass for so many denoising steps. None is the pipeline's own; where that is a schedule of another
        number of steps, a scale stands for it that costs the same."""
        return GUIDED if scale is None and self.schedule_steps not in (None, steps) else scale

    def input_pipeline(self, roles: tuple[Role, ...]) -> InputPipeline | None:
        """Return the pipeline for rows with these input images; None if there is none."""
        return next((each for each in self.pipelines_with_inputs if each.roles == roles), None)

    @property
    def pipelines_with_inputs(self) -> tuple[InputPipeline, ...]:
        """Return those for rows of t2i with input images, and the one for edits within masks."""
        inpaint = self.edit.inpaint if self.edit is not None else None
        return self.with_inputs if inpaint is None else (*self.with_inputs, inpaint)

    @property
    def controlnet_class(self) -> str:
        """diffusers' class of its ControlNets; "" where it has none."""
        return next((each.controlnet for each in self.with_inputs if each.controlnet and not each.refused), "")


def _names(text: str) -> frozenset[str]:
    """Names of optimizations, where `cache:pab` stands for `cache_type pab`."""
    return frozenset(word.replace("cache:", "cache_type ") for word in text.split())


_TRANSFORMERS = "xfuser.model_executor.models.transformers"
_FLUX_TEXT: tuple[TextOutput, ...] = ("row", "row", "same")
_GUIDED_TEXT: tuple[TextOutput, ...] = ("row",) * 4
"""Positive and negative, each with its pooled embedding or its mask."""
_EMBEDDED_GUIDANCE = GuidanceSwitch(where="transformer", key="guidance_embeds", guided=True, default=False)
_FLUX_WINDOWS = (TextWindow(own=True), TextWindow(tokenizer="tokenizer_2"))
_LUMINA2_SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts."
)
_FLUX = XDiT(
    wrapper=f"{_TRANSFORMERS}.transformer_flux:xFuserFlux1Transformer2DWrapper",
    splits_text=True,
    takes=_names("cache:taylor_seer cache:faster_cache cache:pab cache:mag_cache cache:fbcache enable_fuse_qkv"),
    inputs=frozenset({"FluxImg2ImgPipeline", "FluxInpaintPipeline"}),
)
_FLUX2 = XDiT(
    wrapper=f"{_TRANSFORMERS}.transformer_flux2:xFuserFlux2Transformer2DWrapper",
    splits_text=True,
    takes=_names("cache:faster_cache cache:pab cache:fbcache enable_fuse_qkv"),
)
_QWEN = XDiT(
    in_place="dglaunch.backends.xdit.exact:wrap_qwen",
    ring=False,
    image_unit="any",
    inputs=frozenset({"QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"}),
)
_FLUX2_EDIT = EditRules(
    name="flux2",
    shared_image_batch=True,
    multi_image=True,
    reason="every image is a reference for every prompt of the call",
    input_shape=at_most_a_megapixel,
    input_text="its own, at most 1 Mpx",
    output_shape=at_most_a_megapixel,
    output_text="as the first image",
    min_side=64,
    max_aspect=8,
)
_FLUX_LORA = LoraRules(encoders=("text_encoder",), mixes_xdit=True)
_CLIP_LORA = LoraRules(encoders=("text_encoder", "text_encoder_2"))
_ONE_LORA = LoraRules(mixes=False)
"""Nobody measured whether rows with different LoRAs may share a call."""
_QWEN_TAKES = _names("attention_backend enable_compile cache:first_block_cache cache:taylor_seer cache:cache_dit")
_GUIDED_TAKES = _names("enable_fuse_qkv cache:cache_dit")
_PLANNED = _names("context fsdp tensor")
"""What a transformer is shared by for which diffusers has a plan of both kinds."""
_FSDP = _names("fsdp")

FAMILIES: dict[str, Family] = {
    "FluxPipeline": Family(
        name="Flux",
        max_sequence_limit=512,
        guidance_switch=_EMBEDDED_GUIDANCE,
        takes_negative=False,
        windows=_FLUX_WINDOWS,
        text_outputs=_FLUX_TEXT,
        with_inputs=inputs.FLUX,
        own_steps=28,
        xdit=_FLUX,
        lora=_FLUX_LORA,
        takes=_names(
            "attention_backend enable_compile enable_fuse_qkv cache:first_block_cache cache:taylor_seer "
            "cache:faster_cache cache:pab cache:mag_cache cache:cache_dit"
        ),
        shares=_PLANNED,
        whole_under_tensor=0.28,
    ),
    "FluxKontextPipeline": Family(
        name="FluxKontext",
        max_sequence_limit=512,
        guidance_switch=_EMBEDDED_GUIDANCE,
        takes_negative=False,
        windows=_FLUX_WINDOWS,
        text_outputs=_FLUX_TEXT,
        only_edits=True,
        edit=EditRules(
            name="flux1_kontext",
            shared_image_batch=True,
            equal_size_batch=True,
            reason="a list of images goes with the list of prompts (1e-6 from one by one); it is resized to the first's size",
            input_shape=kontext_input,
            input_text="the trained size nearest in shape",
            output_shape=kontext_output,
            output_text="as the image becomes",
            inpaint=inputs.KONTEXT_MASK,
            loads_from="FluxPipeline",
        ),
        own_steps=28,
        xdit=replace(_FLUX, takes=frozenset(), inputs=frozenset({"FluxKontextInpaintPipeline"})),
        lora=_FLUX_LORA,
        takes=_names("attention_backend enable_compile enable_fuse_qkv cache:faster_cache cache:pab cache:cache_dit"),
        shares=_PLANNED,
        whole_under_tensor=0.28,
    ),
    "Flux2Pipeline": Family(
        name="Flux2",
        guidance_switch=replace(_EMBEDDED_GUIDANCE, default=True),
        takes_negative=False,
        windows=(TextWindow(chat=True, system="diffusers.pipelines.flux2.system_messages:SYSTEM_MESSAGE"),),
        text_outputs=("row", "row"),
        no_inputs=inputs.REFERENCES,
        edit=_FLUX2_EDIT,
        xdit=_FLUX2,
        lora=LoraRules(mixes_xdit=True),
        takes=_names("attention_backend enable_compile enable_fuse_qkv cache:faster_cache cache:pab cache:cache_dit"),
        shares=_PLANNED,
        whole_under_tensor=0.03,
    ),
    "Flux2KleinPipeline": Family(
        name="Flux2Klein",
        guidance_switch=GuidanceSwitch(where="pipeline", key="is_distilled", guided=False, default=False),
        takes_negative=False,
        windows=(TextWindow(chat=True),),
        text_outputs=("row", "row"),
        no_inputs=inputs.REFERENCES,
        edit=replace(_FLUX2_EDIT, name="flux2_klein", inpaint=inputs.KLEIN_MASK),
        xdit=replace(_FLUX2, takes=frozenset(), inputs=frozenset({"Flux2KleinInpaintPipeline"})),
        lora=LoraRules(mixes_xdit=True),
        takes=_names(
            "attention_backend enable_compile enable_fuse_qkv cache:taylor_seer cache:faster_cache cache:pab cache:cache_dit"
        ),
        shares=_PLANNED,
        whole_under_tensor=0.05,
    ),
    "QwenImagePipeline": Family(
        name="QwenImage",
        max_sequence_limit=1024,
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        text_bucket=1,
        windows=(TextWindow(),),
        text_outputs=("padded", "mask"),
        masks_lengths=True,
        with_inputs=inputs.QWEN,
        xdit=_QWEN,
        lora=LoraRules(),
        takes=_QWEN_TAKES,
        shares=_PLANNED,
        whole_under_tensor=0.34,
    ),
    "QwenImageEditPipeline": Family(
        name="QwenImageEdit",
        takes_text_length=False,
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        text_bucket=1,
        windows=(),
        only_edits=True,
        edit=EditRules(
            name="qwen_singleimg",
            equal_size_batch=True,
            reason="a list of images goes with the list of prompts (2e-6 from one by one); it is resized to the first's size",
            input_shape=a_megapixel,
            input_text="1 Mpx",
            seen_tokens=1369,
            output_text="1 Mpx, in the shape of the image",
            inpaint=inputs.QWEN_EDIT_MASK,
        ),
        xdit=replace(_QWEN, inputs=frozenset({"QwenImageEditInpaintPipeline"})),
        lora=LoraRules(),
        takes=_QWEN_TAKES,
        shares=_PLANNED,
        whole_under_tensor=0.34,
    ),
    "QwenImageEditPlusPipeline": Family(
        name="QwenImageEditPlus",
        takes_text_length=False,
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        windows=(),
        only_edits=True,
        edit=EditRules(
            name="qwen",
            batch_disabled=True,
            multi_image=True,
            reason="the pipeline takes several images for one prompt, and refuses a second prompt",
            input_shape=a_megapixel,
            input_text="1 Mpx",
            seen_tokens=196,
            output_text="1 Mpx, in the shape of the last image",
        ),
        lora=LoraRules(),
        xdit=_QWEN,
        takes=_QWEN_TAKES,
        shares=_PLANNED,
        whole_under_tensor=0.34,
    ),
    "LongCatImageEditPipeline": Family(
        name="LongCatImageEdit",
        takes_text_length=False,
        windows=(TextWindow(spells_quotes=True),),
        cuts_prompts=False,
        only_edits=True,
        edit=EditRules(
            name="longcat",
            batch_disabled=True,
            reason="the pipeline refuses a second prompt",
            input_shape=a_megapixel,
            input_text="1 Mpx",
            seen_tokens=324,
            output_text="1 Mpx, in the shape of the image; cannot be set",
            sets_size=False,
        ),
        takes=_names("attention_backend enable_compile"),
        shares=_FSDP,
    ),
    "ZImagePipeline": Family(
        name="ZImage",
        guided_above=0.0,
        masked_guidance=5.0,
        text_bucket=32,
        chat_template=True,
        windows=(TextWindow(chat=True),),
        text_outputs=("list", "list"),
        with_inputs=inputs.ZIMAGE,
        xdit=XDiT(
            in_place="dglaunch.backends.xdit.exact:wrap_zimage",
            cfg=True,
            pads_heads=True,
            token_multiple=32,
            image_unit="any",
            inputs=frozenset({"ZImageImg2ImgPipeline", "ZImageInpaintPipeline"}),
        ),
        lora=LoraRules(apart=("x_embedder", "cap_embedder")),
        takes=_names("attention_backend enable_compile cache:cache_dit"),
        shares=_FSDP,
        guides_in_one_call=True,
    ),
    "StableDiffusion3Pipeline": Family(
        name="SD3",
        max_sequence_limit=512,
        sized_by_transformer=True,
        max_sequence_length=256,
        windows=(
            TextWindow(own=True),
            TextWindow(tokenizer="tokenizer_2", own=True),
            TextWindow(tokenizer="tokenizer_3"),
        ),
        text_outputs=_GUIDED_TEXT,
        with_inputs=inputs.SD3,
        own_steps=28,
        xdit=XDiT(
            no_inputs="xfuser's own pipeline of it draws from text alone",
            pipeline="xfuser:xFuserStableDiffusion3Pipeline",
            cfg=True,
            fixed_text_length=True,
            image_unit="rows",
        ),
        lora=replace(_CLIP_LORA, xdit="fused"),
        takes=_GUIDED_TAKES,
        shares=_FSDP,
        guides_in_one_call=True,
    ),
    "PixArtSigmaPipeline": Family(
        name="PixArtSigma",
        sized_by_transformer=True,
        max_sequence_length=300,
        windows=(TextWindow(lower=True),),
        arguments=(("use_resolution_binning", False),),
        text_outputs=_GUIDED_TEXT,
        xdit=XDiT(pipeline="xfuser:xFuserPixArtSigmaPipeline", cfg=True, image_unit="rows"),
        takes=_GUIDED_TAKES,
        shares=_FSDP,
        guides_in_one_call=True,
    ),
    "Lumina2Pipeline": Family(
        name="Lumina2",
        max_sequence_limit=512,
        sized_by_transformer=True,
        max_sequence_length=256,
        windows=(TextWindow(before=f"{_LUMINA2_SYSTEM} <Prompt Start> "),),
        text_outputs=_GUIDED_TEXT,
        xdit=XDiT(
            pipeline="xfuser:xFuserLumina2Pipeline",
            ring=False,
            cfg=True,
            masked_attention="SDPA",
            image_unit="rows",
        ),
        lora=LoraRules(xdit="before"),
        takes=_names("cache:cache_dit"),
        shares=_FSDP,
    ),
    "PixArtAlphaPipeline": Family(
        name="PixArtAlpha",
        max_sequence_length=120,
        windows=(TextWindow(lower=True),),
        arguments=(("use_resolution_binning", False),),
        text_outputs=_GUIDED_TEXT,
        takes=_names("enable_fuse_qkv"),
    ),
    "SanaPipeline": Family(
        name="Sana",
        size_multiple=32,
        max_sequence_length=300,
        windows=(TextWindow(lower=True, reserved=1),),
        arguments=(("use_resolution_binning", False),),
        text_outputs=_GUIDED_TEXT,
        lora=LoraRules(),
        takes=frozenset(),
        with_inputs=inputs.SANA,
        own_steps=20,
    ),
    "StableDiffusionXLPipeline": Family(
        name="SDXL",
        size_multiple=8,
        takes_text_length=False,
        guided_above=None,
        tensor_output=False,
        windows=(TextWindow(own=True), TextWindow(tokenizer="tokenizer_2", own=True)),
        lora=LoraRules(encoders=_CLIP_LORA.encoders),
        with_inputs=inputs.SDXL,
    ),
    "CogView4Pipeline": Family(
        name="CogView4",
        max_sequence_length=1024,
        windows=(TextWindow(),),
        batch=False,
        lora=LoraRules(),
        takes=frozenset(),
    ),
    "QwenImage21Pipeline": Family(
        name="QwenImage21",
        since="0.41.0",
        lora=_ONE_LORA,
        size_multiple=32,
        takes_text_length=False,
        guidance="true_cfg_scale",
        guidance_needs_negative=True,
        windows=(),
        batch=False,
        batch_reason="two prompts of different length in a call come out wrong (1.0 from one by one in diffusers 0.42.1)",
    ),
    "Krea2Pipeline": Family(
        name="Krea2", since="0.39.0", lora=_ONE_LORA, guided_above=0.0, windows=(TextWindow(reserved=5),)
    ),
    "Ideogram4Pipeline": Family(
        name="Ideogram4",
        since="0.39.0",
        lora=_ONE_LORA,
        default_size=2048,
        max_sequence_length=2048,
        with_guidance=(("guidance_schedule", None),),
        schedule_steps=48,
        num_steps=48,
        takes_negative=False,
        arguments=(("prompt_upsampling", False),),
        windows=(TextWindow(chat=True, reserved=5),),
        cuts_prompts=False,
    ),
    "ErnieImagePipeline": Family(
        name="ErnieImage",
        since="0.38.0",
        lora=_ONE_LORA,
        takes_text_length=False,
        arguments=(("use_pe", False),),
        windows=(TextWindow(own=True),),
    ),
    "ChromaPipeline": Family(
        name="Chroma",
        lora=_CLIP_LORA,
        max_sequence_limit=512,
        windows=(TextWindow(),),
        text_outputs=("row", "same", "row", "row", "same", "row"),
        with_inputs=inputs.CHROMA,
        own_steps=35,
    ),
    "HiDreamImagePipeline": Family(
        name="HiDream",
        lora=_CLIP_LORA,
        max_sequence_length=128,
        area_attribute="default_sample_size",
        windows=tuple(TextWindow(tokenizer=f"tokenizer{number}") for number in ("", "_2", "_3", "_4")),
    ),
    "HunyuanImagePipeline": Family(
        name="HunyuanImage",
        size_multiple=32,
        default_size=2048,
        max_sequence_length=1000,
        takes_text_length=False,
        guidance="distilled_guidance_scale",
        guidance_switch=_EMBEDDED_GUIDANCE,
        negative_part="guider",
        windows=(TextWindow(),),
    ),
    "HunyuanDiTPipeline": Family(
        name="HunyuanDiT",
        sized_by_transformer=True,
        windows=(TextWindow(own=True), TextWindow(tokenizer="tokenizer_2")),
        max_sequence_length=256,
        takes_text_length=False,
        arguments=(("use_resolution_binning", False),),
        with_inputs=inputs.HUNYUAN_DIT,
    ),
    "PRXPipeline": Family(
        name="PRX",
        size_multiple=32,
        windows=(TextWindow(own=True, lower=True),),
        default_size=512,
        max_sequence_length=256,
        takes_text_length=False,
        batch=False,
        batch_reason="with guidance its call has the time of one prompt, and fails with two (diffusers 0.42.1)",
        arguments=(("use_resolution_binning", False),),
        package=("ftfy", "prx"),
    ),
    "NucleusMoEImagePipeline": Family(name="NucleusMoE", since="0.38.0", max_sequence_length=1024, windows=()),
    "BriaFibo2Pipeline": Family(name="BriaFibo2", since="0.42.0", lora=_ONE_LORA, takes_text_length=False, windows=()),
    "Flux2KleinKVPipeline": Family(
        name="Flux2KleinKV",
        since="0.38.0",
        lora=_ONE_LORA,
        guidance="",
        takes_negative=False,
        num_steps=4,
        windows=(TextWindow(chat=True),),
    ),
    "LongCatImagePipeline": Family(
        name="LongCatImage",
        takes_text_length=False,
        arguments=(("enable_prompt_rewrite", False),),
        windows=(TextWindow(spells_quotes=True),),
    ),
    "GlmImagePipeline": Family(
        name="GlmImage",
        size_multiple=32,
        takes_negative=False,
        windows=(),
        batch=False,
        no_inputs=inputs.REFERENCES,
        edit=EditRules(
            name="glm_image",
            batch_disabled=True,
            multi_image=True,
            reason="several images a request, and its first half draws all prompts' tokens from one random state",
            input_shape=down_to(16),
            input_text="its own",
            output_shape=down_to(32),
            output_text="as the first image",
            known_trouble="editing with GLM-Image fails inside transformers in these library versions",
        ),
        takes=_names("enable_compile"),
    ),
}
"""Pipeline class -> family. A class that is not here runs with the backend diffusers under `OTHER`'s rules."""
OTHER = Family(
    name="other",
    size_multiple=8,
    guided_above=None,
    tensor_output=False,
    lora=LoraRules(mixes=False, encoders=("text_encoder", "text_encoder_2")),
)


def attends_twice(transformer: Mapping[str, object]) -> bool:
    """Whether blocks of a transformer's configuration have a second attention, of the image alone, which xfuser cannot
    split over ranks: Stable Diffusion 3.5 medium has them."""
    return bool(transformer.get("dual_attention_layers"))


def xdit_families() -> list[str]:
    """Return the names of those that xfuser runs and that draw from text alone."""
    return [family.name for family in FAMILIES.values() if family.xdit is not None and not family.only_edits]


def xdit_editors() -> list[str]:
    """Return the --model_type of those that xfuser runs and that edit."""
    return [f.edit.name for f in FAMILIES.values() if f.xdit is not None and f.edit is not None]


def masked_editors() -> list[str]:
    """Return the --model_type of those that paint within a mask."""
    return [f.edit.name for f in FAMILIES.values() if f.edit is not None and f.edit.inpaint is not None]


def editors() -> dict[str, str]:
    """Return the pipeline class of each --model_type."""
    return {family.edit.name: name for name, family in FAMILIES.items() if family.edit is not None}


def families_shared_by(way: str) -> list[str]:
    """Return the families that one way of diffusers shares over the ranks of a replica."""
    return _measured(way, ((family.name, family.shares) for family in FAMILIES.values()))


def families_taking(optimization: str) -> list[str]:
    """Return the families for which an optimization was measured to work; [] if it does not depend on the family."""
    return _measured(optimization, ((family.name, family.takes or ()) for family in FAMILIES.values()))


def xdit_families_taking(optimization: str) -> list[str]:
    """Return those for which it reaches xfuser's transformer; [] if that does not depend on the family."""
    return _measured(optimization, ((f.name, f.xdit.takes) for f in FAMILIES.values() if f.xdit is not None))


def _measured(optimization: str, rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    return [name for name, takes in rows if optimization in takes]
