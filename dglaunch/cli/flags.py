"""The words of a command to its configuration: a flag comes before its DG_* variable, this before the job's file (--config),
and this before the default.

    asked = read_flags(T2IConfig, PlanFlags, words, environ, "plan")
    asked.config, asked.own, asked.origins
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from dglaunch.cli.flag_table import Flag, flags_of, flags_of_tool, is_optional
from dglaunch.cli.habits import told
from dglaunch.cli.job_file import read_job_file
from dglaunch.cli.own_flags import AROUND, OwnFlags
from dglaunch.cli.words import Given, split
from dglaunch.config import COMMANDS, RunConfig
from dglaunch.diffgentor import told_of_value
from dglaunch.environment import check_variables, parse_value, read_value, takes_several, takes_text, variable_of
from dglaunch.errors import UserError

Config = TypeVar("Config", bound=RunConfig)
Own = TypeVar("Own", bound=OwnFlags)
Of = TypeVar("Of")
DEFAULT, TYPED = "default", "flag"
"""Where a value may come from, beside a variable or a file, which are named."""
ONE_OF = (frozenset({"prompt", "prompts_file"}),)
"""Flags of which a job has one: where the command line gives it, that of a variable or of the file does not count."""
MOST_SHOWN = 200
"""Characters of a wrong value."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[Config, Own]):
    """What a command line asks for."""

    config: Config
    own: Own
    origins: Mapping[str, str]
    """For each flag of the configuration where its value came from: flag, DG_..., the job's file, or default."""
    words: list[str]
    """The job's flags to hand on to another process: without the command's own, and with those of the job's file."""


def parse(
    config_type: type[Config], words: Sequence[str], environ: Mapping[str, str], command: str
) -> tuple[Config, Mapping[str, str]]:
    """Return the configuration of a command that has no flags of its own, and where each value came from.

    Raises:
        UserError: with the remedy.
    """
    asked = read_flags(config_type, OwnFlags, words, environ, command)
    return asked.config, asked.origins


def read_around(own_type: type[Own], words: Sequence[str], environ: Mapping[str, str]) -> Asked[RunConfig, Own]:
    """Return what is asked for of a command around a job: plan t2i ...

    Raises:
        UserError: the job is not named, or as `read_flags`.
    """
    command = words[0]
    job, rest = job_of(words)
    if job is None:
        jobs = " or ".join(AROUND[command].jobs)
        raise UserError(f"Name the command to {command} first: dglaunch {command} {jobs} [flags].")
    return read_flags(COMMANDS[job], own_type, rest, environ, f"{command} {job}")


def job_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the job that a command is around, which stands alone among its words, and the words without the two.

    Raises:
        UserError: a flag has no value.
    """
    around = AROUND[words[0]]
    given = split(words[1:], flags_of(around.own, *(COMMANDS[job] for job in around.jobs)))
    places = [at for at, item in enumerate(given) if not item.name and item.words[0] in around.jobs][:1]
    rest = [word for at, item in enumerate(given) if at not in places for word in item.words]
    return (given[places[0]].words[0] if places else None), rest


def read_flags(
    config_type: type[Config],
    own_type: type[Own],
    words: Sequence[str],
    environ: Mapping[str, str],
    command: str,
    otherwise: Callable[[Collection[str]], Sequence[str]] = lambda _: (),
) -> Asked[Config, Own]:
    """Return what the words after a command, the variables and the job's file ask for.

    Args:
        config_type: of the job.
        own_type: of the command.
        words: the flags as they were typed.
        environ: with the DG_* variables.
        command: for messages.
        otherwise: the command's own defaults as words, by the names of the flags that were given.

    Raises:
        UserError: a flag is unknown or has no such value, or the configuration does not hold; with the remedy.
    """
    of_job, of_command = flags_of(config_type), flags_of(own_type)
    flags = of_command | of_job
    check_variables(environ)
    given = split(words, flags)
    _refuse_strangers(given, flags, command)
    typed = _values_of(given, flags)
    from_variables = _from_variables(of_job, environ, _settled(typed))
    file = typed.get("config")
    in_file = {} if file is None else _in_file(Path(str(file)), flags, _settled({*typed, *from_variables}), command)
    own_defaults = split(otherwise({*typed, *from_variables, *in_file}), flags)
    values = _values_of(own_defaults, flags)
    values |= {name: value for name, (value, _) in in_file.items()} | from_variables | typed
    origins = dict.fromkeys(of_job, DEFAULT)
    origins |= {name: str(file) for name in in_file if name in of_job}
    origins |= {name: variable_of(name) for name in from_variables}
    origins |= {name: TYPED for name in typed if name in of_job}
    handed_on = [word for item in own_defaults for word in item.words]
    handed_on += [word for name, (_, same) in in_file.items() if name in of_job for word in same]
    handed_on += [word for item in given if item.name in of_job for word in item.words]
    return Asked(build(config_type, values), build(own_type, values), origins, handed_on)


def _settled(given: Iterable[str]) -> set[str]:
    """The flags of which nothing else is asked any more: those that are given, and those that they are instead of."""
    names = set(given)
    return names.union(*(group for group in ONE_OF if group & names))


def _from_variables(
    flags: Mapping[str, Flag], environ: Mapping[str, str], settled: Collection[str]
) -> dict[str, object]:
    variables = {name: variable_of(name) for name in flags if name not in settled}
    return {
        name: parse_value(variable, environ[variable], flags[name].kind)
        for name, variable in variables.items()
        if variable in environ
    }


def _in_file(
    path: Path, flags: Mapping[str, Flag], settled: Collection[str], command: str
) -> dict[str, tuple[object, list[str]]]:
    """What a job's file says of flags that are not settled elsewhere: their values, and the same as words.

    Raises:
        UserError: the file cannot be read, or has a flag or a value that there is not.
    """
    file = read_job_file(path)
    texts = file.texts
    if strangers := [f"--{name}" for name in texts if name not in flags]:
        raise UserError(f"--config {path}: {' '.join(told(name, flags, command) for name in strangers)}")
    if lists := [
        name for name, found in texts.items() if isinstance(found, list) and not takes_several(flags[name].kind)
    ]:
        raise UserError(f"--config {path}: {lists[0]} is a list; --{lists[0]} takes one value.")
    several = {name: [found] if isinstance(found, str) else found for name, found in texts.items()}
    values = {name: _value_of(f"--config {path}: {name}", several[name], flags[name]) for name in texts}
    values = {name: value for name, value in values.items() if name not in settled}
    file.refuse_dangers(values)
    return {name: (value, _as_words(flags[name], several[name], value)) for name, value in values.items()}


def _as_words(flag: Flag, texts: Iterable[str], value: object) -> list[str]:
    if flag.is_switch:
        return [f"--{flag.name}" if value else f"--no_{flag.name}"]
    return [f"--{flag.name}={text}" for text in texts]


def named(name: str, origin: str) -> str:
    """Return what a flag is called where its value came from: --encode, the variable DG_ENCODE, encode in job.yaml."""
    if origin == TYPED:
        return f"--{name}"
    return f"the variable {origin}" if origin.startswith("DG_") else f"{name} in {origin}"


def build(config_type: type[Of], values: Mapping[str, Any]) -> Of:
    """Return a dataclass, and those in it, from values by the names of their fields; others are passed over."""
    arguments = {}
    for item in fields(config_type):  # type: ignore[arg-type]  # any dataclass; typeshed has no name for its type
        part: object = item.default_factory
        if isinstance(part, type) and is_dataclass(part):
            arguments[item.name] = build(part, values)
        elif item.name in values:
            arguments[item.name] = values[item.name]
    return config_type(**arguments)


def call(function: Callable[..., int], words: Sequence[str], command: str) -> Callable[[], int]:
    """Return the call of a tool's function that its words ask for.

    Raises:
        UserError: with the remedy.
    """
    flags = flags_of_tool(function)
    values = _all_values(words, flags, command)
    positional = [values[name] for name, flag in flags.items() if flag.by_place and name in values]
    by_name = {flags[name].argument: value for name, value in values.items() if not flags[name].by_place}
    return lambda: function(*positional, **by_name)


def read_own(own_type: type[Of], words: Sequence[str], command: str) -> Of:
    """Return the flags of a command that has no job's, from the words behind it: a dataclass as in own_flags.py.

    Raises:
        UserError: with the remedy.
    """
    flags = flags_of(own_type)
    return own_type(**{flags[name].argument: value for name, value in _all_values(words, flags, command).items()})


def _all_values(words: Sequence[str], flags: Mapping[str, Flag], command: str) -> dict[str, object]:
    """The values of what was typed, by name; nothing that must be given is missing."""
    given = _placed(split(words, flags), [flag for flag in flags.values() if flag.by_place])
    _refuse_strangers(given, flags, command)
    values = _values_of(given, flags)
    if missing := [flag for flag in flags.values() if flag.is_required and flag.name not in values]:
        raise UserError(
            f"dglaunch {command} needs {' and '.join(map(_called, missing))}; dglaunch {command} --help says what that is."
        )
    return values


def _called(flag: Flag) -> str:
    return flag.name.upper() if flag.by_place else f"--{flag.name}"


def _placed(given: Sequence[Given], by_place: Sequence[Flag]) -> list[Given]:
    """The words that stand alone, as the flags whose places they have; what is too much stays alone."""
    places = list(by_place)
    found: list[Given] = []
    for item in given:
        if item.name or not places:
            found.append(item)
            continue
        found.append(replace(item, name=places[0].name))
        if not takes_several(places[0].kind):
            places.pop(0)
    return found


# -- values ------------------------------------------------------------------------------------------------------------


def _refuse_strangers(given: Iterable[Given], flags: Mapping[str, Flag], command: str) -> None:
    """Refuse flags that the command does not have, and words that stand alone.

    Raises:
        UserError: with what is there instead.
    """
    strangers = [item for item in given if item.name not in flags]
    if strangers:
        names = [item.words[0].partition("=")[0] if item.name else item.words[0] for item in strangers]
        raise UserError(" ".join(dict.fromkeys(told(name, flags, command) for name in names)))


def _values_of(given: Iterable[Given], flags: Mapping[str, Flag]) -> dict[str, object]:
    """Return the values of flags that were typed; the last one counts, and of a flag that takes several, all.

    Raises:
        UserError: a flag has no such value.
    """
    texts: dict[str, tuple[str, ...]] = {}
    for item in given:
        several = takes_several(flags[item.name].kind)
        texts[item.name] = (*texts.get(item.name, ()), *item.texts) if several else item.texts
    return {name: _value_of(_called(flags[name]), texts[name], flags[name]) for name in texts}


def _value_of(said: str, texts: Sequence[str], flag: Flag) -> object:
    """Return the value that a flag's texts stand for.

    Args:
        said: what the flag is called where they stand, for the message.

    Raises:
        UserError: there is no such value.
    """
    if list(texts) == ["None"] and is_optional(flag.kind) and not takes_text(flag.kind):
        return None
    try:
        return read_value(texts, flag.kind)
    except ValueError as error:
        shown = repr(texts[0] if len(texts) == 1 else list(texts))
        shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}..."
        hint = "".join(told_of_value(flag.name, text) for text in texts)
        raise UserError(f"{said} {shown} is not {error}; correct it, or leave it out.{hint}") from None


def without(words: Sequence[str], *names: str) -> list[str]:
    """Return a job's words without some flags and their values."""
    flags = flags_of(OwnFlags, *COMMANDS.values())
    return [word for item in split(words, flags) if item.name not in names for word in item.words]
