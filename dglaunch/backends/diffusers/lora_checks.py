"""What --lora would do wrong with a model, a flag or a split is refused here before anything is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dglaunch.config import RunConfig
from dglaunch.data.task import Bucket, Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, LoraRules
from dglaunch.models.lora import NONE, text_of
from dglaunch.models.optimizations import asked
from dglaunch.system import need

SHOWN = 4
"""Keys in a message."""
MOST_COMPILED = 24
"""Sets of LoRAs for which a block is compiled; each may need several sizes of batch and image (RECOMPILE_LIMIT: 64)."""


def check_loras(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task], xdit: bool) -> None:
    """Refuse LoRAs that the model cannot take, and flags that would lose them.

    Args:
        xdit: whether xfuser runs the model.

    Raises:
        UserError: with the reason and what to do instead.
    """
    if not checkpoint.loras:
        return
    need("peft", "--lora", "pip install 'dglaunch[lora]'")
    rules = checkpoint.family.lora
    if rules is None:
        fitting = ", ".join(family.name for family in FAMILIES.values() if family.lora is not None)
        raise UserError(
            f"--lora: diffusers loads no LoRA into {checkpoint.pipeline_class}; it does for {fitting}. Drop the flag, or take a "
            "checkpoint that it is fused into."
        )
    _check_encoders(checkpoint, rules)
    for row in asked(config.optimization):
        if row.lora:
            raise UserError(f"--lora and --{row.name} do not go together: {row.lora}. Drop one of them.")
    sets = {task.lora or () for task in tasks}
    if config.optimization.enable_compile and len(sets) > MOST_COMPILED:
        raise UserError(
            f"--enable_compile compiles the model for each set of LoRAs and weights, and these rows have {len(sets):,}; beyond "
            f"{MOST_COMPILED} torch may go on uncompiled without a word. Drop --enable_compile."
        )
    if xdit and rules.xdit != "after":
        _check_before_xfuser(checkpoint, config, rules, tasks)


def _check_encoders(checkpoint: Checkpoint, rules: LoraRules) -> None:
    """diffusers drops what is for another text encoder without a word."""
    for file in checkpoint.loras.files:
        for part, keys in file.encoder_keys.items():
            if part not in rules.encoders:
                takes = f"only of {' and '.join(rules.encoders)}" if rules.encoders else "of none"
                shown = ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else "")
                raise UserError(
                    f"--lora {file.name} ({file.source}) has tensors for the {part} ({shown}), and with {checkpoint.pipeline_class} "
                    f"diffusers takes those {takes}: they would be dropped in silence. Take them out of the file, or drop it."
                )


def _check_before_xfuser(checkpoint: Checkpoint, config: RunConfig, rules: LoraRules, tasks: Sequence[Task]) -> None:
    """Where the LoRA goes in before xfuser takes the transformer: it is there for good if it is added to the weights."""
    name = checkpoint.family.name
    if config.optimization.quantization is not None:
        raise UserError(
            f"--lora with --backend xdit goes into {name} before xfuser takes it, and --quantization comes after that: the LoRA "
            "would be quantized too. Drop --quantization, or use --backend diffusers."
        )
    sets = dict.fromkeys(task.lora or () for task in tasks)
    if rules.xdit == "fused" and len(sets) > 1:
        shown = "; ".join(repr(text_of(uses) or NONE) for uses in list(sets)[:SHOWN])
        raise UserError(
            f"With --backend xdit, {name} can have one LoRA (or one set of them) for all rows, as it is added to the weights "
            f"before xfuser takes them; these rows have {len(sets)}: {shown}. Make a job of each (--filter_rows), or use --backend "
            "diffusers."
        )


def why_apart(checkpoint: Checkpoint, config: RunConfig, xdit: bool) -> str:
    """Return why rows with different LoRAs may not share a batch; empty: they may, as long as each has one or none."""
    rules, name = checkpoint.family.lora, checkpoint.family.name
    if rules is None or not rules.mixes or checkpoint.own is not None:
        return f"nobody has measured {checkpoint.pipeline_name} with several in a call"
    if xdit and not rules.mixes_xdit:
        return f"xfuser's {name} computes the rows of a batch in groups of its own"
    if config.optimization.enable_compile:
        return "--enable_compile would compile each mixture anew"
    touched = [
        part for part in rules.apart if any(part in key for file in checkpoint.loras.files for key in file.tensors)
    ]
    if touched:
        return f"they change {' and '.join(touched)}, which gets the tokens of all rows as one sequence"
    return ""


def with_loras(bucket: Callable[[Task], Bucket], apart: bool) -> Callable[[Task], Bucket]:
    """Return the function that says what must be equal in a batch, LoRAs included: peft takes one a row.

    Args:
        apart: whether rows with different LoRAs may not share a batch at all.
    """

    def of_task(task: Task) -> Bucket:
        uses = task.lora or ()
        return replace(bucket(task), lora=(text_of(uses) or NONE) if apart or len(uses) > 1 else "")

    return of_task
