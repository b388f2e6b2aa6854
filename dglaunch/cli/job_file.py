"""--config FILE: flags of a job in a file, as a command line of its own that the words of the command win over.

    model_name: black-forest-labs/FLUX.1-dev        # job.yaml; the same names in .toml and .json
    num_inference_steps: 28
    gallery: true

Values are read as those of flags, from their texts: in YAML `time: 24:00:00` is no number of seconds, and `no` is no
prompt that became false. The configuration that run.json holds of a run is such a file, too.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglaunch import strict_json
from dglaunch.config import COMMANDS, TRUST, defaults, flags_that
from dglaunch.errors import UserError
from dglaunch.files import read_bytes

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 1 << 20
"""Of run.json, too, which says more than a job's flags."""
YAML_TAG = "tag:yaml.org,2002:"
SCALARS = (str, int, float, bool)
CALLER = "caller"
"""Where all values came from if Python started the run, as run.json says it."""
Texts = dict[str, str | list[str]]
"""The word that would stand behind each flag; a list: the words."""


class _Record(Texts):
    """What the run.json of a run says of its flags."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """What a file says of flags."""

    path: Path
    texts: Texts
    is_record: bool
    """It is the run.json of a run, which people pass around."""

    def refuse_dangers(self, values: Mapping[str, object]) -> None:
        """Refuse that the file, which others may have written, lets code of others run, or a record says who gets the key.

        Args:
            values: what it alone gives, by name.

        Raises:
            UserError: with the flag.
        """
        for name in flags_that(TRUST):
            if values.get(name) is True:
                raise UserError(
                    f"--config {self.path} sets {name}, with which code of others runs; no file turns that on. If you trust "
                    f"the checkpoint, give --{name} on the command line."
                )
        if self.is_record and "api_base" in values:
            raise UserError(
                f"--config {self.path} names a server, {values['api_base']}, which would get your key; the record of a run is "
                "not trusted with that. Give --api_base on the command line."
            )


def read_job_file(path: Path) -> JobFile:
    """Return the flags that a file names, and what it says of each; what is null is not given.

    Raises:
        UserError: it cannot be read, or is no list of flags; with the remedy.
    """
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config {path}: it is not UTF-8 ({error.reason} at byte {error.start}); save it so."
        ) from None
    except OSError as error:
        raise UserError(f"--config {path}: it cannot be read: {error.strerror or error}.") from None
    if path.suffix.lower() not in READERS:
        raise UserError(f"--config {path}: name a file that ends in {', '.join(READERS)}; that says how it is read.")
    try:
        found = READERS[path.suffix.lower()](text)
    except RecursionError:
        raise UserError(f"--config {path}: it is nested without end. {_WANTED}") from None
    except ValueError as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split()).rstrip('.')}.") from None
    texts = {name.lstrip("-").replace("-", "_"): texts for name, texts in found.items()}
    if "config" in texts:
        raise UserError(f"--config {path} names config itself; a job's file leads to no other. Take it out.")
    is_record = isinstance(found, _Record)
    return JobFile(path, texts, is_record)


# -- kinds of files -----------------------------------------------------------------------------------------------

_WANTED = "A line for each flag is wanted, with its value: no sections, and lists only of plain values."


def _json(text: str) -> Texts:
    try:
        found = strict_json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is no JSON that can be read: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("config"), dict):
        return _of_run(found["config"])  # what a run has left in its folder
    return _texts(found)


def _of_run(config: Mapping[str, Any]) -> Texts:
    """What was given to a run, by the `config` of its run.json: what came from the defaults is left to them."""
    for name, entry in config.items():
        if not isinstance(entry, dict) or not {"value", "from"} <= entry.keys():
            raise ValueError(f"its config has {name} without value and from, so no run of dglaunch has left it")
    usual = {name: value for config_type in COMMANDS.values() for name, value in defaults(config_type).items()}
    left_open = [
        name
        for name, entry in config.items()
        if entry["from"] == "default" or (entry["from"] == CALLER and entry["value"] == usual.get(name))
    ]
    return _Record(_texts({name: entry["value"] for name, entry in config.items() if name not in left_open}))


def _toml(text: str) -> Texts:
    try:
        return _texts(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is no TOML: {error}") from None


def _texts(found: object) -> Texts:
    """Typed values, as the words that would stand behind the flags."""
    if not isinstance(found, dict):
        raise ValueError(f"it is no list of flags. {_WANTED}")
    texts: Texts = {}
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        if any(item is not None and not isinstance(item, SCALARS) for item in values):
            raise ValueError(f"{name} is no plain value. {_WANTED}")
        if value is not None:
            texts[str(name)] = [_text(item) for item in values] if isinstance(value, list) else _text(value)
    return texts


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _yaml(text: str) -> Texts:
    """YAML by its nodes: each value is the text that stands there, and nothing is built from anchors."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {error}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"it is no list of flags. {_WANTED}")
    texts: Texts = {}
    for key, value in root.value:
        name = str(key.value)
        if name in texts:
            raise ValueError(f"it has {name} twice (line {key.start_mark.line + 1}); take one out")
        is_list = isinstance(value, yaml.SequenceNode)
        nodes = value.value if is_list else [value]
        if not all(isinstance(node, yaml.ScalarNode) and _is_plain(node) for node in [key, *nodes]):
            raise ValueError(f"{name} (line {key.start_mark.line + 1}) is no plain value. {_WANTED}")
        if value.tag != f"{YAML_TAG}null":
            texts[name] = [node.value for node in nodes] if is_list else value.value
    return texts


def _is_plain(node: "yaml.ScalarNode") -> bool:
    """Whether a value has none of the tags that ask for an object of Python's, or of the user's own."""
    return str(node.tag).removeprefix(YAML_TAG) in ("str", "int", "float", "bool", "null", "timestamp")


READERS = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}
