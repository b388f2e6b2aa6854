"""A checkpoint's folder on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dglaunch.models.components import read_json
from dglaunch.models.weights import count_in_folder, loaded_files


@dataclass(frozen=True, slots=True)
class Folder:
    """A diffusers folder: model_index.json, and a folder for each part."""

    path: Path

    @property
    def source(self) -> str:
        return str(self.path)

    def json(self, name: str) -> Mapping[str, object] | None:
        file = self.path / name
        return read_json(file) if file.is_file() else None

    def count(self) -> Mapping[str, int]:
        return count_in_folder(self, self.path)


def weights_of(folder: Path, part: str) -> list[Path]:
    """Return the safetensors files of a part that from_pretrained would read.

    Raises:
        UserError: its index of shards is not as the libraries write it.
    """
    names = {f"{part}/{file.name}" for file in (folder / part).glob("*") if file.is_file()}
    return [folder / name for name in loaded_files(Folder(folder), part, names)]
