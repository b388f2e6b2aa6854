"""The autoencoder is trained here, on pictures drawn as it goes; a seed for each step makes a resumed run the same."""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dglaunch.tiny.training import draw, spec
from dglaunch.tiny.training.edits import sample_edit
from dglaunch.tiny.training.muon import Muon
from dglaunch.tiny.training.steps import is_saved_after, learning_rate, save_state, set_learning_rate, take_step
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_log import Log

KINDS = {"one": 2, "two": 4, "scene": 5, "edit": 3}
"""How often a batch draws a picture of each kind; "edit" is the picture after one."""


@dataclass(kw_only=True, slots=True)
class VaeSettings:
    """These settings are the autoencoder's."""

    steps: int = 6000
    batch: int = 32
    lr: float = 0.02
    warmup: int = 100
    kl_weight: float = 2e-4
    """Per latent number; the loss on pixels is a mean absolute error, so this only keeps the latents near unit size."""
    coarse_weight: float = 1.0
    """The error of the 8 times smaller picture: flat colors come out right sooner."""
    detail_weight: float = 10.0
    """How much more a pixel counts for each unit that it differs from its 5x5 neighborhood: edges, small objects."""
    seed: int = 0


def train(vae: AutoencoderKL, settings: VaeSettings, size: int, state_file: Path, log: Log, team: Team) -> None:
    """Train the autoencoder in place, from the step where `state_file` ends."""
    parameters: list[torch.nn.Parameter] = list(vae.to(team.device).parameters())
    optimizer = Muon(vae, team, settings.lr)
    first = _resume(vae, optimizer, state_file, team.device)
    log.write(event="vae", first=first, team=team.size, **asdict(settings))
    for step in range(first, settings.steps):
        name = f"vae {settings.seed} {step} {team.rank}"
        torch.manual_seed(random.Random(name).randrange(1 << 40))
        batch = pictures(random.Random(name), settings.batch // team.size, size).to(team.device)
        set_learning_rate(optimizer, learning_rate(step, settings.steps, settings.warmup, settings.lr))
        loss, error = _loss(vae, batch, settings)
        take_step(optimizer, parameters, loss, team)
        log.mean(step, every=100, event="vae", loss=loss.item(), error=error.item())
        if team.is_main and is_saved_after(step, settings.steps):
            save_state(state_file, vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
    team.barrier()


def pictures(rng: random.Random, count: int, size: int) -> torch.Tensor:
    """Draw a batch of pictures in [-1, 1], from the training side of the split."""
    arrays = []
    for kind in rng.choices(tuple(KINDS), tuple(KINDS.values()), k=count):
        item = sample_edit(rng).after if kind == "edit" else spec.sample(rng, kind)
        arrays.append(np.asarray(draw.picture(item, size)))
    return to_tensor(arrays)


def to_tensor(pictures: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
    """Stack pictures of bytes [height, width, 3] to one tensor [count, 3, height, width] of values in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _resume(vae: AutoencoderKL, optimizer: Muon, state_file: Path, device: torch.device) -> int:
    """Load the saved state, if there is one, and return the first step that is still to do."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, map_location=device)
    vae.load_state_dict(state["vae"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _loss(vae: AutoencoderKL, batch: torch.Tensor, settings: VaeSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the mean absolute error of the pixels for the log."""
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
