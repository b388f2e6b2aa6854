"""How much of a prompt the text encoders read: its tokens are counted as the family's pipeline counts them.

    windows = PromptWindows(checkpoint, 512, load_tokenizer)
    windows.cuts([task])      # [{"prompt_cut": {"tokenizer": [822, 77], "tokenizer_2": [820, 512]}}]

An image's ledger line has `prompt_cut` where no text encoder reads the prompt to its end: of each, how many tokens the
text has for it, and how many it reads. Where one of them does read it to its end, `prompt_cut_for` names the others (FLUX's
CLIP, which reads 77 tokens and gives the pooled embedding only, beside its T5). The same with `negative_` before it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dglaunch.data.task import Record, Task
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import TextWindow

Cut = dict[str, list[int]]
"""By the name of a tokenizer: the tokens of a text, and how many of them are read."""
CUT, CUT_FOR = "prompt_cut", "prompt_cut_for"
NEGATIVE = "negative_"
LEDGER_KEYS = tuple(f"{sign}{key}" for sign in ("", NEGATIVE) for key in (CUT, CUT_FOR))
UNLIMITED = 10**9
"""A tokenizer that does not know its text encoder's limit gives a number beyond this."""
AT_A_TIME = 256
"""Texts whose tokens are in memory together: before a run all of a table are counted."""
_QUOTED = re.compile(r"""('[^']*'|"[^"]*"|\u2018[^\u2018\u2019]*\u2019|\u201c[^\u201c\u201d]*\u201d)""")
_APOSTROPHE = re.compile(r"(?<=[a-zA-Z])'(?=[a-zA-Z])")
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the prompt in a chat template, and for an apostrophe where quotes are looked for."""


@dataclass(frozen=True, slots=True, order=True)
class Longest:
    """The longest of texts, as the text encoder that reads the most of it sees it."""

    tokens: int
    read: int
    encoder: str


def longest(cuts: Iterable[object]) -> Longest | None:
    """Return the longest text of these values of a ledger line's keys; None if there is none."""
    found = [_most_read(cut) for cut in cuts if isinstance(cut, dict)]
    return max(found, default=None)


def _most_read(cut: Cut) -> Longest:
    by_encoder = [Longest(tokens, read, name) for name, (tokens, read) in cut.items()]
    return max(by_encoder, key=lambda each: each.read)


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    model_max_length: int

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool, verbose: bool
    ) -> Mapping[str, Sequence[Sequence[int]]]: ...

    def num_special_tokens_to_add(self) -> int: ...


class PromptWindows:
    """Prompt windows say of each task what its text encoders do not read of its prompts."""

    def __init__(self, checkpoint: Checkpoint, length: int, tokenizer_of: Callable[[str], Any]) -> None:
        """
        Args:
            length: the pipeline's max_sequence_length.
            tokenizer_of: the tokenizer (or the processor around it) by its name in the pipeline; None if there is none.
        """
        self._encoders: list[_Encoder] = []
        for window in _windows(checkpoint):
            found = tokenizer_of(window.tokenizer)
            encoder = None if found is None else _Encoder(window, found, length, checkpoint.family.windows is not None)
            if encoder is not None and encoder.size < UNLIMITED:
                self._encoders.append(encoder)

    @property
    def are_known(self) -> bool:
        """Whether there is a text encoder of which it is known how much it reads."""
        return bool(self._encoders)

    def cuts(self, tasks: Sequence[Task]) -> list[Record]:
        """What the ledger line of each task says of its prompts: nothing where they are read to their ends."""
        records: list[Record] = [{} for _ in tasks]
        for sign in ("", NEGATIVE):
            texts = [task.negative_prompt if sign else task.text for task in tasks]
            found = self._of_texts(list(dict.fromkeys(filter(None, texts))), negative=sign == NEGATIVE)
            for text, record in zip(texts, records):
                record |= {f"{sign}{key}": cut for key, cut in found.get(text or "", {}).items()}
        return records

    def _of_texts(self, texts: Sequence[str], negative: bool) -> dict[str, dict[str, Cut]]:
        """Of those texts that not all encoders read to their ends."""
        cuts: dict[str, Cut] = {}
        for encoder in self._encoders:
            for text, excess in encoder.excess(texts, negative).items():
                cuts.setdefault(text, {})[encoder.name] = [encoder.size + excess, encoder.size]
        return {text: {CUT if len(cut) == len(self._encoders) else CUT_FOR: cut} for text, cut in cuts.items()}


class _Encoder:
    """One text encoder: its tokenizer, and the tokens of its window that are left for a prompt."""

    def __init__(self, window: TextWindow, found: Any, length: int, is_known: bool) -> None:
        self.name, self._window = window.tokenizer, window
        self._tokenizer: Tokenizer = getattr(found, "tokenizer", found)  # FLUX.2's is inside of a processor
        own = self._tokenizer.model_max_length
        self.size = own if window.own else length if is_known else min(own, length)
        self._before = _before_in_chat(window, found) if window.chat else window.before
        self._specials = 0 if window.chat else self._tokenizer.num_special_tokens_to_add()

    def excess(self, texts: Sequence[str], negative: bool) -> dict[str, int]:
        """By how many tokens the texts are too long that are."""
        before = "" if negative and not self._window.chat else self._before
        room = self.size - self._specials - (0 if negative else self._window.reserved)
        least = room - self._count([before])[0] if before else room
        # A token has a character at least; T5's first may be a space of its own. Others may be normalized to more.
        long = [text for text in texts if not text.isascii() or len(text) >= least]
        written = [before + (text.lower().strip() if self._window.lower else text) for text in long]
        return {text: count - room for text, count in zip(long, self._count(written)) if count > room}

    def _count(self, texts: Sequence[str]) -> list[int]:
        if self._window.spells_quotes:
            return [sum(self._tokens(_spelled(text))) for text in texts]
        return self._tokens(texts)

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), AT_A_TIME):
            part = texts[start : start + AT_A_TIME]
            counts += map(len, self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
        return counts


def _spelled(text: str) -> list[str]:
    """The parts of a text that are tokenized each by itself, where quoted words are spelled. An apostrophe is no quote."""
    parts = [part.replace(MARK, "'") for part in _QUOTED.split(_APOSTROPHE.sub(MARK, text))]
    return [piece for number, part in enumerate(parts) for piece in (part if number % 2 else [part])]


def _windows(checkpoint: Checkpoint) -> Iterable[TextWindow]:
    """Of the text encoders that the checkpoint has: SD3's T5 may be left out."""
    known = checkpoint.family.windows
    if known is None:
        return [TextWindow(tokenizer=name) for name in checkpoint.tokenizers]
    return [window for window in known if window.tokenizer in checkpoint.tokenizers]


def _before_in_chat(window: TextWindow, found: Any) -> str:
    """What a chat template puts before the user's text."""
    messages: list[dict[str, object]] = [{"role": "user", "content": MARK}]
    if window.system is not None:
        import importlib

        module, _, name = window.system.partition(":")
        system = getattr(importlib.import_module(module), name)
        parts = {"system": system, "user": MARK}
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts.items()]
    written: str = found.apply_chat_template(messages, tokenize=False)
    return written.partition(MARK)[0]
