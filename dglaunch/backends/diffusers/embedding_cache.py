"""--embedding_cache: the embeddings of prompts, kept on disk between runs."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dglaunch.atomic import replacing
from dglaunch.errors import UserError

Rows = tuple[torch.Tensor | None, ...]
"""What encode_prompt returns, cut to one prompt, on the host."""


class EmbeddingCache:
    """A safetensors file for each prompt, in a folder for each set of text encoders. Ranks and runs may share it.

    Raises:
        UserError: it cannot be written, at the start or later.
    """

    def __init__(self, folder: Path, encoders: str) -> None:
        self.folder = folder.expanduser() / encoders
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            (probe := self.folder / f".{os.getpid()}-{os.urandom(4).hex()}.tmp").touch()
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

    def read(self, keys: Iterable[str], num_values: int) -> dict[str, Rows]:
        """What is there of these; a damaged file counts as missing and is written again."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Rows] = {}
        for key in keys:
            try:
                values = load_file(self._file(key))
            except (OSError, SafetensorError):
                continue
            found[key] = tuple(values.get(str(n)) for n in range(num_values))
        return found

    def write(self, rows: Mapping[str, Rows]) -> None:
        from safetensors.torch import save_file

        for key, values in rows.items():
            file = self._file(key)
            temporary = file.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.tmp")
            kept = {str(n): value.contiguous() for n, value in enumerate(values) if value is not None}
            with self._writing():
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file, temporary):
                    save_file(kept, temporary)


def encoders_key(folder: Path, *versions: str) -> str:
    """A name for the text encoders and tokenizers of a checkpoint's folder: other files, another name.

    Files in a hub's cache are links to blobs that are named by their content; of others size and time count.
    """
    described = list(versions)
    for file in sorted(folder.glob("text_encoder*/*")) + sorted(folder.glob("tokenizer*/*")):
        real = file.resolve()
        content = real.name if file.is_symlink() else f"{real.stat().st_size} {real.stat().st_mtime_ns}"
        described.append(f"{file.relative_to(folder)} {content}")
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
