"""Command line and DG_* variables to a config: flags > DG_* > defaults. The only reader of dglaunch's variables."""

import difflib
import io
import os
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from dglaunch.config import XDIT_PREFIX, EditingConfig, ParallelConfig, RunConfig, T2IConfig
from dglaunch.errors import UserError

Config = TypeVar("Config", bound=RunConfig)
# -- the environment ----------------------------------------------------------------------------------------------

_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def types_of(config_type: type) -> dict[str, Any]:
    """Flag name -> type, for a dataclass and the dataclasses in it (the flags have no prefix)."""
    hints = typing.get_type_hints(config_type)
    leaves: dict[str, Any] = {}
    for item in fields(config_type):
        hint = hints[item.name]
        leaves |= types_of(hint) if is_dataclass(hint) else {item.name: hint}
    return leaves


def parse_value(variable: str, text: str, hint: Any) -> Any:
    """One variable's text as its flag's type; tyro reads it as it reads the flag."""
    import tyro

    if hint is bool:
        if text.lower() not in _TRUTH:
            raise UserError(f"{variable}={text!r} is no truth value; write 1 or 0.")
        return _TRUTH[text.lower()]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    hint = typing.Union[tuple(kind for kind in options if kind is not types.NoneType)]  # noqa: UP007
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return tyro.cli(tyro.conf.Positional[hint], args=["--", text], console_outputs=False)
    except SystemExit:
        raise UserError(f"{variable}={text!r} is not {_describe(hint)}; correct or unset it.") from None


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Union:
        return " or ".join(_describe(kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return {int: "a whole number", float: "a number", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def parallel_from_environment(environ: Mapping[str, str]) -> ParallelConfig:
    """Read the DG_XDIT_* degrees.

    Raises:
        UserError: a variable does not parse or is below 1.
    """
    given: dict[str, Any] = {}
    for name, hint in types_of(ParallelConfig).items():
        variable = XDIT_PREFIX + name.upper()
        if variable in environ:
            given[name] = parse_value(variable, environ[variable], hint)
            if not isinstance(given[name], bool) and given[name] < 1:
                raise UserError(f"{variable}={environ[variable]} must be 1 or more; unset it to leave it at 1.")
    return ParallelConfig(**given)


def check_variables(environ: Mapping[str, str], known: typing.Iterable[str]) -> None:
    """A DG_* variable that nothing reads is a spelling mistake, not a default."""
    flags = {f"DG_{name.upper()}" for name in known}
    allowed = flags | {XDIT_PREFIX + item.name.upper() for item in fields(ParallelConfig)}
    for variable in sorted(environ):
        if variable.startswith("DG_") and variable not in allowed:
            near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.0)[0]
            raise UserError(f"The variable {variable} is not one of dglaunch's. The nearest is {near}; or unset it.")


# -- the command line ---------------------------------------------------------------------------------------------


def _with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a config with these leaves replaced."""
    changed: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            changed[item.name] = _with_values(value, values)
        elif item.name in values:
            changed[item.name] = values[item.name]
    return replace(config, **changed)


def parse(
    config_type: type[Config], arguments: Sequence[str], environ: Mapping[str, str], prog: str, quiet: bool = False
) -> tuple[Config, dict[str, str]]:
    """Command line and environment to a config, and for each flag where its value came from.

    A flag that tyro cannot parse ends the process with exit 2 and tyro's text, unless `quiet` (other ranks).
    """
    import tyro

    leaves = types_of(config_type)
    check_variables(environ, known_flags())
    from_environment = {
        name: parse_value(f"DG_{name.upper()}", environ[f"DG_{name.upper()}"], hint)
        for name, hint in leaves.items()
        if f"DG_{name.upper()}" in environ
    }
    # The flags come first into a plain namespace, so that a value from the environment can satisfy a check
    # (--prompts_file or --prompt) that the flags alone would not.
    given = {
        word.split("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        for word in arguments
        if word.startswith("--")
    }
    missing = {name: value for name, value in from_environment.items() if name not in given}
    words = [word for name, value in missing.items() for word in _as_words(name, value)]
    config = tyro.cli(
        config_type,
        prog=prog,
        args=[*words, *arguments],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        use_underscores=True,
        console_outputs=not quiet,
    )
    origins = {
        name: "flag" if name in given else f"DG_{name.upper()}" if name in missing else "default" for name in leaves
    }
    return config, origins


def _as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}={value}"]


COMMANDS: dict[str, type[RunConfig]] = {"t2i": T2IConfig, "edit": EditingConfig}


def known_flags() -> set[str]:
    """Every flag of every command: a variable for another command is no mistake."""
    return {name for config_type in COMMANDS.values() for name in types_of(config_type)}


def take_world_size(arguments: list[str]) -> int | None:
    """Take `plan`'s own flag out of the arguments: the world to plan for, instead of the one that is there."""
    rest, value = _without(arguments, "world_size")
    arguments[:] = rest
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"--world_size {value}: a number of ranks of 1 or more is needed.")
    return int(value)


def torchrun_words(arguments: Sequence[str]) -> list[str]:
    """The same arguments without --num_gpus, for the ranks that torchrun starts."""
    return _without(arguments, "num_gpus")[0]


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without one flag and its value."""
    return _without(arguments, flag)[0]


def _without(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """The arguments without one flag and its value, and that value (the last one given)."""
    rest: list[str] = []
    value: str | None = None
    words = iter(arguments)
    for word in words:
        name, equals, text = word.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") == flag:
            value = text if equals else next(words, "")
        else:
            rest.append(word)
    return rest, value


def environment() -> Mapping[str, str]:
    """The process's environment (the one place that reads it for dglaunch's own variables)."""
    return os.environ
