"""The DG_* variables: the only place that reads them. A flag comes before its variable, and that before the default."""

import difflib
import io
import os
import types
import typing
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dglaunch.config import COMMANDS, XDIT_PREFIX, ParallelConfig, flag_fields, leaf_fields
from dglaunch.errors import UserError
from dglaunch.files import at_home

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

PIPEFUSION = f"{XDIT_PREFIX}PIPEFUSION_DEGREE"
"""xfuser has it, and dglaunch does not: known, so that whoever sets it learns why, and what splits an image instead."""
JOB_TOKEN = "DG_JOB_TOKEN"
"""The job's token. No flag: the words of a command can be read by everyone on the machine."""
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def types_of(config_type: type) -> dict[str, object]:
    """Return the type of each flag, for a dataclass and the dataclasses in it (the flags have no prefix)."""
    hints = typing.get_type_hints(config_type)
    leaves: dict[str, object] = {}
    for item in flag_fields(config_type):
        hint = hints[item.name]
        leaves |= types_of(hint) if isinstance(hint, type) and is_dataclass(hint) else {item.name: hint}
    return leaves


@cache
def reading() -> "ConstructorRegistry":
    """Return how tyro reads texts and paths, of flags and of variables: a text is what was typed, also the word None; a
    path is not empty, as that of an unset variable of the shell is, and may begin with ~."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: "PrimitiveTypeInfo") -> "PrimitiveConstructorSpec[Any] | None":
        kind = _optional(info.type)
        if kind not in (str, Path):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR" if kind is str else "PATH",
            instance_from_str=lambda words: words[0] if kind is str else _path(words[0]),
            is_instance=lambda value: value is None or isinstance(value, str | Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def takes_text(hint: object) -> bool:
    """Return whether a flag of this type takes any text, also one that begins with a dash."""
    return _optional(hint) in (str, Path)


def _optional(hint: object) -> object:
    """The type of which this one is `... | None`, else the type itself."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return kinds[0] if is_union and len(kinds) == 1 else hint


def _path(text: str) -> Path:
    if not text:
        raise ValueError("an empty text is no path (a variable of the shell that is not set?); name a file or a folder")
    return at_home(Path(text))


def parse_value(variable: str, text: str, hint: object) -> object:
    """Return one variable's text as its flag's type; tyro reads it as it reads the flag.

    Raises:
        UserError: it is no such value.
    """
    import tyro

    if hint is bool:
        if text.lower() not in _TRUTH:
            raise UserError(f"{variable}={text!r} is no truth value; write 1 or 0.")
        return _TRUTH[text.lower()]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if is_union else (hint,)
    kinds = tuple(kind for kind in options if kind is not types.NoneType)
    positional: Any = tyro.conf.Positional  # a type made at run time, which no checker follows
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            union: Any = positional[typing.Union[kinds]]  # noqa: UP007  # a union of a tuple
            value: object = tyro.cli(union, args=["--", text], console_outputs=False, registry=reading())
    except SystemExit:
        described = " or ".join(map(_describe, kinds))
        raise UserError(f"{variable}={text!r} is not {described}; correct or unset it.") from None
    return value


def is_true(text: str) -> bool:
    """Return whether a variable's text is a truth value that is true."""
    return _TRUTH.get(text.lower(), False)


def _describe(kind: object) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    words: dict[object, str] = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def parallel_from_environment(environ: Mapping[str, str]) -> ParallelConfig:
    """Return the DG_XDIT_* degrees.

    Raises:
        UserError: a variable does not parse or is below 1, or it asks for PipeFusion.
    """
    parallel = ParallelConfig()
    for name, hint in types_of(ParallelConfig).items():
        variable = XDIT_PREFIX + name.upper()
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
    """One of xDiT's degrees, or its truth value."""
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
        UserError: with the nearest name; or DG_JOB_TOKEN is set to nothing.
    """
    flags = {f"DG_{name.upper()}" for name in known_flags()}
    allowed = flags | {XDIT_PREFIX + item.name.upper() for item in fields(ParallelConfig)} | {PIPEFUSION, JOB_TOKEN}
    if environ.get(JOB_TOKEN) == "":
        raise UserError(
            f"{JOB_TOKEN} is set to nothing, so it would keep nobody out. Give it a long random text, or unset it."
        )
    for variable in sorted(environ):
        if variable.startswith("DG_") and variable not in allowed:
            near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.0)[0]
            raise UserError(f"The variable {variable} is not one of dglaunch's. The nearest is {near}; or unset it.")


def another_speaks(environ: Mapping[str, str]) -> bool:
    """Return whether this is one of several ranks and not the first, which tells what is wrong with the command."""
    rank, world_size = environ.get("RANK", "0"), environ.get("WORLD_SIZE", "")
    return rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size)


def job_token(environ: Mapping[str, str]) -> str:
    """Return what only the ranks of this job are meant to know: DG_JOB_TOKEN, or else the id of torchrun's rendezvous."""
    return environ.get(JOB_TOKEN) or environ.get("TORCHELASTIC_RUN_ID", "")


def environment() -> Mapping[str, str]:
    """The process's environment (the one place that reads it for dglaunch's own variables)."""
    return os.environ
