"""What a run was asked to do: dataclasses whose fields are the flags.

    from dglaunch import BackendConfig, T2IConfig
    config = T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file=Path("prompts.jsonl"))

A value comes from a flag, else from DG_<FLAG IN CAPITALS>, else from its default (cli/flags.py).
A text under a field is its help text. `None` means "not given": the pipeline's own default is used.
What a flag concerns is said on its field, and asked with `flags_that`; there is no other list of flags.
"""

import enum
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from dglaunch.errors import UserError
from dglaunch.files import at_home

BackendName = Literal["diffusers", "xdit", "openai", "google_genai", "fake"]
MAX_SEED = 2**63 - 1
"""The largest that torch.Generator takes."""
LARGEST_SEED = 2**62
"""Of --seed, to which the index is added."""
MAX_PIXELS = 89_478_485
"""Beyond it an image may be a decompression bomb; Pillow's own limit, at which it only warns."""
Layout = Literal["indexed", "geneval", "dpg", "t2i_compbench", "genarena", "webdataset", "parquet"]
WriterName = Literal["main", "node", "rank"]
CacheType = Literal["first_block_cache", "taylor_seer", "faster_cache", "pab", "mag_cache", "cache_dit"]
Value = TypeVar("Value")


class Concern(enum.Flag):
    """What a flag concerns. Each field says it; a field that does not fails a test."""

    NOTHING = 0
    """Where and how the run goes, but none of what follows."""
    IDENTITY = enum.auto()
    """Another value is another job: it stands in `settings` of run.json and must not change when a run is resumed."""
    IMAGE = enum.auto()
    """A value that is given changes the image: part of the identity then, and of the text in the file."""
    FILE = enum.auto()
    """Stands in the text of an image file where it was given, so that `dglaunch replay` can make the image again."""
    REPLAY = enum.auto()
    """`dglaunch replay` takes it from the file, and --set may change it."""
    TRUST = enum.auto()
    """Never taken from a file, which anyone may have written."""
    TUNING = enum.auto()
    """What `dglaunch tune` measured holds for one value of it."""
    LOCAL = enum.auto()
    """Does something only where the model runs on this machine."""
    API = enum.auto()
    """Does something only where an API runs the model."""
    ROW = enum.auto()
    """The default of a column that a row may set."""
    CALL = enum.auto()
    """Goes to the pipeline's call, where it is given."""


NOTHING, IDENTITY, IMAGE, FILE, REPLAY = (
    Concern.NOTHING, Concern.IDENTITY, Concern.IMAGE, Concern.FILE, Concern.REPLAY,
)  # fmt: skip
TRUST, TUNING, LOCAL, API, ROW, CALL = (
    Concern.TRUST, Concern.TUNING, Concern.LOCAL, Concern.API, Concern.ROW, Concern.CALL,
)  # fmt: skip


def flag(default: Value, concerns: Concern) -> Value:
    """Return a dataclass field with its default and what it concerns (typed as the default, as `field()` is)."""
    return field(default=default, metadata={"concerns": concerns})


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """Which engine runs which checkpoint, and on what."""

    backend: BackendName = flag("diffusers", FILE | REPLAY | TUNING)
    """Engine: diffusers (each rank a replica), xdit (groups from DG_XDIT_*), openai and google_genai (APIs), fake (tests)."""
    model_name: str = flag("tiny", IDENTITY | REPLAY | TUNING)
    """A hub id, a local diffusers folder, `tiny`, the checkpoint that ships with dglaunch, or an API's name of its model."""
    revision: str | None = flag(None, IDENTITY | FILE | REPLAY | TUNING | LOCAL)
    """Branch, tag or commit of a hub id."""
    pipeline: str | None = flag(None, IDENTITY | FILE | REPLAY | TRUST | TUNING | LOCAL)
    """A pipeline class of your own, as my_module:MyPipeline, in place of the one that the checkpoint names."""
    torch_dtype: Literal["bfloat16", "float16", "float32"] | None = flag(None, REPLAY | LOCAL)
    """Type of the weights. Default: bfloat16 on a GPU, float32 on a CPU."""
    device: Literal["cuda", "cpu"] | None = flag(None, REPLAY | TRUST | LOCAL)
    """Where to run. Default: the GPU of this local rank, the CPU where there is none."""
    trust_remote_code: bool = flag(False, REPLAY | TRUST | LOCAL)
    """Run Python code that comes with the checkpoint."""
    allow_pickle: bool = flag(False, REPLAY | TRUST | LOCAL)
    """Load weights that are not safetensors (a pickle can run any code)."""
    cache_dir: Path = flag(Path("~/.cache/dglaunch"), REPLAY | TRUST | LOCAL)
    """Where dglaunch keeps what it builds once (not the hub's own cache)."""

    @property
    def cache(self) -> Path:
        """The folder that --cache_dir names.

        Raises:
            UserError: it is in the home folder, and there is none.
        """
        return at_home(self.cache_dir)


@dataclass(kw_only=True, slots=True)
class OptimizationConfig:
    """What is done to the pipeline. Each option takes effect or the run stops before loading the weights."""

    enable_vae_slicing: bool = flag(False, REPLAY | TUNING | LOCAL)
    """Decode the images of a batch one after the other: less memory, same image."""
    enable_vae_tiling: bool = flag(False, IDENTITY | IMAGE | REPLAY | TUNING | LOCAL)
    """Decode each image in tiles: far less memory for large images, changes the image a little."""
    attention_backend: str | None = flag(None, FILE | REPLAY | TUNING | LOCAL)
    """diffusers' name (native, flash, sage, ...), with --backend xdit xfuser's (SDPA, FLASH_3, ...)."""
    encode: Literal["auto", "ahead", "inline"] = flag("auto", TUNING | LOCAL)
    """Encode all prompts ahead of the first batch, each distinct one once, and drop the text encoders; or in each batch."""
    embedding_cache: Path | None = flag(None, TUNING | LOCAL)
    """Folder that keeps encoded prompts between runs; with all of them there the text encoders are not even loaded."""
    cache_type: CacheType | None = flag(None, IDENTITY | IMAGE | REPLAY | TUNING | LOCAL)
    """Reuse activations between denoising steps (diffusers' caches, cache-dit): faster, changes the image."""
    cache_threshold: float | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL)
    """Of first_block_cache, mag_cache and cache_dit: how much may change and yet be skipped. Default: 0.08, 0.06, 0.08."""
    cache_interval: int | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL)
    """Of taylor_seer, faster_cache and pab: compute every so many steps. Default: 5, 2, 2."""
    cache_warmup: int | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL)
    """Of taylor_seer and cache_dit: first steps that are computed in full. Default: 3, 8."""
    enable_compile: bool = flag(False, TUNING | LOCAL)
    """torch.compile: faster after a warm-up of a minute or so, kept in --cache_dir for later runs."""
    compile_scope: Literal["regional", "whole"] = flag("regional", TUNING | LOCAL)
    """With --enable_compile: the repeated blocks (compiled once for all) or the whole transformer (slower to compile)."""
    quantization: Literal["int8", "fp8", "nf4"] | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL)
    """Quantise the transformer while loading: int8 and fp8 (compute capability 8.9) for speed, nf4 for memory."""
    enable_fuse_qkv: bool = flag(False, TUNING | LOCAL)
    """One matrix product for query, key and value: same image."""
    enable_layerwise_casting: bool = flag(False, IMAGE | REPLAY | TUNING | LOCAL)
    """Keep the transformer's weights as float8 and cast each layer as it runs: half the memory of bfloat16."""
    enable_cpu_offload: bool = flag(False, TUNING | LOCAL)
    """Each network is on the GPU only while it runs: less memory, slower."""
    enable_group_offloading: bool = flag(False, TUNING | LOCAL)
    """Each layer of the transformer is on the GPU only while it runs: least memory, slower."""
    enable_channels_last: bool = flag(False, TUNING | LOCAL)
    """Convolutions of VAE and U-Net in NHWC order: same image."""
    enable_tf32: bool = flag(False, IMAGE | REPLAY | TUNING | LOCAL)
    """float32 matrix products on TensorFloat-32 units (only with --torch_dtype float32 on a GPU)."""

    def __post_init__(self) -> None:
        _find_home(self)
        if self.cache_threshold is not None and not 0 < self.cache_threshold < float("inf"):
            raise UserError(f"--cache_threshold is {self.cache_threshold}; it must be a number above 0.")
        for name, least in (("cache_interval", 2), ("cache_warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more.")


@dataclass(kw_only=True, slots=True)
class RemoteConfig:
    """How the backends openai and google_genai ask. Keys come from OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY only."""

    num_processes: int = flag(4, API)
    """Concurrent requests of each rank (with --backend openai or google_genai, as all flags of this group)."""
    max_global_workers: int | None = flag(None, API)
    """Concurrent requests of all ranks together; each rank takes its part."""
    timeout: float = flag(180.0, API)
    """Seconds to wait for a whole answer before the request is given up and sent again; the same for an image that an answer
    points to."""
    api_max_retries: int = flag(5, API)
    """How often a request is sent again after 429, 5xx, a time-out, a dropped connection or a damaged answer."""
    retry_delay: float = flag(1.0, API)
    """Seconds before the first retry; doubled for each one after it, with jitter. A server's Retry-After comes first."""
    api_base: str | None = flag(None, API)
    """Address of a compatible server. Default: OPENAI_BASE_URL or GOOGLE_GEMINI_BASE_URL, else the provider's own."""
    max_cost: float | None = flag(None, API)
    """Stop asking when the answers have reported this cost (US dollars, as the server counts); shared out over the ranks."""
    max_requests: int | None = flag(None, API)
    """Stop asking after this many requests, retries included; shared out over the ranks. The same command goes on."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_processes", 1),
            ("max_global_workers", 1),
            ("max_requests", 1),
            ("api_max_retries", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more.")
        for name in ("timeout", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} is {value}; it must be a number above 0.")
        if not 0 <= self.retry_delay < float("inf"):
            raise UserError(f"--retry_delay is {self.retry_delay}; it must be a number of 0 or more.")
        if self.api_base is not None:
            _check_address(self.api_base)


def _check_address(address: str) -> None:
    """--api_base stands in run.json and in messages, so it must not carry a secret; it is not shown here either."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--api_base must be an address such as https://host/v1.")
    if "@" in parts.netloc or parts.query:
        raise UserError(
            "--api_base holds a user name, a password or a query; it would be written to run.json. Give the plain address "
            "and put the key into OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY."
        )


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """What every job has in common."""

    edits: ClassVar[bool] = False
    """Whether a job of this kind edits images."""

    @property
    def table(self) -> Path | None:
        """The file or folder that the rows are read from."""
        return None

    @property
    def saves_inputs(self) -> bool:
        """Whether copies of the input images go into the output folder."""
        return False

    backend: BackendConfig = field(default_factory=BackendConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    output_dir: Path = flag(Path("outputs"), NOTHING)
    """Folder for images, metadata.jsonl, failures.jsonl and run.json. An unfinished run there is resumed."""
    overwrite: bool = flag(False, NOTHING)
    """Start anew: remove what an earlier run wrote to --output_dir."""
    output_format: Literal["png", "jpg", "webp"] = flag("png", IDENTITY)
    """File type of the images."""
    output_name_column: str | None = flag(None, NOTHING)
    """Column that names each output file; default is the index (000000.png)."""
    layout: Layout = flag("indexed", NOTHING)
    """At the end also write the images to --output_dir/LAYOUT as that evaluation or data loader reads them."""
    batch_size: int | Literal["auto"] = flag("auto", NOTHING)
    """Images per forward pass per replica, `auto` by size, memory and degrees; with an API samples of a prompt per request."""
    num_images_per_prompt: int | None = flag(None, NOTHING)
    """Images for each row that does not say otherwise, each with a seed of its own. Default: 1, or what --layout wants."""
    height: int | None = flag(None, ROW | CALL)
    """Pixels. Default: the checkpoint's own."""
    width: int | None = flag(None, ROW | CALL)
    """Pixels. Default: the checkpoint's own."""
    num_inference_steps: int | None = flag(None, ROW | CALL)
    """Denoising steps. Default: the pipeline's own."""
    guidance_scale: float | None = flag(None, ROW | CALL)
    """Guidance scale (true_cfg_scale for Qwen). Default: the pipeline's own; 0 is 0."""
    negative_prompt: str | None = flag(None, ROW | CALL)
    """What to keep out of the image, for rows that do not say otherwise."""
    max_sequence_length: int | None = flag(None, IDENTITY | FILE | REPLAY | TUNING | LOCAL | CALL)
    """Longest prompt in tokens of the text encoder. Default: the pipeline's own."""
    on_long_prompt: Literal["cut", "fail"] = flag("cut", LOCAL)
    """A prompt that no text encoder reads to its end: cut its end and say so, or refuse it before a model is loaded."""
    seed: int = flag(0, ROW)
    """Image `sample` of row `index` gets seed + index * num_images_per_prompt + sample; a row's own seed wins."""
    gallery: bool = flag(False, NOTHING)
    """At the end write gallery.html to --output_dir: a page to look through the results (dglaunch gallery does it later)."""
    num_gpus: int | None = flag(None, NOTHING)
    """Outside torchrun: start again under torchrun with this many ranks on this machine."""
    node_rank: int | None = flag(None, NOTHING)
    """With --num_nodes: this machine's number. Each node takes its share, with no rendezvous between nodes."""
    num_nodes: int | None = flag(None, NOTHING)
    """Independent nodes that share the work and the output folder."""
    writer: WriterName = flag("main", NOTHING)
    """Who writes images: rank 0, the first replica of each node (needs no common folder: dglaunch merge), or each replica."""
    stall_timeout: float = flag(1800.0, NOTHING)
    """Seconds without progress, or without a sign of life from a peer, until a hung run is ended with stacks; 0: never."""
    debug: bool = flag(False, NOTHING)
    """One process, no background threads, full tracebacks, stage timings and tensor shapes on the terminal."""

    def __post_init__(self) -> None:
        _find_home(self)
        for name, least in (
            ("batch_size", 1),
            ("num_images_per_prompt", 1),
            ("height", 1),
            ("width", 1),
            ("num_inference_steps", 1),
            ("max_sequence_length", 1),
            ("num_gpus", 1),
            ("num_nodes", 1),
            ("node_rank", 0),
            ("stall_timeout", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and not least <= value < float("inf"):
                raise UserError(f"--{name} is {value}; it must be {least} or more.")
        if self.seed > LARGEST_SEED:
            raise UserError(
                f"--seed is {self.seed}; it must be {LARGEST_SEED} (2^62) or less, as the index is added to it."
            )
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"--guidance_scale is {self.guidance_scale}; it must be a number of 0 or more.")
        if (self.node_rank is None) != (self.num_nodes is None):
            raise UserError("--node_rank and --num_nodes belong together: give both, or neither.")
        if self.node_rank is not None and self.num_nodes is not None and self.node_rank >= self.num_nodes:
            raise UserError(
                f"--node_rank {self.node_rank} with --num_nodes {self.num_nodes}: nodes are counted from 0, "
                f"so the last one is {self.num_nodes - 1}."
            )


@dataclass(kw_only=True, slots=True)
class T2IConfig(RunConfig):
    """Text to image: a file of prompts (or one prompt) to a folder of images."""

    prompt: str | None = flag(None, NOTHING)
    """One prompt, instead of a file."""
    prompts_file: Path | None = flag(None, NOTHING)
    """Prompts as .jsonl, .csv, .txt (one a line) or .parquet, a folder of .txt (one a file) or .parquet files, or a pipe."""

    @property
    def table(self) -> Path | None:
        return self.prompts_file

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if (self.prompt is None) == (self.prompts_file is None):
            raise UserError("Give either --prompts_file FILE (.jsonl, .csv, .txt, .parquet) or --prompt TEXT.")


@dataclass(kw_only=True, slots=True)
class EditingConfig(RunConfig):
    """Editing: a table of images and instructions to a folder of edited images."""

    edits: ClassVar[bool] = True
    input: Path | None = flag(None, NOTHING)
    """Table (.csv, .jsonl, .parquet): input_images (a path, a JSON or comma list; in Parquet also bytes) and instruction."""
    instruction_key: str = flag("instruction", NOTHING)
    """Column of the instructions."""
    filter_rows: str | None = flag(None, NOTHING)
    """Only these rows, by index: 0:100,250 is 0 to 99 and 250."""
    max_pixels: int = flag(MAX_PIXELS, REPLAY | TRUST)
    """Largest input image that is decoded; a row with a larger one fails. Raise it for photographs of 200 megapixels."""
    model_type: str | None = flag(None, FILE | REPLAY | LOCAL)
    """qwen, qwen_singleimg, flux2, flux2_klein, flux1_kontext, longcat, glm_image. Default: by the checkpoint's pipeline."""
    save_inputs: bool = flag(False, NOTHING)
    """Copy each row's input images to the folder inputs in --output_dir."""

    @property
    def table(self) -> Path | None:
        return self.input

    @property
    def saves_inputs(self) -> bool:
        return self.save_inputs

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.max_pixels < 1:
            raise UserError(f"--max_pixels is {self.max_pixels}; it must be 1 or more.")
        if self.input is None:
            raise UserError("Give --input TABLE (.csv, .jsonl or .parquet) with columns input_images and instruction.")


def _find_home(config: OptimizationConfig | RunConfig) -> None:
    """Replace a leading ~ in the paths that were given: Python hands it on as no shell does."""
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Path):
            setattr(config, item.name, at_home(value))


XDIT_PREFIX = "DG_XDIT_"


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """xDiT's degrees: how many ranks share one image, and how. Read from DG_XDIT_* only."""

    ulysses_degree: int = 1
    ring_degree: int = 1
    use_cfg_parallel: bool = False
    data_parallel_degree: int | None = None
    """Replicas. Default: what is left of the world."""


def settings(config: object) -> dict[str, object]:
    """Return all leaves of a config as one flat dict, in JSON's types."""
    flat: dict[str, object] = {}
    for item in fields(config):  # type: ignore[arg-type]  # any dataclass; typeshed has no name for its type
        value = getattr(config, item.name)
        flat |= settings(value) if is_dataclass(value) else {item.name: _plain(value)}
    return flat


def defaults(config_type: type) -> dict[str, object]:
    """Return what `settings` gives where nothing was set."""
    return {item.name: _plain(item.default) for item in leaf_fields(config_type)}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def settings_that(concerns: Concern, config: object) -> dict[str, object]:
    """Return those of `settings` that concern any of this and were given (neither None nor False)."""
    flat, names = settings(config), flags_that(concerns, type(config))
    return {name: flat[name] for name in names if flat[name] not in (None, False)}


def flags_that(concerns: Concern, *config_types: type) -> tuple[str, ...]:
    """Return the names of the flags that concern any of this, of all commands or of some configurations."""
    found = [
        item.name
        for config_type in config_types or COMMANDS.values()
        for item in leaf_fields(config_type)
        if item.metadata["concerns"] & concerns
    ]
    return tuple(dict.fromkeys(found))


def leaf_fields(config_type: type) -> "list[Field[object]]":
    """Return the fields of a dataclass and of the dataclasses in it, in their order."""
    found: list[Field[object]] = []
    for item in fields(config_type):
        part: object = item.default_factory
        if isinstance(part, type) and is_dataclass(part):
            found += leaf_fields(part)
        else:
            found.append(item)
    return found


COMMANDS: dict[str, type[RunConfig]] = {"t2i": T2IConfig, "edit": EditingConfig}
"""The commands that run a job."""
