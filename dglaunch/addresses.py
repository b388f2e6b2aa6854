"""Addresses where a path is expected: `s3://bucket/table.parquet`, `gs://`, `az://`, and `https://` for reading.

    path = path_or_address("s3://bucket/rows/a.csv")        # an Address, which is a Path whose text stays an address
    path.parent / "images/1.png"                            # s3://bucket/rows/images/1.png

Flags, tables and messages pass them around as they pass paths. Who opens files asks `isinstance(path, Address)` and goes
through dglaunch.storage; the system knows no file of such a name.
"""

import os
import re
from pathlib import Path

SCHEMES = ("s3", "gs", "az", "https")
STORES = ("s3", "gs", "az")
"""Those that are object stores, where results can be put, too."""
_BEGINS = re.compile(rf"({'|'.join(SCHEMES)}):/+(?=[^/])", re.IGNORECASE)
_OTHER = re.compile(r"(http|ftp|file|s3a|s3n|gcs|abfss?|wasbs?|hdfs):/+", re.IGNORECASE)
_QUERY = re.compile(r"(https://[^\s?]+)\?\S*", re.IGNORECASE)


class Address(type(Path())):  # type: ignore[misc]  # the Path of this system
    """The address of an object, of a prefix, or of a file on the web.

    As a text it is without what stands behind a question mark: the query of a signed address is a password, and a text may
    reach run.json, a ledger or a message.
    """

    @property
    def scheme(self) -> str:
        return self.full.partition(":")[0].lower()

    @property
    def full(self) -> str:
        """With its query, for the request alone."""
        return _BEGINS.sub(lambda found: f"{found[1].lower()}://", super().__str__(), count=1)

    @property
    def is_store(self) -> bool:
        """Whether it is of an object store, and not of the web."""
        return self.scheme in STORES

    @property
    def container(self) -> str:
        """The bucket or container; of the web the host, with its port."""
        return self.full.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """What stands behind the bucket: the name of an object, or a prefix of names; empty for the bucket itself."""
        return str(self).partition("://")[2].partition("/")[2]

    @property
    def name(self) -> str:
        return str(super().name).partition("?")[0]

    def __str__(self) -> str:
        return self.full.partition("?")[0] if self.scheme == "https" else self.full

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"


def is_address(text: str) -> bool:
    """Return whether a text is an address that `Address` knows."""
    return _BEGINS.match(text) is not None


def path_or_address(text: str | Path) -> Path:
    """Return what a text names: an address, or a path on this machine."""
    whole = os.fspath(text)
    if is_address(whole):
        return text if isinstance(text, Address) else Address(whole)
    return text if isinstance(text, Path) else Path(text)


def is_other_scheme(text: str | Path) -> bool:
    """Return whether a text looks like an address of a kind that `Address` does not know (http://, ftp://, s3a://)."""
    return not is_address(os.fspath(text)) and _OTHER.match(os.fspath(text)) is not None


def without_queries(text: str) -> str:
    """Return a text without what stands behind question marks in addresses: it may be a password."""
    return _QUERY.sub(r"\1", text)


def problem_with(address: Address) -> str | None:
    """Return what is wrong with the form of an address, as the end of a sentence; None if nothing."""
    if "@" in address.container:
        return "holds a user name or a password; credentials come from where the cloud's own tools have them"
    if not address.container:
        return "names no bucket"
    return None
