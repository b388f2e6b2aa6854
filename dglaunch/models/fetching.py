"""What `dglaunch fetch` brings of a model of the hub: the files that a run would load, each checked by the hash that the hub says.

    fetched = fetch("black-forest-labs/FLUX.1-dev", None, Path("/models/flux"))

Files come through huggingface_hub, which goes on with a file that was broken off. A folder of one's own (--to) has a note
of what belongs into it, so that a half or a damaged one is noticed before a run loads it.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.errors import UserError
from dglaunch.files import digest_of
from dglaunch.models.components import INDEX, MODULAR_INDEX, CheckpointFiles, has_weights, parts_of, read_json
from dglaunch.models.hub import Hub
from dglaunch.models.modular_files import place_parts
from dglaunch.models.weights import loaded_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

NOTE = f"{TEMPORARY}fetched.json"
"""In a folder of one's own: what was to be fetched into it, and whether it all came."""
HEAVY = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".onnx_data", ".pb", ".msgpack", ".h5", ".xml", ".zip",
)  # fmt: skip
"""How files of weights end, of which a run loads some."""
AT_THE_TOP = ("LICENSE", "NOTICE", "README.md")
"""How the names of files begin that go along, besides JSON: the terms of the model."""
TRIES = 2
"""How often a file is fetched whose bytes are not those that the hub says."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the hub lists it."""

    name: str
    size: int
    sha256: str | None
    """Of a large file."""
    blob: str | None
    """git's own hash, of a small one."""

    def is_right(self, file: Path) -> bool:
        """Whether a file has the bytes that the hub says."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return digest_of(file) == self.sha256
        begin = partial(hashlib.sha1, b"blob %d\0" % self.size, usedforsecurity=False)
        return self.blob is None or digest_of(file, begin) == self.blob


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came, and where it lies."""

    folder: Path
    commit: str
    num_files: int
    num_bytes: int


def fetch(
    model: str, revision: str | None, to: Path | None, tell: Callable[[Listed], None] = lambda _: None
) -> Fetched:
    """Bring a model's files to the hub's cache on this machine, or to a folder of its own.

    Args:
        tell: called before each file.

    Raises:
        UserError: the hub does not give it, it has no safetensors, or the folder holds something else.
    """
    hub = Hub(model, revision)
    if not hub.is_reachable:
        raise UserError(
            f"The hub cannot be reached from here. Fetch {model} on a machine with a network (a login node)."
        )
    indexed = _with_index(hub, revision)
    commit, listed = _list(model, revision)
    wanted = [listed[name] for name in needed(indexed, listed)]
    if to is not None:
        _take_folder(to, model, commit)
        _note(to, model, commit, wanted, whole=False)
    files = []
    for item in wanted:
        tell(item)
        files.append(_bring(model, revision, item, to))
    if to is not None:
        _note(to, model, commit, wanted, whole=True)
    folder = to if to is not None else files[0].parents[len(PurePosixPath(wanted[0].name).parts) - 1]
    if to is None and folder.name != commit:
        raise UserError(f"{model} changed on the hub while it was fetched. Start the same command again.")
    return Fetched(folder, commit, len(wanted), sum(item.size for item in wanted))


def _with_index(hub: Hub, revision: str | None) -> CheckpointFiles:
    """A model's files by its index, be it that of a modular pipeline.

    Raises:
        UserError: it has none, or it names other models.
    """
    if hub.json(INDEX) is not None:
        return hub
    index = hub.json(MODULAR_INDEX)
    if index is None:
        raise UserError(f"{hub.source} has no {INDEX}, so it is no diffusers checkpoint. Check the name.")
    files = place_parts(hub, index, index.keys(), revision)
    if files.elsewhere:
        raise UserError(
            f"Parts of {hub.source} lie in other models ({', '.join(files.elsewhere)}), which dglaunch fetch does not follow. Fetch "
            f"each into the cache: hf download {hub.source}, hf download {files.elsewhere[0]}."
        )
    return files


def needed(files: CheckpointFiles, listed: Collection[str], code: bool = False) -> list[str]:
    """Return the names of the files that a run loads: of each part its configuration and the weights that from_pretrained
    takes; the small ones first.

    Args:
        listed: all files of the checkpoint, by their paths in it.
        code: Python files, too.

    Raises:
        UserError: a network has no safetensors.
    """
    parts = parts_of(files)
    found = [name for name in sorted(listed) if _is_light(name, parts) or (code and name.endswith(".py"))]
    for part in filter(has_weights, parts):
        weights = loaded_files(files, part, listed)
        if not weights:
            raise UserError(
                f"{files.source} has no safetensors for its {part}, only files that could run any code. If you trust it: "
                f"hf download {files.source}, and --allow_pickle for the run."
            )
        found += weights
    return found


def _is_light(name: str, parts: Collection[str]) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) == 1:
        return path.suffix == ".json" or name.startswith(AT_THE_TOP)
    return path.parts[0] in parts and path.suffix not in HEAVY and path.suffix != ".py"


def _list(model: str, revision: str | None) -> tuple[str, dict[str, Listed]]:
    """The commit that a revision is now, and its files by name."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, revision=revision, files_metadata=True)
    return str(info.sha), {item.rfilename: _listed(item) for item in info.siblings or []}


def _listed(item: "RepoSibling") -> Listed:
    large = item.lfs
    return Listed(
        item.rfilename, item.size or 0, None if large is None else large.sha256, None if large else item.blob_id
    )


def _bring(model: str, revision: str | None, item: Listed, to: Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for attempt in range(TRIES):
        try:
            file = Path(hf_hub_download(model, item.name, revision=revision, local_dir=to, force_download=attempt > 0))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{item.name} did not come: {reason} Start the same command again to go on.") from None
        if item.is_right(file):
            return file
        _drop(file)
    raise UserError(
        f"{item.name} came {TRIES} times with other bytes than the hub says it has. Start the same command again; if it goes "
        "on, something between the hub and this machine changes files."
    )


def _drop(file: Path) -> None:
    """Take a damaged file out again; in the hub's cache its name is a link to its bytes."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


# -- a folder of one's own ------------------------------------------------------------------------------------------


def _take_folder(to: Path, model: str, commit: str) -> None:
    """Make the folder, or find it as an earlier start left it.

    Raises:
        UserError: it holds something else.
    """
    to.mkdir(parents=True, exist_ok=True)
    note = _read_note(to)
    if note is None and any(os.scandir(to)):
        raise UserError(f"{to} is not empty, and dglaunch fetch did not fill it. Give --to a new folder.")
    if note is not None and (note.get("model"), note.get("commit")) != (model, commit):
        raise UserError(
            f"{to} holds {note.get('model')} at {note.get('commit')}, and this is {model} at {commit}. Give --to a new folder."
        )


def _note(to: Path, model: str, commit: str, wanted: Sequence[Listed], whole: bool) -> None:
    sizes = {item.name: item.size for item in wanted}
    content = {"model": model, "commit": commit, "whole": whole, "files": sizes}
    with atomic_write(to / NOTE) as temporary:
        temporary.write_text(strict_json.dumps(content), encoding="utf-8")


def _read_note(folder: Path) -> dict[str, object] | None:
    note = folder / NOTE
    return read_json(note) if note.is_file() else None


def require_whole(folder: Path) -> None:
    """See that a folder that `dglaunch fetch` filled has all that belongs into it.

    Raises:
        UserError: with the command that goes on.
    """
    note = _read_note(folder)
    if note is None:
        return
    sizes = note.get("files")
    files = sizes if isinstance(sizes, Mapping) else {}
    wrong = next((name for name, size in files.items() if not _has_size(folder / str(name), size)), None)
    if wrong is None and note.get("whole") is True:
        return
    what = f"{wrong} is not there or not whole" if wrong is not None else "not all files have come"
    raise UserError(
        f"{folder} was filled by dglaunch fetch, and {what}. Go on with: dglaunch fetch {note.get('model')} --to {folder}"
    )


def _has_size(file: Path, size: object) -> bool:
    return file.is_file() and file.stat().st_size == size
