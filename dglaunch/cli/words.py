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
        found.append(_first(words[at:], flags))
        at += len(found[-1].words)
    return found


def _first(words: Sequence[str], flags: Mapping[str, Flag]) -> Given:
    """What the first word is, with the values behind it."""
    word, equals, text = words[0].partition("=")
    alone = (words[0],)
    if not _is_flag(word):
        return Given("", alone, alone)
    name = _plain(word)
    flag = flags.get(name)
    if equals:
        return Given(name, (text,), alone)
    if flag is None and (switch := _taken_back(word, flags)):
        return Given(switch, ("0",), alone)
    if flag is not None and flag.is_switch:
        return Given(name, ("1",), alone)
    texts = _values(words[1:], flag, flags)
    if flag is not None and not texts:
        raise UserError(f"--{name} needs a value: {describe(flag.kind)}. {flag.first_sentence}")
    return Given(name, texts, (*alone, *texts))


def _values(words: Sequence[str], flag: Flag | None, flags: Mapping[str, Flag]) -> tuple[str, ...]:
    """Those of the words behind a flag that are its values; of one that is unknown, all up to the next."""
    most = len(words) if flag is None or takes_several(flag.kind) else 1
    may_have_dash = flag is not None and takes_text(flag.kind)  # --prompt "--ar 16:9"
    found: list[str] = []
    for word in words[:most]:
        is_value = not _is_flag(word) or (may_have_dash and not found and not _is_known(word, flags))
        if not is_value:
            break
        found.append(word)
    return tuple(found)


def _is_flag(word: str) -> bool:
    """Return whether a word is a flag's name by its form: --name, --name=value or -n, but not -5."""
    return len(word) > 1 and word[0] == "-" and (word[1].isalpha() or (word[1] == "-" and len(word) > 2))


def _plain(word: str) -> str:
    """Return the name of the flag that a word is: --batch-size=4 is batch_size."""
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def _is_known(word: str, flags: Mapping[str, Flag]) -> bool:
    return word.startswith("--") and (_plain(word) in flags or bool(_taken_back(word, flags)))


def _taken_back(word: str, flags: Mapping[str, Flag]) -> str:
    """The switch that a word takes back: --no_gallery is gallery; empty: none."""
    name = _plain(word).removeprefix("no_")
    is_one = _plain(word).startswith("no_") and name in flags and flags[name].is_switch and "=" not in word
    return name if is_one else ""
