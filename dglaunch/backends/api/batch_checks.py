"""What must hold for batch mode (--api_batch), before anything is sent."""

from collections.abc import Iterator
from pathlib import Path

from dglaunch.backends.api.batch_api import LIMITS
from dglaunch.backends.api.description import Api
from dglaunch.config import RemoteConfig, RunConfig
from dglaunch.data.images import InputImage
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError

JSON_EDITS_OF = ("gpt-image", "chatgpt-image")
"""How the models begin whose edits may be JSON, as in a batch file; others take forms only."""
FRAME = 4_096
"""Bytes of a request's line beside prompt and images, generously."""


def check_batch(api: Api, config: RunConfig, topology: Topology) -> None:
    """Refuse what a batch job cannot do.

    Raises:
        UserError: with what to do instead.
    """
    remote, model = config.remote, config.backend.model_name
    if remote.api_batch_cancel and not remote.api_batch:
        raise UserError("--api_batch_cancel goes with --api_batch: add that, as in the command that ordered the jobs.")
    if not remote.api_batch:
        return
    if api.by_credentials or model.startswith("imagen"):
        raise UserError(
            "--api_batch: Vertex AI's batches read from and write to Cloud Storage, which dglaunch does not use. Drop --api_batch, "
            "or ask the Gemini API with a key."
        )
    if len(api.servers) > 1:
        raise UserError("--api_batch orders jobs from one server; name one --api_base, or drop --api_batch.")
    if topology.world_size * topology.num_nodes > 1:
        raise UserError(
            "--api_batch: one process orders and takes everything, as nothing is computed here. Start it without torchrun, "
            "--num_gpus and --num_nodes."
        )
    if config.edits and config.backend.backend == "openai" and not model.startswith(JSON_EDITS_OF):
        raise UserError(
            f"--api_batch: {model} takes input images as a form only, which a batch file has no room for; models such as "
            "gpt-image-2 take them in a batch. Drop --api_batch, or choose one."
        )
    if remote.max_cost is not None:
        raise UserError(
            "--max_cost cannot be kept with --api_batch: what a job costs is known when it has ended. Use --max_requests, which "
            "limits how many are ordered."
        )
    given = [
        name
        for name in ("num_processes", "max_global_workers")
        if getattr(remote, name) != getattr(RemoteConfig(), name)
    ]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"With --api_batch the API decides how many requests it works on at a time, so {flags} would do nothing. Drop "
            f"{'it' if len(given) == 1 else 'them'}."
        )


def batch_problems(config: RunConfig, task: Task) -> Iterator[str]:
    """What is wrong with a row as a request of a batch file."""
    if not config.remote.api_batch:
        return
    most = LIMITS[config.backend.backend].num_bytes
    images = [*task.images, *([task.mask] if task.mask is not None else [])]
    size = sum(_encoded(image) for image in images) + len(task.text.encode("utf-8", "surrogatepass")) + FRAME
    if size > most:
        yield (
            f"its request would be {size:,} bytes with the input images in it, and a batch file holds {most:,}; make them smaller, "
            "or drop --api_batch"
        )


def _encoded(image: InputImage) -> int:
    """Bytes of an input image as base64, as far as they are known without reading it: one inside of a table is small enough."""
    if not isinstance(image.source, Path):
        return 0
    try:
        return image.source.stat().st_size * 4 // 3
    except OSError:  # the run says so
        return 0
