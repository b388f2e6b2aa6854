"""Trace the catalog's models at the usual sizes and splits, for the figures that dglaunch ships.

    python -m dglaunch.planning.shipping [MODEL ...]          # an hour; figures that are there already stay

What cannot be traced is named at the end, with the reason.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dglaunch.atomic import atomic_write
from dglaunch.backends.xdit.checks import check_degrees
from dglaunch.config import BackendConfig, EditingConfig, OptimizationConfig, ParallelConfig, RunConfig, T2IConfig
from dglaunch.data.task import Bucket
from dglaunch.distributed.topology import Topology, splits
from dglaunch.errors import UserError
from dglaunch.models.catalogue import known, names
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve
from dglaunch.models.figures import Figures, Request
from dglaunch.models.shape import Shape
from dglaunch.planning.figures import SHIPPED, USUAL_PROMPT, in_this_process, key_of, request_of
from dglaunch.streams import say
from dglaunch.system import versions

SIZES = (1024, 512, 2048)
WORLDS = (2, 4, 8)
SPLIT_AT = 1024
"""Size of the image for which the splits are traced."""
PACKAGES = ("torch", "diffusers", "transformers", "xfuser")


def usual_requests(checkpoint: Checkpoint, config: RunConfig) -> Iterator[Request]:
    """Yield what is most often asked about a model: at the usual sizes, with its card's guidance, and split over GPUs."""
    family = checkpoint.family
    entry = known(checkpoint.source)
    card = entry.defaults if entry is not None else {}
    scale = card.get("guidance_scale", card.get("true_cfg_scale"))

    def request(size: int, guidance: float | None, parallel: ParallelConfig, config: RunConfig = config) -> Request:
        bucket = Bucket(
            height=size, width=size, guidance_scale=guidance,
            has_negative=family.guidance_needs_negative and guidance is not None,
            input_shapes=(Shape(1024, 1024),) if config.edits else (),
        )  # fmt: skip
        return request_of(checkpoint, config, parallel, "bfloat16", bucket, USUAL_PROMPT)

    for size in SIZES:
        yield request(size, None, ParallelConfig())
    if isinstance(scale, int | float):
        yield request(SPLIT_AT, float(scale), ParallelConfig())
    cast = replace(config, optimization=OptimizationConfig(enable_layerwise_casting=True))
    yield request(SPLIT_AT, None, ParallelConfig(), cast)
    for parallel in _splits(checkpoint, config):
        yield request(SPLIT_AT, None, parallel)


def _splits(checkpoint: Checkpoint, config: RunConfig) -> list[ParallelConfig]:
    """Every split that xfuser has for the family, but for the ring's."""
    found: list[ParallelConfig] = []
    for world in WORLDS:
        for parallel in splits(world):
            topology = Topology(world_size=world, parallel=parallel)
            fits = topology.replica_size == world and parallel.ring_degree == 1
            if fits and _is_allowed(checkpoint, config, topology):
                found.append(parallel)
    return found


def _is_allowed(checkpoint: Checkpoint, config: RunConfig, topology: Topology) -> bool:
    try:
        check_degrees(checkpoint, config, topology)
    except UserError:
        return False
    return True


def checkpoint_of(name: str) -> tuple[Checkpoint, RunConfig]:
    """Return a model of the catalog and the configuration of the command that runs it."""
    backend = BackendConfig(model_name=name)
    checkpoint = resolve(backend)
    if checkpoint.family.only_edits:
        return as_editor(checkpoint, None), EditingConfig(backend=backend, input=Path(os.devnull))
    return checkpoint, T2IConfig(backend=backend, prompts_file=Path(os.devnull))


def main(chosen: Sequence[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    installed = {name: versions().get(name, "") for name in PACKAGES}
    shipped = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    figures: dict[str, dict[str, object]] = shipped.get("figures", {}) if shipped.get("versions") == installed else {}
    failed: dict[str, str] = shipped.get("not_traced", {}) if figures else {}
    for name in chosen or names():
        checkpoint, config = checkpoint_of(name)
        for request in usual_requests(checkpoint, config):
            key = key_of(checkpoint, request)
            if key in figures or name in failed:
                continue
            gc.collect()
            try:
                found: Figures = in_this_process(checkpoint, config)(request)
            except Exception as error:  # whatever the pipeline raises; it is told at the end
                failed[name] = " ".join(str(error).split()) or type(error).__name__
                write(installed, failed, figures)
                continue
            figures[key] = found.as_json()
            say(f"{name} {request.shape} {request.replica_size} {found.denoise.flops / 1e12:.1f} TFLOP a step")
            write(installed, failed, figures)
    for name, reason in failed.items():
        say(f"{name}: not traced: {reason[:300]}", error=True)
    return 0


def write(installed: dict[str, str], not_traced: dict[str, str], figures: dict[str, dict[str, object]]) -> None:
    """Write the file, a line for each request."""
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in sorted(figures.items())
    )
    with atomic_write(SHIPPED) as temporary:
        temporary.write_text(
            f'{{"versions": {json.dumps(installed)},\n"not_traced": {json.dumps(not_traced)},\n"figures": {{\n{lines}\n}}}}\n'
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
