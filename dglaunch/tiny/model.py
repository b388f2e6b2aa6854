"""The networks of the checkpoint `tiny` are built here: FLUX's classes of diffusers, at the smallest size that draws.

`untrained()` gives them seeded random weights, `save()` writes an ordinary diffusers folder in safetensors.
The four attention heads allow Ulysses degrees of 2 and 4; the text length of 16 divides by both.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dglaunch.tiny import words

SIZE = 64
"""Side of the pictures, in pixels, that the shipped weights were trained on."""
TEXT_LENGTH = 16
"""Tokens of a prompt."""
LATENT_CHANNELS = 16
HEADS = 4
HEAD_DIM = 32
ROPE_AXES = (4, 14, 14)
TEXT_DIM = 128
POOLED_DIM = 64
T5_HEADS = 8
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
STEPS = 12
"""Denoising steps, unless the caller asks for another number."""


def defaults(size: int) -> dict[str, object]:
    """Return the arguments to call the pipelines with, whose signatures default to 1024 pixels and 512 tokens.

    `edit` holds what FluxKontextPipeline needs besides, or it resizes its input to about a megapixel.
    """
    return {
        "height": size,
        "width": size,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "max_sequence_length": TEXT_LENGTH,
        "edit": {"_auto_resize": False, "max_area": size * size},
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of whole words: it folds spellings by `words.SYNONYMS` and drops words it does not know."""
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNK, *words.KNOWN))}
    known = "|".join(words.KNOWN)
    fold = [normalizers.Replace(Regex(rf"\b{old}\b"), new) for old, new in words.SYNONYMS.items()]
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        *fold,
        normalizers.Replace(Regex(rf"\b(?!(?:{known})\b)\w+"), " "),
        normalizers.Replace(Regex(r"[^a-z]+"), " "),
    ])  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=TEXT_LENGTH, pad_token=PAD, eos_token=EOS, unk_token=UNK
    )


def vae(size: int = SIZE) -> AutoencoderKL:
    """Build the autoencoder: four blocks, so one latent is 8x8 pixels, without attention: the pictures are local."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=size,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def transformer() -> FluxTransformer2DModel:
    """Build the denoising transformer: one block with separate text and image streams, then five with one stream."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=1,
        num_single_layers=5,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=False,
        axes_dims_rope=ROPE_AXES,
    )


def text_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    """Build CLIP, which gives one vector for the whole prompt, and T5, which gives one for each word.

    Both are trained with the transformer.
    """
    num_tokens = len(tokenizer())
    clip = CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=POOLED_DIM,
        intermediate_size=2 * POOLED_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    t5 = T5Config(
        vocab_size=num_tokens,
        d_model=TEXT_DIM,
        d_kv=TEXT_DIM // T5_HEADS,
        d_ff=2 * TEXT_DIM,
        num_layers=3,
        num_heads=T5_HEADS,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def networks(size: int = SIZE) -> dict[str, torch.nn.Module]:
    """Build the four networks as their classes initialize them, by the names that a FluxPipeline gives them."""
    clip, t5 = text_encoders()
    return {"vae": vae(size), "transformer": transformer(), "text_encoder": clip, "text_encoder_2": t5}


def untrained(seed: int = 0) -> dict[str, torch.nn.Module]:
    """Build the four networks with seeded random weights with which prompts and seeds change the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = networks()
        for network in parts.values():
            _initialize(network)
        return parts


def _initialize(network: torch.nn.Module) -> None:
    """Scale the weights so that inputs of unit size give outputs of unit size.

    With the weights that the classes begin with a prompt would hardly change the image.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
        elif isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def save(parts: dict[str, torch.nn.Module], folder: Path, size: int = SIZE) -> None:
    """Write the networks as a diffusers folder: weights in fp16, which the configs ask to be loaded as float32."""
    halves = {name: network.to(torch.float16).eval() for name, network in parts.items()}
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        **halves,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    (folder / "dglaunch.json").write_text(json.dumps(defaults(size), indent=2) + "\n")


def build_untrained(cache: Path, seed: int = 0) -> Path:
    """Return the folder in `cache` that holds the seeded random model, and write it first if it is not there.

    Several processes may write it at once: the first one's rename wins.
    """
    folder = cache / f"tiny-untrained-{SIZE}-seed{seed}"
    if (folder / "model_index.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
    try:
        save(untrained(seed), scratch)
        os.rename(scratch, folder)
    except OSError:
        if not (folder / "model_index.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
