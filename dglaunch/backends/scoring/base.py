"""What scores images: the contract, the models that have a name here, and which module does it. Nothing heavy is imported here.

wanted = asked("clip", head=None, allow_pickle=False)     a UserError: there is no such model
scorer = scorer_of(wanted, "cuda:0", "float32")
scorer.score([image, ...], [ledger line, ...])            [Scored, or why there is none, ...]
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dglaunch.backends.registry import imported
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import read_bytes
from dglaunch.models.components import read_json
from dglaunch.models.content import sha256_of, sha256_of_folder
from dglaunch.models.hub import Hub, NotHere, into_cache
from dglaunch.models.own_pipeline import find_module
from dglaunch.output.scores import Scored
from dglaunch.system import need

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_L = "openai/clip-vit-large-patch14"
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
"""What is fetched of a model of the hub."""
TYPES = ("align", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "siglip2")
"""Models of transformers that give an image and a text each one vector: `model_type` of their config.json."""
WITHOUT_CUT = "relu"
"""In the file name of LAION's heads that have a ReLU between their layers, which the file itself does not say."""
WEIGHTS, PICKLES = ".safetensors", (".pth", ".pt", ".bin", ".ckpt")
MOST_SOURCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Named:
    """A model that has a short name here."""

    model: str
    """Its hub id."""
    says: str
    processor: str | None = None
    """The hub id that has its tokenizer and its sizes of images, where that is another one."""
    needs_head: bool = False


NAMED = {
    "clip": Named(CLIP_L, "how well image and prompt fit, by OpenAI's CLIP ViT-L/14: the usual CLIP score"),
    "siglip": Named("google/siglip-so400m-patch14-384", "the same by SigLIP, which is better at it"),
    "pickscore": Named(
        "yuvalkirstain/PickScore_v1", "which image people would pick for the prompt",
        processor="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    "aesthetic": Named(CLIP_L, "how beautiful it is, whatever the prompt, by LAION's predictor", needs_head=True),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to score, as far as it is known before anything is loaded."""

    said: str
    """As it was asked for."""
    model: str = ""
    """A folder or a hub id."""
    processor: str = ""
    function: tuple[str, str] | None = None
    """A module and a function in it, in place of a model."""
    head: Path | None = None
    """Layers over the image's vector, whose answer is the score."""
    source: Path | None = None
    """The module's file."""

    @property
    def default_name(self) -> str:
        """What the scores are called where nobody says it."""
        text = self.function[1] if self.function is not None else self.said.rstrip("/").rpartition("/")[2]
        return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)[:64]


class Scorer(Protocol):
    """What scores images, on one rank."""

    at_a_time: int
    """Images that are best handed in together."""

    def score(self, images: "Sequence[Image]", records: Sequence[Record]) -> Sequence[Scored | str]:
        """Return of each image its score, or why it has none.

        Args:
            images: in RGB.
            records: their lines of the ledger.
        """
        ...


# -- before anything is loaded ------------------------------------------------------------------------------------


def asked(said: str, head: Path | None, allow_pickle: bool) -> Wanted:
    """Return what --with names.

    Raises:
        UserError: there is no such model, or it cannot score; with what there is.
    """
    module, _, function = said.partition(":")
    if said in NAMED:
        row = NAMED[said]
        wanted = Wanted(said=said, model=row.model, processor=row.processor or row.model, head=head)
        if row.needs_head and head is None:
            raise UserError(
                f"--with {said} needs --head FILE, the layers that were trained over {row.model}: "
                "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor (with "
                "--allow_pickle), or the same as .safetensors."
            )
    elif Path(said).is_dir() or (not function and said.count("/") == 1 and not said.startswith((".", "/", "~"))):
        wanted = Wanted(said=said, model=said, processor=said, head=head)
    elif function:
        wanted = _function(said, module, function)
    else:
        raise _unknown(said)
    if head is not None:
        if wanted.function is not None:
            raise UserError(f"--head does nothing with a function (--with {said}). Drop it.")
        check_head(head, allow_pickle)
    elif allow_pickle:
        raise UserError("--allow_pickle does nothing without --head: models are read from safetensors. Drop it.")
    return wanted


def _unknown(said: str) -> UserError:
    near = difflib.get_close_matches(said, NAMED, n=1)
    nearest = f" Do you mean {near[0]}?" if near else ""
    names = "; ".join(f"{name}: {row.says}" for name, row in NAMED.items())
    return UserError(
        f"--with {said}: there is no such model to score with.{nearest} There are {names}; a folder or a hub id of a model of "
        f"transformers with images and texts ({', '.join(TYPES)}); or a function of yours, as my_module:my_function."
    )


def _function(said: str, module: str, function: str) -> Wanted:
    """A function of the user's."""
    if module.endswith(".py") or not all(name.isidentifier() for name in (*module.split("."), function)):
        raise UserError(
            f"--with {said}: a module and a function in it are needed, such as my_module:my_function (the module, not its file)."
        )
    source = find_module(module, f"--with {said}")
    return Wanted(said=said, function=(module, function), source=source)


def check_head(path: Path, allow_pickle: bool) -> None:
    """Refuse a head that is no file, could run code, or has what its file does not say.

    Raises:
        UserError: with the remedy.
    """
    if not path.is_file():
        raise UserError(f"--head {path}: there is no such file.")
    if path.suffix in PICKLES and not allow_pickle:
        raise UserError(
            f"--head {path} is a pickle, which can hold more than weights. If you trust it, add --allow_pickle (it is read with "
            "torch's own restricted reader), or save it as .safetensors."
        )
    if path.suffix not in (WEIGHTS, *PICKLES):
        raise UserError(f"--head {path} is neither .safetensors nor a pickle of torch's ({', '.join(PICKLES)}).")
    if WITHOUT_CUT in path.name.lower():
        raise UserError(
            f"--head {path}: by its name it has a ReLU between its layers, which the file does not hold, and its scores would be "
            "wrong without. Take one that is linear, such as sac+logos+ava1-l14-linearMSE."
        )


def check_model(wanted: Wanted) -> None:
    """Refuse a model that gives images and texts no vectors, by its configuration alone.

    Raises:
        UserError: it is none, or not to be had.
    """
    if wanted.function is not None:
        return
    need("transformers", "--with", "pip install dglaunch")
    config = _config(wanted)
    if config is None:
        what = f"{wanted.model} has no config.json"
    elif (kind := str(config.get("model_type"))) in TYPES:
        return
    else:
        what = f"{wanted.model} is a model of the type {kind!r}"
    raise UserError(
        f"--with {wanted.said}: {what}, and a score needs one that has a vector for an image and one for a text "
        f"({', '.join(TYPES)}), in transformers' format. Known by name: {', '.join(NAMED)}."
    )


def _config(wanted: Wanted) -> Mapping[str, object] | None:
    """The config.json of a folder or of a model of the hub."""
    file = Path(wanted.model) / "config.json"
    if file.parent.is_dir():
        return read_json(file) if file.is_file() else None
    try:
        return Hub(wanted.model).json("config.json")
    except NotHere as error:
        raise UserError(
            f"--with {wanted.said}: {wanted.model} is not in this machine's hub cache, and {error.reason}. Fetch it where there is "
            f"a network (hf download {wanted.model}), or name a folder."
        ) from None


# -- loading ------------------------------------------------------------------------------------------------------


def bring(wanted: Wanted) -> Wanted:
    """Fetch a model of the hub into this machine's cache, and return where it and its processor lie.

    Raises:
        UserError: it cannot be fetched, or has no safetensors.
    """
    if wanted.function is not None:
        return wanted
    places = {
        source: Path(source) if Path(source).is_dir() else into_cache(source, FILES, f"--with {wanted.said}: {source}")
        for source in (wanted.model, wanted.processor)
    }
    model = places[wanted.model]
    lacks = [] if any(model.glob(f"*{WEIGHTS}")) else ["*.safetensors"]
    lacks += [name for name in ("preprocessor_config.json", "tokenizer_config.json") if not _has(places, name)]
    if lacks:
        raise UserError(
            f"--with {wanted.said}: {wanted.model} lacks {', '.join(lacks)}. Save it whole with transformers' save_pretrained: "
            "the model, its image processor and its tokenizer."
        )
    return replace(wanted, model=str(model), processor=str(places[wanted.processor]))


def _has(places: Mapping[str, Path], name: str) -> bool:
    *_, processor = places.values()
    return (processor / name).is_file() or (
        name == "preprocessor_config.json" and (processor / "processor_config.json").is_file()
    )


def identity_of(wanted: Wanted, dtype: str, cache: Path) -> Record:
    """Return what must be the same for scores to be comparable: by content, so that a moved model is the same one.

    Args:
        wanted: as `bring` returns it.

    Raises:
        UserError: a file cannot be read.
    """
    if wanted.function is not None:
        source = None if wanted.source is None else hashlib.sha256(_source(wanted.source)).hexdigest()
        return {"function": ":".join(wanted.function), "sha256": source}
    model, processor = Path(wanted.model), Path(wanted.processor)
    weights = [path.name for path in (*model.glob(f"*{WEIGHTS}"), model / "config.json")]
    around = [path.name for path in processor.glob("*") if path.suffix in (".json", ".txt", ".model")]
    head = None if wanted.head is None else sha256_of(wanted.head, cache)
    return {
        "model": sha256_of_folder(model, weights, cache), "processor": sha256_of_folder(processor, around, cache),
        "head": head, "dtype": dtype,
    }  # fmt: skip


def _source(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_SOURCE)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def scorer_of(wanted: Wanted, device: str, dtype: str) -> Scorer:
    """Return what scores, loaded.

    Raises:
        UserError: it cannot be loaded.
    """
    if wanted.function is not None:
        found: Scorer = imported("dglaunch.backends.scoring.own_function:OwnFunction")(wanted)
    else:
        found = imported("dglaunch.backends.scoring.image_text:ImageText")(wanted, device, dtype)
    return found
