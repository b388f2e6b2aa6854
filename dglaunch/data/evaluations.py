"""What an evaluation's own prompt file looks like, how many images a prompt it wants, and what it could not read.

Each as its own scripts do it: GenEval (evaluate_images.py), DPG-Bench (compute_dpg_bench.py), T2I-CompBench (BLIP_vqa.py
and inference_eval.py), GenArena (data.py, models.py). Where the images then lie is the business of layouts.py.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dglaunch.config import RunConfig
from dglaunch.data.tables import PROMPT_FILE
from dglaunch.data.task import Record, Task
from dglaunch.data.values import name_key
from dglaunch.errors import UserError


def _as_it_is(row: Record) -> Record | str:
    return row


def _before_tab(row: Record) -> Record | str:
    """T2I-CompBench: what follows a tab is not the prompt."""
    prompt = row.get("prompt")
    return row | {"prompt": prompt.partition("\t")[0]} if isinstance(prompt, str) else row


def _instruction(row: Record) -> Record | str:
    """GenArena: the prompt is called `instruction`; a row with images is for another command."""
    if row.get("input_images"):
        return "has input images, so it is an edit: dglaunch edit --layout genarena --input TABLE"
    rest = {name: value for name, value in row.items() if name not in ("instruction", "input_images")}
    return rest | ({"prompt": row["instruction"]} if "instruction" in row else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One row of EVALUATIONS."""

    samples: int = 1
    """Images of each prompt, where nothing else is asked for."""
    counts: tuple[int, ...] = ()
    """The numbers of images of a prompt that it can use; none named: any."""
    edits: bool = False
    """Whether `edit` can make its images."""
    png_only: bool = False
    column: str | None = None
    """A column that each row needs for its evaluation, besides the prompt."""
    prompts: str
    """What --prompts_file is, for messages."""
    read: Callable[[Record], Record | str] = _as_it_is
    """A row of its file as a row of any table, or what is wrong with it."""


EVALUATIONS: dict[str, Evaluation] = {
    "geneval": Evaluation(samples=4, png_only=True, column="tag", prompts="GenEval's evaluation_metadata.jsonl"),
    "dpg": Evaluation(samples=4, counts=(1, 4), column=PROMPT_FILE, prompts="DPG-Bench's folder prompts of .txt files"),
    "t2i_compbench": Evaluation(samples=10, prompts="one of T2I-CompBench's *_val.txt", read=_before_tab),
    "genarena": Evaluation(counts=(1,), edits=True, prompts="GenArena's data-*.parquet or their folder", read=_instruction),
}  # fmt: skip
"""The layouts that belong to an evaluation; the others take any table."""


def num_images_per_prompt(config: RunConfig) -> int:
    """Return the images of each prompt where its row does not say: what was given, else what --layout wants, else 1.

    Raises:
        UserError: the layout's evaluation has no edits.
    """
    evaluation = EVALUATIONS.get(config.layout)
    if evaluation is not None and config.edits and not evaluation.edits:
        raise UserError(f"--layout {config.layout} is for text to image; drop it, or use t2i.")
    if config.num_images_per_prompt is not None:
        return config.num_images_per_prompt
    return evaluation.samples if evaluation is not None else 1


def read_row(layout: str, row: Record | str) -> Record | str:
    """A row of a evaluation's file as dglaunch's tables have it."""
    return EVALUATIONS[layout].read(row) if layout in EVALUATIONS and isinstance(row, dict) else row


def check(config: RunConfig, tasks: Sequence[Task]) -> None:
    """What the evaluation's own script would stumble over, before anything is made.

    Raises:
        UserError: with the remedy.
    """
    evaluation = EVALUATIONS.get(config.layout)
    if evaluation is None:
        return
    flag = f"--layout {config.layout}"
    if evaluation.png_only and config.output_format != "png":
        raise UserError(f"{flag}: its evaluation reads .png files only; drop --output_format {config.output_format}.")
    needed = evaluation.column
    for task in tasks:
        if needed is not None and not isinstance((task.extra or {}).get(needed), str):
            raise UserError(
                f"{flag}: row {task.index} has no {needed!r}, which its evaluation needs. Give {evaluation.prompts} as "
                "--prompts_file, or drop --layout."
            )
    samples = Counter(task.index for task in tasks)
    wrong = [index for index, count in samples.items() if evaluation.counts and count not in evaluation.counts]
    if wrong:
        counts = " or ".join(map(str, evaluation.counts))
        raise UserError(
            f"{flag}: row {wrong[0]} has {samples[wrong[0]]} images, but its evaluation takes {counts} a prompt. "
            f"Give --num_images_per_prompt {evaluation.counts[-1]}."
        )
    if config.layout == "dpg":
        _check_dpg(flag, tasks)


def _check_dpg(flag: str, tasks: Sequence[Task]) -> None:
    """Its script cuts squares out of one image for each prompt, found by the name up to the first dot."""
    seen: dict[str, Task] = {}
    if len(set(Counter(task.index for task in tasks).values())) > 1:
        raise UserError(
            f"{flag}: its evaluation takes as many images of each prompt; drop the rows' own numbers of them."
        )
    for task in tasks:
        name = str((task.extra or {})[PROMPT_FILE])
        if "." in name or "/" in name or "\\" in name or not name.isprintable():
            raise UserError(f"{flag}: the name {name!r} of row {task.index} has a dot, a slash or a control character.")
        other = seen.setdefault(name_key(name), task)
        if other.index != task.index:
            raise UserError(
                f"{flag}: rows {other.index} and {task.index} have the same {PROMPT_FILE} {name!r}, or two that some file "
                "systems do not tell apart. Rename one of them."
            )
        if None not in (task.width, task.height) and task.width != task.height:
            raise UserError(f"{flag}: row {task.index} is {task.width}x{task.height}; its evaluation cuts out squares.")
