"""What is known of published models where no hub can be asked: one file a model in `catalogue/`, facts with their sources.

    entry = known("black-forest-labs/FLUX.1-dev")        # reads that one file, without torch
    entry.parameters["transformer"]                      # 11901408320

A file's name is the model's id with `--` for the slash. `parameters` is what the installed classes have when they are
built from `config` (tests/torchrun/test_building.py builds each anew). `checked` is "exact" where the published
weights have as many, and `confidence` says how sure the whole is: "checked" against published sizes, "from defaults" of
the classes or converters, or "unverified". What has no source is left out. How to add one: CONTRIBUTING.md.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dglaunch import strict_json
from dglaunch.models.components import INDEX, Component, config_file, read_components

FOLDER = Path(__file__).parent / "catalogue"
SLASH = "--"
NEAR = 0.72
"""How much alike a name and a model's must be to be the one that was meant."""


@dataclass(frozen=True)
class Entry:
    """One known model."""

    name: str
    """Its id on the hub."""
    described: Mapping[str, Any]
    """Its file."""

    @property
    def pipeline(self) -> str:
        """The class of its pipeline in diffusers."""
        return str(self.described["pipeline"])

    @property
    def diffusers(self) -> str:
        """The first version, from 0.36.0 on, that has its classes."""
        return str(self.described["diffusers"])

    @property
    def license(self) -> str | None:
        """None where no source was found."""
        return cast("str | None", self.described.get("license"))

    @property
    def gated(self) -> bool | None:
        """Whether the hub gives it only to those who accepted its terms; None where no source was found."""
        return cast("bool | None", self.described.get("gated"))

    @property
    def confidence(self) -> str:
        """How sure this is: checked, from defaults, unverified."""
        return str(self.described["confidence"])

    @property
    def notes(self) -> str:
        return str(self.described.get("notes", ""))

    @property
    def defaults(self) -> Mapping[str, object]:
        """What the pipeline or the model's card uses where nothing is said: steps, guidance, size, passes a step."""
        return cast("Mapping[str, object]", self.described["defaults"])

    @property
    def apart(self) -> Mapping[str, str]:
        """Components that are in no repository of its own, and where they are: from_pretrained does not find them."""
        return {name: part["repository"] for name, part in self._parts.items() if "repository" in part}

    @cached_property
    def components(self) -> Mapping[str, Component]:
        """Its transformer or U-Net, VAE, text encoders and scheduler; tokenizers have no entry."""
        return read_components(self)

    @property
    def parameters(self) -> Mapping[str, int]:
        """Number of weights by component, tied ones once."""
        return {name: part["parameters"] for name, part in self._parts.items() if "parameters" in part}

    # -- as a checkpoint's files would say it ---------------------------------------------------------------------

    @property
    def source(self) -> str:
        return self.name

    def json(self, name: str) -> Mapping[str, object] | None:
        """Return what is in a file of the checkpoint, as far as it is known: model_index.json and the configurations."""
        if name == INDEX:
            parts = {part: [described["library"], described["class"]] for part, described in self._parts.items()}
            return {"_class_name": self.pipeline, **self.described.get("settings", {}), **parts}
        part = self._parts.get(name.partition("/")[0])
        return None if part is None or name != config_file(name.partition("/")[0]) else part["config"]

    def count(self) -> Mapping[str, int]:
        """Return the weights in the files of each component: its parameters and the buffers that are stored with them."""
        return {name: count + int(self._parts[name].get("buffers", 0)) for name, count in self.parameters.items()}

    @property
    def _parts(self) -> Mapping[str, Mapping[str, Any]]:
        return cast("Mapping[str, Mapping[str, Any]]", self.described["components"])


def names() -> list[str]:
    """Return the ids of all known models."""
    return sorted(file.stem.replace(SLASH, "/") for file in FOLDER.glob("*.json"))


def known(name: str) -> Entry | None:
    """Return what is known of a model by its id on the hub; None if that is nothing."""
    file = FOLDER / f"{name.replace('/', SLASH)}.json"
    if name.count("/") != 1 or name not in names():
        return None
    described = strict_json.loads(file.read_bytes())
    assert isinstance(described, dict)
    return Entry(name, described)


def nearest(name: str) -> str | None:
    """Return the known model that was probably meant: written in other letters, without its owner or misspelt."""
    wanted = name.lower().strip("./")
    by_spelling = {model.lower(): model for model in names()}
    by_spelling |= {model.partition("/")[2].lower(): model for model in names()}
    found = difflib.get_close_matches(wanted, by_spelling, n=1, cutoff=NEAR)
    return by_spelling[found[0]] if found else None


def suggestion(name: str) -> str:
    """Return a sentence about the known model that is spelt almost so; "" if there is none."""
    near = nearest(name)
    return f" Is {near} meant?" if near is not None and near != name else ""


def first_version_with(class_name: str, entries: Iterable[Entry] | None = None) -> str | None:
    """Return the first version of diffusers that has a class of a known model; None if no model has it."""
    listed = entries if entries is not None else (entry for name in names() if (entry := known(name)) is not None)
    versions = [
        entry.diffusers
        for entry in listed
        if any(part.library == "diffusers" and part.class_name == class_name for part in entry.components.values())
    ]
    return min(versions, key=_version, default=None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
