"""Tiny random checkpoints of the newer text-to-image families: `tiny_models.build` makes these, too.

Their plain pipelines are what tests/torchrun/test_new_families.py compares with. What the real ones have and a batch could
stumble over is kept: padding on the side on which they pad, as many layers of the text encoder as are read, a mixture of
experts whose capacity depends on the length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from support.tiny_models import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    ROPE,
    TRANSFORMER,
    WIDTH,
    char_tokenizer,
    chat_tokenizer,
    clip,
    clip_tokenizer,
    decoder_config,
    flow_scheduler,
    flow_vae,
    flux2_parts,
    gemma2,
    gemma_tokenizer,
    image_processor,
    longcat_edit,
    pixart_sigma,
    qwen3,
    qwen25_vl,
    qwen_vae,
    t5,
    t5_tokenizer,
    vae,
)

NARROW = 16
"""Width of text encoders of which dozens of layers are read."""


def qwen3_vl(cls: type, layers: int = LAYERS, width: int = WIDTH) -> nn.Module:
    ids = {
        f"{name}_token_id": chat_tokenizer().convert_tokens_to_ids(f"<|{token}|>")
        for name, token in [("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                            ("vision_end", "vision_end")]
    }  # fmt: skip
    vision = {
        "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": HEADS, "out_hidden_size": width,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**decoder_config(width, layers), "rope_parameters": rope}
    return cls(transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids))


def mistral3_model() -> nn.Module:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "mistral", **decoder_config(WIDTH, 3)}
    return transformers.Mistral3Model(
        transformers.Mistral3Config(vision_config={"model_type": "pixtral", **vision}, text_config=text)
    )


def krea2() -> DiffusionPipeline:
    return diffusers.Krea2Pipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(transformers.Qwen3VLModel, layers=3),
        tokenizer=chat_tokenizer(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=64,
            num_layers=LAYERS,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            intermediate_size=64,
            timestep_embed_dim=32,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=HEADS,
            text_num_key_value_heads=HEADS,
            text_intermediate_size=64,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=ROPE,
        ),
        text_encoder_select_layers=(1, 3),
    )


def ideogram4() -> DiffusionPipeline:
    def transformer() -> nn.Module:
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=128,
            num_layers=LAYERS,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            intermediate_size=64,
            adaln_dim=32,
            llm_features_dim=13 * NARROW,
            mrope_section=(4, 2, 2),
        )

    return diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(32, diffusers.AutoencoderKLFlux2),
        text_encoder=qwen3_vl(transformers.Qwen3VLModel, layers=36, width=NARROW),
        tokenizer=chat_tokenizer(),
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


def ernie_image() -> DiffusionPipeline:
    """With the language model that rewrites prompts at random."""
    writer = transformers.Ministral3ForCausalLM(transformers.Ministral3Config(**decoder_config()))
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=HEADS * HEAD_DIM,
            num_attention_heads=HEADS,
            num_layers=LAYERS,
            ffn_hidden_size=64,
            text_in_dim=WIDTH,
            rope_axes_dim=ROPE,
        ),
        vae=vae(32, diffusers.AutoencoderKLFlux2),
        text_encoder=mistral3_model(),
        tokenizer=chat_tokenizer(),
        scheduler=flow_scheduler(),
        pe=writer,
        pe_tokenizer=char_tokenizer("$A", max_length=16),
    )


def qwenimage21() -> DiffusionPipeline:
    return diffusers.QwenImage21Pipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=8, decoder_base_dim=8, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1
        ),
        text_encoder=qwen3_vl(transformers.Qwen3VLForConditionalGeneration),
        processor=image_processor(),
        transformer=diffusers.QwenImage21Transformer2DModel(
            num_layers=LAYERS,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            context_in_dim=WIDTH,
            axes_dims_rope=ROPE,
        ),
    )


def bria_fibo2() -> DiffusionPipeline:
    return diffusers.BriaFibo2Pipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=vae(32, diffusers.AutoencoderKLFlux2),
        text_encoder=qwen3_vl(transformers.Qwen3VLForConditionalGeneration, layers=36, width=NARROW),
        processor=image_processor(),
        transformer=diffusers.BriaFibo2Transformer2DModel(
            dim=HEADS * HEAD_DIM,
            n_layers=LAYERS,
            n_refiner_layers=1,
            n_heads=HEADS,
            cap_feat_dim=3 * NARROW,
            injection_layer_ids=(0, 1),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=16,
            gist_step=4,
            gist_min_text_len=8,
            gist_max_text_len=64,
            axes_dims=ROPE,
        ),
    )


def nucleusmoe() -> DiffusionPipeline:
    return diffusers.NucleusMoEImagePipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(transformers.Qwen3VLForConditionalGeneration, layers=9),
        processor=image_processor(),
        transformer=diffusers.NucleusMoEImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=5,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            joint_attention_dim=WIDTH,
            axes_dims_rope=ROPE,
            num_experts=4,
            moe_intermediate_dim=32,
            capacity_factors=1.0,
        ),
    )


def chroma() -> DiffusionPipeline:
    return diffusers.ChromaPipeline(
        scheduler=flow_scheduler(dynamic=True),
        vae=flow_vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.ChromaTransformer2DModel(
            **TRANSFORMER,
            num_single_layers=LAYERS,
            joint_attention_dim=WIDTH,
            axes_dims_rope=ROPE,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )


def hidream() -> DiffusionPipeline:
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**decoder_config()))
    return diffusers.HiDreamImagePipeline(
        scheduler=flow_scheduler(),
        vae=flow_vae(),
        text_encoder=long_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=long_clip(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama,
        tokenizer_4=chat_tokenizer(),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            axes_dims_rope=ROPE,
            max_resolution=(128, 128),
            llama_layers=[0, 1],
            force_inference_output=True,
        ),
    )


def long_clip() -> nn.Module:
    """HiDream's reads 128 tokens."""
    made = clip(transformers.CLIPTextModelWithProjection)
    config = made.config
    config.max_position_embeddings = 248
    return transformers.CLIPTextModelWithProjection(config)


def hunyuan_image(distilled: bool = False) -> DiffusionPipeline:
    text_encoder_2 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=384, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=LAYERS, num_heads=HEADS)
    )
    guider = None if distilled else diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    return diffusers.HunyuanImagePipeline(
        scheduler=flow_scheduler(),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32,) * 6,
            layers_per_block=1,
            spatial_compression_ratio=32,
            sample_size=384,
            scaling_factor=0.75,
        ),
        text_encoder=qwen25_vl(),
        tokenizer=chat_tokenizer(),
        text_encoder_2=text_encoder_2,
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            num_layers=LAYERS,
            num_single_layers=1,
            num_refiner_layers=1,
            guidance_embeds=distilled,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(8, 8),
        ),
        guider=guider,
        ocr_guider=guider,
    )


def flux2_klein_kv() -> DiffusionPipeline:
    return diffusers.Flux2KleinKVPipeline(text_encoder=qwen3(layers=27, width=16), **flux2_parts(guidance=False))


def longcat() -> DiffusionPipeline:
    parts: dict[str, Any] = longcat_edit().components
    return diffusers.LongCatImagePipeline(**parts)


def sana() -> DiffusionPipeline:
    return diffusers.SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma2(),
        vae=diffusers.AutoencoderDC(
            latent_channels=8,
            encoder_block_out_channels=(8, 8, 8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8, 8, 8),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_layers_per_block=(1, 1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1, 1),
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            scaling_factor=0.4,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            num_layers=LAYERS,
            num_cross_attention_heads=HEADS,
            cross_attention_head_dim=HEAD_DIM,
            cross_attention_dim=HEADS * HEAD_DIM,
            caption_channels=WIDTH,
            sample_size=8,
        ),
        scheduler=flow_scheduler(),
    )


def hunyuan_dit() -> DiffusionPipeline:
    tokenizer = clip_tokenizer()
    bert = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=77, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return diffusers.HunyuanDiTPipeline(
        vae=vae(4, scaling_factor=0.4),
        text_encoder=transformers.BertModel(bert),
        tokenizer=tokenizer,
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.HunyuanDiT2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=HEADS * HEAD_DIM,
            num_layers=2 * LAYERS,
            cross_attention_dim=WIDTH,
            cross_attention_dim_t5=WIDTH,
            pooled_projection_dim=WIDTH,
            use_style_cond_and_image_meta_size=False,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.018,
            prediction_type="v_prediction",
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def prx() -> DiffusionPipeline:
    """Its text encoder's configuration is that of the whole T5Gemma, as published; diffusers takes the encoder's from it."""
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = gemma_tokenizer()
    config = transformers.T5GemmaModuleConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=16,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    config.dropout_rate = 0.0
    encoder = T5GemmaEncoder(config)
    encoder.config = transformers.T5GemmaConfig(encoder=config.to_dict(), decoder=config.to_dict())
    return diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            in_channels=16,
            patch_size=2,
            context_in_dim=WIDTH,
            hidden_size=HEADS * HEAD_DIM,
            num_heads=HEADS,
            depth=LAYERS,
            axes_dim=[8, 8],
        ),
        scheduler=flow_scheduler(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        vae=flow_vae(),
    )


def pixart_alpha() -> DiffusionPipeline:
    return diffusers.PixArtAlphaPipeline(**pixart_sigma().components)


def cogview4() -> DiffusionPipeline:
    """Its tokenizer pads on the left, as GLM's does."""
    tokenizer = gemma_tokenizer()
    text = transformers.GlmConfig(**decoder_config() | {"pad_token_id": tokenizer.pad_token_id})
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(text),
        vae=flow_vae(),
        transformer=diffusers.CogView4Transformer2DModel(
            num_layers=LAYERS,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            text_embed_dim=WIDTH,
            time_embed_dim=32,
            condition_dim=8,
            sample_size=16,
            rope_axes_dim=(8, 8),
        ),
        scheduler=flow_scheduler(dynamic=True),
    )


NEW_FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "qwenimage21": qwenimage21,
    "krea2": krea2,
    "ideogram4": ideogram4,
    "ernie_image": ernie_image,
    "chroma": chroma,
    "sana": sana,
    "hidream": hidream,
    "hunyuan_image": hunyuan_image,
    "hunyuan_image_distilled": partial(hunyuan_image, distilled=True),
    "nucleusmoe": nucleusmoe,
    "bria_fibo2": bria_fibo2,
    "flux2_klein_kv": flux2_klein_kv,
    "longcat": longcat,
    "hunyuan_dit": hunyuan_dit,
    "prx": prx,
    "pixart_alpha": pixart_alpha,
    "cogview4": cogview4,
}
