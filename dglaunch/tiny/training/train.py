"""Rebuild the embedded checkpoint from nothing but this package's own drawings.

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
"""The shipped checkpoint's own log and settings."""


@dataclass(kw_only=True, slots=True)
class Settings:
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
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.jsonl", team.is_main)
    torch.manual_seed(settings.flow.seed)
    networks = {name: network.to(team.device) for name, network in model.networks(settings.size).items()}
    vae = networks.pop("vae")
    train_vae.train(vae, settings.vae, settings.size, folder / "vae.pt", log, team)
    vae.requires_grad_(False).eval()
    train_data.measure_scale(vae, settings.size, team.device)
    datasets = train_data.build(vae, settings.data, settings.size, folder, team)
    log.write(event="data", pictures=len(datasets[0].latents) * team.size, edits=len(datasets[1].latents) * team.size)
    flow = torch.nn.ModuleDict(networks)
    train_flow.initialise(flow)
    average = train_flow.train(flow, datasets, settings.flow, folder / "flow.pt", log, team)
    if team.is_main:
        weights = folder / "weights"
        model.save(dict(average.items()) | {"vae": vae}, weights, settings.size)
        kept = {name: value for name, value in asdict(settings).items() if name not in ("folder", "ship")}
        (folder / "settings.json").write_text(json.dumps(kept, indent=2) + "\n")
        if settings.ship:
            shutil.copytree(weights, WEIGHTS, dirs_exist_ok=True)
            TRAINING.mkdir(exist_ok=True)
            for name in ("log.jsonl", "settings.json"):
                shutil.copy(folder / name, TRAINING / name)


def main() -> None:
    settings, team = tyro.cli(Settings), Team()
    try:
        train(settings, team)
    finally:
        team.close()


if __name__ == "__main__":
    main()
