"""The DG_* variables: the only place that reads them. A flag comes before its variable, and that before the default."""

import difflib
import os
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from dglaunch.config import COMMANDS, XDIT_PREFIX, ParallelConfig, degree_variable, flag_fields, leaf_fields
from dglaunch.diffgentor import told_of_variables
from dglaunch.errors import UserError
from dglaunch.files import at_home

PIPEFUSION = f"{XDIT_PREFIX}PIPEFUSION_DEGREE"
"""xfuser has it, and dglaunch does not: known, so that whoever sets it learns why, and what splits an image instead."""
JOB_TOKEN = "DG_JOB_TOKEN"
"""The job's token. No flag: the words of a command can be read by everyone on the machine."""
EMPTY = "; it is empty (a variable of the shell that is not set?)"
TRUTHS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
"""What a truth value may be written as."""


def types_of(config_type: type) -> dict[str, object]:
    """Return the type of each flag, for a dataclass and the dataclasses in it (the flags have no prefix)."""
    hints = typing.get_type_hints(config_type)
    leaves: dict[str, object] = {}
    for item in flag_fields(config_type):
        hint = hints[item.name]
        leaves |= types_of(hint) if isinstance(hint, type) and is_dataclass(hint) else {item.name: hint}
    return leaves


def kinds_of(hint: object) -> tuple[Any, ...]:
    """Return the types of which a flag's type is the union, without None."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if is_union else (hint,)
    return tuple(kind for kind in options if kind is not types.NoneType)


def takes_text(hint: object) -> bool:
    """Return whether a flag of this type takes any text, also one that begins with a dash."""
    return any(kind in (str, Path, tuple[str, ...], tuple[Path, ...]) for kind in kinds_of(hint))


def takes_several(hint: object) -> bool:
    """Return whether a flag of this type takes several words."""
    return any(typing.get_origin(kind) is tuple for kind in kinds_of(hint))


def _path(text: str) -> Path:
    if not text:
        raise ValueError
    return at_home(Path(text))


def parse_value(variable: str, text: str, hint: object) -> object:
    """Return one variable's text as its flag's type; a flag that takes several words only takes those that a shell would see.

    Raises:
        UserError: it is no such value.
    """
    takes_words = all(typing.get_origin(kind) is tuple for kind in kinds_of(hint))
    try:
        texts = shlex.split(text) if takes_words else [text]
    except ValueError:
        raise UserError(f"{variable}={text!r} has a quote that does not end; correct or unset it.") from None
    try:
        return read_value(texts, hint)
    except ValueError as error:
        raise UserError(f"{variable}={text!r} is not {error}; correct or unset it.") from None


def read_value(texts: Sequence[str], hint: object) -> object:
    """Return what was typed for a flag as the flag's type: a text is what was typed, also the word None; a path is not
    empty, as that of an unset variable of the shell is, and may begin with ~.

    Raises:
        ValueError: it is no such value. Its text says what would be, to end a sentence with.
    """
    kinds = kinds_of(hint)
    for kind in kinds:
        with suppress(ValueError):
            return _read(texts, kind)
    raise ValueError(describe(hint) + (EMPTY if "" in texts else ""))


def _read(texts: Sequence[str], kind: Any) -> object:
    if takes_several(kind):
        return tuple(read_value([text], typing.get_args(kind)[0]) for text in texts)
    (text,) = texts
    if typing.get_origin(kind) is Literal:
        words = {str(choice): choice for choice in typing.get_args(kind)}
        if text not in words:
            raise ValueError
        return words[text]
    if kind is bool:
        if text.lower() not in TRUTHS:
            raise ValueError
        return TRUTHS[text.lower()]
    return _path(text) if kind is Path else kind(text)


def variable_of(flag: str) -> str:
    """Return the variable that stands for a flag: DG_BATCH_SIZE for batch_size."""
    return f"DG_{flag.upper()}"


def is_true(text: str) -> bool:
    """Return whether a variable's text is a truth value that is true."""
    return TRUTHS.get(text.lower(), False)


def describe(hint: object) -> str:
    """Return what a flag of this type takes, as the end of a sentence."""
    kinds = kinds_of(hint)
    several = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is tuple]
    return " or ".join(_describe(kind) for kind in kinds if kind not in several)


def _describe(kind: object) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"{_describe(typing.get_args(kind)[0])} or several"
    words: dict[object, str] = {
        int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "a truth value (1 or 0)",
    }  # fmt: skip
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def parallel_from_environment(environ: Mapping[str, str]) -> ParallelConfig:
    """Return the degrees that DG_XDIT_*, DG_PARALLEL_DEGREE and DG_SHARD_DEGREE set.

    Raises:
        UserError: a variable does not parse or is below 1, or it asks for PipeFusion.
    """
    parallel = ParallelConfig()
    for name, hint in types_of(ParallelConfig).items():
        variable = degree_variable(name)
        if variable in environ:
            setattr(parallel, name, _degree(variable, environ[variable], hint))
    if PIPEFUSION in environ and _degree(PIPEFUSION, environ[PIPEFUSION], int) != 1:
        raise UserError(
            f"{PIPEFUSION}={environ[PIPEFUSION]}: xfuser 0.7's PipeFusion receives in float16 whatever the model's type, caches "
            "keys and values twice, which breaks off its first asynchronous step, and hangs where two ranks tell each other a "
            f"shape; mended, it still only approximates the model's image. Unset it, and split an image by "
            f"{XDIT_PREFIX}ULYSSES_DEGREE or, with guidance, by {XDIT_PREFIX}USE_CFG_PARALLEL."
        )
    return parallel


def _degree(variable: str, text: str, hint: object) -> object:
    """A degree, or xDiT's truth value."""
    value = parse_value(variable, text, hint)
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise UserError(f"{variable}={text} must be 1 or more; unset it to leave it at 1.")
    return value


def known_flags() -> set[str]:
    """Return every flag of every command: a variable for another command is no mistake."""
    return {item.name for config_type in COMMANDS.values() for item in leaf_fields(config_type)}


def check_variables(environ: Mapping[str, str]) -> None:
    """Refuse a DG_* variable that nothing reads: it is a spelling mistake, not a default.

    Raises:
        UserError: with the nearest name, or what replaces it if it is diffgentor's; or DG_JOB_TOKEN is set to nothing.
    """
    flags = set(map(variable_of, known_flags()))
    allowed = flags | {degree_variable(item.name) for item in fields(ParallelConfig)} | {PIPEFUSION, JOB_TOKEN}
    if environ.get(JOB_TOKEN) == "":
        raise UserError(
            f"{JOB_TOKEN} is set to nothing, so it would keep nobody out. Give it a long random text, or unset it."
        )
    strangers = [name for name in sorted(environ) if name.startswith("DG_") and name not in allowed]
    if said := told_of_variables(strangers):
        raise UserError(said)
    for variable in strangers:
        near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.0)[0]
        raise UserError(f"The variable {variable} is not one of dglaunch's. The nearest is {near}; or unset it.")


def another_speaks(environ: Mapping[str, str]) -> bool:
    """Return whether this is one of several ranks and not the first, which tells what is wrong with the command."""
    rank, world_size = environ.get("RANK", "0"), environ.get("WORLD_SIZE", "")
    return rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size)


def tells_of_deaths(environ: Mapping[str, str]) -> bool:
    """Return whether this is one of the first two ranks of its machine, which tell that another rank has died: all of a large
    job would fill its log, and of these two one may be the dead one."""
    return environ.get("LOCAL_RANK", "0") in ("0", "1")


def job_token(environ: Mapping[str, str]) -> str:
    """Return what only the ranks of this job are meant to know: DG_JOB_TOKEN, or else the id of torchrun's rendezvous."""
    return environ.get(JOB_TOKEN) or environ.get("TORCHELASTIC_RUN_ID", "")


def environment() -> Mapping[str, str]:
    """The process's environment (the one place that reads it for dglaunch's own variables)."""
    return os.environ
