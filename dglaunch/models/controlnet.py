"""What --controlnet names, read from its config.json: a folder or a model of the hub. torch is not imported."""

from collections.abc import Mapping
from pathlib import Path

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.files import at_home
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.components import CheckpointFiles, Component
from dglaunch.models.folder import Folder
from dglaunch.models.hub import Hub

CONFIG = "config.json"
SAME = (
    "attention_head_dim", "block_out_channels", "cross_attention_dim", "dim", "in_channels", "joint_attention_dim", "n_heads",
    "num_attention_heads", "pooled_projection_dim",
)  # fmt: skip
"""Of a ControlNet's configuration, what must be as in the transformer (or U-Net) that it steers: it adds to what that one
computes, block by block."""


def controlnet_of(config: BackendConfig) -> Component | None:
    """Return the ControlNet that --controlnet names, by its configuration; None where it names nothing.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if config.controlnet is None:
        return None
    found = _files(config.controlnet).json(CONFIG)
    class_name = found.get("_class_name") if found is not None else None
    if found is None or not isinstance(class_name, str):
        raise UserError(
            f"--controlnet {config.controlnet} has no {CONFIG} that names its class (_class_name), so it is no ControlNet in "
            "diffusers' form. Give the folder that holds it, or the hub id of one."
        )
    return Component(name="controlnet", library="diffusers", class_name=class_name, config=found)


def _files(source: str) -> CheckpointFiles:
    folder = at_home(Path(source))
    if folder.is_dir():
        return Folder(folder)
    if folder.is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise UserError(f"--controlnet {source} is no folder here and no hub id (owner/name). Correct it.")
    return Hub(source)


def check_controlnet(checkpoint: Checkpoint, config: BackendConfig) -> None:
    """Refuse a ControlNet that is none of this model's.

    Raises:
        UserError: with what it is, and what is needed.
    """
    found = controlnet_of(config)
    if found is None:
        return
    wanted, named = checkpoint.family.controlnet_class, f"--controlnet {config.controlnet}"
    if found.class_name != wanted:
        raise UserError(
            f"{named} is a {found.class_name}, and {checkpoint.pipeline_name} is steered by a {wanted}. Take one that was "
            "trained for this model."
        )
    if found.config.get("num_mode") is not None:
        raise UserError(
            f"{named} is a union of {found.config['num_mode']} ControlNets, which needs to be told for each image which of them "
            "is meant; dglaunch has no column for that. Take one for a single kind of control image."
        )
    different = _different(found.config, checkpoint.transformer)
    if different:
        raise UserError(
            f"{named} was made for another model than {checkpoint.source}: {'; '.join(different)}. Take one that was trained "
            "for this one."
        )


def _different(controlnet: Mapping[str, object], transformer: Mapping[str, object]) -> list[str]:
    both = [name for name in SAME if name in controlnet and name in transformer]
    return [
        f"{name} is {controlnet[name]} there and {transformer[name]} here"
        for name in both
        if controlnet[name] != transformer[name]
    ]
