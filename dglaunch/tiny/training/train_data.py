"""The transformer's training set: latents of pictures and token ids of prompts, made once, a file for each process."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from dglaunch.tiny import model, words
from dglaunch.tiny.training import draw, spec
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_vae import to_tensor

WORDINGS = 3
"""Prompts for each picture."""
CHUNK = 64


@dataclass(kw_only=True, slots=True)
class DataSettings:
    pictures: int = 100_000
    """One object, two objects and scenes in the proportion of `SHARES`."""
    edits: int = 100_000
    seed: int = 0


SHARES = {"one": 3, "two": 5, "scene": 4}


@dataclass(slots=True)
class Dataset:
    """`latents` is (pictures, channels, height, width) in fp16; `before` is empty where nothing is edited."""

    latents: torch.Tensor
    tokens: torch.Tensor
    before: torch.Tensor
    objects: torch.Tensor = field(init=False)
    others: torch.Tensor = field(init=False)
    """Rows whose words name a shape or a background, and the rest: scenes, and changes of style."""

    def __post_init__(self) -> None:
        named = torch.tensor(model.tokenizer().convert_tokens_to_ids(["background", *words.SHAPES]))
        is_object = torch.isin(self.tokens[:, 0], named.to(torch.uint8)).any(-1)
        self.objects, self.others = is_object.nonzero()[:, 0], (~is_object).nonzero()[:, 0]


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """What FluxKontextPipeline feeds the transformer: the posterior's mean, shifted and scaled."""
    with torch.autocast(device.type, torch.bfloat16):
        mean = vae.encode(to_tensor(pictures).to(device)).latent_dist.mode()
    return ((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu()


def _pictures(vae: AutoencoderKL, rng: random.Random, count: int, size: int, team: Team) -> Dataset:
    tokenizer, latents, tokens = model.tokenizer(), [], []
    for begin in range(0, count, CHUNK):
        kinds = rng.choices(tuple(SHARES), tuple(SHARES.values()), k=min(CHUNK, count - begin))
        items = [spec.sample(rng, kind) for kind in kinds]
        latents.append(encode(vae, [np.asarray(draw.picture(item, size)) for item in items], team.device))
        tokens.append(_tokens(tokenizer, [spec.prompt(rng, item) for item in items for _ in range(WORDINGS)]))
    return Dataset(torch.cat(latents), torch.cat(tokens), torch.empty(0))


def _edits(vae: AutoencoderKL, rng: random.Random, count: int, size: int, team: Team) -> Dataset:
    tokenizer, parts = model.tokenizer(), []
    for begin in range(0, count, CHUNK):
        edits = [spec.sample_edit(rng) for _ in range(min(CHUNK, count - begin))]
        drawn = [np.asarray(draw.picture(item, size)) for edit in edits for item in (edit.before, edit.after)]
        both = encode(vae, drawn, team.device)
        texts = [edit.instruction for edit in edits for _ in range(WORDINGS)]
        parts.append((both[1::2], _tokens(tokenizer, texts), both[::2]))
    return Dataset(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _tokens(tokenizer: object, texts: list[str]) -> torch.Tensor:
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.to(torch.uint8).view(-1, WORDINGS, model.TEXT_LENGTH)


def build(vae: AutoencoderKL, settings: DataSettings, size: int, folder: Path, team: Team) -> tuple[Dataset, Dataset]:
    """This process's share of the pictures and of the edits, from its file where there is one."""
    path = folder / f"data-{team.rank}-of-{team.size}.pt"
    if not path.exists():
        rng = random.Random(f"data {settings.seed} {team.rank} {team.size}")
        pictures = _pictures(vae, rng, settings.pictures // team.size, size, team)
        edits = _edits(vae, rng, settings.edits // team.size, size, team)
        scratch = path.with_suffix(".tmp")
        torch.save([(d.latents, d.tokens, d.before) for d in (pictures, edits)], scratch)
        scratch.replace(path)
    first, second = torch.load(path)
    return Dataset(*first), Dataset(*second)


def measure_scale(vae: AutoencoderKL, size: int, device: torch.device, count: int = 1024) -> None:
    """Write into the VAE's config the shift and the scale that give its latents mean 0 and deviation 1."""
    rng = random.Random("scale")
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    items = [spec.sample(rng, kind) for kind in rng.choices(tuple(SHARES), tuple(SHARES.values()), k=count)]
    latents = torch.cat([
        encode(vae, [np.asarray(draw.picture(item, size)) for item in items[i : i + CHUNK]], device)
        for i in range(0, count, CHUNK)
    ]).float()  # fmt: skip
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )
