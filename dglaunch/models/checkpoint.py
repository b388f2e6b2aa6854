"""What a checkpoint is, read from its JSON files: its family, default size, heads and weight. torch is not imported.

A family is a row in `FAMILIES`, chosen by the pipeline class that the checkpoint's model_index.json names, never by
the model's name. The rules of xDiT in these rows were measured (see tests/torchrun/test_xfuser_parity.py, which checks them).
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    MODULAR_INDEX,
    CheckpointFiles,
    Component,
    config_file,
    has_weights,
    parts_of,
    read_components,
    read_json,
    settings_of,
)
from dglaunch.models.families import FAMILIES, OTHER, Family, editors
from dglaunch.models.fetching import require_whole
from dglaunch.models.folder import Folder
from dglaunch.models.hub import Hub, NotHere
from dglaunch.models.input_roles import Role
from dglaunch.models.lora import NO_LORAS, Loras
from dglaunch.models.modular import GUIDER, Modular, read_modular
from dglaunch.models.own_pipeline import TRUST, OwnPipeline, code_of, named_by_flag, named_by_index
from dglaunch.models.shape import Shape
from dglaunch.models.single_file import read_single_file, refuse_parts_without_weights
from dglaunch.models.unlisted import Takes, takes_of, unlisted
from dglaunch.models.weight_files import (
    DENOISERS,
    WEIGHT_SUFFIXES,
    WeightFile,
    WithWeightFiles,
    bytes_of_folder,
    quantization_of,
    read_weight_files,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USUAL_STEPS = 28
"""Denoising steps where neither the user nor the checkpoint says how many."""
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
    modular: Modular | None = None
    """What is known of its blocks, where it is a checkpoint of diffusers' modular pipelines."""
    takes: Takes | None = None
    """What the call of a pipeline without a row takes, as its source says; None where a row says it, or no source."""
    counted: Mapping[str, int] | None = None
    """Its `parameters`, where rank 0 has counted them for all ranks."""
    weight_files: Mapping[str, WeightFile] = field(default_factory=dict)
    """By part, weights that come from elsewhere than the checkpoint."""
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
        usual = USUAL_STEPS if self.family.num_steps is None else self.family.num_steps
        return self.default("num_inference_steps", usual) if given is None else given

    def steps_of_strength(self, given: int | None) -> int:
        """Return the number of steps that a strength is a share of."""
        return self.default("num_inference_steps", self.family.own_steps) if given is None else given

    def steps_computed(self, steps: int, roles: tuple[Role, ...], strength: float | None) -> int:
        """Return how many of so many denoising steps are computed for a row with these input images."""
        pipeline = self.family.input_pipeline(roles)
        return steps if pipeline is None else steps - pipeline.begins(steps, strength)

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
    def parts(self) -> Collection[str]:
        """The names of its parts.

        Raises:
            UserError: the model_index.json is not as diffusers writes it.
        """
        files = self._described_by
        return parts_of(files).keys() if files is not None else ()

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
    def stored(self) -> Mapping[str, int]:
        """Bytes of those parts whose weights stay in memory as they are stored, as they are quantised in their files."""
        return {part: each.num_bytes for part, each in self.weight_files.items() if each.quantized_by} | {
            part: size for part, size in self._stored_in_folder.items() if part not in self.weight_files
        }

    @cached_property
    def _stored_in_folder(self) -> Mapping[str, int]:
        """The same of the checkpoint's own folder."""
        files = self._described_by
        if not self.local or files is None:
            return {}
        parts = [part for part in parts_of(files) if has_weights(part) and part not in self.weight_files]
        quantized = [part for part in parts if quantization_of(files.json(config_file(part)) or {})]
        return {part: bytes_of_folder(Path(self.source, part)) for part in quantized}

    def quantized_by(self, part: str) -> str | None:
        """Return what a part's weights were quantised by in their file; None: nothing."""
        weights, component = self.weight_files.get(part), self.components.get(part)
        if weights is not None:
            return weights.quantized_by
        return None if component is None else quantization_of(component.config)

    @property
    def denoiser(self) -> str | None:
        """What its pipeline calls the network that denoises; None where nothing is known of its parts."""
        return next((part for part in DENOISERS if part in self.components), None)

    @property
    def weights_identity(self) -> dict[str, str]:
        """What makes a job with other weights another job: the sha256 of each file that was given, by its flag or part."""
        return {f"{part}_sha256": each.sha256 for part, each in sorted(self.weight_files.items())}

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
        if self.files is None and self.local:
            return Folder(Path(self.source))
        return self.files


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
    if config.model_config is not None:
        return _from_single_file(folder, config.model_config, config)
    if folder.is_dir():
        return _from_folder(folder, config)
    if folder.suffix.lower() in WEIGHT_SUFFIXES and (folder.exists() or folder.is_absolute() or "/" not in str(folder)):
        alone = "the transformer alone" if folder.suffix.lower() == ".gguf" else "a part of one, or all of its networks"
        raise UserError(
            f"--model_name {folder} is one file with {alone}, without what a checkpoint has beside it (configurations, "
            f"tokenizers). Of a transformer: --model_name FOLDER_OR_HUB_ID --transformer {folder}. Of a whole checkpoint in one "
            f"file: --model_name {folder} --model_config FOLDER_OR_HUB_ID, which has the rest (of SDXL "
            "stabilityai/stable-diffusion-xl-base-1.0)."
        )
    if folder.is_absolute() or config.model_name.startswith(".") or config.model_name.count("/") != 1:
        raise UserError(
            f"--model_name {config.model_name} is no folder here and no hub id (owner/name)."
            f"{suggestion(config.model_name)} Correct the path, or use `tiny`, which ships with dglaunch."
        )
    return _from_hub(config)


def _from_single_file(path: Path, name: str, config: BackendConfig) -> Checkpoint:
    """A whole checkpoint in one file, with the configurations of another one.

    Raises:
        UserError: it is no such file, or lacks something.
    """
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise UserError(
            f"--model_config {name} is for a whole checkpoint in one .safetensors file, and --model_name {path} is none. Drop "
            "--model_config, or correct the path."
        )
    base = resolve(replace(config, model_name=name, model_config=None, transformer=None, text_encoder=(), vae=None))
    if base.modular is not None:
        raise UserError(
            f"--model_config {name} is a checkpoint of diffusers' modular pipelines, whose parts are loaded from where its index says. "
            f"Give one that has a {INDEX}, such as the ordinary checkpoint of the same model."
        )
    assert base.files is not None, "it has a model_index.json"
    weights = read_single_file(path, base.files, config.cache) | read_weight_files(base.files, config)
    refuse_parts_without_weights(path, base.files, weights)
    return replace(base, weight_files=weights, files=WithWeightFiles(base.files, weights))


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
    if index is None and (modular := files.json(MODULAR_INDEX)) is not None:
        return _of_blocks(files, modular, defaults, config)
    if index is None:
        raise UserError(
            f"{files.source} has no model_index.json, so it is no diffusers checkpoint. Give the folder that holds it (of "
            "a whole checkpoint in one file: --model_name FILE.safetensors --model_config FOLDER_OR_HUB_ID)."
        )
    name, own = index.get("_class_name"), _own_pipeline(files, index, config)
    if own is not None:
        name = own.pipeline_class
    if not isinstance(name, str):
        raise UserError(
            f"The model_index.json of {files.source} names no pipeline class (_class_name); it cannot be loaded."
        )
    weights, local = read_weight_files(files, config), isinstance(files, Folder)
    if weights:
        files = WithWeightFiles(files, weights)
    parts = parts_of(files)
    transformer = _transformer(files, parts)
    takes = None
    if name in FAMILIES and (own is None or own.base is not None):
        family = FAMILIES[name] if own is None else own.family(FAMILIES[name])
    else:
        takes = takes_of(name) if own is None else own.takes
        family = unlisted(name, takes)
    if family.sized_by_transformer or name in SIZED_BY_UNET:
        defaults = _sides(transformer) | defaults
    return Checkpoint(
        source=files.source,
        pipeline_class=name,
        family=family,
        defaults=defaults,
        transformer=transformer,
        local=local,
        tokenizers=_tokenizers(parts),
        files=files,
        own=own,
        weight_files=weights,
        takes=takes,
    )


def _of_blocks(
    files: CheckpointFiles, index: Mapping[str, object], defaults: dict[str, object], config: BackendConfig
) -> Checkpoint:
    """A checkpoint of diffusers' modular pipelines, by its modular_model_index.json.

    Raises:
        UserError: it cannot be run; the message says why.
    """
    modular = read_modular(files, index, config)
    parts, family = parts_of(modular.files), modular.row()
    transformer = _transformer(modular.files, parts)
    if family.sized_by_transformer or modular.ordinary_class in SIZED_BY_UNET:
        defaults = _sides(transformer) | defaults
    if GUIDER in modular.takes:
        defaults = {"guidance_scale": modular.takes[GUIDER]} | defaults
    return Checkpoint(
        source=files.source,
        pipeline_class=modular.class_name,
        family=family,
        defaults=defaults,
        transformer=transformer,
        local=isinstance(files, Folder),
        tokenizers=_tokenizers(parts),
        files=modular.files,
        modular=modular,
        takes=modular.takes,
    )


def _transformer(files: CheckpointFiles, parts: Collection[str]) -> dict[str, object]:
    """The configuration of the network that denoises; {} if it is not known."""
    configs = (files.json(f"{part}/config.json") for part in DENOISERS if part in parts)
    return dict(next((config for config in configs if config is not None), {}))


def _sides(transformer: Mapping[str, object]) -> dict[str, object]:
    """Height and width of a pipeline whose default is its network's own size, in latents of 8 pixels."""
    latents = transformer.get("sample_size")
    side = 8 * (latents if isinstance(latents, int) and latents else 128)
    return {"height": side, "width": side}


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
    if checkpoint.modular is not None:
        raise UserError(
            f"{checkpoint.source} is a checkpoint of diffusers' modular pipelines ({checkpoint.pipeline_class}), which run here for text "
            "to image alone. Take an editing model as an ordinary pipeline, with a model_index.json."
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
