"""What a run was asked to do: dataclasses whose fields are the flags.

    from dglaunch import BackendConfig, T2IConfig
    config = T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file="prompts.jsonl")

A value comes from a flag, else from DG_<FLAG IN CAPITALS>, else from its default (cli/flags.py).
A text under a field is its help text. `None` means "not given": the pipeline's own default is used.
What a flag concerns is said on its field, and asked with `flags_that`; there is no other list of flags. A path may be given
as a text; it is a Path afterwards.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from dglaunch.addresses import SCHEMES, STORES, Address, is_other_scheme, path_or_address, problem_with
from dglaunch.errors import UserError
from dglaunch.files import at_home

BackendName = Literal["diffusers", "xdit", "openai", "google_genai", "fake"]
MAX_SEED = 2**63 - 1
"""The largest that torch.Generator takes."""
LARGEST_SEED = 2**62
"""Of --seed, to which the index is added."""
MOST_FILES_PER_FOLDER = 10**9
MAX_PIXELS = 89_478_485
"""Beyond it an image may be a decompression bomb; Pillow's own limit, at which it only warns."""
Layout = Literal["indexed", "geneval", "dpg", "t2i_compbench", "genarena", "webdataset", "parquet"]
Store = Literal["files", "webdataset", "parquet"]
WriterName = Literal["main", "node", "rank"]
DtypeName = Literal["bfloat16", "float16", "float32", "bf16", "fp16", "fp32", "half", "float"]
OTHER_DTYPES: dict[str, DtypeName] = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
}  # fmt: skip
"""Other names of the types; a configuration holds the first ones."""
CacheType = Literal["first_block_cache", "taylor_seer", "faster_cache", "pab", "mag_cache", "cache_dit", "fbcache"]
Value = TypeVar("Value")


class Group(enum.Enum):
    """Where a flag stands in --help and in docs/flags.md; each field says it, in this order of groups."""

    WHAT = "What to make"
    MODEL = "Model"
    IMAGES = "Images"
    SPEED = "Speed and memory"
    OUTPUT = "Output and resume"
    MACHINES = "Several machines"
    APIS = "APIs"


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


def flag(
    default: Value,
    concerns: Concern,
    group: Group,
    *,
    usual: str = "",
    also: Mapping[str, str] | None = None,
) -> Value:
    """Return a dataclass field with its default and what is known of it (typed as the default, as `field()` is).

    Args:
        default: what it is where nobody gives it.
        concerns: what the flag concerns.
        group: its place in --help.
        usual: --help shows the flag with these words; the rest stands in --help all, with the text under the field.
        also: other names of its values, and the values.
    """
    metadata = {"concerns": concerns, "group": group, "usual": usual, "also": also or {}}
    return field(default=default, metadata=metadata)


def no_flag(default: Value) -> Value:
    """Return a dataclass field that only Python can set: no word of a command line would be its value."""
    return field(default=default, metadata={"is_flag": False})


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """Which engine runs which checkpoint, and on what."""

    backend: BackendName = flag(
        "diffusers", FILE | REPLAY | TUNING, Group.MODEL, usual="diffusers (default), xdit, openai, google_genai"
    )
    """Engine: diffusers (each rank a replica), xdit (groups from DG_XDIT_*), openai and google_genai (APIs), fake (tests)."""
    model_name: str = flag("tiny", IDENTITY | REPLAY | TUNING, Group.MODEL, usual="Hub id, folder, or an API's model")
    """A hub id, a local diffusers folder, `tiny`, the checkpoint that ships with dglaunch, or an API's name of its model."""
    revision: str | None = flag(None, IDENTITY | FILE | REPLAY | TUNING | LOCAL, Group.MODEL)
    """Branch, tag or commit of a hub id."""
    pipeline: str | None = flag(None, IDENTITY | FILE | REPLAY | TRUST | TUNING | LOCAL, Group.MODEL)
    """A pipeline class of your own, as my_module:MyPipeline, in place of the one that the checkpoint names."""
    controlnet: str | None = flag(None, IDENTITY | FILE | REPLAY | LOCAL, Group.MODEL)
    """A ControlNet's hub id or folder (config.json and safetensors), for t2i with --control_column."""
    torch_dtype: DtypeName | None = flag(
        None, REPLAY | LOCAL, Group.MODEL, usual="bf16, fp16 or fp32 (default: by the device)", also=OTHER_DTYPES
    )
    """Type of the weights. Default: bfloat16 on a GPU, float32 on a CPU."""
    model_config: str | None = flag(None, IDENTITY | FILE | REPLAY | TUNING | LOCAL, Group.MODEL)
    """With --model_name x.safetensors, a whole checkpoint in one file: the folder or hub id that has what such a file lacks
    (configurations, tokenizers)."""
    transformer: Path | None = flag(None, FILE | REPLAY | TUNING | LOCAL, Group.MODEL)
    """The transformer's (or U-Net's) weights from a .safetensors or .gguf file, or a folder, in place of the checkpoint's."""
    text_encoder: tuple[str, ...] = flag((), FILE | REPLAY | TUNING | LOCAL, Group.MODEL)
    """The same of a text encoder, as .safetensors or a folder; of one of several: text_encoder_2=FILE. Repeat it for more."""
    vae: Path | None = flag(None, FILE | REPLAY | TUNING | LOCAL, Group.MODEL)
    """The same of the VAE."""
    scheduler: str | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL, Group.IMAGES)
    """Another scheduler than the checkpoint's own (UniPC, Euler, Heun, DPM++ 2M, ...), checked before the model is loaded."""
    scheduler_options: tuple[str, ...] = flag((), IMAGE | REPLAY | TUNING | LOCAL, Group.IMAGES)
    """KEY=VALUE of the scheduler: shift=5, karras=true, beta=true, or an option of its class; repeat it for more."""
    device: Literal["cuda", "cpu"] | None = flag(None, REPLAY | TRUST | LOCAL, Group.MODEL)
    """Where to run. Default: the GPU of this local rank, the CPU where there is none."""
    lora: tuple[str, ...] = flag((), LOCAL, Group.MODEL)
    """[NAME=]FILE_OR_FOLDER_OR_HUB_ID[:WEIGHT]: a LoRA (safetensors) over the model, repeated for more. A row uses all of them,
    unless its column lora says otherwise ("style:0.8,detail:0.5", or "none")."""
    trust_remote_code: bool = flag(False, REPLAY | TRUST | LOCAL, Group.MODEL)
    """Run Python code that comes with the checkpoint."""
    allow_pickle: bool = flag(False, REPLAY | TRUST | LOCAL, Group.MODEL)
    """Load weights that are not safetensors (a pickle can run any code)."""
    stage_to: Path | None = flag(None, TRUST | LOCAL, Group.MODEL)
    """A folder on each node's own disk (/local/scratch): one rank of each node copies the checkpoint there, and all load from it."""
    cache_dir: Path = flag(Path("~/.cache/dglaunch"), REPLAY | TRUST | LOCAL, Group.MODEL)
    """Where dglaunch keeps what it builds once (not the hub's own cache)."""
    parallel: Literal["context"] | None = flag(None, TUNING | LOCAL, Group.SPEED)
    """context: DG_PARALLEL_DEGREE ranks compute each image together, by diffusers' own context parallelism."""
    shard: Literal["fsdp", "tensor"] | None = flag(None, TUNING | LOCAL, Group.SPEED)
    """DG_SHARD_DEGREE ranks hold one model together: fsdp fetches each block as it runs, tensor cuts its matrices."""

    def __post_init__(self) -> None:
        if self.torch_dtype is not None:
            self.torch_dtype = OTHER_DTYPES.get(self.torch_dtype, self.torch_dtype)
        pairs_of("scheduler_options", self.scheduler_options)
        _take_paths(self)

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

    enable_vae_slicing: bool = flag(False, REPLAY | TUNING | LOCAL, Group.SPEED)
    """Decode the images of a batch one after the other: less memory, same image."""
    enable_vae_tiling: bool = flag(False, IDENTITY | IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Decode each image in tiles: far less memory for large images, changes the image a little."""
    attention_backend: str | None = flag(None, FILE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """diffusers' name (native, flash, sage, ...), with --backend xdit xfuser's (SDPA, FLASH_3, ...)."""
    encode: Literal["auto", "ahead", "inline"] = flag("auto", TUNING | LOCAL, Group.SPEED)
    """Encode all prompts ahead of the first batch, each distinct one once, and drop the text encoders; or in each batch."""
    embedding_cache: Path | None = flag(None, TRUST | TUNING | LOCAL, Group.SPEED)
    """Folder that keeps encoded prompts between runs; with all of them there the text encoders are not even loaded."""
    cache_type: CacheType | None = flag(None, IDENTITY | IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Reuse activations between denoising steps (diffusers' caches, cache-dit, with xdit fbcache): faster, changes the image."""
    cache_threshold: float | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Of first_block_cache, mag_cache, cache_dit and fbcache: how much may change and yet be skipped. Default: 0.08, 0.06, 0.08,
    0.12."""
    cache_interval: int | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Of taylor_seer, faster_cache and pab: compute every so many steps. Default: 5, 2, 2."""
    cache_warmup: int | None = flag(None, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Of taylor_seer and cache_dit: first steps that are computed in full. Default: 3, 8."""
    enable_compile: bool = flag(False, TUNING | LOCAL, Group.SPEED, usual="torch.compile: faster after a warm-up")
    """torch.compile: faster after a warm-up of a minute or so, kept in --cache_dir for later runs."""
    compile_scope: Literal["regional", "whole"] = flag("regional", TUNING | LOCAL, Group.SPEED)
    """With --enable_compile: the repeated blocks (compiled once for all) or the whole transformer (slower to compile)."""
    quantization: Literal["int8", "fp8", "nf4"] | None = flag(
        None, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED, usual="int8, fp8 or nf4: less memory, or faster"
    )
    """Quantize the transformer while loading: int8 and fp8 (compute capability 8.9) for speed, nf4 for memory."""
    enable_fuse_qkv: bool = flag(False, TUNING | LOCAL, Group.SPEED)
    """One matrix product for query, key and value: same image."""
    enable_layerwise_casting: bool = flag(False, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """Keep the transformer's weights as float8 and cast each layer as it runs: half the memory of bfloat16."""
    enable_cpu_offload: bool = flag(False, TUNING | LOCAL, Group.SPEED, usual="Less memory, slower")
    """Each network is on the GPU only while it runs: less memory, slower."""
    enable_group_offloading: bool = flag(False, TUNING | LOCAL, Group.SPEED)
    """Each layer of the transformer is on the GPU only while it runs: least memory, slower."""
    enable_channels_last: bool = flag(False, TUNING | LOCAL, Group.SPEED)
    """Convolutions of VAE and U-Net in NHWC order: same image."""
    enable_tf32: bool = flag(False, IMAGE | REPLAY | TUNING | LOCAL, Group.SPEED)
    """float32 matrix products on TensorFloat-32 units (only with --torch_dtype float32 on a GPU)."""

    def __post_init__(self) -> None:
        _take_paths(self)
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

    num_processes: int = flag(4, API, Group.APIS, usual="Requests at a time of each rank")
    """Concurrent requests of each rank to each --api_base (with --backend openai or google_genai, as all flags of this group)."""
    max_global_workers: int | None = flag(None, API, Group.APIS)
    """Concurrent requests of all ranks together to each --api_base; each rank takes its part."""
    timeout: float = flag(600.0, API, Group.APIS)
    """Seconds to wait for a whole answer before the request is given up and sent again; the same for an image that an answer
    points to. A request that is given up is probably billed all the same."""
    api_max_retries: int = flag(5, API, Group.APIS)
    """How often a request is sent again after 429, 5xx, a time-out, a dropped connection or a damaged answer."""
    retry_delay: float = flag(1.0, API, Group.APIS)
    """Seconds before the first retry; doubled for each one after it, with jitter. A server's Retry-After comes first."""
    api_base: tuple[str, ...] = flag((), TRUST | API, Group.APIS)
    """Address of a compatible server; repeated, several servers that have the same model. Default: OPENAI_BASE_URL or
    GOOGLE_GEMINI_BASE_URL, else the provider's own."""
    api_extra: tuple[str, ...] = flag((), IMAGE | REPLAY | TUNING | API, Group.APIS)
    """KEY=VALUE that goes into each request, the value as JSON (else a text); repeat it for more."""
    quality: str | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of OpenAI's models: low, medium, high or auto; xhigh and max from gpt-image-2.5 on."""
    background: str | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of OpenAI's models: transparent, opaque or auto. What is transparent stays so in PNG and WebP."""
    output_compression: int | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of OpenAI's models, with --output_format jpg or webp: 0 to 100, as the answer is compressed."""
    moderation: str | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of OpenAI's models, in t2i: low or auto."""
    input_fidelity: str | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of OpenAI's models that have it, in edit: high or low."""
    image_config: tuple[str, ...] = flag((), IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of Gemini: aspect_ratio=16:9, image_size=2K, or another KEY=VALUE of its image configuration; repeat it for more."""
    safety_settings: tuple[str, ...] = flag((), IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of Gemini: CATEGORY=THRESHOLD, such as HARM_CATEGORY_HARASSMENT=BLOCK_ONLY_HIGH; repeat it for more."""
    system_instruction: str | None = flag(None, IMAGE | REPLAY | TUNING | API, Group.APIS)
    """Of Gemini: what holds for each prompt, said before it."""
    api_project: str | None = flag(None, API, Group.APIS)
    """Google Cloud project: ask Vertex AI, with application default credentials instead of a key."""
    api_location: str | None = flag(None, API, Group.APIS)
    """Its location, with --api_project. Default: GOOGLE_CLOUD_LOCATION, else global."""
    api_batch: bool = flag(False, API, Group.APIS)
    """Order the images as batch jobs: half the price, within 24 hours. The same command later takes what they have made."""
    api_batch_cancel: bool = flag(False, API, Group.APIS)
    """With --api_batch: cancel the jobs of --output_dir that are under way, take what they have made, and order nothing."""
    max_cost: float | None = flag(None, API, Group.APIS)
    """Stop asking before a start might cost more US dollars than this, by what answers report (a cost, or tokens that have a
    price); shared out over the ranks. The same command goes on."""
    max_requests: int | None = flag(None, API, Group.APIS)
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
        for address in self.api_base:
            _check_address(address)
        for name in ("api_extra", "image_config", "safety_settings"):
            pairs_of(name, getattr(self, name))
        if self.output_compression is not None and not 0 <= self.output_compression <= 100:
            raise UserError(f"--output_compression is {self.output_compression}; it must be 0 to 100.")


@dataclass(kw_only=True, slots=True)
class RewriteConfig:
    """How prompts (of edit: instructions) are rewritten by a language model, before a text encoder is loaded."""

    rewrite_prompts: str | None = flag(None, NOTHING, Group.WHAT)
    """Rewrite each prompt first: a causal language model of transformers (hub id or folder), or a model at --rewrite_api_base.
    Both prompts are in the ledger; what was rewritten is kept in rewritten.jsonl of --output_dir."""
    rewrite_api_base: str | None = flag(None, TRUST, Group.WHAT)
    """Address of a server with OpenAI's chat route that has that model (https://api.openai.com/v1, a vLLM, ...); the key is
    OPENAI_API_KEY, where one is needed."""
    rewrite_instruction: Path | None = flag(None, TRUST, Group.WHAT)
    """Text file that tells the model what to do with a prompt. Default: to describe what can be seen, in a paragraph."""
    rewrite_temperature: float = flag(0.0, NOTHING, Group.WHAT)
    """0 always takes the likeliest word, so that equal prompts become equal; above it words are drawn, by each image's seed."""
    rewrite_max_tokens: int = flag(512, NOTHING, Group.WHAT)
    """Longest answer; an image whose prompt would become longer fails."""
    rewritten_prompts: Path | None = flag(None, NOTHING, Group.WHAT)
    """The rewritten.jsonl of another job: what it has rewritten alike is taken. Without --rewrite_prompts it must have all prompts."""

    def __post_init__(self) -> None:
        _take_paths(self)
        _find_home(self)
        if self.rewrite_api_base is not None:
            _check_address(self.rewrite_api_base, "rewrite_api_base")
        if self.rewrite_prompts is not None and not self.rewrite_prompts.strip():
            raise UserError("--rewrite_prompts is empty; name a language model, or drop it.")
        if not 0 <= self.rewrite_temperature <= 2:
            raise UserError(f"--rewrite_temperature is {self.rewrite_temperature}; it must be 0 to 2.")
        if self.rewrite_max_tokens < 1:
            raise UserError(f"--rewrite_max_tokens is {self.rewrite_max_tokens}; it must be 1 or more.")


def pairs_of(name: str, values: tuple[str, ...]) -> dict[str, str]:
    """Return what a flag that is repeated with KEY=VALUE says.

    Raises:
        UserError: one is no such pair, or a key is there twice.
    """
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key.strip() or not equals:
            raise UserError(f"--{name} {value!r} is no KEY=VALUE.")
        if key.strip() in pairs:
            raise UserError(f"--{name} has {key.strip()} twice; keep one of them.")
        pairs[key.strip()] = text
    return pairs


def _check_address(address: str, name: str = "api_base") -> None:
    """It stands in run.json and in messages, so it must not carry a secret; it is not shown here either."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--{name} must be an address such as https://host/v1.")
    if "@" in parts.netloc or parts.query:
        raise UserError(
            f"--{name} holds a user name, a password or a query; it would be written to run.json. Give the plain address "
            "and put the key into OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY."
        )


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """What every job has in common."""

    edits: ClassVar[bool] = False
    """Whether a job of this kind edits images."""

    @property
    def tables(self) -> tuple[Path, ...]:
        """The files, patterns and folders that the rows are read from."""
        return ()

    @property
    def rows_from(self) -> str:
        """Where the rows come from, as messages name it."""
        return ", ".join(map(str, self.tables))

    @property
    def saves_inputs(self) -> bool:
        """Whether copies of the input images go into the output folder."""
        return self.save_inputs

    @property
    def takes_inputs(self) -> bool:
        """Whether its rows may have input images."""
        return self.edits

    @property
    def is_partial(self) -> bool:
        """Whether the table may have more rows than are wanted of it."""
        return self.filter_rows is not None or self.limit is not None

    backend: BackendConfig = field(default_factory=BackendConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    rewriting: RewriteConfig = field(default_factory=RewriteConfig)
    output_dir: Path = flag(Path("outputs"), NOTHING, Group.OUTPUT, usual="For images and ledgers; resumed")
    """Folder for images, metadata.jsonl, failures.jsonl and run.json, or a prefix of an object store (s3://bucket/prefix). An
    unfinished run there is resumed."""
    overwrite: bool = flag(False, NOTHING, Group.OUTPUT, usual="Start anew instead of resuming")
    """Start anew: remove what an earlier run wrote to --output_dir."""
    output_format: Literal["png", "jpg", "webp"] = flag("png", IDENTITY, Group.OUTPUT, usual="png, jpg or webp")
    """File type of the images."""
    png_parameters: bool = flag(False, NOTHING, Group.OUTPUT)
    """Write prompt and settings once more as AUTOMATIC1111 does (PNG chunk `parameters`, EXIF UserComment), for other viewers."""
    output_name_column: str | None = flag(None, NOTHING, Group.OUTPUT)
    """Column that names each output file; default is the index (000000.png)."""
    files_per_folder: int | None = flag(None, NOTHING, Group.OUTPUT)
    """Images in folders 0000, 0001, ... of so many, by index; 0: all in one. Fixed at a job's first start. Default: 10000, if it has
    more."""
    layout: Layout = flag("indexed", NOTHING, Group.OUTPUT)
    """At the end also write the images to --output_dir/LAYOUT as that evaluation or data loader reads them."""
    store: Store = flag("files", NOTHING, Group.OUTPUT)
    """How images are kept: a file each, or in shards as they are made, tar files for WebDataset or Parquet for `datasets`, in
    --output_dir/shards (a job keeps to what it began with)."""
    shard_size: int = flag(1000, NOTHING, Group.OUTPUT)
    """With --store webdataset or parquet: megabytes of a shard (of at most 10,000 images)."""
    batch_size: int | Literal["auto"] = flag("auto", NOTHING, Group.SPEED, usual="Images at a time on each GPU")
    """Images per forward pass per replica, `auto` by size, memory and degrees; with an API samples of a prompt per request."""
    num_images_per_prompt: int | None = flag(
        None, NOTHING, Group.IMAGES, usual="Images of each row, each with its own seed"
    )
    """Images for each row that does not say otherwise, each with a seed of its own. Default: 1, or what --layout wants."""
    filter_rows: str | None = flag(None, NOTHING, Group.WHAT, usual="Only these rows: 3,7 or 0:100 or 'seed > 3'")
    """Only these rows: indices (3,7,11), ranges (0:100 is 0 to 99) or a comparison of columns (style == "oil" and seed > 3)."""
    limit: int | None = flag(None, NOTHING, Group.WHAT)
    """Only the first so many of the rows that are wanted; without it the same command makes the rest."""
    shuffle_seed: int | None = flag(None, NOTHING, Group.WHAT)
    """Order of the rows, drawn from this number: --limit 100 takes a random sample, and what an unfinished job has made is one
    of its images of each size. Index, seed and file name of a row stay, so that a sample is part of the whole job."""
    height: int | None = flag(None, ROW | CALL, Group.IMAGES, usual="Pixels (default: the checkpoint's)")
    """Pixels. Default: the checkpoint's own."""
    width: int | None = flag(None, ROW | CALL, Group.IMAGES, usual="Pixels (default: the checkpoint's)")
    """Pixels. Default: the checkpoint's own."""
    num_inference_steps: int | None = flag(
        None, ROW | CALL, Group.IMAGES, usual="Denoising steps (default: the pipeline's)"
    )
    """Denoising steps. Default: the pipeline's own."""
    guidance_scale: float | None = flag(
        None, ROW | CALL, Group.IMAGES, usual="Guidance scale (default: the pipeline's)"
    )
    """Guidance scale (true_cfg_scale for Qwen). Default: the pipeline's own; 0 is 0."""
    negative_prompt: str | None = flag(None, ROW | CALL, Group.IMAGES, usual="What to keep out of the images")
    """What to keep out of the image, for rows that do not say otherwise."""
    max_sequence_length: int | None = flag(None, IDENTITY | FILE | REPLAY | TUNING | LOCAL | CALL, Group.IMAGES)
    """Longest prompt in tokens of the text encoder. Default: the pipeline's own."""
    on_long_prompt: Literal["cut", "fail"] = flag("cut", LOCAL, Group.IMAGES)
    """A prompt that no text encoder reads to its end: cut its end and say so, or refuse it before a model is loaded."""
    image_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of the images: of edit those to change (default: input_images, in any case), of t2i those to begin from (no default)."""
    mask_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of masks: only what is white there is painted anew. Of t2i with --image_column; of the image's size."""
    strength: float | None = flag(None, ROW, Group.IMAGES)
    """With --image_column, of edit with --mask_column: how far from the image, above 0 and up to 1; it takes so much of the denoising
    steps. Default: the pipeline's own, mostly 0.6. A row's column strength wins."""
    max_pixels: int = flag(MAX_PIXELS, REPLAY | TRUST, Group.WHAT)
    """Largest input image that is decoded; a row with a larger one fails. Raise it for photographs of 200 megapixels."""
    save_inputs: bool = flag(False, NOTHING, Group.OUTPUT)
    """Copy each row's input images to the folder inputs in --output_dir."""
    seed_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of the rows' own seeds. Default: seed, in any case."""
    negative_prompt_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of the rows' own negative prompts. Default: negative_prompt, in any case."""
    ignore_columns: tuple[str, ...] = flag((), NOTHING, Group.WHAT)
    """Columns that look like settings and are none (cfg sampler): they are only carried into the ledger."""
    prompt_template: str | None = flag(None, NOTHING, Group.WHAT, usual='Prompts of columns: "{style} photo of {name}"')
    """Makes the prompts (of edit: the instructions) of columns: "{style} photo of {name}"; {{ is a brace."""
    grid: tuple[str, ...] = flag((), NOTHING, Group.WHAT, usual="Each row with guidance_scale=2,4 seed=1,2")
    """Make each row with every combination of these values: guidance_scale=2,4,7 seed=1,2; also of a name in --prompt_template."""
    seed: int = flag(0, ROW, Group.IMAGES, usual="The first image's; the others count on")
    """Image `sample` of row `index` gets seed + index * num_images_per_prompt + sample; a row's own seed wins."""
    gallery: bool = flag(False, NOTHING, Group.OUTPUT, usual="Write gallery.html at the end")
    """At the end write gallery.html to --output_dir: a page to look through the results (dglaunch gallery does it later)."""
    metrics_file: Path | None = flag(None, TRUST, Group.OUTPUT)
    """While the job runs, keep its counts and speed in this file as OpenMetrics text, for a node exporter (give it .prom)."""
    num_gpus: int | None = flag(
        None, NOTHING, Group.MACHINES, usual="Start torchrun with as many ranks on this machine"
    )
    """Outside torchrun: start again under torchrun with this many ranks on this machine."""
    node_rank: int | None = flag(None, NOTHING, Group.MACHINES)
    """With --num_nodes: this machine's number. Each node takes its share, with no rendezvous between nodes."""
    num_nodes: int | None = flag(None, NOTHING, Group.MACHINES)
    """Independent nodes that share the work and the output folder."""
    writer: WriterName = flag("main", NOTHING, Group.MACHINES)
    """Who writes images: rank 0, the first replica of each node (needs no common folder: dglaunch merge), or each replica."""
    shares: Literal["claimed", "static"] = flag("claimed", NOTHING, Group.MACHINES)
    """A replica that is through its share takes batches that others have not begun (claimed), or stops (static): no GPU waits
    for the slowest. Images are the same."""
    stall_timeout: float = flag(1800.0, NOTHING, Group.MACHINES)
    """Seconds without progress, or without a sign of life from a peer, until a hung run is ended with stacks; 0: never."""
    debug: bool = flag(False, NOTHING, Group.OUTPUT)
    """One process, no background threads, full tracebacks, stage timings and tensor shapes on the terminal."""

    def __post_init__(self) -> None:
        _take_paths(self)
        _find_home(self)
        for name, least in (
            ("batch_size", 1),
            ("num_images_per_prompt", 1),
            ("limit", 1),
            ("shuffle_seed", 0),
            ("height", 1),
            ("width", 1),
            ("num_inference_steps", 1),
            ("max_sequence_length", 1),
            ("num_gpus", 1),
            ("num_nodes", 1),
            ("node_rank", 0),
            ("stall_timeout", 0),
            ("seed", 0),
            ("max_pixels", 1),
            ("shard_size", 1),
            ("files_per_folder", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and not least <= value < float("inf"):
                raise UserError(f"--{name} is {value}; it must be {least} or more.")
        if self.seed > LARGEST_SEED:
            raise UserError(
                f"--seed is {self.seed}; it must be {LARGEST_SEED} (2^62) or less, as the index is added to it."
            )
        if self.files_per_folder is not None and self.files_per_folder > MOST_FILES_PER_FOLDER:
            raise UserError(
                f"--files_per_folder is {self.files_per_folder}; it must be {MOST_FILES_PER_FOLDER:,} or less (0 keeps all images "
                "in one folder)."
            )
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"--guidance_scale is {self.guidance_scale}; it must be a number of 0 or more.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UserError(f"--strength is {self.strength:g}; it must be above 0 and at most 1.")
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

    prompt: str | None = flag(None, NOTHING, Group.WHAT, usual="One prompt")
    """One prompt, instead of a file."""
    prompts_file: Path | tuple[Path, ...] | None = flag(
        None, NOTHING, Group.WHAT, usual="Many: .jsonl, .csv, .txt (a line each), .parquet"
    )
    """Prompts as .jsonl, .json, .csv, .tsv, .txt (one a line) or .parquet, also .gz; several of them, 'patterns/*.csv', a folder
    of .txt (one a file) or of tables of one kind; hf://datasets/OWNER/NAME, with :SPLIT or /PATH; - for standard input."""
    prompts: Sequence[str | Mapping[str, object]] | None = no_flag(None)
    """From Python, instead of a file: a list of prompts, or of rows as dictionaries with the columns of a table."""
    prompt_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of the prompts. Default: prompt, in any case."""
    control_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of control images (edges, depth, poses), as --controlnet wants them; of the size of what is drawn."""
    control_scale: float | None = flag(None, ROW, Group.IMAGES)
    """With --control_column: how much the ControlNet steers. Default: its pipeline's own, mostly 1. A row's column wins."""

    @property
    def takes_inputs(self) -> bool:
        return self.image_column is not None or self.control_column is not None

    @property
    def tables(self) -> tuple[Path, ...]:
        return _several(self.prompts_file)

    @property
    def rows_from(self) -> str:
        if self.prompts is not None:
            return "prompts"
        return ", ".join(map(str, self.tables)) or "--prompt"

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.prompts is not None:
            _check_prompts(self)
        elif (self.prompt is None) == (not self.tables):
            raise UserError("Give either --prompts_file FILE (.jsonl, .csv, .txt, .parquet) or --prompt TEXT.")
        _check_columns(self)
        _check_inputs_of_prompts(self)
        if self.prompt is not None and (self.is_partial or self.shuffle_seed is not None) and not self.grid:
            raise UserError(
                "--filter_rows, --limit and --shuffle_seed choose among the rows of --prompts_file; with --prompt drop them."
            )


def _check_prompts(config: T2IConfig) -> None:
    """Check the rows that Python has handed in.

    Raises:
        UserError: they are no list, or there is another source of prompts.
    """
    if config.prompt is not None or config.tables:
        raise UserError("Give one of prompts, prompts_file and prompt, not two of them.")
    if isinstance(config.prompts, str | bytes | Mapping) or not isinstance(config.prompts, Sequence):
        raise UserError(
            f"prompts is a {type(config.prompts).__name__}; give a list of texts or of dictionaries, such as "
            'prompts=["a red fox"] (of a table of pandas: table.to_dict("records")).'
        )
    if not config.prompts:
        raise UserError("prompts is an empty list; there is nothing to make.")


@dataclass(kw_only=True, slots=True)
class EditingConfig(RunConfig):
    """Editing: a table of images and instructions to a folder of edited images."""

    edits: ClassVar[bool] = True
    input: Path | tuple[Path, ...] | None = flag(
        None, NOTHING, Group.WHAT, usual="Table of images, or a folder (--instruction)"
    )
    """Table (as --prompts_file; several, 'patterns/*.csv', a folder of tables): input_images (a path, a JSON or comma list; in Parquet also bytes) and
    instruction. Or a folder of images, or one image, with --instruction."""
    instruction: str | None = flag(None, NOTHING, Group.WHAT, usual="What to do to every image of a folder")
    """The instruction of every image of a folder, or of rows of a table that have none."""
    recursive: bool = flag(False, NOTHING, Group.WHAT)
    """Of a folder of images, also look into the folders in it."""
    instruction_column: str | None = flag(None, NOTHING, Group.WHAT)
    """Column of the instructions. Default: instruction, in any case."""
    model_type: str | None = flag(None, FILE | REPLAY | LOCAL, Group.MODEL)
    """qwen, qwen_singleimg, flux2, flux2_klein, flux1_kontext, longcat, glm_image. Default: by the checkpoint's pipeline."""

    @property
    def tables(self) -> tuple[Path, ...]:
        return _several(self.input)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        _check_inputs_of_edits(self)
        if not self.tables:
            raise UserError(
                "Give --input TABLE (.csv, .jsonl or .parquet) with columns input_images and instruction, or --input FOLDER of "
                "images with --instruction TEXT."
            )
        if self.instruction is not None and not self.instruction.strip():
            raise UserError("--instruction is empty; say what is to be done, or drop it.")
        _check_columns(self)


def _check_inputs_of_prompts(config: T2IConfig) -> None:
    """Refuse flags about input images that would do nothing, or would miss something.

    Raises:
        UserError: with what to add or to drop.
    """
    if config.control_scale is not None and not 0 < config.control_scale < float("inf"):
        raise UserError(f"--control_scale is {config.control_scale:g}; it must be a number above 0.")
    controlnet = config.backend.controlnet
    if (config.control_column is None) != (controlnet is None):
        raise UserError(
            "--control_column and --controlnet belong together: the column of the control images, and the ControlNet that "
            "reads them (a folder or a hub id). Give both, or neither."
        )
    images = "--image_column, which names the column of the images to begin from"
    _refuse_without(config, ("mask_column", "strength"), config.image_column is not None, images)
    _refuse_without(config, ("control_scale",), config.control_column is not None, "--control_column")
    _refuse_without(config, ("save_inputs", "max_pixels"), config.takes_inputs, "--image_column or --control_column")


def _check_inputs_of_edits(config: EditingConfig) -> None:
    """The same of edits, whose images are always there.

    Raises:
        UserError: with what to add or to drop.
    """
    if config.backend.controlnet is not None:
        raise UserError("--controlnet steers t2i (with --control_column); edit would do nothing with it. Drop it.")
    _refuse_without(config, ("strength",), config.mask_column is not None, "--mask_column")


def _refuse_without(config: RunConfig, names: Sequence[str], is_there: bool, needed: str) -> None:
    unset = defaults(type(config))
    for name in names:
        if not is_there and getattr(config, name) != unset[name]:
            raise UserError(f"--{name} would do nothing without {needed}. Add that, or drop --{name}.")


def _take_paths(config: BackendConfig | OptimizationConfig | RewriteConfig | RunConfig) -> None:
    """Replace texts by the paths and addresses that they name, where paths are meant.

    Raises:
        UserError: one is empty, or an address where none can be.
    """
    for item in fields(config):
        kinds = (item.type, *get_args(item.type))
        value = getattr(config, item.name)
        if isinstance(value, str | Path) and Path in kinds:
            setattr(config, item.name, _path_of(item.name, value))
        elif isinstance(value, list | tuple) and tuple[Path, ...] in kinds:
            setattr(config, item.name, tuple(_path_of(item.name, each) for each in value))


def _path_of(name: str, value: str | Path) -> Path:
    if not str(value):
        raise UserError(f"--{name} is an empty text, which is no path; name a file or a folder.")
    if is_other_scheme(value):
        known = ", ".join(f"{kind}://" for kind in SCHEMES)
        raise UserError(f"--{name} {value}: dglaunch knows no such kind of address; it knows {known}.")
    path = path_or_address(value)
    if isinstance(path, Address):
        _check_place(name, path)
    return path


TAKE_ADDRESSES = {"prompts_file": SCHEMES, "input": SCHEMES, "output_dir": STORES}
"""Flags with paths that may be addresses, too, and of which kinds."""


def _check_place(name: str, address: Address) -> None:
    """An address is refused where nobody would look at it as one."""
    kinds = TAKE_ADDRESSES.get(name, ())
    if address.scheme not in kinds:
        may_be = " or ".join([f"{', '.join(f'{kind}://' for kind in kinds)}", "a path on this machine"][not kinds :])
        raise UserError(f"--{name} {address}: this flag takes {may_be}. Copy it there first, or name one.")
    if problem := problem_with(address):
        raise UserError(f"--{name}: the address {problem}.")


def refuse_far_output(config: RunConfig, command: str) -> None:
    """Check that a command that makes no job's results writes to a folder.

    Raises:
        UserError: --output_dir is in an object store.
    """
    if isinstance(config.output_dir, Address):
        raise UserError(
            f"{command} writes to a folder on this machine, and --output_dir {config.output_dir} is none. Name one."
        )


def _find_home(config: OptimizationConfig | RewriteConfig | RunConfig) -> None:
    """Replace a leading ~ in the paths that were given: Python hands it on as no shell does."""
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Path):
            setattr(config, item.name, at_home(value))
        elif isinstance(value, tuple):
            setattr(config, item.name, tuple(at_home(part) if isinstance(part, Path) else part for part in value))


def _several(paths: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    """One path, several or none, as several."""
    return paths if isinstance(paths, tuple) else () if paths is None else (paths,)


OF_TABLES = (
    *("prompt_column", "instruction_column", "image_column", "seed_column", "negative_prompt_column"),
    *("ignore_columns", "prompt_template", "mask_column", "control_column"),
)
"""Flags that say how a table is read."""
OF_ROWS = ("image_column", "mask_column", "control_column")
"""Those of them that rows from Python need, too: without them no key of such a row is an image."""


def _check_columns(config: RunConfig) -> None:
    """Refuse flags about columns that would do nothing."""
    has_rows = getattr(config, "prompts", None) is not None
    given = [name for name in OF_TABLES if getattr(config, name, None) and not (has_rows and name in OF_ROWS)]
    if given and not config.tables:
        flags = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"{flags} would do nothing without a table. Drop {'it' if len(given) == 1 else 'them'}, or name one."
        )
    text = "instruction_column" if config.edits else "prompt_column"
    if config.prompt_template is not None and getattr(config, text) is not None:
        raise UserError(f"--prompt_template makes the prompts, so --{text} would do nothing. Drop one of them.")


XDIT_PREFIX = "DG_XDIT_"
OWN_DEGREES = {"context_degree": "DG_PARALLEL_DEGREE", "shard_degree": "DG_SHARD_DEGREE"}
"""The variables of those degrees that are not xDiT's."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """How many ranks share one image, and how: xDiT's degrees, read from DG_XDIT_*, and those of --parallel and --shard."""

    ulysses_degree: int = 1
    ring_degree: int = 1
    use_cfg_parallel: bool = False
    data_parallel_degree: int | None = None
    """Replicas. Default: what is left of the world."""
    context_degree: int = 1
    """With --parallel context."""
    shard_degree: int = 1
    """With --shard; with both, they are the same ranks."""


def degree_variable(name: str) -> str:
    """Return the variable that sets a field of ParallelConfig."""
    return OWN_DEGREES.get(name, XDIT_PREFIX + name.upper())


def settings(config: object) -> dict[str, object]:
    """Return all leaves of a config as one flat dict, in JSON's types."""
    flat: dict[str, object] = {}
    for item in flag_fields(type(config)):
        value = getattr(config, item.name)
        flat |= settings(value) if is_dataclass(value) else {item.name: _plain(value)}
    return flat


def defaults(config_type: type) -> dict[str, object]:
    """Return what `settings` gives where nothing was set."""
    return {item.name: _plain(item.default) for item in leaf_fields(config_type)}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def settings_that(concerns: Concern, config: object) -> dict[str, object]:
    """Return those of `settings` that concern any of this and were given (neither None, False nor empty)."""
    flat, names = settings(config), flags_that(concerns, type(config))
    return {name: flat[name] for name in names if flat[name] not in (None, False, [])}


def flags_that(concerns: Concern, *config_types: type) -> tuple[str, ...]:
    """Return the names of the flags that concern any of this, of all commands or of some configurations.

    Raises:
        TypeError: A field does not say what its flag concerns.
    """
    items = [item for config_type in config_types or COMMANDS.values() for item in leaf_fields(config_type)]
    return tuple(dict.fromkeys(item.name for item in items if _concerns_of(item) & concerns))


def _concerns_of(item: "Field[object]") -> Concern:
    if "concerns" not in item.metadata:
        name = item.name
        raise TypeError(f"--{name} does not say what it concerns; write {name} = flag(DEFAULT, CONCERNS, Group....)")
    concerns: Concern = item.metadata["concerns"]
    return concerns


def flag_fields(config_type: type) -> "list[Field[object]]":
    """Return the fields of a dataclass but those that are `no_flag`."""
    return [item for item in fields(config_type) if item.metadata.get("is_flag", True)]


def leaf_fields(config_type: type) -> "list[Field[object]]":
    """Return the fields of a dataclass and of the dataclasses in it, in their order."""
    found: list[Field[object]] = []
    for item in flag_fields(config_type):
        part: object = item.default_factory
        if isinstance(part, type) and is_dataclass(part):
            found += leaf_fields(part)
        else:
            found.append(item)
    return found


COMMANDS: dict[str, type[RunConfig]] = {"t2i": T2IConfig, "edit": EditingConfig}
"""The commands that run a job."""
