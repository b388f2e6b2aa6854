"""A whole checkpoint in one .safetensors file (--model_name x.safetensors): which of its keys belong to which part; no torch.

    weights = read_single_file(path, files, cache)          # part -> WeightFile, of `files`, what --model_config names

The file has the weights of several networks, each under a prefix of its own, and nothing else that a pipeline needs: the
configurations and tokenizers come from the folder or the model of the hub that --model_config names, and what the file lacks
(often the T5) with them. A key that no part has is refused: diffusers passes it over, be it half a network or the word that the
model predicts velocities.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from dglaunch.errors import UserError
from dglaunch.models.components import CheckpointFiles, has_weights, parts_of
from dglaunch.models.content import sha256_of
from dglaunch.models.folder import Folder, weights_of
from dglaunch.models.weight_files import DENOISERS, StoredTensor, WeightFile, read_header_of

FLAG = "model_name"

Fits = Callable[[str, str], bool]
"""Whether a part of this name and class is meant."""


def _is_denoiser(part: str, _class_name: str) -> bool:
    return part in DENOISERS


def _named(name: str, classes: str) -> Fits:
    return lambda part, class_name: part == name and class_name.startswith(classes)


def _of_class(classes: str) -> Fits:
    return lambda part, class_name: part.startswith("text_encoder") and class_name.startswith(classes)


PLACES: dict[str, Fits] = {
    "model.diffusion_model.": _is_denoiser,
    "first_stage_model.": _named("vae", ""),
    "vae.": _named("vae", ""),
    "conditioner.embedders.0.transformer.": _named("text_encoder", "CLIP"),
    "conditioner.embedders.1.model.": _named("text_encoder_2", "CLIP"),
    "text_encoders.clip_l.transformer.": _named("text_encoder", "CLIP"),
    "text_encoders.clip_g.transformer.": _named("text_encoder_2", "CLIP"),
    "text_encoders.t5xxl.transformer.": _of_class("T5"),
}
"""What the keys of a part begin with, as Stability and ComfyUI write them, and which part of a pipeline that is."""
UNUSED = re.compile(
    r"model_ema\..*|.*\.position_ids|.*\.logit_scale|denoiser\.sigmas|betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?"
    r"|sqrt_recip(m1)?_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_.*|.*\.spiece_model"
)
"""Keys that published files have and no pipeline uses: buffers of a scheduler, the averaged weights of training."""
SHOWN = 4


def read_single_file(path: Path, files: CheckpointFiles, cache: Path) -> dict[str, WeightFile]:
    """Return the weights that a file has for parts of a pipeline, by part.

    Args:
        path: the file.
        files: the checkpoint whose configurations it is read with.
        cache: the folder in which dglaunch keeps what it finds out once.

    Raises:
        UserError: it is not whole, has keys that are of no part, or several parts' under one name.
    """
    parts, tensors = parts_of(files), read_header_of(path)
    found: dict[str, dict[str, StoredTensor]] = {}
    prefixes: dict[str, str] = {}
    strangers = []
    for key, tensor in tensors.items():
        if UNUSED.fullmatch(key):
            continue
        prefix = next((prefix for prefix in PLACES if key.startswith(prefix)), "")
        part = next((name for name, (_, kind) in parts.items() if prefix and PLACES[prefix](name, kind)), None)
        if part is None:
            strangers.append(key)
        else:
            prefixes.setdefault(part, prefix)
            found.setdefault(part, {})[key.removeprefix(prefix)] = tensor
    _refuse(path, files, strangers, found)
    sha256 = sha256_of(path, cache)
    return {
        part: WeightFile(
            flag=FLAG,
            part=part,
            path=path,
            kind="safetensors",
            tensors=mine,
            config=None,
            sha256=sha256,
            prefix=prefixes[part],
        )
        for part, mine in found.items()
    }


def _refuse(path: Path, files: CheckpointFiles, strangers: list[str], found: Mapping[str, object]) -> None:
    if not found.keys() & set(DENOISERS):
        raise UserError(
            f"--{FLAG} {path} has no key that begins with model.diffusion_model., as whole checkpoints have. Of a transformer "
            f"alone: --model_name {files.source} --transformer {path}."
        )
    if strangers:
        more = f" and {len(strangers) - SHOWN:,} more" if len(strangers) > SHOWN else ""
        raise UserError(
            f"--{FLAG} {path} has weights that are of no part of {files.source} ({', '.join(strangers[:SHOWN])}{more}); they would "
            "be passed over in silence. Give the --model_config that belongs to the file, or convert it with the program that "
            "wrote it."
        )


def refuse_parts_without_weights(path: Path, files: CheckpointFiles, given: Mapping[str, WeightFile]) -> None:
    """Refuse a pipeline of which neither the file nor the folder of --model_config has a network's weights.

    Raises:
        UserError: with the flag that gives them.
    """
    if not isinstance(files, Folder):
        return
    lacks = [
        part for part in filter(has_weights, parts_of(files)) if part not in given and not weights_of(files.path, part)
    ]
    if lacks:
        part = lacks[0]
        flag = f"--text_encoder {part}=FILE" if part.startswith("text_encoder") else f"--{part} FILE"
        raise UserError(
            f"--{FLAG} {path} has no {' and no '.join(lacks)}, and {files.source} has no weights for it either. Name a --model_config "
            f"that has, or give {flag}."
        )
