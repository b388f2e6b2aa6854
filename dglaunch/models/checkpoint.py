"""What a checkpoint is, read from its JSON files: its family, default size, heads and weight. torch is not imported.

A family is a row in `FAMILIES`, chosen by the pipeline class that the checkpoint's model_index.json names, never by
the model's name. The rules of xDiT in these rows were measured (see tests/torchrun/test_xfuser_parity.py, which checks them).
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dglaunch.config import BackendConfig
from dglaunch.diffgentor import told_of_value
from dglaunch.errors import UserError
from dglaunch.files import at_home
from dglaunch.models.catalogue import known, suggestion
from dglaunch.models.components import (
    INDEX,
    CheckpointFiles,
    Component,
    parts_of,
    read_components,
    read_json,
    settings_of,
)
from dglaunch.models.families import FAMILIES, OTHER, Family, editors, family_of
from dglaunch.models.fetching import require_whole
from dglaunch.models.folder import Folder
from dglaunch.models.hub import Hub, NotHere
from dglaunch.models.lora import NO_LORAS, Loras
from dglaunch.models.own_pipeline import TRUST, OwnPipeline, code_of, named_by_flag, named_by_index
from dglaunch.models.shape import Shape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USUAL_STEPS = 28
"""Denoising steps where neither the user nor the checkpoint says how many."""
DENOISERS = ("transformer", "unet")
SIZED_BY_UNET = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")
"""Pipelines without a row whose default size is the U-Net's sample_size, in latents of 8 pixels."""


@dataclass(frozen=True)
class Checkpoint:
    """A resolved --model_name."""

    source: str
    """Local folder, or hub id."""
    pipeline_class: str
    family: Family
    defaults: dict[str, object]
    """The checkpoint's own dglaunch.json: height, width, num_inference_steps, guidance_scale, max_sequence_length."""
    transformer: dict[str, object]
    """The config of the transformer (or U-Net), {} if unknown."""
    local: bool
    tokenizers: tuple[str, ...] = ()
    """The names of those whose text encoder is there as well."""
    files: CheckpointFiles | None = None
    """What its files say, if it is no folder; None of what stands in for a checkpoint."""
    not_here: NotHere | None = None
    """Why its files cannot be had, where what is said here comes from dglaunch's catalog: it can be planned, not run."""
    own: OwnPipeline | None = None
    """Its pipeline, where that is none of diffusers'; `pipeline_class` is then the class whose rules hold."""
    counted: Mapping[str, int] | None = None
    """Its `parameters`, where rank 0 has counted them for all ranks."""
    loras: Loras = NO_LORAS
    """What --lora puts over it."""

    @property
    def pipeline_name(self) -> str:
        """What its pipeline is called."""
        return self.pipeline_class if self.own is None else self.own.name

    @property
    def heads(self) -> int | None:
        """Attention heads of the transformer, which the Ulysses degree must divide."""
        return self._number("num_attention_heads") or self._number("n_heads")

    @property
    def kv_heads(self) -> int | None:
        """Heads of its keys and values; fewer than its heads where several share one, and divided by Ulysses as well."""
        return self._number("num_kv_heads") or self._number("n_kv_heads") or self.heads

    @property
    def is_guided(self) -> bool:
        """Whether its model looks at the guidance scale; True where its files do not say."""
        switch = self.family.guidance_switch
        if switch is None or (switch.where == "transformer" and not self.transformer):
            return True
        entries = self.transformer if switch.where == "transformer" else self.settings
        return entries.get(switch.key, switch.default) == switch.guided

    def encodes_ahead(self, mode: str) -> bool:
        """Whether a run with this --encode encodes its prompts before its first batch."""
        return mode != "inline" and bool(self.family.text_outputs)

    @property
    def width_of_model(self) -> int | None:
        """Channels of the transformer's hidden state."""
        heads, dim = self.heads, self._number("attention_head_dim")
        return heads * dim if heads and dim else None

    def _number(self, name: str) -> int | None:
        """A whole number of the transformer's config; U-Nets have lists there, one entry a level."""
        value = self.transformer.get(name)
        return value if isinstance(value, int) else None

    def default(self, name: str, otherwise: int) -> int:
        """Return one of the checkpoint's own defaults that is a whole number."""
        value = self.defaults.get(name)
        return value if isinstance(value, int) else otherwise

    def shape(self, height: int | None, width: int | None) -> Shape:
        """Return the shape that the pipeline will use where these sides were given."""
        return Shape(
            self.default("height", self.family.default_size) if height is None else height,
            self.default("width", self.family.default_size) if width is None else width,
        )

    def text_length(self, given: int | None) -> int:
        """Return the number of tokens that the prompt is padded to."""
        return self.default("max_sequence_length", self.family.max_sequence_length) if given is None else given

    def num_steps(self, given: int | None) -> int:
        """Return the number of denoising steps."""
        return self.default("num_inference_steps", USUAL_STEPS) if given is None else given

    def image_tokens(self, shape: Shape) -> int:
        """Return how many tokens the transformer makes of an image."""
        return math.ceil(shape.height / 16) * math.ceil(shape.width / 16)

    @cached_property
    def components(self) -> Mapping[str, Component]:
        """Its parts by name, with their configurations: of a folder, of a model of the hub (JSON files only), or of the
        catalog. {} of what stands in for a checkpoint.

        Raises:
            UserError: a file is missing or not as diffusers writes it; the message names the file and the key.
        """
        files = self._described_by
        return read_components(files) if files is not None else {}

    @cached_property
    def settings(self) -> Mapping[str, object]:
        """What its model_index.json tells the pipeline besides its parts, such as is_distilled.

        Raises:
            UserError: the file cannot be read.
        """
        files = self._described_by
        return settings_of(files) if files is not None else {}

    @cached_property
    def parameters(self) -> Mapping[str, int]:
        """Number of weights of each component that from_pretrained would load: from the headers of safetensors files on
        this machine, from the sizes that the hub lists, or from the catalog; {} if not known."""
        files = self._described_by
        if self.counted is not None or files is None:
            return self.counted or {}
        return files.count()

    @property
    def folder(self) -> Path:
        """Its folder on this machine, be it in the hub's cache.

        Raises:
            UserError: it is not on this machine, and cannot be fetched.
        """
        if self.local:
            return Path(self.source)
        if not isinstance(self.files, Hub):
            raise self.not_here or UserError(f"{self.source} is not on this machine.")
        return self.files.cached_folder

    @property
    def _described_by(self) -> CheckpointFiles | None:
        return Folder(Path(self.source)) if self.local else self.files


def resolve(config: BackendConfig) -> Checkpoint:
    """Find a checkpoint and read its JSON files; from the hub only those are fetched, and where it does not give them,
    dglaunch's catalog says what it knows (`not_here`).

    Raises:
        UserError: there is no such folder, or it is no diffusers checkpoint, or the hub does not have it.
    """
    if config.model_name == "tiny":
        from dglaunch.tiny.folder import checkpoint as tiny_checkpoint

        return _from_folder(tiny_checkpoint(config.cache_dir), config)
    folder = at_home(Path(config.model_name))
    if folder.is_dir():
        return _from_folder(folder, config)
    if folder.is_absolute() or config.model_name.startswith(".") or config.model_name.count("/") != 1:
        raise UserError(
            f"--model_name {config.model_name} is no folder here and no hub id (owner/name)."
            f"{suggestion(config.model_name)} Correct the path, or use `tiny`, which ships with dglaunch."
        )
    return _from_hub(config)


def _from_folder(path: Path, config: BackendConfig) -> Checkpoint:
    require_whole(path)
    settings = path / "dglaunch.json"
    return _checkpoint(Folder(path), read_json(settings) if settings.is_file() else {}, config)


def _from_hub(config: BackendConfig) -> Checkpoint:
    try:
        return _checkpoint(Hub(config.model_name, config.revision), {}, config)
    except NotHere as error:
        entry = known(config.model_name)
        if entry is None:
            raise UserError(f"{error}{suggestion(config.model_name)}") from None
        return replace(_checkpoint(entry, {}, config), not_here=error)


def _checkpoint(files: CheckpointFiles, defaults: dict[str, object], config: BackendConfig) -> Checkpoint:
    index = files.json(INDEX)
    if index is None:
        raise UserError(
            f"{files.source} has no model_index.json, so it is no diffusers checkpoint. Give the folder that holds it (single "
            "files must be converted first: DiffusionPipeline.from_single_file(...).save_pretrained(...))."
        )
    name, own = index.get("_class_name"), _own_pipeline(files, index, config)
    if own is not None:
        name = own.pipeline_class
    if not isinstance(name, str):
        raise UserError(
            f"The model_index.json of {files.source} names no pipeline class (_class_name); it cannot be loaded."
        )
    parts = parts_of(files)
    configs = (files.json(f"{part}/config.json") for part in DENOISERS if part in parts)
    transformer = dict(next((config for config in configs if config is not None), {}))
    family = family_of(name) if own is None else own.family(family_of(name))
    if family.sized_by_transformer or name in SIZED_BY_UNET:
        latents = transformer.get("sample_size")
        side = 8 * (latents if isinstance(latents, int) and latents else 128)
        defaults = {"height": side, "width": side} | defaults
    return Checkpoint(
        source=files.source,
        pipeline_class=name,
        family=family,
        defaults=defaults,
        transformer=transformer,
        local=isinstance(files, Folder),
        tokenizers=_tokenizers(parts),
        files=files,
        own=own,
    )


def _own_pipeline(files: CheckpointFiles, index: Mapping[str, object], config: BackendConfig) -> OwnPipeline | None:
    """The pipeline that --pipeline names, or that comes with the checkpoint.

    Raises:
        UserError: there is none, or code comes with the checkpoint and nobody said that it may be run.
    """
    own = named_by_index(files, index.get("_class_name"))
    code = code_of(files, own)
    if code and not config.trust_remote_code:
        raise UserError(f"{files.source} comes with Python code of its own ({', '.join(code)}), {TRUST}")
    if config.pipeline is None:
        return own
    if own is not None:
        raise UserError(
            f"--pipeline {config.pipeline}: {files.source} comes with a pipeline of its own ({own.name}), which diffusers "
            "would take in its place. Drop --pipeline, or write the class of diffusers that it is for into _class_name of "
            "its model_index.json."
        )
    return named_by_flag(config.pipeline)


def _tokenizers(parts: Collection[str]) -> tuple[str, ...]:
    """Of the parts that a checkpoint has."""
    tokenizers = [name for name in parts if name.startswith("tokenizer")]
    return tuple(sorted(name for name in tokenizers if name.replace("tokenizer", "text_encoder") in parts))


def as_editor(checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
    """Return the checkpoint as `edit` uses it: with the editing pipeline's class, rules and defaults.

    Raises:
        UserError: there is no such family, or the checkpoint is of none.
    """
    by_name = editors()
    if model_type is not None and model_type not in by_name:
        near = difflib.get_close_matches(model_type, by_name, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--model_type {model_type} is no editing family. The nearest: {near}; all: {', '.join(by_name)}."
            f"{told_of_value('model_type', model_type)}"
        )
    chosen = by_name[model_type] if model_type is not None else _editing_pipeline(checkpoint)
    row = FAMILIES[chosen]
    assert row.edit is not None
    family = replace(row, batch=not row.edit.batch_disabled, batch_reason=row.edit.reason)
    if checkpoint.own is not None:
        family = checkpoint.own.family(family)
    for_edit = checkpoint.defaults.get("edit")
    defaults = {name: value for name, value in checkpoint.defaults.items() if name != "edit"}
    return replace(
        checkpoint,
        pipeline_class=chosen,
        family=family,
        defaults=defaults | (for_edit if isinstance(for_edit, dict) else {}),
    )


def _editing_pipeline(checkpoint: Checkpoint) -> str:
    """The class of the pipeline that edits with this checkpoint, without --model_type."""
    if FAMILIES.get(checkpoint.pipeline_class, OTHER).edit is not None:
        return checkpoint.pipeline_class
    fitting = {
        name: row.edit.name
        for name, row in FAMILIES.items()
        if row.edit is not None and row.edit.loads_from == checkpoint.pipeline_class
    }
    if fitting and "edit" in checkpoint.defaults:
        return next(iter(fitting))
    hint = f" ({next(iter(fitting.values()))} has the same parts)" if fitting else ""
    raise UserError(
        f"{checkpoint.source} is a {checkpoint.pipeline_class}, which does not edit images. Choose an editing "
        f"checkpoint, or, if its weights were trained to edit, name its family with --model_type{hint}: "
        f"{', '.join(editors())}."
    )


def load_tokenizer(checkpoint: Checkpoint, name: str, config: BackendConfig) -> object:
    """Load one tokenizer from the checkpoint's files, and nothing else.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        checkpoint.source, subfolder=name, revision=config.revision, trust_remote_code=config.trust_remote_code
    )


def token_lengths(checkpoint: Checkpoint, prompts: Sequence[str], config: BackendConfig) -> list[int]:
    """Tokens of each prompt as the family's pipeline counts them (up to a constant for its template)."""
    tokenizer: Any = load_tokenizer(checkpoint, "tokenizer", config)
    if checkpoint.family.chat_template:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for prompt in prompts
        ]
    return [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
