"""Prompts that a language model rewrites before any image is made: how they are asked for, and the file that keeps them.

    wanted = rewriting_of(config)                     what is asked; None: nothing is rewritten
    known = wanted.known(folder, given)               what earlier starts and other jobs have rewritten alike
    known[wanted.ask(task)]                           the text that takes the prompt's place

A line of rewritten.jsonl: {"prompt": ..., "rewritten": ..., "seed": 7, "by": "5e6b...", "model": ...}. `seed` is there where
the model draws by chance. A file that somebody wrote by hand needs `prompt` and `rewritten` only.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dglaunch import strict_json
from dglaunch.config import RewriteConfig, RunConfig
from dglaunch.data.task import Record, Task
from dglaunch.errors import InputError, UserError
from dglaunch.files import read_bytes

FILE = "rewritten"
"""How the names of the files begin that keep what was rewritten."""
MOST_INSTRUCTION = 1 << 20
MOST_FILE = 1 << 32
"""Bytes of a file that is read."""
SHOWN = 20
FOR_IMAGES = (
    "You rewrite prompts for a text-to-image model. Keep the subject, the intent, and every text in quotation marks as they are. "
    "Add what can be seen: composition, materials, light, colors, style. Write one paragraph of at most 120 words in the "
    "language of the prompt. Answer with the new prompt alone."
)
FOR_EDITS = (
    "You rewrite instructions for a model that edits images. Say precisely what changes and what stays as it is. Keep every "
    "text in quotation marks as it is. Write at most 80 words in the language of the instruction. Answer with the new "
    "instruction alone."
)
"""What the model is told where no --rewrite_instruction is given."""


class Ask(NamedTuple):
    """One prompt to rewrite; the same for all images that may share the answer."""

    prompt: str
    seed: int | None
    """Of the image, where the model draws by chance; None: the answer follows from the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """How a job's prompts are rewritten."""

    model: str | None
    """None: they all stand in a file."""
    api_base: str | None
    """Of a chat server; None: the model runs here."""
    instruction: str
    temperature: float
    max_tokens: int
    given: Path | None
    """A file of another job."""
    given_sha256: str | None

    @property
    def identity(self) -> Record:
        """What must not change between two starts on one folder. (Where a server stands may.)"""
        if self.model is None:
            return {"file_sha256": self.given_sha256}
        return {
            "model": self.model,
            "instruction_sha256": hashlib.sha256(self.instruction.encode()).hexdigest(),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    @property
    def by(self) -> str:
        """The same in short, as each line of the file has it."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def ask(self, task: Task) -> Ask:
        """Return what is asked for an image's prompt."""
        return Ask(task.prompt, task.seed if self.temperature and self.model is not None else None)

    def line(self, ask: Ask, text: str) -> Record:
        """Return the line that keeps an answer."""
        seed: Record = {} if ask.seed is None else {"seed": ask.seed}
        return {"prompt": ask.prompt, "rewritten": text, **seed, "by": self.by, "model": self.model}

    def known(self, paths: Iterable[Path]) -> dict[Ask, str]:
        """Return what was rewritten alike, by earlier starts (whose files are `paths`) and by the job whose file was given.

        Raises:
            UserError: the given file cannot be read, or has bad lines.
        """
        known: dict[Ask, str] = {}
        if self.given is not None:
            lines = _lines_of(self.given, strict=True)
            known |= {
                _ask_of(line): str(line["rewritten"])
                for line in lines
                if self.model is None or line.get("by") == self.by
            }
        for path in paths:
            known |= {_ask_of(line): str(line["rewritten"]) for line in _lines_of(path) if line.get("by") == self.by}
        return known

    @property
    def where(self) -> str:
        """Who does it, for people."""
        if self.model is None:
            return f"as {self.given} has it"
        return f"by {self.model}" + (f" at {self.api_base}" if self.api_base is not None else "")


def rewriting_of(config: RunConfig) -> Rewriting | None:
    """Return how a job's prompts are rewritten; None if they are not.

    Raises:
        UserError: a flag would do nothing, or a file is not as it must be.
    """
    flags = config.rewriting
    if flags.rewrite_prompts is None and flags.rewritten_prompts is None:
        _refuse_idle(flags, "without --rewrite_prompts MODEL", "rewrite_api_base", "rewrite_instruction", *_NUMBERS)
        return None
    if flags.rewrite_prompts is None:
        _refuse_idle(
            flags,
            "as --rewritten_prompts alone rewrites nothing anew",
            "rewrite_api_base",
            "rewrite_instruction",
            *_NUMBERS,
        )
    return Rewriting(
        model=flags.rewrite_prompts,
        api_base=flags.rewrite_api_base,
        instruction=_instruction(flags.rewrite_instruction, config.edits),
        temperature=flags.rewrite_temperature,
        max_tokens=flags.rewrite_max_tokens,
        given=flags.rewritten_prompts,
        given_sha256=None if flags.rewritten_prompts is None else _sha256(flags.rewritten_prompts),
    )


_NUMBERS = ("rewrite_temperature", "rewrite_max_tokens")


def _refuse_idle(flags: RewriteConfig, why: str, *names: str) -> None:
    unset = RewriteConfig()
    idle = [f"--{name}" for name in names if getattr(flags, name) != getattr(unset, name)]
    if idle:
        raise UserError(f"{', '.join(idle)} would do nothing {why}. Drop {'it' if len(idle) == 1 else 'them'}.")


def _instruction(path: Path | None, edits: bool) -> str:
    if path is None:
        return FOR_EDITS if edits else FOR_IMAGES
    try:
        text = read_bytes(path, MOST_INSTRUCTION).decode("utf-8-sig").strip()
    except OSError as error:
        raise UserError(f"--rewrite_instruction {path} cannot be read: {error.strerror or error}.") from None
    except ValueError:
        raise UserError(f"--rewrite_instruction {path} is no text in UTF-8, or larger than 1 MiB.") from None
    if not text:
        raise UserError(f"--rewrite_instruction {path} is empty. Write into it what the model is to do with a prompt.")
    return text


def _sha256(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--rewritten_prompts {path} cannot be read: {reason}. It is a {FILE}.jsonl that a job with --rewrite_prompts has left."
        ) from None


def _lines_of(path: Path, strict: bool = False) -> Iterator[Record]:
    """The lines of a file; of one of our own a torn line, as a killed start leaves it, is passed over."""
    problems = []
    for number, raw in enumerate(_bytes(path).split(b"\n"), 1):
        if not raw.strip():
            continue
        record = _line_of(raw)
        if record is not None:
            yield record
        elif strict:
            problems.append(
                f"line {number}: it must be an object with the texts `prompt` and `rewritten`, neither empty"
            )
    if problems:
        raise InputError(path, problems)


def _line_of(raw: bytes) -> Record | None:
    try:
        record = strict_json.loads(raw)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    texts = [record.get("prompt"), record.get("rewritten")]
    return record if all(isinstance(text, str) and text.strip() for text in texts) else None


def is_ours(path: Path) -> bool:
    """Return whether a file holds nothing but what jobs have rewritten (or nothing at all)."""
    lines = [raw for raw in _bytes(path).split(b"\n")[:-1] if raw.strip()]
    found = [_line_of(raw) for raw in lines]
    return all(record is not None and isinstance(record.get("by"), str) for record in found)


def _ask_of(line: Record) -> Ask:
    seed = line.get("seed")
    return Ask(str(line["prompt"]), seed if isinstance(seed, int) and not isinstance(seed, bool) else None)


def check_given(wanted: Rewriting, tasks: Iterable[Task]) -> None:
    """Refuse a file of rewritten prompts that lacks some of a job's, where no model would rewrite them.

    Raises:
        UserError: with those that it lacks.
    """
    if wanted.model is not None or wanted.given is None:
        return
    known = {ask.prompt for ask in wanted.known(())}
    missing = list(dict.fromkeys(task.prompt for task in tasks if task.prompt not in known))
    if missing:
        shown = "".join(f"\n  {prompt[:200]!r}" for prompt in missing[:SHOWN])
        more = f"\n  ... and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"--rewritten_prompts {wanted.given} lacks {len(missing):,} of the job's prompts. Add --rewrite_prompts MODEL, "
            f"which rewrites them.{shown}{more}"
        )


def cleaned(answer: str) -> str:
    """Return a model's answer as a prompt: what it thought, quotation marks around all, and line breaks are not part of it."""
    text = " ".join(answer.rpartition("</think>")[2].split())
    for first, last in ('""', "''", "“”", "``"):
        if len(text) > 1 and text[0] == first and text[-1] == last and text.count(first) <= 2 and text.count(last) <= 2:
            return text[1:-1].strip()
    return text


def by_prompt(known: Mapping[Ask, str]) -> dict[str, str]:
    """Return the same by prompt alone, where no model draws by chance."""
    return {ask.prompt: text for ask, text in known.items()}
