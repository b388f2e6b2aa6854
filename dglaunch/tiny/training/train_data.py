"""The transformer's training set is built here once: latents of pictures and token ids of prompts."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerFast

from dglaunch.tiny import model, words
from dglaunch.tiny.training import draw, spec
from dglaunch.tiny.training.edits import sample_edit
from dglaunch.tiny.training.prompts import prompt
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_vae import to_tensor

WORDINGS = 3
"""Prompts for each picture."""
CHUNK = 64
"""Pictures that are encoded at once."""
SCALE_PICTURES = 1024
"""Whose latents give the scale."""
SHARES = {"one": 3, "two": 5, "scene": 4}
"""How often each kind of picture is sampled."""


@dataclass(kw_only=True, slots=True)
class DataSettings:
    """These settings are the training set's."""

    pictures: int = 100_000
    """One object, two objects and scenes in the proportion of `SHARES`."""
    edits: int = 100_000
    seed: int = 0


@dataclass(slots=True)
class Dataset:
    """A dataset holds `latents` [pictures, channels, height, width] in fp16; `before` is empty without edits."""

    latents: torch.Tensor
    tokens: torch.Tensor
    before: torch.Tensor
    objects: torch.Tensor = field(init=False)
    """Rows whose words name a shape or a background."""
    others: torch.Tensor = field(init=False)
    """The rest: scenes, and changes of style."""

    def __post_init__(self) -> None:
        named = torch.tensor(model.tokenizer().convert_tokens_to_ids(["background", *words.SHAPES]))
        is_object = torch.isin(self.tokens[:, 0], named.to(torch.uint8)).any(-1)
        self.objects, self.others = is_object.nonzero()[:, 0], (~is_object).nonzero()[:, 0]


def build(vae: AutoencoderKL, settings: DataSettings, size: int, folder: Path, team: Team) -> tuple[Dataset, Dataset]:
    """Return this process's share of the pictures and of the edits, from its file if an earlier start wrote one."""
    path = folder / f"data-{team.rank}-of-{team.size}.pt"
    if not path.exists():
        rng = random.Random(f"data {settings.seed} {team.rank} {team.size}")
        pictures = _pictures(vae, rng, settings.pictures // team.size, size, team.device)
        edits = _edits(vae, rng, settings.edits // team.size, size, team.device)
        scratch = path.with_suffix(".tmp")
        torch.save([(data.latents, data.tokens, data.before) for data in (pictures, edits)], scratch)
        scratch.replace(path)
    of_pictures, of_edits = torch.load(path)
    return Dataset(*of_pictures), Dataset(*of_edits)


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: list[npt.NDArray[np.uint8]], device: torch.device) -> torch.Tensor:
    """Encode pictures as FluxKontextPipeline does before its transformer: the posterior's mean, shifted and scaled."""
    with torch.autocast(device.type, torch.bfloat16):
        mean: torch.Tensor = vae.encode(to_tensor(pictures).to(device)).latent_dist.mode()
    latents: torch.Tensor = (mean.float() - vae.config.shift_factor) * vae.config.scaling_factor
    return latents.half().cpu()


def measure_scale(vae: AutoencoderKL, size: int, device: torch.device) -> None:
    """Write into the VAE's config the shift and the scale that give its latents mean 0 and deviation 1."""
    rng = random.Random("scale")
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    items = [spec.sample(rng, kind) for kind in _kinds(rng, SCALE_PICTURES)]
    chunks = [items[begin : begin + CHUNK] for begin in range(0, SCALE_PICTURES, CHUNK)]
    latents = torch.cat([encode(vae, _draw(chunk, size), device) for chunk in chunks]).float()
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )


def _pictures(vae: AutoencoderKL, rng: random.Random, count: int, size: int, device: torch.device) -> Dataset:
    tokenizer = model.tokenizer()
    latents, tokens = [], []
    for begin in range(0, count, CHUNK):
        items = [spec.sample(rng, kind) for kind in _kinds(rng, min(CHUNK, count - begin))]
        latents.append(encode(vae, _draw(items, size), device))
        tokens.append(_tokens(tokenizer, [prompt(rng, item) for item in items for _ in range(WORDINGS)]))
    return Dataset(torch.cat(latents), torch.cat(tokens), torch.empty(0))


def _edits(vae: AutoencoderKL, rng: random.Random, count: int, size: int, device: torch.device) -> Dataset:
    tokenizer = model.tokenizer()
    after, tokens, before = [], [], []
    for begin in range(0, count, CHUNK):
        edits = [sample_edit(rng) for _ in range(min(CHUNK, count - begin))]
        alternating = encode(vae, _draw([item for edit in edits for item in (edit.before, edit.after)], size), device)
        before.append(alternating[::2])
        after.append(alternating[1::2])
        tokens.append(_tokens(tokenizer, [edit.instruction for edit in edits for _ in range(WORDINGS)]))
    return Dataset(torch.cat(after), torch.cat(tokens), torch.cat(before))


def _kinds(rng: random.Random, count: int) -> list[str]:
    return rng.choices(tuple(SHARES), tuple(SHARES.values()), k=count)


def _draw(items: list[spec.Spec], size: int) -> list[npt.NDArray[np.uint8]]:
    return [np.asarray(draw.picture(item, size)) for item in items]


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.to(torch.uint8).view(-1, WORDINGS, model.TEXT_LENGTH)
