"""How many weights each part of a checkpoint has, from the files that from_pretrained would load; torch is not imported.

A folder may hold the same weights several times: in half precision under another name (`model.fp16.safetensors`), in one
file and in shards. What is counted is what is loaded without `variant`.
"""

import json
import math
import os
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dglaunch.errors import UserError
from dglaunch.files import open_regular
from dglaunch.models.components import CheckpointFiles, parts_of, read_json

MOST_HEADER = 100_000_000
"""Bytes of a safetensors header; the library's own limit."""
SUFFIX = ".safetensors"
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call a part's weights."""
TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}  # fmt: skip
CONFIG_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USUAL_BYTES = 2
"""Of a weight whose type nothing tells."""
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)(-\d{5}-of-\d{5})?\.safetensors$")


def loaded_files(files: CheckpointFiles, part: str, names: Collection[str]) -> list[str]:
    """Return which of a part's files from_pretrained reads.

    Args:
        part: its name, which is its folder's.
        names: all files of the checkpoint, by their paths in it.
    """
    inside = sorted(name for name in names if str(PurePosixPath(name).parent) == part and name.endswith(SUFFIX))
    for stem in STEMS:
        index, single = f"{part}/{stem}{SUFFIX}.index.json", f"{part}/{stem}{SUFFIX}"
        # diffusers looks for shards first, transformers for the one file.
        order = (index, single) if stem == STEMS[0] else (single, index)
        chosen = next((name for name in order if name in names), None)
        if chosen == single:
            return [single]
        if chosen == index:
            return [name for name in _shards(files, part, index) if name in inside]
    return [name for name in inside if not VARIANT.search(name)] or inside


def _shards(files: CheckpointFiles, part: str, index: str) -> list[str]:
    """The files that an index of shards names.

    Raises:
        UserError: it is not as the libraries write it.
    """
    found = (files.json(index) or {}).get("weight_map")
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(
            f"{files.source}/{index}: weight_map must say for each weight which file has it. Fetch the checkpoint again."
        )
    return sorted({f"{part}/{name}" for name in found.values()})


def count_in_folder(files: CheckpointFiles, folder: Path) -> dict[str, int]:
    """Return the number of weights of each part whose files are whole in a folder, from their headers.

    Raises:
        UserError: a file is no whole safetensors file.
    """
    counts: dict[str, int] = {}
    for part in parts_of(files):
        names = {f"{part}/{file.name}" for file in (folder / part).glob("*") if file.is_file()}
        if loaded := loaded_files(files, part, names):
            counts[part] = sum(_parameters_in(folder / name) for name in loaded)
    return counts


def _parameters_in(file: Path) -> int:
    return sum(math.prod(tensor.shape) for tensor in read_header(file).values())


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the header of a file describes it."""

    dtype: str
    """As the file calls it: BF16, F8_E4M3; Q4_0 of GGUF."""
    shape: tuple[int, ...]
    num_bytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one safetensors file by key: 8 bytes of header length, then the header as JSON, then the data.

    Raises:
        UserError: it is not whole.
    """
    try:
        with open_regular(file) as data:
            (length,) = struct.unpack("<Q", data.read(8))
            if length > MOST_HEADER:
                raise ValueError("its header has no end")
            header = json.loads(data.read(length))
            size = os.fstat(data.fileno()).st_size - 8 - length
        found = {name: _stored(entry) for name, entry in header.items() if name != "__metadata__"}
        if (missing := sum(tensor.num_bytes for tensor in found.values()) - size) > 0:
            raise ValueError(f"{missing:,} bytes of its data are missing")
        return found
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, struct.error) as error:
        raise UserError(
            f"{file} is no whole safetensors file ({getattr(error, 'strerror', None) or error}), as after a download that "
            "was interrupted; fetch the checkpoint again."
        ) from None


def _stored(entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    if begin < 0 or end < begin or min(shape, default=0) < 0:
        raise ValueError("a tensor has less than nothing")
    return StoredTensor(str(entry["dtype"]), shape, end - begin)


def read_part_folder(folder: Path) -> tuple[list[str], dict[str, StoredTensor]]:
    """Return which files of a part's own folder from_pretrained reads, and their tensors.

    Raises:
        UserError: a file is not whole.
    """
    part = folder.name
    names = {f"{part}/{file.name}" for file in folder.glob("*") if file.is_file()}
    loaded = [PurePosixPath(name).name for name in loaded_files(_Beside(folder), part, names)]
    tensors: dict[str, StoredTensor] = {}
    for name in loaded:
        tensors |= read_header(folder / name)
    return loaded, tensors


@dataclass(frozen=True, slots=True)
class _Beside:
    """A part's folder as a checkpoint that has nothing else."""

    folder: Path

    @property
    def source(self) -> str:
        return str(self.folder.parent)

    def json(self, name: str) -> Mapping[str, object] | None:
        file = self.folder.parent / name
        return read_json(file) if file.is_file() else None

    def count(self) -> Mapping[str, int]:
        return {}


def bytes_a_weight(types: Mapping[str, int], config: Mapping[str, object]) -> float:
    """Return the bytes that a part's files spend on a weight.

    Args:
        types: number of weights by their type, as a safetensors header lists them; {} if it is not known.
        config: the part's config.json, which says a type in newer files.
    """
    known = {name: count for name, count in types.items() if name in TYPE_BYTES and count > 0}
    if known:
        return sum(TYPE_BYTES[name] * count for name, count in known.items()) / sum(known.values())
    said = config.get("torch_dtype", config.get("dtype"))
    return CONFIG_BYTES.get(said, USUAL_BYTES) if isinstance(said, str) else USUAL_BYTES
