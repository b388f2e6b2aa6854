"""Tiny random checkpoints, one per model family, saved as ordinary diffusers folders.

    python tests/support/tiny_models.py flux /tmp/tiny/flux      # then: dglaunch ... --model_name /tmp/tiny/flux

Nothing is downloaded: the tokenizers are made here, the networks have 2 narrow layers, and a folder loads with
plain `DiffusionPipeline.from_pretrained(folder)`, so the code under test cannot tell it from a real checkpoint. Four
choices make the images worth comparing:

- Every matrix is drawn again with std GAIN/sqrt(fan_in) and every embedding with std 1. The usual initialisation
  (std 0.02, gates at zero) leaves the output almost independent of the prompt: a wrong prompt would go unnoticed.
- There are as many attention heads as in the real model, as the splits that there are follow from it: 30 in Z-Image, 38 in
  SD 3.5 large, 24 with 8 of keys and values in Lumina 2, 24 in Qwen-Image, 16 in PixArt. Not in FLUX, which attends to 512
  tokens of text at this size too (6 times the seconds): its 24 heads, and FLUX.2's 48, allow what 4 allow and more.
- The VAE shrinks by 8 as the real ones do, so image sizes mean as many tokens here as there.
- Flux2 and Klein read hidden states 30 and 27 of their text encoders; these have as many (very narrow) layers, so that
  nothing has to be passed at run time that a user would not pass.

No folder needs torchvision: transformers falls back to its PIL image processors, Flux2, whose pipeline uses its
processor only as a tokenizer with a chat template, is given just that, and for Qwen see `image_processor`.
"""

import fcntl
import json
import math
import os
import string
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

WIDTH = 32  # hidden size of the text encoders; four heads of eight
HEADS = 4
HEAD_DIM = 16  # of the transformers, whose inner width is therefore 64
ROPE = (4, 6, 6)  # adds up to HEAD_DIM
NARROW_ROPE = (2, 2, 4)  # where there are many heads
LAYERS = 2
GAIN = 1.4  # at 1 some families barely see the prompt; at 2 SD3 amplifies rounding errors until they can be seen

# --- tokenizers ------------------------------------------------------------------------------------------------------


def char_tokenizer(template: str, max_length: int, **special_tokens: str) -> PreTrainedTokenizerFast:
    """One token per character. `template` adds the special tokens: "<s> $A </s>" is CLIP's way, "$A </s>" is T5's."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "<unk>", "</s>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    special = [(token, vocab[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special_tokens,
        model_max_length=max_length,
    )


CHAT_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                 "<|video_pad|>"]  # fmt: skip
CHAT_TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% set parts = [{"text": m.content}] if m.content is string else m.content -%}
{% for part in parts %}{{ part.text }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like Qwen's, with one token for every word of the templates that the pipelines wrap prompts in.

    QwenImage cuts the first 34 tokens off and QwenImageEdit the first 64, counted with the real tokenizer: with one
    token a word the cut falls where it should.
    """
    templates = [
        diffusers.QwenImagePipeline(*[None] * 5).prompt_template_encode,
        diffusers.QwenImageEditPipeline(*[None] * 6).prompt_template_encode,
        SYSTEM_MESSAGE,
    ]
    words = Regex(transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(templates, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CHAT_SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<|image_pad|>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    return char_tokenizer("<s> $A </s>", max_length=77)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    return char_tokenizer("$A </s>", max_length=512)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return char_tokenizer("<s> $A", max_length=512)


def image_processor() -> transformers.PaddleOCRVLProcessor:
    """In the place of Qwen2VLProcessor, which cannot be made without torchvision (its video half needs it).

    This one does the same with an image and a prompt. Images become 4 x 4 patches: looking at one costs nothing.
    """
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)
    return transformers.PaddleOCRVLProcessor(images, chat_tokenizer(), chat_template=CHAT_TEMPLATE)


# --- text encoders ---------------------------------------------------------------------------------------------------


def clip(cls: type = transformers.CLIPTextModel) -> nn.Module:
    tokenizer = clip_tokenizer()
    return cls(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5(width: int = WIDTH) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=2 * width, num_layers=LAYERS, num_heads=HEADS
    )
    return transformers.T5EncoderModel(config)


def decoder_config(width: int = WIDTH, layers: int = LAYERS) -> dict[str, object]:
    """What the configs of the language models used as text encoders have in common."""
    return {
        "vocab_size": len(chat_tokenizer()),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "pad_token_id": chat_tokenizer().pad_token_id,
        "bos_token_id": None,
        "eos_token_id": chat_tokenizer().eos_token_id,
    }


def qwen3(layers: int = LAYERS, width: int = WIDTH, cls: type = transformers.Qwen3ForCausalLM) -> nn.Module:
    return cls(transformers.Qwen3Config(**decoder_config(width, layers)))


def mistral3() -> nn.Module:
    """Flux2's text encoder: it concatenates the hidden states 10, 20 and 30."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "mistral", **decoder_config(16, layers=30)}
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(vision_config={"model_type": "pixtral", **vision}, text_config=text)
    )


def qwen25_vl() -> nn.Module:
    ids = {
        f"{name}_token_id": chat_tokenizer().convert_tokens_to_ids(f"<|{token}|>")
        for name, token in [("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                            ("vision_end", "vision_end")]
    }  # fmt: skip
    vision = {
        "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": HEADS, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**decoder_config(), "rope_parameters": rope}
    del text["head_dim"]
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )


def gemma2() -> nn.Module:
    config = decoder_config() | {"vocab_size": len(gemma_tokenizer())}
    ids = {f"{name}_token_id": getattr(gemma_tokenizer(), f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return transformers.Gemma2Model(transformers.Gemma2Config(**config | ids))


# --- VAEs and schedulers ---------------------------------------------------------------------------------------------

CHANNELS = (8, 8, 8, 8)  # four blocks: three halvings


def vae(latent_channels: int = 16, cls: type = diffusers.AutoencoderKL, **config: object) -> nn.Module:
    num_blocks = len(CHANNELS)
    return cls(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        **config,
    )


def flow_vae() -> nn.Module:
    return vae(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def qwen_vae() -> nn.Module:
    return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def flow_scheduler(dynamic: bool = False) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)


# --- families --------------------------------------------------------------------------------------------------------

TRANSFORMER = {"num_layers": LAYERS, "num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM}


def narrow(heads: int, head_dim: int = sum(NARROW_ROPE)) -> dict[str, int]:
    """As many heads as in the real model; so each is narrow."""
    return TRANSFORMER | {"num_attention_heads": heads, "attention_head_dim": head_dim}


def flux(pipeline: type = diffusers.FluxPipeline, guidance: bool = True) -> DiffusionPipeline:
    return pipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=flow_vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            **TRANSFORMER,
            num_single_layers=LAYERS,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
            axes_dims_rope=ROPE,
        ),
    )


def flux2_parts(guidance: bool) -> dict[str, object]:
    """What Flux2 and Klein share: all but the text encoder and the guidance embedding."""
    return {
        "scheduler": flow_scheduler(dynamic=True),
        "vae": vae(32, diffusers.AutoencoderKLFlux2),
        "tokenizer": chat_tokenizer(),
        "transformer": diffusers.Flux2Transformer2DModel(
            **TRANSFORMER,
            num_single_layers=LAYERS,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        ),
    }


def flux2() -> DiffusionPipeline:
    return diffusers.Flux2Pipeline(text_encoder=mistral3(), **flux2_parts(guidance=True))


def flux2_klein(distilled: bool = True) -> DiffusionPipeline:
    parts = flux2_parts(guidance=False)
    return diffusers.Flux2KleinPipeline(text_encoder=qwen3(layers=27, width=16), is_distilled=distilled, **parts)


def qwenimage(
    pipeline: type = diffusers.QwenImagePipeline, zero_cond_t: bool = False, **components: object
) -> DiffusionPipeline:
    return pipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(),
        tokenizer=chat_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            **narrow(24), joint_attention_dim=WIDTH, axes_dims_rope=NARROW_ROPE, zero_cond_t=zero_cond_t
        ),
        **components,
    )


def zimage() -> DiffusionPipeline:
    return diffusers.ZImagePipeline(
        scheduler=flow_scheduler(),
        vae=flow_vae(),
        text_encoder=qwen3(cls=transformers.Qwen3Model),
        tokenizer=chat_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            dim=30 * sum(NARROW_ROPE),
            n_layers=LAYERS,
            n_refiner_layers=1,
            n_heads=30,
            n_kv_heads=30,
            cap_feat_dim=WIDTH,
            axes_dims=list(NARROW_ROPE),
        ),
    )


def sd3() -> DiffusionPipeline:
    return diffusers.StableDiffusion3Pipeline(
        scheduler=flow_scheduler(),
        vae=flow_vae(),
        text_encoder=clip(transformers.CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(
            **narrow(38, head_dim=4),
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=38 * 4,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=32,
        ),
    )


def pixart_sigma() -> DiffusionPipeline:
    return diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=vae(4),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.PixArtTransformer2DModel(
            **narrow(16, head_dim=4),
            cross_attention_dim=16 * 4,
            caption_channels=WIDTH,
            sample_size=32,  # the 256-pixel resolution bins, the smallest there are
            use_additional_conditions=False,
        ),
    )


def lumina2() -> DiffusionPipeline:
    return diffusers.Lumina2Pipeline(
        scheduler=flow_scheduler(),
        vae=flow_vae(),
        text_encoder=gemma2(),
        tokenizer=gemma_tokenizer(),
        transformer=diffusers.Lumina2Transformer2DModel(
            hidden_size=24 * sum(NARROW_ROPE),
            num_layers=LAYERS,
            num_refiner_layers=1,
            num_attention_heads=24,
            num_kv_heads=8,
            multiple_of=16,
            axes_dim_rope=NARROW_ROPE,
            cap_feat_dim=WIDTH,
        ),
    )


def sdxl() -> DiffusionPipeline:
    """A U-Net: the family that xDiT cannot split."""
    return diffusers.StableDiffusionXLPipeline(
        scheduler=diffusers.EulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            norm_num_groups=4,
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            sample_size=8,
        ),
    )


def longcat_edit() -> DiffusionPipeline:
    return diffusers.LongCatImageEditPipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=flow_vae(),
        text_encoder=qwen25_vl(),
        tokenizer=chat_tokenizer(),
        text_processor=image_processor(),
        transformer=diffusers.LongCatImageTransformer2DModel(
            **TRANSFORMER,
            num_single_layers=LAYERS,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=list(ROPE),
        ),
    )


GLM_TEMPLATE = """{% for m in messages %}{% for part in m.content %}{% if part.type == "image" %}<img>{% else %}\
{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""


def glm_image() -> DiffusionPipeline:
    """Text to image, and editing, which fails in diffusers 0.42 and transformers 5.23: see tests/torchrun/test_glm_image.py.

    It writes 256 + height/32 * width/32 tokens before it draws.
    """
    num_codes = 64
    tokenizer = char_tokenizer(
        "$A", max_length=2048, image_token="<img>", grid_bos_token="<sop>", grid_eos_token="<eop>"
    )
    tokenizer.padding_side = "left"
    ids = tokenizer.convert_tokens_to_ids
    text = {
        **decoder_config(),
        "vocab_size": len(tokenizer),
        "vision_vocab_size": num_codes,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": num_codes,  # never drawn, so that it writes all of the tokens
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": HEADS, "image_size": 256,
    }  # fmt: skip
    writer = transformers.GlmImageForConditionalGeneration(
        transformers.GlmImageConfig(
            text_config=text,
            vision_config=vision,
            vq_config={"embed_dim": 8, "num_embeddings": num_codes, "latent_channels": WIDTH},
            image_token_id=ids("<img>"),
            image_start_token_id=ids("<s>"),
            image_end_token_id=ids("</s>"),
        )
    )
    # Else the last tokens matter so much more than the prompt that all prompts end in the same tokens.
    nn.init.constant_(writer.model.language_model.norm.weight, 4)
    return diffusers.GlmImagePipeline(
        tokenizer=t5_tokenizer(),
        processor=transformers.GlmImageProcessor(
            transformers.GlmImageImageProcessorPil(
                patch_size=16, temporal_patch_size=1, merge_size=1, min_pixels=64 * 64, max_pixels=64 * 64
            ),
            tokenizer,
            chat_template=GLM_TEMPLATE,
        ),
        text_encoder=t5(),
        vision_language_encoder=writer,
        vae=vae(latents_mean=[0.0] * 16, latents_std=[1.0] * 16),
        transformer=diffusers.GlmImageTransformer2DModel(
            **TRANSFORMER,
            text_embed_dim=WIDTH,
            time_embed_dim=WIDTH,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=num_codes,
        ),
        scheduler=flow_scheduler(dynamic=True),
    )


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    # text to image
    "flux": flux,
    "flux_schnell": partial(flux, guidance=False),
    "flux2": flux2,
    "flux2_klein": flux2_klein,
    "flux2_klein_base": partial(flux2_klein, distilled=False),
    "qwenimage": qwenimage,
    "zimage": zimage,
    "glm_image": glm_image,  # editing too
    "sd3": sd3,
    "pixart_sigma": pixart_sigma,
    "lumina2": lumina2,
    "sdxl": sdxl,
    # editing; flux2 and flux2_klein take images too
    "flux_kontext": partial(flux, diffusers.FluxKontextPipeline),
    "qwenimage_edit": lambda: qwenimage(diffusers.QwenImageEditPipeline, processor=image_processor()),
    "qwenimage_edit_plus": lambda: qwenimage(diffusers.QwenImageEditPlusPipeline, processor=image_processor()),
    # The first to modulate the tokens of the references apart from those of the noise.
    "qwenimage_edit_2511": lambda: qwenimage(
        diffusers.QwenImageEditPlusPipeline, zero_cond_t=True, processor=image_processor()
    ),
    "longcat_edit": longcat_edit,  # its output has the area of about 1 Mpx, whatever was asked for
}


DEFAULTS = {"flux_kontext": {"edit": {"_auto_resize": False}}}
"""What dglaunch takes for given with a checkpoint. Kontext keeps an input's own size, or it would compute a megapixel."""

# --- building --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Draw weights that let a prompt through: see the module's docstring."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for parameter in module.parameters():
        if id(parameter) in embeddings:
            parameter.normal_()
        elif parameter.dim() > 1:
            parameter.normal_(std=GAIN / math.sqrt(parameter[0].numel()))


def build(family: str, folder: Path) -> Path:
    """Write the checkpoint of `family` to `folder`, unless it is there already."""
    return once(folder, lambda empty: _write(family, empty))


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder, unless it is there already. Of several processes the first does it."""
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            write(temporary)
            os.replace(temporary, folder)
    return folder


def _maker(family: str) -> Callable[[], DiffusionPipeline]:
    """What makes the pipeline of a family; those that are not above are in a file of their own."""
    if family in FAMILIES:
        return FAMILIES[family]
    from support.tiny_new_models import NEW_FAMILIES
    from support.versions import skipping_what_is_newer

    return skipping_what_is_newer()(NEW_FAMILIES[family])


def _write(family: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = _maker(family)()
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                randomise(component)
        pipeline.save_pretrained(folder)
    if family in DEFAULTS:
        (folder / "dglaunch.json").write_text(json.dumps(DEFAULTS[family]))


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
