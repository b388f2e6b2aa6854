"""The words of a command line as flags and their values, by what each flag takes.

split(["--seed", "3", "--no_gallery", "--prompt", "--ar 16:9"], flags)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dglaunch.cli.flag_table import Flag
from dglaunch.environment import describe, takes_several, takes_text
from dglaunch.errors import UserError


@dataclass(frozen=True, slots=True)
class Given:
    """A flag as it was typed, or a word that stands alone."""

    name: str
    """Of the flag; empty: the word stands alone."""
    texts: tuple[str, ...]
    """Its values. A switch has 1 or 0."""
    words: tuple[str, ...]
    """All that was typed."""


def split(words: Sequence[str], flags: Mapping[str, Flag]) -> list[Given]:
    """Return the flags and their values as they were typed, in their order, also those that are unknown.

    Raises:
        UserError: a flag has no value.
    """
    found: list[Given] = []
    at = 0
    while at < len(words):
        end = at + 1
        if is_flag(words[at]):
            end = _end_of_values(words, at, flags)
        found.append(_given(words[at:end], flags))
        at = end
    return found


def _end_of_values(words: Sequence[str], at: int, flags: Mapping[str, Flag]) -> int:
    """Where the values of the flag end that stands at a place."""
    flag, end = flags.get(plain(words[at])), at + 1
    if "=" in words[at] or (flag is None and _switched(words[at], flags) is not None) or (flag and flag.is_switch):
        return end
    most = len(words) if flag is None or takes_several(flag.kind) else end + 1
    if flag is not None and takes_text(flag.kind) and end < len(words) and not _is_known(words[end], flags):
        end += 1  # a text may begin with a dash: --prompt "--ar 16:9"
    while end < min(most, len(words)) and not is_flag(words[end]):
        end += 1
    return end


def _given(words: Sequence[str], flags: Mapping[str, Flag]) -> Given:
    """One flag and its values."""
    if not is_flag(words[0]):
        return Given("", tuple(words), tuple(words))
    name = plain(words[0])
    texts = (words[0].partition("=")[2],) if "=" in words[0] else tuple(words[1:])
    flag, taken_back = flags.get(name), _switched(words[0], flags)
    if flag is None and taken_back is not None:
        return Given(taken_back, ("0",), tuple(words))
    if flag is not None and flag.is_switch and not texts:
        texts = ("1",)
    if flag is not None and not texts:
        raise UserError(f"--{name} needs a value: {describe(flag.kind)}. {flag.first_sentence}")
    return Given(name, texts, tuple(words))


def is_flag(word: str) -> bool:
    """Return whether a word is a flag's name by its form: --name, --name=value or -n, but not -5."""
    return len(word) > 1 and word[0] == "-" and (word[1].isalpha() or (word[1] == "-" and len(word) > 2))


def plain(word: str) -> str:
    """Return the name of the flag that a word is: --batch-size=4 is batch_size."""
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def _is_known(word: str, flags: Mapping[str, Flag]) -> bool:
    return word.startswith("--") and (plain(word) in flags or _switched(word, flags) is not None)


def _switched(word: str, flags: Mapping[str, Flag]) -> str | None:
    """The switch that a word takes back: --no_gallery is gallery."""
    name = plain(word).removeprefix("no_")
    is_one = plain(word).startswith("no_") and name in flags and flags[name].is_switch and "=" not in word
    return name if is_one else None
