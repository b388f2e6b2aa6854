"""From what is recorded of a job (run.json, the text of an image) back to its configuration.

Anyone may have written it: each value is read as if it had been typed, and a flag that lets code run, or says where data goes
(`Concern.TRUST`), is never taken from a file.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dglaunch.cli.flags import DEFAULT, TYPED, build
from dglaunch.config import COMMANDS, TRUST, RunConfig, defaults, flags_that
from dglaunch.data.task import Record
from dglaunch.environment import parse_value, read_value, types_of
from dglaunch.errors import UserError
from dglaunch.files import is_stream
from dglaunch.models.lora_source import moved
from dglaunch.output.ledger import OutputFolder, object_at
from dglaunch.system import PACKAGES, versions

OF_THIS_MACHINE = ("device", "cache_dir", "embedding_cache", "stage_to")
"""Flags that are never taken from a file, and that the images do not depend on: there the defaults do."""
OF_THE_RUN = (
    "output_dir", "overwrite", "num_gpus", "node_rank", "num_nodes", "writer", "debug", "metrics_file", "api_batch_cancel",
)  # fmt: skip
"""Flags of how one start was made, which another one is not bound to."""
SOURCES = ("prompt", "prompts_file", "input")
"""Flags that say where a job's rows come from."""
FILES = ("prompts_file", "input", "model_name", "model_config", "transformer", "text_encoder", "vae")
VERSION = re.compile(r"[\w.+!-]{1,40}", re.ASCII)


def typed(name: str, value: object, hint: object) -> object:
    """Return a value of JSON as its flag's type; a list is what several words would be.

    Raises:
        UserError: it is no such value.
    """
    if not isinstance(value, list | tuple):
        return parse_value(name, str(value), hint)
    try:
        return read_value([str(item) for item in value], hint)
    except ValueError as error:
        raise UserError(f"{name}={value!r} is not {error}; correct it.") from None


def recorded_run(folder: OutputFolder) -> tuple[str, Record]:
    """Return the name and the content of the run.json that says how the images of a folder were made.

    Raises:
        UserError: there is none.
    """
    folder.require_results()
    for name, run in folder.runs().items():
        if isinstance(run.get("config"), dict):
            return name, run
    raise UserError(
        f"{folder.path} does not say how its images were made: no run.json there names the flags of its job (it is of an "
        f"older dglaunch, or was not copied). Start the job's own command instead, with --filter_rows and another --output_dir."
    )


def recorded_config(
    folder: OutputFolder, name: str, run: Record, changed: Mapping[str, object]
) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of a job as its run.json has it, and for each flag where its value came from.

    Args:
        folder: the output folder.
        name: the run.json's.
        run: what it says.
        changed: flags that have other values now.

    Raises:
        UserError: it cannot be taken from there.
    """
    config_type, said = _config_type(folder, name, run)
    hints, unset = types_of(config_type), defaults(config_type)
    values: dict[str, object] = dict(changed)
    origins = dict.fromkeys(hints, DEFAULT) | dict.fromkeys(changed, TYPED)
    trusted = set(flags_that(TRUST, config_type))
    for flag in said:
        told, origin = object_at(said, flag), str(object_at(said, flag).get("from"))
        value = told.get("value")
        if flag in changed or flag in OF_THE_RUN or value is None or (flag in unset and value == unset[flag]):
            continue
        if flag not in hints:
            _refuse_unknown(folder, name, flag, value, origin)
        elif flag in trusted:
            _refuse_untrusted(flag, value)
        else:
            values[flag] = _read(folder, name, flag, value, hints[flag])
            origins[flag] = origin
    if "output_dir" in changed and not any(values.get(source) for source in SOURCES):
        raise UserError(
            f"{folder.path} was made from Python with prompts=[...], and {name} does not keep that list. Write it to a file, a "
            f'line such as {{"prompt": "a red fox"}} for each row, and start once: dglaunch t2i --config {folder.path / name} '
            f"--prompts_file FILE --output_dir {folder.path} (nothing is made again). Then start this command again."
        )
    _find_files(values, run.get("working_directory"))
    return build(config_type, values), origins


def _config_type(folder: OutputFolder, name: str, run: Record) -> tuple[type[RunConfig], Record]:
    said = object_at(run, "config")
    for config_type in COMMANDS.values():
        own = set(types_of(config_type)).difference(
            *(types_of(other) for other in COMMANDS.values() if other is not config_type)
        )
        if own & said.keys():
            return config_type, said
    raise UserError(
        f"{folder.path}/{name} names neither the flags of t2i nor those of edit; another version of dglaunch wrote it. Start "
        "the job's own command with that version."
    )


def _refuse_unknown(folder: OutputFolder, name: str, flag: str, value: object, origin: str) -> None:
    """A flag of another version is no matter where it was left alone."""
    if value is False or origin == DEFAULT:
        return
    made_by = versions_in(folder.all_runs().get(name, {})).get("dglaunch", "of another version")
    raise UserError(
        f"{folder.path} was made with --{flag}, which this dglaunch ({versions().get('dglaunch')}) does not have; dglaunch "
        f"{made_by} made it. Take that version, or make the images in another folder: dglaunch t2i --filter_rows ..."
    )


def _refuse_untrusted(flag: str, value: object) -> None:
    if flag not in OF_THIS_MACHINE:
        raise UserError(
            f"The job was run with --{flag} {value}. That is never taken from a file, which anyone may have written; if you "
            f"mean it, add --set {flag}={value}."
        )


def _read(folder: OutputFolder, name: str, flag: str, value: object, hint: object) -> object:
    try:
        return typed(flag, value, hint)
    except UserError:
        raise UserError(
            f"{folder.path}/{name} says that --{flag} was {value!r}, which this dglaunch ({versions().get('dglaunch')}) does "
            "not take; another version wrote it. Start the job's own command with that version."
        ) from None


def _find_files(values: dict[str, object], directory: object) -> None:
    """Relative names are what they were where the job was started, unless there is such a file here."""
    if not isinstance(directory, str):
        return
    for flag in FILES:
        value = values.get(flag)
        found = (
            tuple(_found(item, directory) for item in value) if isinstance(value, tuple) else _found(value, directory)
        )
        if flag in values:
            values[flag] = found
    loras = values.get("lora")
    if isinstance(loras, tuple):
        values["lora"] = tuple(moved(word, directory) for word in loras)


def _found(value: object, directory: str) -> object:
    if not isinstance(value, str | Path) or is_stream(Path(value)) or os.path.exists(value):
        return value
    there = os.path.join(directory, value)
    return type(value)(there) if os.path.exists(there) else value


# -- versions -----------------------------------------------------------------------------------------------------


def differing_versions(described: Record) -> list[str]:
    """Return which of the versions that a file names are others than those here, each with both."""
    here = versions()
    return [
        f"{name} {before}, here it is {here.get(name, 'not installed')}"
        for name, before in versions_in(described).items()
        if before != here.get(name)
    ]


def versions_in(described: Record) -> dict[str, str]:
    """The versions that a file names (none in one of an older dglaunch), as far as they are some."""
    found = object_at(described, "versions")
    return {name: str(found[name]) for name in PACKAGES if VERSION.fullmatch(str(found.get(name, "")))}
