"""The autoencoder's training: pictures drawn as it goes, one seed for each step, so that a resumed run is the same run."""

import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dglaunch.tiny import draw, model, spec
from dglaunch.tiny.train_log import Log


@dataclass(kw_only=True, slots=True)
class VaeSettings:
    steps: int = 6000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    kl_weight: float = 2e-4
    """Per latent number; the loss on pixels is a mean absolute error, so this only keeps the latents near unit size."""
    coarse_weight: float = 1.0
    """The error of the 8 times smaller picture: flat colours come out right sooner."""
    seed: int = 0


KINDS = {"one": 2, "two": 4, "scene": 5, "edit": 3}


def pictures(rng: random.Random, count: int) -> torch.Tensor:
    """A batch of pictures in [-1, 1], from the training side of the split."""
    arrays = []
    for kind in rng.choices(tuple(KINDS), tuple(KINDS.values()), k=count):
        item = spec.sample_edit(rng).after if kind == "edit" else spec.sample(rng, kind)
        arrays.append(np.asarray(draw.picture(item, model.SIZE)))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _loss(vae: AutoencoderKL, batch: torch.Tensor, settings: VaeSettings) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(batch.device.type, torch.bfloat16):
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
    error = (output.float() - batch).abs().mean()
    coarse = F.avg_pool2d(output.float() - batch, 8).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return error + settings.coarse_weight * coarse + settings.kl_weight * kl, error


def train(vae: AutoencoderKL, settings: VaeSettings, state_file: Path, log: Log) -> None:
    """Train in place, beginning where `state_file` ends."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    first = 0
    if state_file.exists():
        state = torch.load(state_file)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log.write(event="vae", first=first, **asdict(settings))
    device = next(vae.parameters()).device
    for step in range(first, settings.steps):
        torch.manual_seed(settings.seed + step)
        batch = pictures(random.Random(f"vae {settings.seed} {step}"), settings.batch).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.lr)
        loss, error = _loss(vae, batch, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        log.mean(step, every=100, event="vae", loss=loss.item(), error=error.item())
        if (step + 1) % 500 == 0 or step + 1 == settings.steps:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            scratch = state_file.with_suffix(".tmp")
            torch.save(state, scratch)
            scratch.replace(state_file)
