"""Tiny random models of transformers with images and texts, in a folder as save_pretrained writes them, and what they say by hand.

tiny_clip(tmp_path / "clip")          then: dglaunch score OUT --with tmp_path/clip
"""

from pathlib import Path

import torch
import transformers
from PIL import Image

from support.tiny_models import clip_tokenizer, randomise

SIDE, WIDTH, VECTOR, MOST_TOKENS = 32, 32, 24, 40


def tiny_clip(folder: Path) -> Path:
    """A CLIP: patches of 8 pixels, two layers."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": MOST_TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=VECTOR)
    return _save(transformers.CLIPModel, config, _images(), tokenizer, folder)


def tiny_siglip(folder: Path) -> Path:
    """A SigLIP, whose texts are padded to its longest."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": MOST_TOKENS, "projection_size": WIDTH,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    images = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    return _save(transformers.SiglipModel, config, images, tokenizer, folder)


def _images() -> transformers.CLIPImageProcessor:
    return transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _save(kind: type, config: object, images: object, tokenizer: object, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        randomise(model)
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)
    return folder


def by_hand(folder: Path, image: Path, prompt: str) -> float:
    """The cosine of one image and one prompt, by transformers itself: the logit without the model's own scale and bias."""
    model = transformers.AutoModel.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = tokenizer([prompt], padding="max_length", truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    pixels = images(images=[Image.open(image).convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**texts, **pixels).logits_per_image
        return float((logits - getattr(model, "logit_bias", 0)) / model.logit_scale.exp())


def linear_head(folder: Path, size: int = VECTOR) -> tuple[Path, torch.nn.Sequential]:
    """A head as LAION's, in safetensors and as the same module; its pickle lies beside it."""
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = torch.nn.Sequential(
            torch.nn.Linear(size, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4), torch.nn.Linear(4, 1)
        )
    tensors = {f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}
    save_file(tensors, folder / "head.safetensors")
    torch.save(tensors, folder / "head.pth")
    return folder / "head.safetensors", layers.eval()
