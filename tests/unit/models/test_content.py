"""The hash of a large file is found once, and found again only while the file is what it was."""

import hashlib
import os
from pathlib import Path

import pytest

from dglaunch.errors import UserError
from dglaunch.files import digest_of
from dglaunch.models import content


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file is worth keeping; the files that were read."""
    monkeypatch.setattr(content, "WORTH_KEEPING", 0)
    read: list[Path] = []

    def watched(real: Path) -> str:
        read.append(real)
        return digest_of(real)

    monkeypatch.setattr("dglaunch.models.content.digest_of", watched)
    return read


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path, kept: list[Path]) -> None:
    file, cache = tmp_path / "x.gguf", tmp_path / "cache"
    file.write_bytes(b"one")
    first = content.sha256_of(file, cache)
    assert first == hashlib.sha256(b"one").hexdigest() == content.sha256_of(file, cache)
    assert len(kept) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert content.sha256_of(file, cache) == hashlib.sha256(b"two").hexdigest()
    assert len(kept) == 2


def test_what_others_may_have_written_is_not_believed(tmp_path: Path, kept: list[Path]) -> None:
    file, cache = tmp_path / "x.gguf", tmp_path / "cache"
    file.write_bytes(b"one")
    content.sha256_of(file, cache)
    (note,) = (cache / content.FOLDER).glob("*.json")
    note.write_text(note.read_text().replace(hashlib.sha256(b"one").hexdigest(), "0" * 64))
    note.chmod(0o666)
    assert content.sha256_of(file, cache) == hashlib.sha256(b"one").hexdigest()
    assert len(kept) == 2


def test_a_blob_of_the_hubs_cache_has_its_hash_for_its_name(tmp_path: Path, kept: list[Path]) -> None:
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"one")
    (tmp_path / "x.gguf").symlink_to(blob)
    assert content.sha256_of(tmp_path / "x.gguf", tmp_path / "cache") == "a" * 64 and not kept


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, kept: list[Path]) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    (tmp_path / "x.gguf").write_bytes(b"one")
    assert content.sha256_of(tmp_path / "x.gguf", tmp_path / "cache") == hashlib.sha256(b"one").hexdigest()
    with pytest.raises(UserError, match="cannot be read"):
        content.sha256_of(tmp_path / "none", tmp_path / "cache")
