"""Weights that are given apart from a checkpoint (--transformer, --text_encoder, --vae), from their headers; no torch.

    weights = read_weight_files(files, config.backend)          # part -> WeightFile
    files = WithWeightFiles(files, weights)                     # the checkpoint with these in the place of its own

What is in the files is not read here; whether it is what the part needs is asked by dglaunch.backends.diffusers.weight_files.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from dglaunch.config import BackendConfig
from dglaunch.errors import MissingPackage, UserError
from dglaunch.files import at_home
from dglaunch.models.components import CheckpointFiles, parts_of, read_json
from dglaunch.models.content import sha256_of, sha256_of_folder
from dglaunch.models.weights import loaded_files, read_header

Kind = Literal["safetensors", "GGUF", "folder"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", ".gguf", *PICKLES)
"""Of files with weights, readable or not."""
GGUF_PACKAGE = "pip install 'dglaunch[gguf]'"
SCALES = (".scale_weight", ".weight_scale")
"""How the keys of ComfyUI's scaled fp8 files end, which say by what a weight is to be multiplied."""
OF_SCALES = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
SCALED_MARK = "scaled_fp8"
FLOAT8 = ("F8_E4M3", "F8_E5M2")
DENOISERS = ("transformer", "unet")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the header of a file describes it."""

    dtype: str
    """As the file calls it: BF16, F8_E4M3; Q4_0 of GGUF."""
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """The weights of one part of a pipeline, in a file or a folder of their own."""

    flag: str
    """That named it, as it was typed."""
    part: str
    """What the pipeline calls the part."""
    path: Path
    kind: Kind
    tensors: Mapping[str, StoredTensor]
    """By key; of a folder those of all of its files."""
    config: Mapping[str, object] | None
    """A folder's own config.json."""
    sha256: str
    """Of its content; of a folder that of all that is loaded."""
    prefix: str = ""
    """What its keys begin with in the file, where that has several parts'; they are given without."""

    @property
    def num_weights(self) -> int:
        return sum(math.prod(each.shape) for each in self.weights.values())

    @property
    def num_bytes(self) -> int:
        """As they are stored."""
        return sum(each.num_bytes for each in self.tensors.values())

    @property
    def weights(self) -> Mapping[str, StoredTensor]:
        """Its tensors without those that only say how others are scaled."""
        return {key: each for key, each in self.tensors.items() if not is_scale(key)}

    @property
    def is_scaled(self) -> bool:
        """Whether it is a file of ComfyUI's scaled fp8."""
        return any(map(is_scale, self.tensors))

    @property
    def quantized_by(self) -> str | None:
        """What has quantised it: GGUF, torchao, bitsandbytes, ...; None: nothing."""
        return "GGUF" if self.kind == "GGUF" else quantization_of(self.config or {})

    @property
    def described(self) -> str:
        """What it is, in a few words for people: of which kind, and what its weights are stored as."""
        types: dict[str, int] = {}
        for each in self.weights.values():
            types[each.dtype] = types.get(each.dtype, 0) + 1
        most = sorted(types, key=lambda name: -types[name])[:3]
        scaled = ", scaled as ComfyUI does" if self.is_scaled else ""
        return f"{self.path} ({self.kind}, {self.num_bytes / 2**30:.2f} GiB, {' '.join(most)}{scaled})"


def told_of(weights: WeightFile) -> str:
    """Return what is said of a file before it is read."""
    float8 = any(each.dtype in FLOAT8 for each in weights.weights.values())
    if not float8 or weights.quantized_by is not None:
        return f"weights from {weights.described}"
    how = "multiplied by their scales" if weights.is_scaled else "taken as they are (there are no scales)"
    return (
        f"weights from {weights.described}: float8, {how} and kept in the type of the run, so that no memory is saved"
    )


def is_scale(key: str) -> bool:
    """Return whether a key of a file is of no weight, but of what ComfyUI's scaled fp8 needs beside its weights."""
    return key.endswith(OF_SCALES) or key.rpartition(".")[2] == SCALED_MARK


def quantization_of(config: Mapping[str, object]) -> str | None:
    """Return what a part's config.json says that it was quantised by; None: nothing."""
    found = config.get("quantization_config")
    return str(found.get("quant_method", "an unknown method")) if isinstance(found, Mapping) else None


def bytes_of_folder(folder: Path) -> int:
    """Return the bytes of the weights that from_pretrained reads of a part's folder.

    Raises:
        UserError: a file is not whole.
    """
    return sum(tensor.num_bytes for tensor in _read_folder(folder)[1].values())


def read_weight_files(files: CheckpointFiles, config: BackendConfig) -> dict[str, WeightFile]:
    """Return the files that the flags give for parts of a checkpoint, by part.

    Raises:
        UserError: a file is missing or damaged, or of no kind that is loaded; or the pipeline has no such part.
    """
    found: dict[str, WeightFile] = {}
    for flag, part, path in _named(files, config):
        if part in found:
            raise UserError(f"--{flag} names the {part} twice; keep one of them.")
        found[part] = read_weight_file(flag, part, path, config.cache)
    return found


def _named(files: CheckpointFiles, config: BackendConfig) -> Iterator[tuple[str, str, Path]]:
    """Flag, part and path of each; the parts are looked up only if one is given."""
    if config.transformer is None and config.vae is None and not config.text_encoder:
        return
    parts = list(parts_of(files))
    if config.transformer is not None:
        yield (
            "transformer",
            _only("transformer", [part for part in DENOISERS if part in parts], files),
            config.transformer,
        )
    encoders = [part for part in parts if part.startswith("text_encoder")]
    for given in config.text_encoder:
        name, equals, path = given.partition("=")
        if equals and name in encoders:
            yield "text_encoder", name, Path(path)
        elif equals and name.isidentifier() and not at_home(Path(given)).exists():
            raise UserError(
                f"--text_encoder {given}: {files.source} has no {name}. Its text encoders: {', '.join(encoders) or 'none'}."
            )
        else:
            yield "text_encoder", _only("text_encoder", encoders, files), Path(given)
    if config.vae is not None:
        yield "vae", _only("vae", [part for part in parts if part == "vae"], files), config.vae


def _only(flag: str, parts: Sequence[str], files: CheckpointFiles) -> str:
    if not parts:
        raise UserError(f"--{flag} would do nothing: the pipeline of {files.source} has no {flag}. Drop it.")
    if len(parts) > 1:
        raise UserError(
            f"--{flag}: {files.source} has {', '.join(parts)}. Say which one the file is for: --{flag} {parts[-1]}=FILE."
        )
    return parts[0]


def read_weight_file(flag: str, part: str, path: Path, cache: Path) -> WeightFile:
    """Return what the header of a file, or the files of a folder, say of the weights in it.

    Raises:
        UserError: there is no such file, it is not whole, or of no kind that is loaded.
    """
    path = at_home(path)
    if path.is_dir():
        return _folder(flag, part, path, cache)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(
            f"--{flag} {path}: there is no such file. Correct the path; of the hub: hf download OWNER/NAME FILE."
        )
    if suffix in PICKLES:
        raise UserError(
            f"--{flag} {path} is a pickle, which can run any code when it is read. Take the same weights as .safetensors."
        )
    if suffix not in (".safetensors", ".gguf"):
        raise UserError(f"--{flag} {path}: weights are read from .safetensors and .gguf files. Give such a file.")
    is_gguf = suffix == ".gguf"
    tensors = _gguf_header(flag, path) if is_gguf else read_header_of(path)
    if not tensors:
        raise UserError(f"--{flag} {path} has no weights in it. Give another file.")
    return WeightFile(
        flag=flag, part=part, path=path, kind="GGUF" if is_gguf else "safetensors", tensors=tensors, config=None,
        sha256=sha256_of(path, cache),
    )  # fmt: skip


def _folder(flag: str, part: str, path: Path, cache: Path) -> WeightFile:
    """A folder as save_pretrained writes it; or one of a whole pipeline, which has such a folder for the part."""
    folder = path if (path / "config.json").is_file() else path / part
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--{flag} {path} has no config.json. Give the folder that has it beside the weights, as save_pretrained writes "
            "them, or a single file."
        )
    names, tensors = _read_folder(folder)
    if not names:
        raise UserError(f"--{flag} {path} has no .safetensors files. Give a folder with the weights in them.")
    sha256 = sha256_of_folder(folder, ["config.json", *names], cache)
    return WeightFile(
        flag=flag, part=part, path=folder, kind="folder", tensors=tensors, config=read_json(folder / "config.json"),
        sha256=sha256,
    )  # fmt: skip


def read_header_of(file: Path) -> dict[str, StoredTensor]:
    """Return what a safetensors file says of its tensors.

    Raises:
        UserError: it is not whole.
    """
    try:
        entries = read_header(file).tensors
    except ValueError as error:
        raise UserError(f"{file} {error}, as after a download that was interrupted; fetch it again.") from None
    return {key: StoredTensor(entry.kind, entry.shape, entry.num_bytes) for key, entry in entries.items()}


def _read_folder(folder: Path) -> tuple[list[str], dict[str, StoredTensor]]:
    """Which files of a part's own folder from_pretrained reads, and their tensors."""
    part = folder.name
    names = {f"{part}/{file.name}" for file in folder.glob("*") if file.is_file()}
    loaded = [PurePosixPath(name).name for name in loaded_files(_Beside(folder), part, names)]
    tensors: dict[str, StoredTensor] = {}
    for name in loaded:
        tensors |= read_header_of(folder / name)
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


def _gguf_header(flag: str, path: Path) -> dict[str, StoredTensor]:
    """What a GGUF file says of its tensors; their sides come in the other order there.

    Raises:
        UserError: it is none, or not whole.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingPackage("gguf", f"--{flag} {path.name}", GGUF_PACKAGE) from None
    try:
        reader = GGUFReader(path)
        return {
            tensor.name: StoredTensor(
                tensor.tensor_type.name,
                tuple(int(side) for side in reversed(tensor.shape.tolist())),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except Exception as error:  # of the reader's many, none says what it is about
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--{flag} {path} is no whole GGUF file ({reason}); fetch it again.") from None


class WithWeightFiles:
    """A checkpoint's files with some parts' weights, and configurations where they have their own, in the place of its own."""

    def __init__(self, base: CheckpointFiles, weights: Mapping[str, WeightFile]) -> None:
        self.base, self.weights = base, weights

    @property
    def source(self) -> str:
        return self.base.source

    def json(self, name: str) -> Mapping[str, object] | None:
        part, _, file = name.partition("/")
        weights = self.weights.get(part)
        if weights is not None and weights.config is not None and file == "config.json":
            return weights.config
        return self.base.json(name)

    def count(self) -> Mapping[str, int]:
        whole = {part: each for part, each in self.weights.items() if each.quantized_by in (None, "GGUF")}
        return {**self.base.count(), **{part: each.num_weights for part, each in whole.items()}}
