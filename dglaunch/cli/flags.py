"""The command line to a configuration: flags come before DG_* variables, and these before defaults."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dglaunch.config import RunConfig, flag_fields
from dglaunch.environment import check_variables, parse_value, reading, takes_text, types_of
from dglaunch.errors import UserError
from dglaunch.files import at_home
from dglaunch.planning.gpus import Gpu, find_gpu
from dglaunch.streams import Stream, readable

Config = TypeVar("Config", bound=RunConfig)
MOST_DIFFERENCE = 5.0
"""--max_difference of `tune --search`, of 255: about 30 dB."""


def parse(
    config_type: type[Config], arguments: Sequence[str], environ: Mapping[str, str], prog: str, quiet: bool = False
) -> tuple[Config, dict[str, str]]:
    """Return a configuration from the command line and the environment, and for each flag where its value came from.

    A flag that tyro cannot parse ends the process with exit 2 and tyro's text, unless `quiet` (other ranks).
    """
    from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes

    leaves = types_of(config_type)
    check_variables(environ)
    from_environment = {
        name: parse_value(f"DG_{name.upper()}", environ[f"DG_{name.upper()}"], hint)
        for name, hint in leaves.items()
        if f"DG_{name.upper()}" in environ
    }
    arguments = _with_texts_joined(arguments, leaves)
    # The flags come first into a plain namespace, so that a value from the environment can satisfy a check
    # (--prompts_file or --prompt) that the flags alone would not.
    given = {
        word.split("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        for word in arguments
        if word.startswith("--")
    }
    missing = {name: value for name, value in from_environment.items() if name not in given}
    words = [word for name, value in missing.items() for word in _as_words(name, value)]
    config: Config = read_words(
        _with_flags_only(config_type),
        prog,
        [*words, *arguments],
        quiet,
        config=(OmitArgPrefixes, OmitSubcommandPrefixes),
    )
    origins = dict.fromkeys(leaves, "default")
    origins |= {name: f"DG_{name.upper()}" for name in missing}
    origins |= {name: "flag" for name in leaves if name in given}
    return config, origins


def _with_flags_only(config_type: type[Config]) -> type[Config]:
    """The same without the fields that are no flags: tyro makes a flag of every field."""
    names = {item.name for item in fields(config_type)} - {item.name for item in flag_fields(config_type)}
    if not names:
        return config_type
    hidden = {"__annotations__": dict.fromkeys(names, ClassVar[object]), "__doc__": config_type.__doc__}
    return dataclass(kw_only=True)(type(config_type.__name__, (config_type,), {**dict.fromkeys(names), **hidden}))


def read_words(
    kind: Callable[..., object], prog: str, words: Sequence[str], quiet: bool = False, **options: object
) -> Any:
    """Return what tyro makes of a command's words: the only call of it that may print.

    What tyro refuses it shows, and ends the process with exit 2. It shows words as they are; what a terminal would obey in
    them becomes an escape, and then nothing has colors, which are such characters, too.
    """
    import tyro

    told, shown = io.StringIO(), io.StringIO()
    is_readable = all(readable(word) == word for word in words)
    try:
        with redirect_stderr(told), nullcontext() if is_readable else redirect_stdout(shown):
            return tyro.cli(  # type: ignore[call-overload]  # its options are other for each type
                kind,
                prog=prog,
                args=words,
                use_underscores=True,
                registry=reading(),
                console_outputs=not quiet,
                **options,
            )
    finally:
        for text, is_error in ((shown.getvalue(), False), (told.getvalue(), True)):
            Stream(is_error).write(text if is_readable else readable(text))


def _with_texts_joined(arguments: Sequence[str], leaves: Mapping[str, object]) -> list[str]:
    """The arguments with --prompt=TEXT in place of --prompt TEXT where the text begins with a dash and is no flag itself:
    tyro would take "--ar 16:9" for one."""
    joined: list[str] = []
    for word in arguments:
        before = joined[-1] if joined else ""
        name = before.removeprefix("--").replace("-", "_")
        if (
            word.startswith("-")
            and before.startswith("--")
            and takes_text(leaves.get(name))
            and not _is_flag(word, leaves)
        ):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def _is_flag(word: str, leaves: Mapping[str, object]) -> bool:
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return word == "-h" or (word.startswith("--") and (name == "help" or name.removeprefix("no_") in leaves))


def _as_words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}={value}"]


def take_search(arguments: list[str]) -> float | None:
    """Take `tune`'s own flags out of the arguments: --search, and --max_difference with it. Return the greatest difference
    that is wanted, or None without --search.

    Raises:
        UserError: --max_difference is no number from 0 to 255, or there is no --search.
    """
    rest, value = _without(arguments, "max_difference")
    searches = "--search" in rest
    arguments[:] = [word for word in rest if word != "--search"]
    if value is None:
        return MOST_DIFFERENCE if searches else None
    if not searches:
        raise UserError("--max_difference does nothing without --search; add it, or drop --max_difference.")
    try:
        most = float(value)
    except ValueError:
        most = -1.0
    if not 0 <= most <= 255:
        raise UserError(f"--max_difference {value}: a number from 0 to 255 is needed.")
    return most


def take_world_size(arguments: list[str]) -> int | None:
    """Take `plan`'s own flag out of the arguments: the world to plan for, instead of the one that is there."""
    rest, value = _without(arguments, "world_size")
    arguments[:] = rest
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"--world_size {value}: a number of ranks of 1 or more is needed.")
    return int(value)


def take_gpu(arguments: list[str]) -> Gpu | None:
    """Take the flag of `plan` and `tune` out of the arguments that names a GPU (H100) or a GPU's memory (80GiB)."""
    rest, value = _without(arguments, "gpu")
    arguments[:] = rest
    return None if value is None else find_gpu(value)


def take_switch(arguments: list[str], flag: str) -> bool:
    """Take a command's own switch (--compare) out of the arguments; whether it was there."""
    rest = [word for word in arguments if word.replace("-", "_").lstrip("_") != flag or not word.startswith("--")]
    found = len(rest) < len(arguments)
    arguments[:] = rest
    return found


def take_path(arguments: list[str], flag: str) -> Path | None:
    """Take a command's own flag that names a file (--json FILE) out of the arguments.

    Raises:
        UserError: no file is named.
    """
    rest, value = _without(arguments, flag)
    arguments[:] = rest
    if value is not None and not value.strip():
        raise UserError(f"--{flag} needs the name of a file.")
    return None if value is None else at_home(Path(value))


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """Return the arguments without one flag and its value."""
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
