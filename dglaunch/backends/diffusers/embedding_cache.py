"""--embedding_cache: the embeddings of prompts, kept on disk between runs."""

import functools
import hashlib
import operator
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dglaunch.atomic import atomic_write, temporary_path
from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.prompt_tensors import Embedding
from dglaunch.errors import UserError
from dglaunch.files import make_cache_folder, read_bytes


class EmbeddingCache:
    """An embedding cache is a folder with a safetensors file for each prompt, in a folder for each set of text encoders.
    Ranks, runs and users may share it. Folders are never made so that everybody may write there; where somebody has made
    them so, only this user's and root's own files are read.

    Raises:
        UserError: it cannot be written, at the start or later.
    """

    def __init__(self, folder: Path, encoders: str) -> None:
        self.folder = folder / encoders
        with self._writing():
            make_cache_folder(self.folder)
            (probe := temporary_path(self.folder)).touch()
            probe.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
            raise UserError(
                f"--embedding_cache {self.folder.parent} cannot be written: {getattr(error, 'strerror', None) or error}. "
                "Choose another folder, make room, or drop the flag."
            ) from None

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, keys: Iterable[str], num_values: int) -> dict[str, Embedding]:
        """Read those of these prompts that are in the cache; a file that is damaged or holds something else than `write` has
        put there counts as missing and is written again."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        found: dict[str, Embedding] = {}
        for key in keys:
            file = self._file(key)
            try:
                if self._is_a_strangers(file):
                    continue
                values = load(read_bytes(file))
            except (OSError, SafetensorError):
                continue
            if (embedding := _embedding(values, num_values)) is not None:
                found[key] = embedding
        return found

    def _is_a_strangers(self, file: Path) -> bool:
        """Whether it may be of anybody who can reach this machine: others' images would come from it."""
        info = file.stat()
        open_to_all = (info.st_mode | _all_modes(file.parent, self.folder, self.folder.parent)) & stat.S_IWOTH
        return bool(open_to_all) and info.st_uid not in (os.geteuid(), 0)

    def write(self, embeddings: Mapping[str, Embedding]) -> None:
        """Write a file for each prompt; another rank may write the same one."""
        from safetensors.torch import save_file

        for key, values in embeddings.items():
            file = self._file(key)
            kept = {
                _name(n, value): torch.empty(0) if value is None else value.contiguous()
                for n, value in enumerate(values)
            }
            with self._writing():
                make_cache_folder(file.parent)
                with atomic_write(file) as temporary:
                    save_file(kept, temporary)
                    temporary.chmod(temporary.stat().st_mode & ~stat.S_IWOTH)


def _all_modes(*folders: Path) -> int:
    """All permissions that any of them gives."""
    return functools.reduce(operator.or_, (folder.stat().st_mode for folder in folders))


def _name(number: int, value: torch.Tensor | None) -> str:
    """Of a value in its file; one that is None stands there too, so that a file tells whether it is whole."""
    return str(number) if value is not None else f"{number} is None"


def _embedding(values: Mapping[str, torch.Tensor], num_values: int) -> Embedding | None:
    """What a file holds, if it is exactly what `write` puts into one, and numbers."""
    embedding = tuple(values.get(str(n)) for n in range(num_values))
    if values.keys() != {_name(n, value) for n, value in enumerate(embedding)}:
        return None
    return embedding if all(value is None or bool(value.isfinite().all()) for value in embedding) else None


def open_cache(context: Context) -> EmbeddingCache | None:
    """Open the folder that --embedding_cache names, for the text encoders of this checkpoint; None without the flag."""
    folder = context.config.optimization.embedding_cache
    if folder is None:
        return None
    import diffusers
    import transformers

    checkpoint = context.checkpoint
    versions = (checkpoint.pipeline_class, context.dtype, diffusers.__version__, transformers.__version__)
    return EmbeddingCache(folder, encoders_key(checkpoint.folder, *versions))


def encoders_key(folder: Path, *versions: str) -> str:
    """Name the text encoders and tokenizers of a checkpoint's folder: other files, another name.

    Files in a hub's cache are links to blobs that are named by their content; of others size and time count.
    """
    described = list(versions)
    for file in sorted(folder.glob("text_encoder*/*")) + sorted(folder.glob("tokenizer*/*")):
        real = file.resolve()
        content = real.name if file.is_symlink() else f"{real.stat().st_size} {real.stat().st_mtime_ns}"
        described.append(f"{file.relative_to(folder)} {content}")
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
