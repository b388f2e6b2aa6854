"""Tables of the hub: hf://datasets/OWNER/NAME, fetched into its cache by huggingface_hub.

    files_of_hub(Path("hf://datasets/someone/prompts"))                         # all of it, where it has one split
    files_of_hub(Path("hf://datasets/someone/prompts:test"))                    # one split
    files_of_hub(Path("hf://datasets/someone/prompts@v2/data/a-*.parquet"))     # at a revision; a file, a folder or a pattern

What is a split goes by the names of files and folders, as `datasets` does it: train-00000-of-00002.parquet, test/a.jsonl.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dglaunch.data.table_formats import KINDS, kind_of
from dglaunch.errors import UserError
from dglaunch.models.hub import LIST_S, REACH_S, connect, within

_ADDRESS = re.compile(
    r"hf:/+datasets/(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^/:]+))?(:(?P<split>[\w.-]+)|/(?P<path>.+))?"
)
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
           "valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "evaluation": "test"}  # fmt: skip
"""Words in names of files and folders, and the split that `datasets` takes them for."""
AT_ONCE = 8
"""Files that are fetched at a time."""
HOW = "Write hf://datasets/OWNER/NAME, with :SPLIT or /PATH behind it"


@dataclass(frozen=True, slots=True)
class _Listed:
    """The files of a dataset, and what brings one to this machine."""

    names: Sequence[str]
    fetch: Callable[[str], str]


def is_on_hub(path: Path) -> bool:
    """Return whether a path is the address of a dataset of the hub."""
    return path.parts[:1] == ("hf:",)


def files_of_hub(address: Path) -> list[Path]:
    """Return the tables that an address names, as files of the hub's cache.

    Raises:
        UserError: there is no such dataset or file, it is not clear which split is meant, or the hub cannot be reached.
    """
    found = _ADDRESS.fullmatch(address.as_posix())
    if found is None:
        raise UserError(f"{address} is no address of a dataset. {HOW}.")
    listed = _list(found["name"], found["revision"])
    names = _chosen(address, listed.names, found["split"], found["path"])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [Path(file) for file in pool.map(lambda name: _fetched(found["name"], listed, name), names)]


def _list(name: str, revision: str | None) -> _Listed:
    """The files that the hub lists; where it cannot be reached, those that are in this machine's cache."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: dict[str, Any] = {"repo_type": "dataset", "revision": revision}
    try:
        within(REACH_S, lambda: connect(constants.ENDPOINT))
    except (OSError, TimeoutError):
        try:
            folder = Path(snapshot_download(name, local_files_only=True, **asked))
        except LocalEntryNotFoundError:
            raise UserError(
                f"The dataset {name} is not in this machine's hub cache and the hub cannot be reached. Fetch it where there is a "
                f"network (hf download --repo-type dataset {name}), or give a local folder."
            ) from None
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        return _Listed(sorted(files), lambda file: str(folder / file))
    info = _answer(name, lambda: HfApi().dataset_info(name, revision=revision, timeout=LIST_S))
    names = sorted(file.rfilename for file in info.siblings or [])
    return _Listed(names, lambda file: hf_hub_download(name, file, **asked))


def _fetched(name: str, listed: _Listed, file: str) -> str:
    return str(_answer(name, lambda: listed.fetch(file)))


def _answer(name: str, ask: Callable[[], Any]) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return ask()
    except (HfHubHTTPError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The hub does not give the dataset {name}: {reason} Check the name; for a gated one accept its terms and log in "
            "(hf auth login)."
        ) from None


def _chosen(address: Path, names: Sequence[str], split: str | None, path: str | None) -> list[str]:
    """The tables that are meant, all of one kind."""
    tables = [name for name in names if kind_of(Path(name))[0] in KINDS and not _is_hidden(name)]
    if path is not None:
        pattern = path.rstrip("/")
        tables = [name for name in tables if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/")]
        if not tables:
            raise UserError(f"{address}: the dataset has no such table. It has: {_some(names)}.")
    elif tables:
        tables = _of_split(address, tables, split)
    kinds = sorted({kind_of(Path(name))[0] for name in tables})
    if not kinds:
        raise UserError(f"{address} has no tables ({', '.join(KINDS)}). It has: {_some(names)}.")
    if len(kinds) > 1:
        raise UserError(
            f"{address} has tables of several kinds ({_some(tables)}). Name those that are meant by a pattern behind the dataset's "
            f"name: /{Path(tables[0]).parent.as_posix()}/*{kinds[0]}"
        )
    return tables


def _of_split(address: Path, tables: Sequence[str], split: str | None) -> list[str]:
    by_split: dict[str, list[str]] = {}
    for name in tables:
        by_split.setdefault(_split_of(name), []).append(name)
    if split is not None and split not in by_split:
        raise UserError(f"{address}: the dataset has no split {split}; it has {' and '.join(by_split)}.")
    if split is None and len(by_split) > 1:
        choices = " or ".join(f"{address.as_posix().replace('hf:/', 'hf://')}:{name}" for name in by_split)
        raise UserError(f"{address} has the splits {' and '.join(by_split)}. Name the one that is meant: {choices}.")
    return by_split[split] if split is not None else next(iter(by_split.values()))


def _split_of(name: str) -> str:
    """The split that a file is of; train, where its name says none."""
    words = (word for part in reversed(Path(name).parts) for word in re.split(r"[^a-z]+", part.lower()))
    return next((_SPLITS[word] for word in words if word in _SPLITS), "train")


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in Path(name).parts)


def _some(names: Sequence[str]) -> str:
    return (", ".join(names[:8]) or "nothing") + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
