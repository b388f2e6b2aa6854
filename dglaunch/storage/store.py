"""An object store: put, get, list and delete under one address, each tried again until it passes (storage/retrying.py).

    store = Store(Address("s3://bucket/prefix"))
    store.put("000000.png", data)                    # whole or not there
    store.get("000000.png")
    version = store.put_if_absent("owner.json", b"..")     # None: somebody was faster

The library is obstore (docs/object_storage.md says why); it is imported when the first store is opened. Threads may share a
store.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dglaunch.addresses import Address
from dglaunch.errors import UserError
from dglaunch.storage.credentials import settings_of
from dglaunch.storage.errors import TEMPORARY, NoObject, StorageError, explained
from dglaunch.storage.retrying import Retries
from dglaunch.system import need

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Value = TypeVar("Value")
PIECE = 8 << 20
"""Bytes of an object that are fetched at once: a cut connection costs one piece."""
LISTED_AT_A_TIME = 16
"""Folders: each page of 1,000 names says where the next begins, so that one folder is listed by one request after the other."""
MOST_AT_ONCE = 64 << 20
"""Bytes of a file that are put in one request."""
REQUEST_S, CONNECT_S = 120, 10
"""Longest time of a request, and until it is connected."""
INSTALL = "pip install 'dglaunch[cloud]'"
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".html": "text/html",
    ".json": "application/json",
}
Version = Mapping[str, str | None]
"""What tells one state of an object from another: its ETag, and on some stores a number."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object as the store lists it."""

    name: str
    size: int
    modified: datetime
    """By the store's own clock."""
    version: Version


class Store:
    """The objects under one address; names are relative to it."""

    def __init__(self, root: Address, retries: Retries | None = None) -> None:
        self.root = root
        self.retries = retries if retries is not None else Retries()

    @cached_property
    def _client(self) -> "ObjectStore":
        return self._connected(0)

    @cached_property
    def _client_for_parts(self) -> "ObjectStore":
        """One that sends each request again by itself: of a large object's many parts one fails in any case."""
        return self._connected(10)

    def _connected(self, max_retries: int) -> "ObjectStore":
        need("obstore", f"Reaching {self.root}", INSTALL)
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        settings = settings_of(self.root)
        client: Any = {
            "allow_http": settings.allow_http,
            "timeout": timedelta(seconds=REQUEST_S),
            "connect_timeout": timedelta(seconds=CONNECT_S),
        }
        again: Any = {"max_retries": max_retries, "retry_timeout": timedelta(seconds=REQUEST_S)}
        chosen: dict[str, Any] = {"config": settings.config} if settings.config else {}
        if settings.credentials is not None:
            chosen["credential_provider"] = settings.credentials
        try:
            return from_url(str(self.root), client_options=client, retry_config=again, **chosen)
        except (BaseError, ValueError, OSError) as error:
            raise explained(error) from None

    def _ask(self, what: Callable[[], Value]) -> Value:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        def once() -> Value:
            try:
                return what()
            except (AlreadyExistsError, PreconditionError):
                raise
            except StorageError:
                raise
            except (BaseError, OSError, ValueError) as error:
                raise explained(error) from None

        return self.retries(once)

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> Version:
        """Write an object, in the place of one that may be there.

        Raises:
            StorageError: it cannot be written.
        """
        return self._ask(lambda: self._put(name, data))

    def put_if_absent(self, name: str, data: bytes) -> Version | None:
        """Write an object if there is none of that name; None: there is one, of other content.

        What was written by a request whose answer got lost is found again by its content, so that should be unique.

        Raises:
            StorageError: it cannot be written.
        """
        return self._put_on_condition(name, data, "create")

    def put_if_same(self, name: str, data: bytes, version: Version) -> Version | None:
        """Replace an object if it is still of that version; None: it is not, and its content is other.

        Raises:
            StorageError: it cannot be written.
        """
        return self._put_on_condition(name, data, {key: value for key, value in version.items() if value is not None})

    def _put_on_condition(self, name: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return self._ask(lambda: self._put(name, data, mode=mode))
        except (AlreadyExistsError, PreconditionError):
            there = self.read(name)
            return there[1] if there is not None and there[0] == data else None

    def _put(self, name: str, data: bytes, **mode: Any) -> Version:
        import obstore

        kind = TYPES.get(Path(name).suffix)
        attributes: Any = {"Content-Type": kind} if kind else None
        found = obstore.put(self._client, name, data, attributes=attributes, use_multipart=False, **mode)
        return {"e_tag": found["e_tag"], "version": found["version"]}

    def put_file(self, name: str, path: Path) -> Version:
        """Write an object with what is in a file; a large one in parts that appear together.

        Raises:
            StorageError: it cannot be written.
            OSError: the file cannot be read.
        """
        if path.stat().st_size <= MOST_AT_ONCE:
            return self.put(name, path.read_bytes())
        import obstore

        found = self._ask(lambda: obstore.put(self._client_for_parts, name, Path(os.fspath(path))))
        return {"e_tag": found["e_tag"], "version": found["version"]}

    def copy(self, name: str, new: str) -> None:
        """Put one more object of the same content, in the place of one that may be there; its bytes do not come here.

        Raises:
            NoObject: there is none.
            StorageError: it cannot be copied.
        """
        import obstore

        self._ask(lambda: obstore.copy(self._client, name, new))

    def move(self, name: str, new: str) -> None:
        """Give an object another name.

        Raises:
            NoObject: there is none.
            StorageError: it cannot be moved.
        """
        self.copy(name, new)
        self.delete([name])

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; a missing one is no error.

        Raises:
            StorageError: one cannot be removed.
        """
        import obstore

        listed = list(names)
        for start in range(0, len(listed), 1000):
            part = listed[start : start + 1000]
            try:
                self._ask(lambda part=part: obstore.delete(self._client, part))  # type: ignore[misc]
            except NoObject:
                for name in part:
                    self._delete_one(name)

    def _delete_one(self, name: str) -> None:
        import obstore

        try:
            self._ask(lambda: obstore.delete(self._client, name))
        except NoObject:
            return

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, most: int) -> bytes:
        """Return the bytes of an object.

        Raises:
            NoObject: there is none.
            StorageError: it cannot be read, or is larger than `most`.
        """
        return b"".join(self.pieces(self.look_at(name), most))

    def read(self, name: str, most: int = 1 << 20) -> tuple[bytes, Version] | None:
        """Return a small object that others may replace meanwhile, with its version; None if there is none.

        Raises:
            StorageError: it cannot be read, or is larger than `most`.
        """
        import obstore

        def once() -> tuple[bytes, Version]:
            answer = obstore.get(self._client, name)
            if answer.meta["size"] > most:
                raise StorageError(f"it is larger than {most:,} bytes", "refused")
            return bytes(answer.bytes()), _version(answer.meta)

        try:
            return self._ask(once)
        except NoObject:
            return None

    def look_at(self, name: str) -> Found:
        """Return what is known of an object.

        Raises:
            NoObject: there is none.
            StorageError: it cannot be asked.
        """
        import obstore

        return _found(self._ask(lambda: obstore.head(self._client, name)), name)

    def pieces(self, found: Found, most: int) -> Iterator[bytes]:
        """Yield the bytes of an object piece by piece, all of one version.

        Raises:
            StorageError: it cannot be read, is larger than `most`, or was replaced meanwhile.
        """
        from obstore.exceptions import PreconditionError

        if found.size > most:
            raise StorageError(f"it is larger than {most:,} bytes", "refused")
        for start in range(0, found.size, PIECE):
            try:
                yield self._ask(lambda start=start: self._piece(found, start))  # type: ignore[misc]
            except PreconditionError:
                raise StorageError("it was replaced while it was read", "refused") from None

    def _piece(self, found: Found, start: int) -> bytes:
        import obstore

        end = min(start + PIECE, found.size)
        options: Any = {"range": (start, end), "if_match": found.version["e_tag"]}
        data = bytes(obstore.get(self._client, found.name, options=options).bytes())
        if len(data) != end - start:
            raise StorageError("the connection broke", TEMPORARY)
        return data

    def part(self, name: str, start: int, size: int) -> bytes:
        """Return some bytes of an object.

        Raises:
            NoObject: there is none.
            StorageError: it cannot be read, or has fewer bytes.
        """
        import obstore

        def once() -> bytes:
            data = bytes(obstore.get_range(self._client, name, start=start, length=size))
            if len(data) != size:
                raise StorageError("the connection broke", TEMPORARY)
            return data

        return self._ask(once)

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[Found]:
        """Yield all objects whose names begin with a folder, in the order of their names; only those that come after a name.

        Raises:
            StorageError: they cannot be listed.
        """
        pages = self._pages(prefix, after)

        def next_page() -> Sequence[Found]:
            nonlocal pages
            try:
                return next(pages, [])
            except Exception:  # whatever broke it: the next try begins behind what has come
                pages = self._pages(prefix, after)
                raise

        while page := self._ask(next_page):
            yield from page
            after = page[-1].name

    def list_folders(self) -> Sequence[Found]:
        """Return all objects, in no order; those of several folders are listed at a time.

        Raises:
            StorageError: they cannot be listed.
        """
        import obstore

        top = self._ask(lambda: obstore.list_with_delimiter(self._client_for_parts))
        found = [_found(meta, meta["path"]) for meta in top["objects"]]
        with ThreadPoolExecutor(LISTED_AT_A_TIME) as pool:
            for some in pool.map(lambda folder: list(self.list(folder)), top["common_prefixes"]):
                found += some
        return found

    def _pages(self, prefix: str, after: str | None) -> Iterator[Sequence[Found]]:
        import obstore

        for page in obstore.list(self._client, prefix or None, offset=after, chunk_size=1000):
            yield [_found(meta, meta["path"]) for meta in page]

    # -- before anything else -----------------------------------------------------------------------------------------

    def check_writable(self, name: str, data: bytes) -> datetime:
        """Write an object and delete it again; return when that was by the store's own clock.

        Raises:
            UserError: it cannot be written there.
        """
        try:
            self.put(name, data)
            modified = self.look_at(name).modified
            self.delete([name])
            return modified
        except StorageError as error:
            raise UserError(f"{self.root} cannot be written: {error.strerror}.") from None


def _version(meta: Any) -> Version:
    return {"e_tag": meta["e_tag"], "version": meta["version"]}


def _found(meta: Any, name: str) -> Found:
    return Found(name, meta["size"], meta["last_modified"], _version(meta))
