"""The autoencoder's training: pictures drawn as it goes, a seed for each step, so a resumed run is the same run."""

import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dglaunch.tiny.training import draw, spec
from dglaunch.tiny.training.muon import Muon
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_log import Log

SAVE_EVERY = 250


@dataclass(kw_only=True, slots=True)
class VaeSettings:
    steps: int = 6000
    batch: int = 32
    lr: float = 0.02
    warmup: int = 100
    kl_weight: float = 2e-4
    """Per latent number; the loss on pixels is a mean absolute error, so this only keeps the latents near unit size."""
    coarse_weight: float = 1.0
    """The error of the 8 times smaller picture: flat colours come out right sooner."""
    detail_weight: float = 10.0
    """How much more a pixel counts for each unit that it differs from its 5x5 neighbourhood: edges, small objects."""
    seed: int = 0


KINDS = {"one": 2, "two": 4, "scene": 5, "edit": 3}


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def pictures(rng: random.Random, count: int, size: int) -> torch.Tensor:
    """A batch of pictures in [-1, 1], from the training side of the split."""
    arrays = []
    for kind in rng.choices(tuple(KINDS), tuple(KINDS.values()), k=count):
        item = spec.sample_edit(rng).after if kind == "edit" else spec.sample(rng, kind)
        arrays.append(np.asarray(draw.picture(item, size)))
    return to_tensor(arrays)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    return peak * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def save_state(path: Path, **state: object) -> None:
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)


def _loss(vae: AutoencoderKL, batch: torch.Tensor, settings: VaeSettings) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(batch.device.type, torch.bfloat16):
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
    detail = (batch - F.avg_pool2d(batch, 5, 1, 2, count_include_pad=False)).abs().mean(1, keepdim=True)
    weight = 1 + settings.detail_weight * detail
    absolute = (output.float() - batch).abs()
    error = absolute.mean()
    weighted = (absolute * weight / weight.mean()).mean()
    coarse = F.avg_pool2d(output.float() - batch, 8).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return weighted + settings.coarse_weight * coarse + settings.kl_weight * kl, error


def train(vae: AutoencoderKL, settings: VaeSettings, size: int, state_file: Path, log: Log, team: Team) -> None:
    """Train in place, beginning where `state_file` ends."""
    parameters = list(vae.to(team.device).parameters())
    optimizer = Muon(vae, team, settings.lr)
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=team.device)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log.write(event="vae", first=first, team=team.size, **asdict(settings))
    for step in range(first, settings.steps):
        name = f"vae {settings.seed} {step} {team.rank}"
        torch.manual_seed(random.Random(name).randrange(1 << 40))
        batch = pictures(random.Random(name), settings.batch // team.size, size).to(team.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.lr)
        loss, error = _loss(vae, batch, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        log.mean(step, every=100, event="vae", loss=loss.item(), error=error.item())
        if team.is_main and ((step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps):
            save_state(state_file, vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
    team.barrier()
