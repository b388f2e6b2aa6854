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
from dglaunch.models.components import CheckpointFiles, parts_of

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
    """Weights in one safetensors file.

    Raises:
        UserError: it is not whole.
    """
    try:
        return sum(math.prod(entry.shape) for entry in read_header(file).tensors.values())
    except ValueError as error:
        raise UserError(
            f"{file} {error}, as after a download that was interrupted; fetch the checkpoint again."
        ) from None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of a tensor."""

    kind: str
    """Its type: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes, behind the header."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    """Where the numbers begin in the file."""


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file: 8 bytes of its length, then JSON.

    Raises:
        ValueError: it is no whole file of this kind; the text ends a sentence about it.
    """
    try:
        with open_regular(file) as data:
            (length,) = struct.unpack("<Q", data.read(8))
            if length > MOST_HEADER:
                raise ValueError("its header has no end")
            found = json.loads(data.read(length))
            behind = os.fstat(data.fileno()).st_size - 8 - length
        metadata = {str(key): str(value) for key, value in found.pop("__metadata__", {}).items()}
        tensors = {key: _entry(value, behind) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, struct.error) as error:
        raise ValueError(f"is no whole safetensors file ({getattr(error, 'strerror', None) or error})") from None
    return Header(tensors, metadata, 8 + length)


def _entry(said: Mapping[str, Any], behind: int) -> TensorEntry:
    """One entry of a header.

    Raises:
        ValueError: the file is shorter than it says.
    """
    kind, shape, (start, end) = str(said["dtype"]), tuple(map(int, said["shape"])), map(int, said["data_offsets"])
    size = TYPE_BYTES.get(kind)
    if not 0 <= start <= end <= behind or (size is not None and end - start != size * math.prod(shape)):
        raise ValueError("it is shorter than its header says")
    return TensorEntry(kind, shape, start)


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
