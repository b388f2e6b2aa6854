"""Where the figures of a model come from: shipped with dglaunch, kept from an earlier trace, or traced now.

figures = FigureBook(checkpoint, config, topology.parallel, "bfloat16", trace=in_this_process)
figures(bucket)            # what a batch of this bucket takes; None where nothing can be said
figures.problem            # why not
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.config import OptimizationConfig, ParallelConfig, RunConfig
from dglaunch.data.many import texts_of
from dglaunch.data.task import Bucket
from dglaunch.errors import UserError
from dglaunch.files import make_cache_folder, read_bytes
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import GUIDED
from dglaunch.models.figures import Figures, Request, StageCost
from dglaunch.models.shape import Shape
from dglaunch.planning.job import Job
from dglaunch.system import release_of, versions

SHIPPED = Path(__file__).with_name("figures.json")
"""Figures of the catalog's models at the usual sizes; `make figures` traces them anew."""
TRACED = ("enable_vae_slicing", "enable_vae_tiling", "enable_layerwise_casting", "enable_fuse_qkv")
"""Optimizations whose memory and work show on fake tensors."""
COUNTED_WITH = ("torch", "diffusers", "transformers")
"""Packages of which another version may compute otherwise; where ranks are xfuser's, it too."""
ALIKE = {"torch": 1, "diffusers": 2, "transformers": 1, "xfuser": 2}
"""How many numbers of a package's version must agree for figures that were traced with another one. What counts are diffusers' model
classes, which change with its second number; the key says which configuration they have. An H100 with torch 2.11 and transformers
5.17 measured what figures of torch 2.13 and transformers 5.23 say (docs/throughput.md)."""
USUAL_PROMPT = 128
"""Tokens of a prompt that is not padded, unless a longer one is in the table."""
CHARACTERS_A_TOKEN = 4
MOST_TRACED = 4
"""Sizes of one job that are traced; a table of photographs may have hundreds. The others are scaled by their pixels."""
TRACE_SECONDS = 300
MEASURED = "measured.json"
"""In the folder of kept figures: what runs found of their peaks."""
LEAST_FACTOR, MOST_FACTOR = 0.5, 4.0
"""A run that found more or less than this measured something else."""
FORMAT = 1
"""Of the figures; another one makes those that were kept useless."""

Trace = Callable[[Request], Figures]


def request_of(
    checkpoint: Checkpoint, config: RunConfig, parallel: ParallelConfig, dtype: str, bucket: Bucket, text_tokens: int
) -> Request:
    """Return what is asked about a model for the batches of a bucket."""
    return Request(
        shape=checkpoint.shape(bucket.height, bucket.width),
        dtype=dtype,
        text_tokens=text_tokens if checkpoint.family.text_bucket else USUAL_PROMPT,
        has_negative=bucket.has_negative,
        guidance_scale=guidance_asked(bucket.guidance_scale),
        max_sequence_length=config.max_sequence_length,
        input_shapes=bucket.input_shapes,
        ulysses_degree=parallel.ulysses_degree,
        ring_degree=parallel.ring_degree,
        use_cfg_parallel=parallel.use_cfg_parallel,
        roles=bucket.roles,
        controlnet=(config.backend.controlnet or "") if "control" in bucket.roles else "",
        context_degree=parallel.context_degree,
        flags=tuple(name for name in TRACED if getattr(config.optimization, name)),
    )


def guidance_asked(scale: float | None) -> float | None:
    """Return the scale that stands for all that pipelines treat alike: above 1 there is guidance."""
    return GUIDED if scale is not None and scale > 1 else scale


def longest_prompt(prompts: Iterable[str]) -> int:
    """Return about how many tokens the longest prompt has, in steps of USUAL_PROMPT."""
    longest = max(map(len, prompts), default=0) // CHARACTERS_A_TOKEN
    return USUAL_PROMPT * max(-(-longest // USUAL_PROMPT), 1)


class FigureBook:
    """A figure book answers for each bucket of one job what a batch of it takes."""

    def __init__(
        self, checkpoint: Checkpoint, config: RunConfig, parallel: ParallelConfig, dtype: str,
        trace: Trace | None = None, text_tokens: int = USUAL_PROMPT, known: Mapping[Request, Figures] | None = None,
        machine: str = "",
    ) -> None:  # fmt: skip
        """
        Args:
            trace: finds figures that are neither shipped nor kept; None leaves them out.
            known: all that it may say; None: whatever it finds.
            machine: the GPU, by the name that torch reports: runs may have measured what was planned for it.
        """
        self.checkpoint, self.config, self.parallel, self.dtype = checkpoint, config, parallel, dtype
        self.trace, self.text_tokens, self.machine = trace, text_tokens, machine
        self.known: dict[Request, Figures] = dict(known or {})
        self.is_closed = known is not None
        self.problem = ""
        """Why there are none."""
        self._with: dict[Request, Mapping[str, str]] = {}
        """The packages with which figures that are shipped were traced."""
        self._folder = config.backend.cache / "figures"
        self.measured = Measured(self._folder / MEASURED)
        self._num_traced = 0

    def __call__(self, bucket: Bucket) -> Figures | None:
        return self.find(self._request(bucket))

    def key(self, bucket: Bucket) -> str:
        """Return what the figures of a bucket are kept under."""
        return key_of(self.checkpoint, self._request(bucket))

    def _request(self, bucket: Bucket) -> Request:
        return request_of(self.checkpoint, self.config, self.parallel, self.dtype, bucket, self.text_tokens)

    def traced_with(self, bucket: Bucket) -> Mapping[str, str]:
        """Return the versions of the packages with which the figures of a bucket were traced."""
        request = self._request(bucket)
        return self._with.get(request, _versions(request))

    def for_layout(self, parallel: ParallelConfig) -> "FigureBook":
        """Return a book of the same job split otherwise."""
        return self._another(parallel, self.config)

    def for_optimization(self, optimization: OptimizationConfig) -> "FigureBook":
        """Return a book of the same job with other optimizations."""
        return self._another(self.parallel, replace(self.config, optimization=optimization))

    def _another(self, parallel: ParallelConfig, config: RunConfig) -> "FigureBook":
        other = FigureBook(
            self.checkpoint, config, parallel, self.dtype, self.trace, self.text_tokens, machine=self.machine
        )
        other.problem = self.problem
        return other

    def find(self, request: Request) -> Figures | None:
        """Return the figures of a request: known, shipped, kept, traced now, or scaled from those of another size."""
        if request not in self.known:
            if self.is_closed:
                return None
            found = self._find(request) or self._scaled(request)
            if found is None:
                return None
            self.known[request] = found
        return self.known[request]

    def _find(self, request: Request) -> Figures | None:
        """For this very size, with the memory as runs on this machine have measured it."""
        try:
            key = key_of(self.checkpoint, request)
        except UserError as error:
            self.problem = str(error)
            return None
        found = self._look_up(key, request) or self._trace(key, request)
        if found is None:
            return None
        factor = self.measured.factor(self.machine, key)
        return found if factor is None else with_memory(found, factor)

    def _look_up(self, key: str, request: Request) -> Figures | None:
        shipped, here = _shipped(), _versions(request)
        if key in shipped["figures"] and are_alike(here, shipped["versions"]):
            self._with[request] = {name: str(shipped["versions"][name]) for name in here}
            return Figures.from_json(shipped["figures"][key])
        try:
            kept = strict_json.loads(read_bytes(self._file(key, request), 1 << 20))
            return Figures.from_json(kept) if isinstance(kept, dict) else None
        except (OSError, ValueError):
            return None

    def _trace(self, key: str, request: Request) -> Figures | None:
        self.problem = self.problem or _why_not_traced(self.checkpoint, request)
        if self.trace is None or self.problem or self._num_traced >= MOST_TRACED:
            return None
        self._num_traced += 1
        try:
            found = self.trace(request)
        except Exception as error:  # the pipeline's own code, of any family: then nothing is known of it
            self.problem = " ".join(str(error).split()) or type(error).__name__
            return None
        _keep(self._file(key, request), strict_json.dumps(found.as_json()))
        return found

    def _file(self, key: str, request: Request) -> Path:
        versions = hashlib.sha256(json.dumps(_versions(request)).encode()).hexdigest()
        return self._folder / f"{key}-{versions[:8]}.json"

    def _scaled(self, request: Request) -> Figures | None:
        """From the nearest size that is known, by pixels."""
        alike = [other for other in self.known if _but_sizes(other) == _but_sizes(request)]
        if not alike:
            return None
        nearest = min(alike, key=lambda other: abs(_pixels(other) - _pixels(request)))
        if nearest in self._with:
            self._with[request] = self._with[nearest]
        return scaled(self.known[nearest], _pixels(request) / _pixels(nearest))


class Measured:
    """What runs found of their peaks: how many times what was planned the memory beside the weights was."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def factor(self, machine: str, key: str) -> float | None:
        """Return the factor of a machine's GPU for a kind of batch; None if no run has measured it."""
        factor = self._read().get(f"{machine} {key}")
        if not isinstance(factor, int | float) or not LEAST_FACTOR <= factor <= MOST_FACTOR:
            return None
        return float(factor)

    def note(self, machine: str, key: str, factor: float) -> None:
        """Keep a factor for later runs and plans, on top of the one that this run's plan had."""
        whole = factor * (self.factor(machine, key) or 1.0)
        entries = self._read() | {f"{machine} {key}": min(max(whole, LEAST_FACTOR), MOST_FACTOR)}
        _keep(self.path, strict_json.dumps(entries, indent=1))

    def _read(self) -> dict[str, object]:
        """A file that is missing or no such table counts as empty."""
        try:
            found = strict_json.loads(read_bytes(self.path, 1 << 20))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _keep(path: Path, text: str) -> None:
    """Keep something for later runs and plans; where it cannot be kept they do without."""
    try:
        make_cache_folder(path.parent)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError:
        return


def with_memory(figures: Figures, factor: float) -> Figures:
    """Return figures whose memory beside the weights is so many times as large."""

    def stage(cost: StageCost) -> StageCost:
        return replace(cost, fixed_bytes=int(cost.fixed_bytes * factor), image_bytes=int(cost.image_bytes * factor))

    return replace(figures, encode=stage(figures.encode), denoise=stage(figures.denoise), decode=stage(figures.decode))


def scaled(figures: Figures, factor: float) -> Figures:
    """Return figures of an image that has so many times the pixels, as if all grew with them."""

    def stage(cost: StageCost) -> StageCost:
        return replace(
            cost, image_bytes=int(cost.image_bytes * factor), flops=cost.flops * factor,
            sent_bytes=int(cost.sent_bytes * factor),
        )  # fmt: skip

    return replace(figures, denoise=stage(figures.denoise), decode=stage(figures.decode))


def _pixels(request: Request) -> int:
    return request.shape.area + sum(shape.area for shape in request.input_shapes)


def _but_sizes(request: Request) -> Request:
    return replace(request, shape=Shape(0, 0), input_shapes=tuple(Shape(0, 0) for _ in request.input_shapes))


def book_of(job: Job, trace: Trace | None, known: Mapping[Request, Figures] | None = None) -> FigureBook:
    """Return the figure book of a job.

    Args:
        known: all that it may say: rank 0's, so that all ranks plan alike.
    """
    tokens = USUAL_PROMPT
    if job.checkpoint.family.text_bucket:
        tokens = longest_prompt(texts_of(job.tasks))
    return FigureBook(
        job.checkpoint, job.config, job.topology.parallel, job.machine.dtype, trace, tokens, known, job.machine.name
    )


# -- keys ---------------------------------------------------------------------------------------------------------


def key_of(checkpoint: Checkpoint, request: Request) -> str:
    """Return the hash of all that figures depend on, but for the versions of packages: models of the same configuration
    share theirs.

    Raises:
        UserError: the checkpoint's configurations cannot be read.
    """
    parts = {
        name: [part.library, part.class_name, dict(part.config)]
        for name, part in sorted(checkpoint.components.items())
        if part.config and not name.endswith("scheduler")
    }
    content = [FORMAT, checkpoint.pipeline_class, checkpoint.settings, parts, request.as_key()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _versions(request: Request) -> dict[str, str]:
    """What is installed here of the packages that figures are counted with; "" for one that is not."""
    is_xfusers = request.replica_size > 1 and request.context_degree == 1
    names = (*COUNTED_WITH, *(["xfuser"] if is_xfusers else []))
    return {name: versions().get(name, "") for name in names}


def are_alike(here: Mapping[str, str], traced_with: Mapping[str, object]) -> bool:
    """Return whether figures that were traced with some versions of packages are those of the versions here. A package that is not
    installed says nothing against them."""
    return all(
        not version or release_of(version)[: ALIKE[name]] == release_of(str(traced_with[name]))[: ALIKE[name]]
        for name, version in here.items()
    )


def _why_not_traced(checkpoint: Checkpoint, request: Request) -> str:
    """Why a model of the catalog alone could not be traced when the figures that are shipped were; "": nobody found it so. It would
    take as long to fail again."""
    shipped = _shipped()
    if checkpoint.not_here is None or not are_alike(_versions(request), shipped["versions"]):
        return ""
    return str(shipped["not_traced"].get(checkpoint.source, ""))


@cache
def _shipped() -> Mapping[str, Mapping[str, Any]]:
    if not SHIPPED.exists():
        return {"versions": {}, "not_traced": {}, "figures": {}}
    found: Mapping[str, Mapping[str, Any]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return found


# -- tracing ------------------------------------------------------------------------------------------------------


def in_this_process(checkpoint: Checkpoint, config: RunConfig) -> Trace:
    """Return a trace that runs here: for a command that computes nothing else."""

    def trace_here(request: Request) -> Figures:
        from dglaunch.backends.diffusers.quiet import quiet_libraries

        quiet_libraries()
        from dglaunch.simulation.trace import trace

        return trace(checkpoint, config, request)

    return trace_here


def in_another_process(config: RunConfig) -> Trace:
    """Return a trace that runs apart: a rank of a run has joined a world, and its process is the run's own."""

    def trace_apart(request: Request) -> Figures:
        asked = {
            "backend": asdict(config.backend),
            "edits": config.edits,
            "model_type": getattr(config, "model_type", None),
            "request": asdict(request),
        }
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "dglaunch.simulation"],
            input=json.dumps(asked, default=str), capture_output=True, text=True, timeout=TRACE_SECONDS, check=True,
        )  # fmt: skip
        found = strict_json.loads(ended.stdout.encode())
        if not isinstance(found, dict):
            raise ValueError("the trace gave no figures")
        return Figures.from_json(found)

    return trace_apart
