"""LoRA files, as far as they are known without torch: what each holds, what is wrong with it, and what a row asks for.

    loras = read_loras(["style=styles/oil.safetensors:0.8", "owner/repo"])   # every fault is raised here, all at once
    loras.all                                       # what a row uses that does not say otherwise
    loras.of_row("style:0.5")                       # what a row's own cell asks for

Which tensors end up in which network is known only once that is loaded: backends/diffusers/loras.py looks then.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

from dglaunch import strict_json
from dglaunch.errors import UserError
from dglaunch.files import digest_of, read_bytes
from dglaunch.models.lora_source import PEFT_CONFIG, Source, locate
from dglaunch.models.weights import TYPE_BYTES, Header, read_header

MOST_CONFIG = 1 << 20
"""Bytes of an adapter_config.json."""
SHOWN = 4
"""Keys in a message."""
NONE = "none"
"""What a cell may say for no LoRA: an empty cell of a .csv cannot be told from one that was left out."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps rank and alpha in the header of a file that it saves."""
PAIRS = (
    (re.compile(r"\.lora_A(\.[^.]+)?\.weight$"), re.compile(r"\.lora_B(\.[^.]+)?\.weight$")),
    (re.compile(r"\.lora_down\.weight$"), re.compile(r"\.lora_up\.weight$")),
    (re.compile(r"(?<=lora)(\w*)\.down\.weight$"), re.compile(r"(?<=lora)(\w*)\.up\.weight$")),
)
"""How the two factors of a layer end in the formats that there are: peft's and diffusers', kohya's, older ones."""
ALPHA = re.compile(r"\.(alpha|lora_alpha)$")
BIAS = re.compile(r"\.lora_B(\.[^.]+)?\.bias$")
OTHER_KINDS = {
    "dora_scale": "DoRA, whose scale diffusers drops",
    "lora_magnitude_vector": "DoRA, whose rows cannot share a batch",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "diff_b": "differences of biases, which diffusers drops",
    ".diff": "whole differences of weights, which diffusers drops",
    "lora_mid": "LoCon with a middle factor",
}
"""Words in the keys of files that are no plain LoRA, and what they are."""
OF_ENCODERS = {"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3", "lora_te_": "text_encoder"}  # fmt: skip
"""How kohya calls the text encoders."""
DENOISER = "the transformer"


@dataclass(frozen=True, slots=True)
class LoraUse:
    """What an image uses of a LoRA: which file, by its content, and how strongly."""

    name: str
    scale: float
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}:{shortest(self.scale)}"


def shortest(number: float) -> str:
    """Return the shortest text of a number that is read back as the same."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """One --lora: the file, and what its header says."""

    name: str
    """What rows call it."""
    source: str
    """The file, as the command names it."""
    path: Path
    scale: float
    """Where a row does not say another."""
    sha256: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """By key: type and shape."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The adapter_config.json beside it, if peft wrote it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the header says besides."""

    @property
    def use(self) -> LoraUse:
        return LoraUse(self.name, self.scale, self.sha256)

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks of its layers, each once."""
        return sorted({shape[0] for key, (_, shape) in self.tensors.items() if _half(key) == "down" and shape})

    @cached_property
    def encoder_keys(self) -> dict[str, list[str]]:
        """Its keys that are about a text encoder, by that encoder's name."""
        found: dict[str, list[str]] = {}
        for key in self.tensors:
            if part := encoder_of(key):
                found.setdefault(part, []).append(key)
        return found

    def num_bytes(self, part: str) -> int:
        """Return the bytes of what it adds to a part of the pipeline."""
        is_encoder = part.startswith("text_encoder")
        return sum(
            TYPE_BYTES[kind] * math.prod(shape)
            for key, (kind, shape) in self.tensors.items()
            if (encoder_of(key) == part if is_encoder else encoder_of(key) is None)
        )

    def describe(self) -> str:
        """Return in one line what it is."""
        size = sum(TYPE_BYTES[kind] * math.prod(shape) for kind, shape in self.tensors.values()) / 2**20
        parts = [
            *([DENOISER] if len(self.encoder_keys) < 1 or self.num_bytes("transformer") else []),
            *self.encoder_keys,
        ]
        ranks = " and ".join(map(str, self.ranks)) if len(self.ranks) < 3 else f"{self.ranks[0]} to {self.ranks[-1]}"
        return (
            f"{self.source}: rank {ranks}, {size:,.1f} MiB, {len(self.tensors):,} tensors for {' and '.join(parts)}, scale "
            f"{shortest(self.scale)}, sha256 {self.sha256[:12]}"
        )


def encoder_of(key: str) -> str | None:
    """Return the name of the text encoder that a key is about; None where it is about the network that denoises."""
    first = key.split(".", 1)[0]
    if first.startswith("text_encoder"):
        return first
    return next((part for prefix, part in OF_ENCODERS.items() if key.startswith(prefix)), None)


@dataclass(frozen=True)
class Loras:
    """All of a job's LoRAs, in the order of the command."""

    files: tuple[LoraFile, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    @cached_property
    def by_name(self) -> dict[str, LoraFile]:
        return {file.name: file for file in self.files}

    @property
    def all(self) -> tuple[LoraUse, ...] | None:
        """What a row uses that does not say otherwise; None where the job has none at all."""
        return tuple(file.use for file in self.files) or None

    def of_row(self, cell: object) -> tuple[LoraUse, ...]:
        """Return what a row's cell asks for, in the order of the command, so that "a,b" is "b,a".

        Raises:
            ValueError: it names none of these, one twice, or has no number; the text ends a sentence about the cell.
        """
        if not isinstance(cell, str):
            raise ValueError(f'is {cell!r}, not a text such as "style:0.8,detail:0.5" ("" for none)')
        wanted: dict[str, LoraUse] = {}
        for word in cell.split(",") if cell.strip() not in ("", NONE) else ():
            use = self._use(word.strip())
            if use.name in wanted:
                raise ValueError(f"names {use.name!r} twice")
            wanted[use.name] = use
        return tuple(wanted[file.name] for file in self.files if file.name in wanted)

    def _use(self, word: str) -> LoraUse:
        name, colon, scale = (word, "", "") if word in self.by_name else word.rpartition(":")
        name = name.strip() if colon else word
        file = self.by_name.get(name)
        if file is None:
            raise ValueError(f"names {name!r}, {self._unknown(name)}")
        if not colon:
            return file.use
        try:
            return LoraUse(name, finite(scale), file.sha256)
        except ValueError:
            raise ValueError(f"gives {name} the weight {scale!r}, which is no number") from None

    def _unknown(self, name: str) -> str:
        if not self.files:
            return "but no --lora is given; give it, or, if the column is no setting, --ignore_columns lora"
        near = difflib.get_close_matches(name, self.by_name, n=1, cutoff=0.6)
        meant = f"; the nearest is {near[0]}" if near else ""
        return f"which no --lora gives (there are {', '.join(self.by_name)}{meant})"

    def num_bytes(self, part: str) -> int:
        """Return the bytes of what they all add to a part of the pipeline."""
        return sum(file.num_bytes(part) for file in self.files)

    @property
    def reasons(self) -> dict[str, str]:
        """What plan and the report say of each."""
        return {f"lora {file.name}": file.describe() for file in self.files}


NO_LORAS = Loras()


def text_of(uses: Iterable[LoraUse]) -> str:
    """Return what a row's cell would say."""
    return ",".join(map(str, uses))


def finite(text: str) -> float:
    """Return the number that a text is.

    Raises:
        ValueError: it is none.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


# -- reading ------------------------------------------------------------------------------------------------------


def read_loras(words: Sequence[str]) -> Loras:
    """Read what --lora names, and look at all that can be known before a model is loaded.

    Raises:
        UserError: files are missing or wrong; all of them are named.
    """
    sources = _found(words)
    names = [source.name for source in sources]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise UserError(f"--lora: two are called {twice!r}. Name them apart: --lora one=FILE two=FILE.")
    files: list[LoraFile] = []
    problems: list[str] = []
    for source in sources:
        try:
            header = read_header(source.path)
            files.append(_read(source, header))
            problems += (f"{source.word}: {problem}" for problem in _problems(files[-1], header))
        except ValueError as error:
            problems.append(f"{source.word}: {error}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            "--lora: nothing was run, as these would be applied wrongly, in part or not at all, without a word. Convert the "
            f"file (to diffusers' keys, as safetensors), or drop it:\n{listed}"
        )
    return Loras(tuple(files))


def _found(words: Sequence[str]) -> list[Source]:
    """The files that are named.

    Raises:
        UserError: some are not there, or cannot be meant; all of them are told.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for word in words:
        try:
            sources.append(locate(word))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return sources


def _read(source: Source, header: Header) -> LoraFile:
    return LoraFile(
        name=source.name, source=source.shown, path=source.path, scale=source.scale, sha256=digest_of(source.path),
        tensors={key: (entry.kind, entry.shape) for key, entry in header.tensors.items()},
        config=_peft_config(source), metadata=header.metadata,
    )  # fmt: skip


def _peft_config(source: Source) -> Mapping[str, object]:
    """The adapter_config.json that peft has written beside its weights; {} if there is none."""
    if source.config is None:
        return {}
    try:
        found = strict_json.loads(read_bytes(source.config, MOST_CONFIG))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source.config} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{source.config} holds no JSON object")
    return cast("dict[str, object]", found)


# -- what is wrong with one ---------------------------------------------------------------------------------------


def _problems(file: LoraFile, header: Header) -> list[str]:
    """What would be dropped or misread, in words that end a sentence about the file."""
    other = next((kind for word, kind in OTHER_KINDS.items() if any(word in key for key in file.tensors)), None)
    if other is not None:
        found = [key for key in file.tensors if any(word in key for word in OTHER_KINDS)]
        return [f"it is no plain LoRA but has {other} ({_some(found)})"]
    strange = [key for key in file.tensors if _half(key) is None and not ALPHA.search(key) and not BIAS.search(key)]
    if strange or not file.tensors:
        return [
            f"{_some(strange) or 'it has no tensors'}: these are no factors of a LoRA (lora_A and lora_B, lora_down and lora_up) and no alpha"
        ]
    kinds = sorted({kind for kind, _ in file.tensors.values()} - FLOATS.keys())
    if kinds:
        return [f"its numbers are {', '.join(kinds)}; they must be F32, F16, BF16 or F64"]
    problems = [*_pair_problems(file), *_alpha_problems(file), *_scale_problems(file)]
    return problems or _number_problems(file, header)


def _half(key: str) -> str | None:
    """Whether a key is about the first factor of a layer (down) or the second (up)."""
    for down, up in PAIRS:
        if down.search(key):
            return "down"
        if up.search(key):
            return "up"
    return None


def _module(key: str) -> str:
    """The layer that a key is about, as the file calls it."""
    for pattern in (*(half for pair in PAIRS for half in pair), ALPHA, BIAS):
        if found := pattern.search(key):
            suffix = found.group(1) if found.groups() and pattern is not ALPHA else None
            return key[: found.start()] + (suffix or "")
    return key


def _pair_problems(file: LoraFile) -> list[str]:
    halves: dict[str, dict[str, int]] = {}
    for key, (_, shape) in file.tensors.items():
        half = _half(key)
        if half is not None:
            rank = shape[0] if half == "down" else shape[1] if len(shape) > 1 else -1
            halves.setdefault(_module(key), {})[half] = rank if shape else -1
    alone = [
        f"{module} ({'up' if 'up' in found else 'down'} only)" for module, found in halves.items() if len(found) < 2
    ]
    uneven = [module for module, found in halves.items() if len(found) == 2 and found["up"] != found["down"]]
    problems = (
        [f"layers with one factor of two, of which the other would be drawn at random: {_some(alone)}"] if alone else []
    )
    return problems + ([f"layers whose two factors have different ranks: {_some(uneven)}"] if uneven else [])


def _alpha_problems(file: LoraFile) -> list[str]:
    alphas = {_module(key) for key in file.tensors if ALPHA.search(key)}
    layers = {_module(key) for key in file.tensors if _half(key)}
    without = sorted(_without_suffix(layers) - alphas)
    if not alphas:
        return []
    if METADATA in file.metadata:
        return [f"it says its alphas twice, as tensors and in its header ({METADATA})"]
    if without:
        return [
            f"{len(alphas)} of {len(layers)} layers have an alpha; the others would get the commonest one: {_some(without)}"
        ]
    if stray := sorted(alphas - _without_suffix(layers)):
        return [f"alphas of layers that it does not have: {_some(stray)}"]
    return []


def _without_suffix(layers: Iterable[str]) -> set[str]:
    """The layers by the name that their alpha has: `x.lora_A.default` belongs to `x`."""
    return {re.sub(r"(\.default|\.lora)$", "", layer) for layer in layers}


def _scale_problems(file: LoraFile) -> list[str]:
    """Where alpha is not the rank, the layers' scale is alpha / rank; diffusers takes 1 unless the file says so itself."""
    header = _adapter_metadata(file)
    if isinstance(header, str):
        return [header]
    said = [file.config, header, {key.rpartition(".")[2]: value for key, value in header.items()}]
    if any(part.get("use_dora") is True for part in said):
        return ["it is a DoRA (use_dora), which cannot be mixed in a batch, and whose scale is lost"]
    kind = file.config.get("peft_type", "LORA")
    if kind != "LORA":
        return [f"{PEFT_CONFIG} says that it is a {kind}, not a LORA"]
    if METADATA in file.metadata or any(ALPHA.search(key) for key in file.tensors):
        return []
    if file.config:
        rank, alpha = file.config.get("r"), file.config.get("lora_alpha")
        scaled = [name for name in ("alpha_pattern", "use_rslora") if file.config.get(name)]
        if rank != alpha or scaled or set(file.ranks) - {rank}:
            more = f", {' and '.join(scaled)}" if scaled else ""
            return [
                f"{PEFT_CONFIG} says r {rank}, lora_alpha {alpha}{more}, which diffusers does not read: each layer's scale would "
                "be 1. Save it with diffusers (save_lora_weights with its metadata), or with alphas as tensors"
            ]
    trained = (file.metadata.get("ss_network_alpha"), file.metadata.get("ss_network_dim"))
    if None not in trained and _number(trained[0]) != _number(trained[1]):
        return [
            f"it was trained with alpha {trained[0]} and rank {trained[1]}, and its tensors of alpha are missing: the scale "
            "would be lost"
        ]
    return []


def _adapter_metadata(file: LoraFile) -> dict[str, object] | str:
    """What diffusers has noted in the header; or why it cannot be read."""
    try:
        found = strict_json.loads(file.metadata.get(METADATA, "{}"))
    except ValueError:
        return f"{METADATA} in its header is no JSON"
    return found if isinstance(found, dict) else f"{METADATA} in its header is no JSON object"


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


FLOATS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F64": ("<u8", 0x7FF0000000000000)}  # fmt: skip
"""By type: how wide it is, and the bits of the exponent, which are all set in NaN and the infinities."""
SIGN = {"<u2": 0x7FFF, "<u4": 0x7FFFFFFF, "<u8": 0x7FFFFFFFFFFFFFFF}
"""All bits but the sign."""


def _number_problems(file: LoraFile, header: Header) -> list[str]:
    """What the numbers themselves show: NaN, infinity, and a second factor that is zero everywhere."""
    import numpy as np

    strange: list[str] = []
    is_zero = True
    numbers = np.memmap(file.path, dtype=np.uint8, mode="r")
    for key, entry in header.tensors.items():
        width, exponent = FLOATS[entry.kind]
        start = header.data_start + entry.start
        bits = numbers[start : start + TYPE_BYTES[entry.kind] * math.prod(entry.shape)].view(width)
        if ((bits & exponent) == exponent).any():
            strange.append(key)
        if _half(key) == "up":
            is_zero = is_zero and not (bits & SIGN[width]).any()
    if strange:
        return [f"NaN or infinity in {_some(strange)}"]
    return (
        ["its second factors (lora_B, lora_up) are zero everywhere, so that it would change nothing"] if is_zero else []
    )


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
