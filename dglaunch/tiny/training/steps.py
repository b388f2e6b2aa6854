"""A training step, its learning rate and its saved state are the same for the autoencoder and for the transformer."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from dglaunch.tiny.training.muon import Muon
from dglaunch.tiny.training.team import Team

SAVE_EVERY = 250


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to nothing."""
    return peak * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def take_step(optimizer: Muon, parameters: Sequence[torch.Tensor], loss: torch.Tensor, team: Team) -> None:
    """Change the parameters once, by the gradients of this process's loss averaged over all processes."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    team.average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def is_saved_after(step: int, steps: int) -> bool:
    """Return whether the training's state is written after this step."""
    return (step + 1) % SAVE_EVERY == 0 or step + 1 == steps


def save_state(path: Path, **state: object) -> None:
    """Write the state that an interrupted training resumes from, under another name first, so that it is whole."""
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)
