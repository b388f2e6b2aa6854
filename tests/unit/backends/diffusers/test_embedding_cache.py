"""The embedding cache: only what it has written itself, whole and of numbers, comes back."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dglaunch.backends.diffusers.embedding_cache import EmbeddingCache
from dglaunch.backends.diffusers.stages import why_not_own

KEY = "ab" * 32
EMBEDDING = (torch.arange(6.0).reshape(1, 2, 3), None, torch.ones(2, dtype=torch.bfloat16))


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    cache = EmbeddingCache(tmp_path / "shared" / "cache", "encoders")
    cache.write({KEY: EMBEDDING})
    return cache


def found(cache: EmbeddingCache, num_values: int = 3) -> bool:
    return KEY in cache.read([KEY, "cd" * 32], num_values)


def test_what_was_written_comes_back(cache: EmbeddingCache) -> None:
    first, nothing, last = cache.read([KEY], 3)[KEY]
    assert nothing is None and first is not None and last is not None
    assert torch.equal(first, EMBEDDING[0]) and torch.equal(last, EMBEDDING[2]) and last.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"0": torch.ones(1)},
        {"0": torch.ones(1), "1": torch.ones(1), "2": torch.ones(1), "3": torch.ones(1)},
        {"0": torch.ones(1), "1 is None": torch.empty(0), "2": torch.ones(1), "2 is None": torch.empty(0)},
        {"0": torch.ones(1), "1 is None": torch.empty(0), "two": torch.ones(1)},
        {"0": torch.tensor([1.0, float("nan")]), "1 is None": torch.empty(0), "2": torch.ones(1)},
        {"0": torch.ones(1), "1 is None": torch.empty(0), "2": torch.tensor([float("inf")], dtype=torch.bfloat16)},
    ],
)
def test_other_keys_and_what_is_no_number_are_made_anew(cache: EmbeddingCache, values: dict[str, torch.Tensor]) -> None:
    save_file(values, cache._file(KEY))
    assert not found(cache)
    cache.write({KEY: EMBEDDING})
    assert found(cache) and not found(cache, num_values=2)


def test_a_fifo_or_a_folder_in_its_place_does_not_hang(cache: EmbeddingCache) -> None:
    file = cache._file(KEY)
    for make in (os.mkfifo, os.mkdir):
        file.unlink() if file.is_file() or file.is_fifo() else None
        make(file)
        assert not found(cache)
        file.unlink() if make is os.mkfifo else file.rmdir()


def test_nothing_is_made_that_everybody_may_write(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = EmbeddingCache(tmp_path / "a" / "b", "encoders")
        cache.write({KEY: EMBEDDING})
        assert why_not_own(tmp_path / "c" / "compile") == ""
    finally:
        os.umask(before)
    made = list(tmp_path.rglob("*"))
    assert len(made) >= 6 and not [path for path in made if path.stat().st_mode & stat.S_IWOTH]
    assert (tmp_path / "c" / "compile").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_where_everybody_may_write_a_strangers_file_is_not_read(cache: EmbeddingCache) -> None:
    file = cache._file(KEY)
    os.chown(file, 12345, 12345)
    assert found(cache)  # the owner of the folder has let its writer in
    for place in (file, file.parent, cache.folder, cache.folder.parent):
        mode = place.stat().st_mode
        place.chmod(mode | stat.S_IWOTH)
        assert not found(cache), place
        place.chmod(mode)
    os.chown(file, 0, 0)
    cache.folder.chmod(0o777)
    assert found(cache)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to another user")
def test_code_that_others_may_have_put_there_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "compile"
    assert why_not_own(folder) == ""
    folder.chmod(0o707)
    assert why_not_own(folder) == "everybody may write there"
    folder.chmod(0o700)
    os.chown(folder.parent, 12345, 12345)
    assert why_not_own(folder) == "it belongs to the user 12345"
    os.chown(folder.parent, 0, 0)
    os.chown(folder, 12345, 12345)
    assert why_not_own(folder) == "it belongs to the user 12345"
    (tmp_path / "file").touch()
    assert "cannot be made" in why_not_own(tmp_path / "file" / "compile")
