"""Where a LoRA is: [NAME=]FILE_OR_FOLDER_OR_HUB_ID[:SCALE] to one safetensors file on this machine.

locate("style=styles/oil.safetensors:0.8")      # name style, that file, scale 0.8
locate("styles/oil.safetensors")                # name oil, scale 1
locate("owner/repo/oil.safetensors")            # of the hub, fetched into its cache
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dglaunch.errors import UserError
from dglaunch.files import at_home
from dglaunch.models.hub import LIST_S, REACH_S, Hub, within

SUFFIX = ".safetensors"
USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""How diffusers and peft call theirs."""
PEFT_WEIGHTS, PEFT_CONFIG = USUAL_FILES[1], "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NAME = re.compile(r"[\w.+ -]+")
RESERVED = "none"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """One --lora, found."""

    word: str
    """As it was given."""
    name: str
    shown: str
    """The file, as the command names it: what an image's text says, for `dglaunch replay`."""
    path: Path
    scale: float
    config: Path | None
    """What peft has written beside it."""


def locate(word: str) -> Source:
    """Find what a --lora names; a model of the hub is fetched.

    Raises:
        UserError: there is no such file, or it is not clear which one is meant.
    """
    name, place, scale = split(word)
    path = at_home(Path(place))
    if path.exists():
        file = path if path.is_file() else path / choose(word, _names_in(path), f"The folder {path}")
        shown = place if path.is_file() else str(Path(place, file.name))
    elif _may_be_of_hub(place):
        file, shown = _from_hub(word, place)
    else:
        raise UserError(
            f"--lora {word}: there is no file or folder {place} (looked in {Path.cwd()}). Correct the path."
        )
    if file.suffix != SUFFIX:
        kind = (
            "is a pickle, which can run any code" if file.suffix in PICKLES else f"ends in {file.suffix or 'nothing'}"
        )
        raise UserError(
            f"--lora {word}: {file} {kind}; only {SUFFIX} is read. Convert it (safetensors.torch.save_file)."
        )
    config = file.with_name(PEFT_CONFIG)
    has_config = file.name == PEFT_WEIGHTS and config.is_file()
    return Source(word, name or _name_of(word, place), shown, file, scale, config if has_config else None)


def _may_be_of_hub(place: str) -> bool:
    """Whether it may be owner/repo or a file of that; styles/oil.safetensors is a path."""
    model = "/".join(place.split("/")[:2])
    return HUB_ID.fullmatch(model) is not None and not model.startswith(".") and not model.endswith((SUFFIX, *PICKLES))


def split(word: str) -> tuple[str, str, float]:
    """Return name ("": none was given), place and scale. What exists is taken as it is, whatever marks are in it.

    Raises:
        UserError: the name is none, or the scale no number.
    """
    name, place, scale = "", word, 1.0
    before, equals, after = word.partition("=")
    if equals and not _is_there(word) and not _is_there(word.rpartition(":")[0]):
        name, place = _checked(word, before.strip()), after
    head, colon, tail = place.rpartition(":")
    if colon and not _is_there(place):
        try:
            place, scale = head, float(tail)
        except ValueError:
            raise UserError(
                f"--lora {word}: {tail!r} is no number. Write the weight behind the colon, such as :0.8."
            ) from None
    if not place or not math.isfinite(scale):
        raise UserError(f"--lora {word}: write [NAME=]FILE[:WEIGHT], such as --lora style=oil.safetensors:0.8.")
    return name, place, scale


def _is_there(place: str) -> bool:
    try:
        return bool(place) and at_home(Path(place)).exists()
    except (OSError, ValueError):
        return False


def _checked(word: str, name: str) -> str:
    if not NAME.fullmatch(name) or name == RESERVED:
        raise UserError(
            f"--lora {word}: {name!r} cannot be its name, which rows write before a colon: take letters, digits and any of "
            f"_ - + . (and not {RESERVED!r}, which stands for no LoRA)."
        )
    return name


def _name_of(word: str, place: str) -> str:
    """The name of one that was given none: the file's, or its folder's where the file has the usual name."""
    path = PurePosixPath(place)
    stem = path.parent.name if path.name in USUAL_FILES and path.parent.name else path.name.removesuffix(SUFFIX)
    return _checked(word, re.sub(r"[^\w.+ -]", "_", stem) or "_")


def choose(word: str, names: Sequence[str], where: str) -> str:
    """Return which of a folder's files is meant.

    Raises:
        UserError: there is none, or it is not clear which.
    """
    files = sorted(name for name in names if name.endswith(SUFFIX))
    usual = [name for name in USUAL_FILES if name in files]
    if usual or len(files) == 1:
        return (usual or files)[0]
    if files:
        raise UserError(f"--lora {word}: {where} holds several files ({', '.join(files[:8])}). Name one of them.")
    pickles = [name for name in names if name.endswith(PICKLES)]
    other = f" ({', '.join(pickles[:4])} can run any code, and is not read)" if pickles else ""
    raise UserError(f"--lora {word}: {where} holds no {SUFFIX} file{other}. Name a file that is one.")


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _from_hub(word: str, place: str) -> tuple[Path, str]:
    """A file of a model of the hub (owner/repo, or owner/repo/file.safetensors), and its full name."""
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, repo, *inside = place.split("/")
    model, offline = f"{owner}/{repo}", not Hub(f"{owner}/{repo}").is_reachable
    try:
        if inside:
            wanted = "/".join(inside)
        else:
            names = (
                _names_in(Path(snapshot_download(model, local_files_only=True)))
                if offline
                else within(LIST_S, lambda: _listed(model))
            )
            wanted = choose(word, names, f"The hub's {model}")
        file = Path(hf_hub_download(model, wanted, local_files_only=offline))
        if wanted == PEFT_WEIGHTS:
            _fetch_config(model, offline)
        return file, f"{model}/{wanted}"
    except UserError:
        raise
    except Exception as error:  # whatever the hub's library raises: no such model, no network, no permission
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--lora {word}: there is no such file here, and the hub does not give it: {reason} Correct the name, or download "
            "it where there is a network."
        ) from None


def _listed(model: str) -> list[str]:
    """The files that the hub lists, but those in folders."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(model, timeout=REACH_S).siblings or []
    return [file.rfilename for file in siblings if "/" not in file.rfilename]


def _fetch_config(model: str, offline: bool) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(model, PEFT_CONFIG, local_files_only=offline)
    except EntryNotFoundError:  # also where it is not in the cache: then there is nothing to compare with
        return


def moved(word: str, folder: str) -> str:
    """Return a --lora as it was meant where a job was started in another folder, if its file is there and not here."""
    name, place, scale = split(word)
    there = Path(folder, place)
    if _is_there(place) or Path(place).is_absolute() or not there.exists():
        return word
    weight = "" if scale == 1 else f":{scale!r}"
    return f"{f'{name}=' if name else ''}{there}{weight}"


def cached_file(model: str, name: str) -> list[Path]:
    """Return a file of a model of the hub, if it is in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # no valid id
        return []
    return [Path(found)] if isinstance(found, str) else []
