"""The parts of a checkpoint as its model_index.json and their own configurations describe them; torch is not imported.

for component in read_components(files).values():      # files: a folder, or a model of the hub
    print(component.name, component.class_name, component.config)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dglaunch import strict_json
from dglaunch.errors import UserError
from dglaunch.files import read_bytes

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
"""In its place where diffusers' modular pipelines alone run a checkpoint."""
MOST_JSON = 1 << 24
"""Bytes of a checkpoint's configuration."""
USUAL_PARTS = re.compile(r"(transformer|unet|vae|text_encoder|tokenizer|scheduler)(_\d+)?")
"""Names of parts, whatever stands there. (text_encoder_select_layers is a setting of Krea 2.)"""
PREPARING = re.compile(r"(.*_)?(tokenizer|processor|feature_extractor)(_\d+)?")
"""Names of parts that have neither weights nor a config.json (pe_tokenizer is that of ERNIE-Image's rewriting)."""
OWN_CONFIGS = ("scheduler", "guider")
"""How the names of parts end whose configuration has their own name, and which have no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of a pipeline, such as its transformer, its VAE or its scheduler."""

    name: str
    """As the pipeline calls it: transformer, unet, vae, text_encoder_2, scheduler, tokenizer."""
    library: str
    """diffusers or transformers; or the module of diffusers.pipelines that brings the class (kolors)."""
    class_name: str
    config: Mapping[str, object]
    """Its config.json or scheduler_config.json; {} of a tokenizer or an image processor."""


class CheckpointFiles(Protocol):
    """What a checkpoint's files say without its weights being read: of a folder, of a model of the hub, of the catalog."""

    @property
    def source(self) -> str:
        """The folder or the hub id."""

    def json(self, name: str) -> Mapping[str, object] | None:
        """Return the JSON object in a file, by its path in the checkpoint; None if the checkpoint has no such file.

        Raises:
            UserError: it cannot be read, or holds no JSON object.
        """

    def count(self) -> Mapping[str, int]:
        """Return the number of weights of each part that from_pretrained would load; without those that are not known.

        Raises:
            UserError: a file is not whole.
        """


def read_components(files: CheckpointFiles) -> dict[str, Component]:
    """Read the parts that a checkpoint's model_index.json names, each with its configuration.

    Raises:
        UserError: a file is missing or not as diffusers writes it; the message names the file and the key.
    """
    return {name: _component(files, name, *named) for name, named in parts_of(files).items()}


def parts_of(files: CheckpointFiles) -> dict[str, tuple[str, str]]:
    """Return name -> (library, class) of the parts that a checkpoint has, without those that were left out.

    Raises:
        UserError: the model_index.json is not as diffusers writes it.
    """
    parts: dict[str, tuple[str, str]] = {}
    for name, value in (files.json(INDEX) or {}).items():
        if value is None or not _is_part(name, value):
            continue
        if not isinstance(value, list) or len(value) != 2 or not all(_is_name(item) for item in value):
            raise UserError(
                f"{files.source}/{INDEX}: {name} must be a list of its library and its class, such as "
                f'["diffusers", "AutoencoderKL"], and is {strict_json.dumps(value)}. Fetch the checkpoint again, or '
                "correct the file."
            )
        library, class_name = value
        if library is not None and class_name is not None:
            parts[name] = (library, class_name)
    return parts


def settings_of(files: CheckpointFiles) -> dict[str, object]:
    """Return what a model_index.json says besides its parts: arguments of the pipeline, such as is_distilled.

    Raises:
        UserError: the file cannot be read.
    """
    return {
        name: value
        for name, value in (files.json(INDEX) or {}).items()
        if not name.startswith("_") and not _is_part(name, value)
    }


def _is_part(name: str, value: object) -> bool:
    """Whether an entry of a model_index.json is meant as a part, and not as a setting of the pipeline's own."""
    if name.startswith("_"):
        return False
    return USUAL_PARTS.fullmatch(name) is not None or (isinstance(value, list) and _is_name(next(iter(value), 0)))


def _is_name(item: object) -> bool:
    return item is None or isinstance(item, str)


def _component(files: CheckpointFiles, name: str, library: str, class_name: str) -> Component:
    if PREPARING.fullmatch(name):
        return Component(name=name, library=library, class_name=class_name, config={})
    file = config_file(name)
    config = files.json(file)
    if config is None:
        raise UserError(
            f"{files.source} has no {file}, though its {INDEX} names {name} ({class_name}). Fetch the checkpoint again."
        )
    return Component(name=name, library=library, class_name=class_name, config=config)


def config_file(part: str) -> str:
    """Return the path of a part's configuration in its checkpoint."""
    own = next((f"{word}_" for word in OWN_CONFIGS if part.endswith(word)), "")
    return f"{part}/{own}config.json"


def has_weights(part: str) -> bool:
    """Return whether a part of this name is a network."""
    return PREPARING.fullmatch(part) is None and not part.endswith(OWN_CONFIGS)


def read_json(file: Path) -> dict[str, object]:
    """Return the JSON object that a file of a checkpoint holds.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        found = strict_json.loads(read_bytes(file, MOST_JSON))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}; fetch the checkpoint again.") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); fetch the checkpoint again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object; fetch the checkpoint again.")
    return found
