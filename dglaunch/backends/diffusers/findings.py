"""What the self-test found about a pipeline without a row, kept between runs: by checkpoint, versions, device and flags.

    file = file_of(checkpoint, config, "cuda", "bfloat16")      # in --cache_dir
    findings = recall(file)                                     # None: not tried yet, or anybody may have written it

torch is not imported here: a plan reads them, too.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.config import RunConfig, settings
from dglaunch.distributed.messages import message
from dglaunch.files import identity_of, make_cache_folder, may_be_others, read_bytes
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.components import INDEX, MODULAR_INDEX
from dglaunch.models.hub import is_cached
from dglaunch.system import versions

SHAPED_BY = ("dglaunch", "torch", "diffusers", "transformers")
"""Packages of which another version may change what was found."""
MOST_FINDINGS = 1 << 16
"""Bytes of a file."""
ANY_SIZE = 1
"""The multiple where the pipeline takes no size, or draws at sizes of its own: there is nothing to find."""


@message
@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the self-test found."""

    multiple: int
    """Width and height must be multiples of it."""
    sets_size: bool = True
    """Whether the images have the size that was asked for; False: the pipeline draws at a size of its own."""
    why_single: str = ""
    """Why several prompts may not share a call; "" where they give the images that each gives alone."""
    by_global_state: bool = False
    """Whether images depend on torch's, numpy's and Python's own random state besides their generators."""

    @property
    def text(self) -> str:
        """In one line."""
        batches = f"one image a call ({self.why_single})" if self.why_single else "several prompts a call are right"
        seeds = (
            "its images depend on the global random state, which is seeded for each of them"
            if self.by_global_state
            else "the seeds alone decide the images"
        )
        sizes = f"sizes in multiples of {self.multiple}" if self.multiple > ANY_SIZE else "no choice of sizes"
        return f"{batches}; {seeds}; {sizes}"


def file_of(checkpoint: Checkpoint, config: RunConfig, device: str, dtype: str) -> Path | None:
    """Return the file that findings about this checkpoint, run in this way, are kept in; None if its own files cannot be
    told apart (a model of the hub that is not in the cache yet, a modular one with parts from elsewhere)."""
    folder = _folder_of(checkpoint, config)
    if folder is None:
        return None
    flags = {name: value for name, value in settings(config.optimization).items() if name != "embedding_cache"}
    own = checkpoint.own.content if checkpoint.own is not None else ""
    described = [checkpoint.pipeline_name, own, device, dtype, strict_json.dumps(flags)]
    described += [f"{name} {versions().get(name)}" for name in SHAPED_BY]
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.py"), *folder.glob("*/*")]):
        if file.is_file():
            described.append(f"{file.relative_to(folder)} {identity_of(file)}")
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:32]
    return config.backend.cache / "self_tests" / f"{key}.json"


def recall(file: Path) -> Findings | None:
    """Return what is kept in a file, if nobody else may have put it there and it is as `keep` writes it."""
    try:
        if may_be_others(file) or may_be_others(file.parent):
            return None
        found = strict_json.loads(read_bytes(file, MOST_FINDINGS))
    except (OSError, ValueError):
        return None
    kinds = {each.name: each.type for each in fields(Findings)}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        return None
    return Findings(**found)


def keep(file: Path, findings: Findings) -> None:
    """Write what was found, for the next run.

    Raises:
        OSError: it cannot be written.
    """
    make_cache_folder(file.parent)
    with atomic_write(file) as temporary:
        temporary.write_text(strict_json.dumps(asdict(findings), indent=1) + "\n", encoding="utf-8")


def _folder_of(checkpoint: Checkpoint, config: RunConfig) -> Path | None:
    """Where the checkpoint's files are on this machine; None where they are not all in one place."""
    modular = checkpoint.modular
    if modular is not None and modular.files.elsewhere:
        return None
    if checkpoint.local:
        return Path(checkpoint.source)
    if not is_cached(checkpoint.source):
        return None  # at once: what asks the cache takes half a second to import
    from huggingface_hub import try_to_load_from_cache

    index = INDEX if modular is None else MODULAR_INDEX
    found = try_to_load_from_cache(checkpoint.source, index, revision=config.backend.revision)
    return Path(found).parent if isinstance(found, str) else None
