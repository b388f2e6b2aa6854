"""--embedding_cache: the embeddings of prompts, kept on disk between runs."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dglaunch.atomic import atomic_write, temporary_path
from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.prompt_tensors import Embedding
from dglaunch.errors import UserError


class EmbeddingCache:
    """An embedding cache is a folder with a safetensors file for each prompt, in a folder for each set of text encoders.
    Ranks and runs may share it.

    Raises:
        UserError: it cannot be written, at the start or later.
    """

    def __init__(self, folder: Path, encoders: str) -> None:
        self.folder = folder / encoders
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
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
        """Read those of these prompts that are in the cache; a damaged file counts as missing and is written again."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Embedding] = {}
        for key in keys:
            try:
                values = load_file(self._file(key))
            except (OSError, SafetensorError):
                continue
            found[key] = tuple(values.get(str(n)) for n in range(num_values))
        return found

    def write(self, embeddings: Mapping[str, Embedding]) -> None:
        """Write a file for each prompt; another rank may write the same one."""
        from safetensors.torch import save_file

        for key, values in embeddings.items():
            file = self._file(key)
            kept = {str(n): value.contiguous() for n, value in enumerate(values) if value is not None}
            with self._writing():
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as temporary:
                    save_file(kept, temporary)


def open_cache(context: Context) -> EmbeddingCache | None:
    """Open the folder that --embedding_cache names, for the text encoders of this checkpoint; None without the flag."""
    folder = context.config.optimization.embedding_cache
    if folder is None:
        return None
    import diffusers
    import transformers

    checkpoint = context.checkpoint
    source = Path(checkpoint.source)
    if not checkpoint.local:
        from huggingface_hub import hf_hub_download

        revision = context.config.backend.revision
        source = Path(hf_hub_download(checkpoint.source, "model_index.json", revision=revision)).parent
    versions = (checkpoint.pipeline_class, context.dtype, diffusers.__version__, transformers.__version__)
    return EmbeddingCache(folder, encoders_key(source, *versions))


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
