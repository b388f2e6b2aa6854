"""What was not tried with modular pipelines is refused here before anything is loaded."""

from collections.abc import Iterator

from dglaunch.config import RunConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.modular import ON_NETWORKS
from dglaunch.models.optimizations import asked

UNTRIED = (
    "lora", "transformer", "text_encoder", "vae", "pipeline", "controlnet", "scheduler", "scheduler_options", "stage_to",
    "parallel", "shard",
)  # fmt: skip
"""Flags that load another part, or share the parts among ranks."""


def check_modular(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse flags that nobody tried with a modular pipeline.

    Raises:
        UserError: with what to take instead.
    """
    if checkpoint.modular is None:
        return
    for flag in _untried(config):
        others = checkpoint.modular.files.elsewhere
        such = f", such as {others[0]}, where parts of this one come from" if others else ""
        raise UserError(
            f"--{flag} does not go with {checkpoint.source}, a checkpoint of diffusers' modular pipelines "
            f"({checkpoint.pipeline_name}): nobody tried it there. Drop it, or take the model as an ordinary pipeline, with a "
            f"model_index.json{such}."
        )


def _untried(config: RunConfig) -> Iterator[str]:
    yield from (flag for flag in UNTRIED if getattr(config.backend, flag))
    yield from (row.name for row in asked(config.optimization) if row.flag not in ON_NETWORKS)
