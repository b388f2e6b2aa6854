"""This command rebuilds the embedded checkpoint, from nothing but pictures that this package draws.

    python -m dglaunch.tiny.training.train --folder work                                    # one process, or a GPU
    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 \\
        torchrun --nproc_per_node 4 -m dglaunch.tiny.training.train --folder work           # four CPU cores, about an hour

(The MALLOC variables keep glibc from giving memory back at every step: a third of the CPU time, without them.)

The autoencoder comes first, then its latents of a fixed set, then the transformer with both text encoders. Everything
is seeded; run the command again after an interruption and it goes on from the last 250 steps. The folder then holds
`weights/`, the checkpoint, and `log.jsonl` with `settings.json`; --ship copies all three into the package.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro

from dglaunch.tiny import model
from dglaunch.tiny.folder import WEIGHTS
from dglaunch.tiny.training import train_data, train_flow, train_vae
from dglaunch.tiny.training.team import Team
from dglaunch.tiny.training.train_log import Log

TRAINING = Path(__file__).parent
"""The log and the settings of the shipped checkpoint's training are beside this file."""


@dataclass(kw_only=True, slots=True)
class Settings:
    """What to train, for how long, and where to write it."""

    folder: Path
    """Where states, data, log and result go."""
    size: int = model.SIZE
    """Side of the pictures: 64, or 128 where there is a GPU."""
    ship: bool = False
    """Copy the result into the package."""
    vae: train_vae.VaeSettings = field(default_factory=train_vae.VaeSettings)
    data: train_data.DataSettings = field(default_factory=train_data.DataSettings)
    flow: train_flow.FlowSettings = field(default_factory=train_flow.FlowSettings)


def train(settings: Settings, team: Team) -> None:
    """Train the autoencoder, then the transformer with both text encoders, and write the checkpoint."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.jsonl", team.is_main)
    torch.manual_seed(settings.flow.seed)
    networks = {name: network.to(team.device) for name, network in model.networks(settings.size).items()}
    vae = networks.pop("vae")
    train_vae.train(vae, settings.vae, settings.size, folder / "vae.pt", log, team)
    vae.requires_grad_(False).eval()
    train_data.measure_scale(vae, settings.size, team.device)
    pictures, edits = train_data.build(vae, settings.data, settings.size, folder, team)
    log.write(event="data", pictures=len(pictures.latents) * team.size, edits=len(edits.latents) * team.size)
    flow = torch.nn.ModuleDict(networks)
    train_flow.initialize(flow)
    average = train_flow.train(flow, (pictures, edits), settings.flow, folder / "flow.pt", log, team)
    if team.is_main:
        model.save(dict(average.items()) | {"vae": vae}, folder / "weights", settings.size)
        _save_settings(settings)
        if settings.ship:
            _ship(folder)


def _save_settings(settings: Settings) -> None:
    fields = {name: value for name, value in asdict(settings).items() if name not in ("folder", "ship")}
    (settings.folder / "settings.json").write_text(json.dumps(fields, indent=2) + "\n")


def _ship(folder: Path) -> None:
    shutil.copytree(folder / "weights", WEIGHTS, dirs_exist_ok=True)
    for name in ("log.jsonl", "settings.json"):
        shutil.copy(folder / name, TRAINING / name)


def main() -> None:
    """Train as the command line asks for, on one process or under torchrun."""
    settings, team = tyro.cli(Settings), Team()
    try:
        train(settings, team)
    finally:
        team.close()


if __name__ == "__main__":
    main()
