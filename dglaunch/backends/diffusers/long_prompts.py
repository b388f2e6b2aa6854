"""--on_long_prompt: prompts that the text encoders do not read to their ends are counted, or refused before a model is loaded."""

from collections.abc import Callable, Sequence
from functools import partial

from dglaunch.config import RunConfig
from dglaunch.data.prompt_windows import CUT, NEGATIVE, PromptWindows, longest
from dglaunch.data.task import Record, Task
from dglaunch.errors import InputError, UserError
from dglaunch.models.checkpoint import Checkpoint, load_tokenizer


def windows_of(checkpoint: Checkpoint, config: RunConfig, tokenizer_of: Callable[[str], object]) -> PromptWindows:
    """Return the windows of the checkpoint's text encoders, with their tokenizers by their names in the pipeline."""
    return PromptWindows(checkpoint, checkpoint.text_length(config.max_sequence_length), tokenizer_of)


def check_long_prompts(checkpoint: Checkpoint, config: RunConfig, tasks: Sequence[Task]) -> None:
    """Refuse prompts that no text encoder reads to their ends: with --on_long_prompt fail, and where the pipeline would
    fail on them itself. Only tokenizers are loaded.

    Raises:
        InputError: all rows that are too long.
        UserError: it cannot be told.
    """
    family = checkpoint.family
    if family.windows == () or (config.on_long_prompt != "fail" and family.cuts_prompts):
        return
    if checkpoint.not_here is not None:
        if config.on_long_prompt != "fail":
            return
        raise UserError(
            f"--on_long_prompt fail needs the tokenizers of {checkpoint.source}, and {checkpoint.not_here.reason}. Drop the "
            "flag, or plan where they are at hand."
        )
    load = partial(load_tokenizer, checkpoint, config=config.backend)
    try:
        windows = windows_of(checkpoint, config, load)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The prompts are counted with the tokenizers of {checkpoint.source}, which cannot be loaded: {reason} If files "
            "are missing, download the checkpoint again."
        ) from None
    if not windows.are_known:
        raise UserError(
            f"--on_long_prompt fail: dglaunch does not know how many tokens the text encoders of "
            f"{checkpoint.pipeline_class} read. Drop the flag."
        )
    problems = {
        f"row {task.index}: {problem}": None
        for task, cut in zip(tasks, windows.cuts(tasks))
        if (problem := _problem(cut))
    }
    if problems:
        remedy = (
            "Shorten the prompts, or drop --on_long_prompt fail, and their ends are cut."
            if family.cuts_prompts
            else f"Shorten the prompts: {checkpoint.pipeline_class} fails on longer ones."
        )
        raise InputError(config.rows_from, list(problems), remedy, each_row=True)


def _problem(record: Record) -> str:
    """What is too long in a task's prompts, in words; "" where nothing is."""
    names = {CUT: "the prompt", NEGATIVE + CUT: "the negative prompt"}
    cuts = {name: longest([record[key]]) for key, name in names.items() if key in record}
    return ", ".join(
        f"{name} has {cut.tokens:,} tokens, of which {cut.encoder} reads {cut.read:,}"
        for name, cut in cuts.items()
        if cut is not None
    )
