"""The transformer and both text encoders are trained here: rectified flow on latents, pictures and edits in every step.

Rectified flow: Liu et al. 2022, https://arxiv.org/abs/2209.03003; times from a logit-normal distribution: Esser et al.
2024, https://arxiv.org/abs/2403.03206. Signs, position ids and where the picture to edit stands in the sequence are
those of diffusers' FLUX pipelines.
"""

import copy
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5EncoderModel

from dglaunch.tiny import model
from dglaunch.tiny.training.muon import Muon
from dglaunch.tiny.training.steps import is_saved_after, learning_rate, save_state, set_learning_rate, take_step
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_data import Dataset
from dglaunch.tiny.training.train_log import Log


@dataclass(kw_only=True, slots=True)
class FlowSettings:
    """These settings are the transformer's and the text encoders'."""

    steps: int = 4000
    pictures: int = 128
    """Pictures from prompts in a step, all processes together."""
    edits: int = 128
    """Edits in a step."""
    object_share: float = 0.8
    """Of pictures and edits alike. Scenes are learned in a fifth of the steps that the binding of words needs."""
    lr: float = 0.02
    warmup: int = 200
    text_dropout: float = 0.03
    time_mean: float = 0.5
    """Of the logit of the noise's share: above 0, since what stands where is settled while there is much noise."""
    ema: float = 0.998
    long_text: float = 0.05
    """Share of the steps with two to eight times the usual padding, so that other text lengths work too."""
    seed: int = 0


FAST_ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""On a CPU the plain one trains faster: for 32 tokens the flash kernel's backward pass takes half as long again."""
NEIGHBORS = (-1, 1, -2, 2, -3, 3)
NEIGHBOR_BIAS = 4.0
"""Six of T5's eight heads begin at one neighbor each. FLUX gives words no position, so only T5 can say which
color goes with which shape: after 2,750 steps without this start the colors of two objects were right in 17 %
(bound as if at random), after 1,250 with it in 98 %."""


def initialize(networks: torch.nn.ModuleDict) -> None:
    """Make embeddings small, and blocks and output begin at zero, as in DiT (https://arxiv.org/abs/2212.09748)."""
    for module in networks.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5)
    _watch_neighbors(networks["text_encoder_2"])
    transformer: FluxTransformer2DModel = networks["transformer"]
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    norms = [module for block in blocks for name, module in block.named_modules() if name.endswith("linear")]
    for linear in (*norms, transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)


def train(
    networks: torch.nn.ModuleDict, datasets: tuple[Dataset, Dataset], settings: FlowSettings, state_file: Path,
    log: Log, team: Team,
) -> torch.nn.ModuleDict:  # fmt: skip
    """Train in place, from the step where `state_file` ends, and return the moving average, which ships."""
    parameters: list[torch.Tensor] = list(networks.to(team.device).parameters())
    average = copy.deepcopy(networks).requires_grad_(False)
    optimizer = Muon(networks, team, settings.lr)
    first = _resume(networks, average, optimizer, state_file, team.device)
    log.write(event="flow", first=first, team=team.size, **asdict(settings))
    for step in range(first, settings.steps):
        set_learning_rate(optimizer, learning_rate(step, settings.steps, settings.warmup, settings.lr))
        total, pictures_loss, edits_loss = _step_loss(networks, datasets, settings, step, team)
        take_step(optimizer, parameters, total, team)
        _update_average(average, parameters, min(settings.ema, (step + 1) / (step + 10)))
        log.mean(step, every=100, event="flow", pictures=pictures_loss.item(), edits=edits_loss.item())
        if team.is_main and is_saved_after(step, settings.steps):
            save_state(
                state_file, networks=networks.state_dict(), average=average.state_dict(),
                optimizer=optimizer.state_dict(), step=step + 1,
            )  # fmt: skip
    team.barrier()
    return average


def flow_loss(
    networks: torch.nn.ModuleDict, data: Dataset, count: int, settings: FlowSettings, generator: torch.Generator,
    text_length: int, device: torch.device,
) -> torch.Tensor:  # fmt: skip
    """Return the mean squared error of the predicted velocities of a random batch."""
    latents, tokens, before = (part.to(device) for part in _batch(data, count, settings, generator))
    tokens = torch.nn.functional.pad(tokens, (0, text_length - tokens.shape[1]))
    noise = torch.randn(latents.shape, generator=generator).to(device)
    time = torch.sigmoid(settings.time_mean + torch.randn(count, generator=generator)).to(device)
    mix = time[:, None, None, None]
    backends = [SDPBackend.MATH] if device.type == "cpu" else list(FAST_ATTENTION)
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(backends):
        velocity = predict(networks, (1 - mix) * latents + mix * noise, time, tokens, before)
    return (velocity.float() - pack(noise - latents)).square().mean()


def predict(
    networks: torch.nn.ModuleDict, noisy: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """Predict the velocity of packed latents; `before` holds the latents of the pictures to edit, or nothing."""
    words = networks["text_encoder_2"](tokens)[0]
    pooled = networks["text_encoder"](tokens[:, : model.TEXT_LENGTH]).pooler_output
    sequence, ids = pack(noisy), position_ids(noisy, 0)
    count = sequence.shape[1]
    if before.numel():
        sequence = torch.cat([sequence, pack(before)], dim=1)
        ids = torch.cat([ids, position_ids(before, 1)])
    output: torch.Tensor = networks["transformer"](
        hidden_states=sequence,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        timestep=time,
        img_ids=ids,
        txt_ids=torch.zeros(words.shape[1], 3, device=words.device),
        return_dict=False,
    )[0]
    return output[:, :count]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Turn latents [B, C, H, W] into FLUX's sequence of 2x2 patches."""
    packed: torch.Tensor = FluxKontextPipeline._pack_latents(latents, *latents.shape)
    return packed


def position_ids(latents: torch.Tensor, first: int) -> torch.Tensor:
    """Return FLUX's position ids of packed latents; `first` is 0 for the image to make, 1 for the one to edit."""
    height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
    ids: torch.Tensor = FluxKontextPipeline._prepare_latent_image_ids(1, height, width, latents.device, torch.float32)
    ids[:, 0] = first
    return ids


def _watch_neighbors(t5: T5EncoderModel) -> None:
    """Let six heads of T5 begin with their attention on one neighboring word each.

    Half of the buckets of T5's relative positions are for words before, the other half for words after.
    """
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data
    for head, offset in enumerate(NEIGHBORS):
        first_bucket = len(bias) // 2 if offset > 0 else 0
        bias[first_bucket + abs(offset), head] += NEIGHBOR_BIAS


def _resume(
    networks: torch.nn.ModuleDict, average: torch.nn.ModuleDict, optimizer: Muon, state_file: Path, device: torch.device
) -> int:
    """Load the saved state, if there is one, and return the first step that is still to do."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, map_location=device)
    networks.load_state_dict(state["networks"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _step_loss(
    networks: torch.nn.ModuleDict, datasets: tuple[Dataset, Dataset], settings: FlowSettings, step: int, team: Team
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a step's loss, and those of its pictures and of its edits, of which it is the mean by their numbers."""
    shared = random.Random(f"flow {settings.seed} {step}")
    length = model.TEXT_LENGTH * (shared.choice((2, 2, 2, 8)) if shared.random() < settings.long_text else 1)
    generator = torch.Generator().manual_seed(shared.randrange(1 << 40) + team.rank)
    counts = (settings.pictures // team.size, settings.edits // team.size)
    pictures_loss, edits_loss = (
        flow_loss(networks, data, count, settings, generator, length, team.device)
        for data, count in zip(datasets, counts, strict=True)
    )
    weighted = torch.stack([pictures_loss * counts[0], edits_loss * counts[1]])
    return weighted.sum() / sum(counts), pictures_loss, edits_loss


@torch.no_grad()
def _update_average(average: torch.nn.ModuleDict, parameters: list[torch.Tensor], decay: float) -> None:
    averaged: list[torch.Tensor] = list(average.parameters())
    torch._foreach_lerp_(averaged, parameters, 1 - decay)


def _pick(rows: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Return the rows that lie at these fractions, in [0, 1), of all rows."""
    return rows[(fraction * len(rows)).long()]


def _batch(
    data: Dataset, count: int, settings: FlowSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample latents, token ids and the latents before an edit (empty if the dataset has no edits)."""
    is_object = torch.rand(count, generator=generator) < settings.object_share
    fraction = torch.rand(count, generator=generator)
    rows = torch.where(is_object, _pick(data.objects, fraction), _pick(data.others, fraction))
    wording = torch.randint(data.tokens.shape[1], (count,), generator=generator)
    tokens = data.tokens[rows, wording].long()
    dropped = torch.rand(count, generator=generator) < settings.text_dropout
    tokens[dropped] = torch.tensor([1] + [0] * (tokens.shape[1] - 1))
    before = data.before[rows].float() if len(data.before) else torch.empty(0)
    return data.latents[rows].float(), tokens, before
