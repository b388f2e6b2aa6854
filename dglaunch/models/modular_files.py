"""The files of a modular checkpoint: its modular_model_index.json says of each part where it lies, here or in another checkpoint.

files = place_parts(Folder(path), index, ("transformer", "vae"), None)
files.json("model_index.json")           # the parts, as the index of an ordinary pipeline names them
files.json("vae/config.json")            # from wherever the VAE lies
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dglaunch.errors import UserError
from dglaunch.models.components import INDEX, MODULAR_INDEX, CheckpointFiles, has_weights
from dglaunch.models.folder import Folder
from dglaunch.models.hub import Hub

Named = tuple[str, str]
"""A part's library and class."""
Place = tuple[str, str | None, str]
"""The folder or hub id that a part lies in, the revision, and the folder in it."""
SINGLE_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf")
"""How the name of a part ends that is one file, and no folder of a checkpoint."""


@dataclass(frozen=True, slots=True)
class FolderWithParts(Folder):
    """A folder that has some parts of a pipeline."""

    parts: Mapping[str, Named] = field(default_factory=dict)

    def json(self, name: str) -> Mapping[str, object] | None:
        return _as_index(self.parts) if name == INDEX else Folder.json(self, name)


class HubWithParts(Hub):
    """A model of the hub that has some parts of a pipeline."""

    def __init__(self, source: str, revision: str | None, anchor: str, parts: Mapping[str, Named]) -> None:
        super().__init__(source, revision, anchor)
        self.parts = parts

    def json(self, name: str) -> Mapping[str, object] | None:
        return _as_index(self.parts) if name == INDEX else super().json(name)


class ModularFiles:
    """The files of a modular checkpoint, wherever its parts lie, under the names that an ordinary checkpoint's would have."""

    def __init__(
        self,
        base: CheckpointFiles,
        index: Mapping[str, object],
        parts: Mapping[str, Named],
        places: Mapping[str, tuple[CheckpointFiles, str]],
    ) -> None:
        """
        Args:
            index: its modular_model_index.json.
            parts: by name, those that a run loads.
            places: by name, the checkpoint and the folder that each lies in.
        """
        self._base, self._index, self._places = base, index, places
        self.parts = parts

    @property
    def source(self) -> str:
        return self._base.source

    @property
    def elsewhere(self) -> list[str]:
        """The other checkpoints that parts of it lie in."""
        return sorted({files.source for files, _ in self._places.values()} - {self.source})

    def json(self, name: str) -> Mapping[str, object] | None:
        if name == INDEX:
            settings = {key: value for key, value in self._index.items() if not isinstance(value, list)}
            return settings | _as_index(self.parts)
        part, _, rest = name.partition("/")
        if part not in self._places:
            return self._base.json(name)
        files, folder = self._places[part]
        return files.json(f"{folder}/{rest}".lstrip("/"))

    def count(self) -> Mapping[str, int]:
        counted = {id(files): files.count() for files, _ in self._places.values()}
        found = {part: counted[id(files)].get(folder) for part, (files, folder) in self._places.items()}
        return {part: number for part, number in found.items() if number is not None}


def place_parts(
    files: CheckpointFiles, index: Mapping[str, object], names: Collection[str], revision: str | None
) -> ModularFiles:
    """Return the files of a modular checkpoint.

    Args:
        index: its modular_model_index.json.
        names: the parts that a run loads.
        revision: of the checkpoint itself.

    Raises:
        UserError: the index is not as diffusers writes it, or a part lies where dglaunch does not take it from.
    """
    specs = {name: spec for name in names if (spec := _spec(index.get(name))) is not None}
    parts = {name: named for name, spec in specs.items() if (named := _class_of(spec, index[name])) is not None}
    where = {name: _place(files, name, specs[name], revision) for name in parts}
    inside: dict[tuple[str, str | None], dict[str, Named]] = {}
    for name, (source, at, folder) in where.items():
        inside.setdefault((source, at), {})[folder] = parts[name]
    held = {place: _files(files, *place, named) for place, named in inside.items()}
    return ModularFiles(
        files, index, parts, {name: (held[source, at], folder) for name, (source, at, folder) in where.items()}
    )


def _spec(value: object) -> Mapping[str, object] | None:
    """What an entry of the index says of where a part lies; None: it is no part, or lies nowhere."""
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], Mapping):
        return None
    return value[2] if _source(value[2]) else None


def _source(spec: Mapping[str, object]) -> str:
    return str(spec.get("pretrained_model_name_or_path") or spec.get("repo") or "")


def _class_of(spec: Mapping[str, object], entry: object) -> Named | None:
    """A part's library and class: as the blocks want it, else as it was saved; None where neither says."""
    saved = entry[:2] if isinstance(entry, list) else None
    for named in (spec.get("type_hint"), saved):
        if isinstance(named, list) and len(named) == 2 and all(isinstance(each, str) for each in named):
            return named[0], named[1]
    return None


def _place(files: CheckpointFiles, name: str, spec: Mapping[str, object], revision: str | None) -> Place:
    """Where a part lies. A local copy of a model of the hub keeps its index, which points at the hub: what lies in the copy is
    taken from there, as diffusers does."""
    source, folder = _source(spec), str(spec.get("subfolder") or "")
    if source.lower().endswith(SINGLE_FILES):
        raise UserError(
            f"The {name} of {files.source} is one file, {source}, which dglaunch does not take as a part of a modular checkpoint. "
            "Save it as a folder (save_pretrained), and let the index name that."
        )
    if isinstance(files, Folder) and folder and (files.path / folder).is_dir():
        return files.source, None, folder
    at = spec.get("revision")
    if source == files.source:
        return source, str(at) if at is not None else revision, folder
    if not Path(source).is_dir() and (Path(source).is_absolute() or source.count("/") != 1):
        raise UserError(
            f"The {MODULAR_INDEX} of {files.source} says that its {name} lies in {source}, which is no folder here and no hub id. "
            f"Put it into {folder or name}/ beside the index, or correct the index."
        )
    return source, str(at) if at is not None else None, folder


def _files(base: CheckpointFiles, source: str, revision: str | None, parts: Mapping[str, Named]) -> CheckpointFiles:
    if Path(source).is_dir():
        return FolderWithParts(Path(source), parts)
    network = next(filter(has_weights, parts), next(iter(parts)))
    anchor = MODULAR_INDEX if source == base.source else f"{network}/config.json".lstrip("/")
    return HubWithParts(source, revision, anchor, parts)


def _as_index(parts: Mapping[str, Named]) -> dict[str, object]:
    """The entries of a model_index.json for these parts."""
    return {name: list(named) for name, named in parts.items()}
