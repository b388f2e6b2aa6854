"""A model of the hub: its small JSON files and the sizes of its weights, without the weights.

The hub is tried once, for seconds: huggingface_hub itself would try for minutes where an address does not answer. What
is in this machine's cache is read in any case.
"""

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dglaunch.errors import UserError
from dglaunch.models.catalogue import known, suggestion
from dglaunch.models.components import INDEX, MODULAR_INDEX, has_weights, parts_of, read_json
from dglaunch.models.weights import bytes_a_weight, count_in_folder, loaded_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REACH_S = 5.0
"""Within which the hub must answer the first time: looking up its name, connecting and one request."""
LIST_S = 15.0
"""Within which it must list a model's files and their types."""
REMEMBERED_S = 60.0
"""For how long a process does not try again."""

Returned = TypeVar("Returned")
_silent_since: dict[str, float] = {}
"""When an address of the hub did not answer."""


class NotHere(UserError):
    """A model's files are not on this machine and cannot be fetched; `reason` is the same in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_cached(model: str) -> bool:
    """Return whether this machine's cache has anything of a model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{model.replace('/', '--')}").exists()


class Hub:
    """A model of the hub by its id, at one revision."""

    def __init__(self, source: str, revision: str | None = None, anchor: str = INDEX) -> None:
        """
        Args:
            anchor: a file that it has for certain.
        """
        self.source = source
        self._revision = revision
        self._anchor = anchor
        self._read: dict[str, dict[str, object] | None] = {}

    @cached_property
    def is_reachable(self) -> bool:
        """Whether the hub answers, be it that it has no such model."""
        from huggingface_hub import constants

        endpoint = constants.ENDPOINT
        if time.monotonic() - _silent_since.get(endpoint, -REMEMBERED_S) < REMEMBERED_S:
            return False
        try:
            within(REACH_S, lambda: connect(endpoint))
            # Imported while no clock runs: that takes seconds on a slow disk.
            from huggingface_hub import get_hf_file_metadata, hf_hub_url

            address = hf_hub_url(self.source, INDEX, revision=self._revision)
            within(REACH_S, lambda: get_hf_file_metadata(address, timeout=REACH_S))
        except ValueError:  # no valid id: what fetches a file says so
            return True
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if isinstance(status, int) and status < 500:
                return True  # it answers, and what fetches a file says what
            _silent_since[endpoint] = time.monotonic()
            return False
        return True

    def json(self, name: str) -> Mapping[str, object] | None:
        """Return the JSON object in a file; None if the model has no such file.

        Raises:
            NotHere: it is not in the cache, and the hub does not answer, or gives it only to those it knows.
            UserError: the hub has no such model, or the file holds no JSON object.
        """
        if name not in self._read:
            file = self._file(name)
            self._read[name] = None if file is None else read_json(file)
        return self._read[name]

    def _file(self, name: str) -> Path | None:
        if not self.is_reachable and not is_cached(self.source):
            raise self._not_here
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
        )

        offline = not self.is_reachable
        try:
            return Path(hf_hub_download(self.source, name, revision=self._revision, local_files_only=offline))
        except LocalEntryNotFoundError:
            if self._lacks(name):
                return None
            raise self._not_here from None
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise NotHere(self._refusal(error), "the hub gives it only to those who accepted its terms") from None
        except (HfHubHTTPError, ValueError) as error:
            raise UserError(self._refusal(error)) from None

    def _lacks(self, name: str) -> bool:
        """Whether the cache has the index of the model, and none by this name: it then has no other file at the top, either."""
        from huggingface_hub import try_to_load_from_cache

        others = {INDEX, MODULAR_INDEX} - {name}
        found = (try_to_load_from_cache(self.source, other, revision=self._revision) for other in others)
        return "/" not in name and any(isinstance(each, str) for each in found)

    @property
    def cached_folder(self) -> Path:
        """The folder of the hub's cache that holds its files.

        Raises:
            NotHere: nothing of it is in the cache, and the hub does not answer.
            UserError: it has no model_index.json.
        """
        index = self._file(INDEX)
        if index is None:
            raise UserError(f"{self.source} has no {INDEX}, so it is no diffusers checkpoint. Check the name.")
        return index.parent

    @property
    def _not_here(self) -> NotHere:
        return NotHere(
            f"{self.source} is not in this machine's hub cache and the hub cannot be reached. Download it where there is a "
            f"network (dglaunch fetch {self.source}), or give a local folder.",
            "the hub cannot be reached",
        )

    def _refusal(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0]
        return (
            f"The hub does not give {self.source}: {reason}{suggestion(self.source)} Check the name; for a gated model accept "
            "its terms and log in (hf auth login)."
        )

    def count(self) -> dict[str, int]:
        """Return the number of weights of each part: from the headers of what is in the cache, else from the sizes of the
        files that the hub lists, else from the catalog. Parts of which none is known are left out."""
        cached = self._count_cached()
        if set(filter(has_weights, parts_of(self))) <= cached.keys():
            return cached
        return {**self._count_known(), **cached}

    def _count_known(self) -> Mapping[str, int]:
        from huggingface_hub import HfApi

        entry = known(self.source)
        otherwise = entry.count() if entry is not None else {}
        if not self.is_reachable:
            return otherwise
        try:
            return within(LIST_S, lambda: self._count_listed(HfApi()))
        except UserError:
            raise
        except Exception:  # the hub lists nothing, or not in time
            return otherwise

    def _count_cached(self) -> dict[str, int]:
        anchor = self._file(self._anchor)
        if anchor is None:
            return {}
        return count_in_folder(self, anchor.parents[self._anchor.count("/")])

    def _count_listed(self, api: "HfApi") -> dict[str, int]:
        info = api.model_info(self.source, revision=self._revision, files_metadata=True, timeout=REACH_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        counts: dict[str, int] = {}
        for part in parts_of(self):
            loaded = loaded_files(self, part, sizes)
            if loaded:
                config = self.json(f"{part}/config.json") or {}
                total = sum(sizes[name] for name in loaded)
                counts[part] = round(total / bytes_a_weight(self._types_in(api, loaded[0]), config))
        return counts

    def _types_in(self, api: "HfApi", name: str) -> Mapping[str, int]:
        """Number of weights by type, from the header of one file; {} if the hub does not give it."""
        try:
            found = api.parse_safetensors_file_metadata(self.source, name, revision=self._revision)
        except Exception:
            return {}
        return dict(found.parameter_count)


def into_cache(source: str, patterns: Sequence[str], said: str, otherwise: str = "a folder") -> Path:
    """Fetch a model's files into this machine's cache, and return the folder that holds them.

    Args:
        source: a hub id.
        patterns: which files.
        said: what names it in the command, for the message.
        otherwise: what may be named in its place.

    Raises:
        UserError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises whatever its transport does
        reason = " ".join(str(error).split())[:500]
        raise UserError(
            f"{said} is not on this machine and cannot be fetched from the hub: {reason} Name {otherwise}."
        ) from None


def connect(endpoint: str) -> None:
    """See that somebody listens at an address, without importing what speaks with the hub; where a proxy stands in between,
    only that can tell.

    Raises:
        OSError: nobody does, or the name is not known.
    """
    parts = urlsplit(endpoint)
    if parts.hostname and not _has_proxy():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=REACH_S).close()


def _has_proxy() -> bool:
    if any(name.lower().endswith("_proxy") for name in os.environ):
        return True
    if platform.system() == "Linux":
        return False
    from urllib.request import getproxies  # the system's own settings

    return bool(getproxies())


def within(seconds: float, call: Callable[[], Returned]) -> Returned:
    """Return what a call returns, or leave it behind: looking up a name takes a time that no argument limits.

    Raises:
        TimeoutError: it takes longer.
        Exception: what the call raises.
    """
    results: list[Returned] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
