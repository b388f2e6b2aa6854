"""The transformer's training with both text encoders: rectified flow on latents, pictures and edits in every step.

Rectified flow: Liu et al. 2022, https://arxiv.org/abs/2209.03003; times from a logit-normal distribution: Esser et al.
2024, https://arxiv.org/abs/2403.03206. Signs, position ids and the place of the picture to edit are those of diffusers'
FLUX pipelines.
"""

import copy
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FluxKontextPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from dglaunch.tiny import model
from dglaunch.tiny.training.muon import Muon
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_data import Dataset
from dglaunch.tiny.training.train_log import Log
from dglaunch.tiny.training.train_vae import SAVE_EVERY, learning_rate, save_state


@dataclass(kw_only=True, slots=True)
class FlowSettings:
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


NEIGHBOURS = (-1, 1, -2, 2, -3, 3)
NEIGHBOUR_BIAS = 4.0
"""Six of T5's eight heads begin at one neighbour each. FLUX gives words no position, so only T5 can say which
colour goes with which shape: after 2,750 steps without this start the colours of two objects were right in 17 %
(bound as if at random), after 1,250 with it in 98 %."""


def initialise(networks: torch.nn.ModuleDict) -> None:
    """Small embeddings; every block and the output begin at zero, as in DiT (https://arxiv.org/abs/2212.09748)."""
    for module in networks.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5)
    bias = networks["text_encoder_2"].encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data
    for head, offset in enumerate(NEIGHBOURS):
        bias[abs(offset) + (len(bias) // 2 if offset > 0 else 0), head] += NEIGHBOUR_BIAS
    transformer = networks["transformer"]
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    norms = [module for block in blocks for name, module in block.named_modules() if name.endswith("linear")]
    for linear in (*norms, transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)


def pack(latents: torch.Tensor) -> torch.Tensor:
    return FluxKontextPipeline._pack_latents(latents, *latents.shape)


def position_ids(latents: torch.Tensor, first: int) -> torch.Tensor:
    height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, height, width, latents.device, torch.float32)
    ids[:, 0] = first
    return ids


def predict(
    networks: torch.nn.ModuleDict, noisy: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """The velocity of packed latents; `before` holds the pictures to edit, or nothing."""
    words = networks["text_encoder_2"](tokens)[0]
    pooled = networks["text_encoder"](tokens[:, : model.TEXT_LENGTH]).pooler_output
    sequence, ids = pack(noisy), position_ids(noisy, 0)
    count = sequence.shape[1]
    if before.numel():
        sequence = torch.cat([sequence, pack(before)], dim=1)
        ids = torch.cat([ids, position_ids(before, 1)])
    output = networks["transformer"](
        hidden_states=sequence,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        timestep=time,
        img_ids=ids,
        txt_ids=torch.zeros(words.shape[1], 3, device=words.device),
        return_dict=False,
    )[0]
    return output[:, :count]


def _pick(rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    return rows[(place * len(rows)).long()]


def _batch(data: Dataset, count: int, settings: FlowSettings, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    is_object = torch.rand(count, generator=generator) < settings.object_share
    place = torch.rand(count, generator=generator)
    rows = torch.where(is_object, _pick(data.objects, place), _pick(data.others, place))
    wording = torch.randint(data.tokens.shape[1], (count,), generator=generator)
    tokens = data.tokens[rows, wording].long()
    dropped = torch.rand(count, generator=generator) < settings.text_dropout
    tokens[dropped] = torch.tensor([1] + [0] * (tokens.shape[1] - 1))
    before = data.before[rows].float() if len(data.before) else torch.empty(0)
    return data.latents[rows].float(), tokens, before


def flow_loss(
    networks: torch.nn.ModuleDict, data: Dataset, count: int, settings: FlowSettings, generator: torch.Generator,
    text_length: int, device: torch.device,
) -> torch.Tensor:  # fmt: skip
    latents, tokens, before = (part.to(device) for part in _batch(data, count, settings, generator))
    tokens = torch.nn.functional.pad(tokens, (0, text_length - tokens.shape[1]))
    noise = torch.randn(latents.shape, generator=generator).to(device)
    time = torch.sigmoid(settings.time_mean + torch.randn(count, generator=generator)).to(device)
    mix = time[:, None, None, None]
    backends = [SDPBackend.MATH] if device.type == "cpu" else list(FAST_ATTENTION)
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(backends):
        velocity = predict(networks, (1 - mix) * latents + mix * noise, time, tokens, before)
    return (velocity.float() - pack(noise - latents)).square().mean()


def train(
    networks: torch.nn.ModuleDict, datasets: tuple[Dataset, Dataset], settings: FlowSettings, state_file: Path,
    log: Log, team: Team,
) -> torch.nn.ModuleDict:  # fmt: skip
    """Train in place, beginning where `state_file` ends; returns the moving average, which is what is shipped."""
    parameters = list(networks.to(team.device).parameters())
    average = copy.deepcopy(networks).requires_grad_(False)
    optimizer, first = Muon(networks, team, settings.lr), 0
    if state_file.exists():
        state = torch.load(state_file, map_location=team.device)
        networks.load_state_dict(state["networks"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log.write(event="flow", first=first, team=team.size, **asdict(settings))
    counts = (settings.pictures // team.size, settings.edits // team.size)
    for step in range(first, settings.steps):
        shared = random.Random(f"flow {settings.seed} {step}")
        length = model.TEXT_LENGTH * (shared.choice((2, 2, 2, 8)) if shared.random() < settings.long_text else 1)
        generator = torch.Generator().manual_seed(shared.randrange(1 << 40) + team.rank)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.lr)
        losses = [
            flow_loss(networks, data, count, settings, generator, length, team.device)
            for data, count in zip(datasets, counts, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack([loss * count for loss, count in zip(losses, counts, strict=True)]).sum() / sum(counts)
        total.backward()
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        log.mean(step, every=100, event="flow", pictures=losses[0].item(), edits=losses[1].item())
        if team.is_main and ((step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps):
            save_state(
                state_file, networks=networks.state_dict(), average=average.state_dict(),
                optimizer=optimizer.state_dict(), step=step + 1,
            )  # fmt: skip
    team.barrier()
    return average
