"""The DG_* variables: the only place that reads them. A flag comes before its variable, and that before the default."""

import difflib
import io
import os
import types
import typing
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from dglaunch.config import COMMANDS, XDIT_PREFIX, ParallelConfig, leaf_fields
from dglaunch.errors import UserError

JOB_TOKEN = "DG_JOB_TOKEN"
"""The job's token. No flag: the words of a command can be read by everyone on the machine."""
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def types_of(config_type: type) -> dict[str, object]:
    """Return the type of each flag, for a dataclass and the dataclasses in it (the flags have no prefix)."""
    hints = typing.get_type_hints(config_type)
    leaves: dict[str, object] = {}
    for item in fields(config_type):
        hint = hints[item.name]
        leaves |= types_of(hint) if isinstance(hint, type) and is_dataclass(hint) else {item.name: hint}
    return leaves


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
            value: object = tyro.cli(positional[typing.Union[kinds]], args=["--", text], console_outputs=False)  # noqa: UP007
    except SystemExit:
        described = " or ".join(map(_describe, kinds))
        raise UserError(f"{variable}={text!r} is not {described}; correct or unset it.") from None
    return value


def _describe(kind: object) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    words: dict[object, str] = {int: "a whole number", float: "a number", str: "text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def parallel_from_environment(environ: Mapping[str, str]) -> ParallelConfig:
    """Return the DG_XDIT_* degrees.

    Raises:
        UserError: a variable does not parse or is below 1.
    """
    parallel = ParallelConfig()
    for name, hint in types_of(ParallelConfig).items():
        variable = XDIT_PREFIX + name.upper()
        if variable not in environ:
            continue
        value = parse_value(variable, environ[variable], hint)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"{variable}={environ[variable]} must be 1 or more; unset it to leave it at 1.")
        setattr(parallel, name, value)
    return parallel


def known_flags() -> set[str]:
    """Return every flag of every command: a variable for another command is no mistake."""
    return {item.name for config_type in COMMANDS.values() for item in leaf_fields(config_type)}


def check_variables(environ: Mapping[str, str]) -> None:
    """Refuse a DG_* variable that nothing reads: it is a spelling mistake, not a default.

    Raises:
        UserError: with the nearest name; or DG_JOB_TOKEN is set to nothing.
    """
    flags = {f"DG_{name.upper()}" for name in known_flags()}
    allowed = flags | {XDIT_PREFIX + item.name.upper() for item in fields(ParallelConfig)} | {JOB_TOKEN}
    if environ.get(JOB_TOKEN) == "":
        raise UserError(
            f"{JOB_TOKEN} is set to nothing, so it would keep nobody out. Give it a long random text, or unset it."
        )
    for variable in sorted(environ):
        if variable.startswith("DG_") and variable not in allowed:
            near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.0)[0]
            raise UserError(f"The variable {variable} is not one of dglaunch's. The nearest is {near}; or unset it.")


def job_token(environ: Mapping[str, str]) -> str:
    """Return what only the ranks of this job are meant to know: DG_JOB_TOKEN, or else the id of torchrun's rendezvous."""
    return environ.get(JOB_TOKEN) or environ.get("TORCHELASTIC_RUN_ID", "")


def environment() -> Mapping[str, str]:
    """The process's environment (the one place that reads it for dglaunch's own variables)."""
    return os.environ
