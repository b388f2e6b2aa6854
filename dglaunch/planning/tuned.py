"""What `dglaunch tune` measured on this machine, and what `--batch_size auto` takes from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dglaunch import environment, strict_json
from dglaunch.atomic import atomic_write
from dglaunch.config import TUNING, ParallelConfig, RunConfig, settings_that
from dglaunch.data.task import BatchSize, Record
from dglaunch.distributed.topology import degrees_in_words
from dglaunch.files import make_cache_folder, read_bytes
from dglaunch.models.shape import Shape
from dglaunch.system import Machine

GAIN = 1.02
"""A larger batch must give this much more than the best before it, or the row ends; within it the smaller one is taken."""
IN_KEY = ("model_name", "revision", "backend")
"""Flags that stand in every key; others of the model do where they are given."""
REMEMBERED = "tuned.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One batch size of one parallel configuration."""

    parallel: str
    batch_size: int
    images_per_s: float = 0.0
    """Of all replicas together."""
    seconds_per_image: float = 0.0
    """Of one replica: a batch's seconds by its size."""
    peak_memory: int = 0
    """Bytes, of the rank that needed most."""
    ended: str = ""
    """Why this row has no numbers and is the last of its configuration."""


def describe(variables: Mapping[str, str]) -> str:
    """Say the degrees of a replica in a few words."""
    return layout_of(environment.parallel_from_environment(variables))


def layout_of(parallel: ParallelConfig) -> str:
    """Return the name under which a configuration is measured."""
    return degrees_in_words(parallel) or "data parallel"


def sweet_spot(rows: Sequence[Measured]) -> tuple[Measured, str]:
    """Return the smallest batch that is within GAIN of the most images a second, and why."""
    measured = [row for row in rows if row.images_per_s]
    most = max(measured, key=lambda row: row.images_per_s)
    near = [row for row in measured if row.images_per_s * GAIN >= most.images_per_s and row.parallel == most.parallel]
    best = min(near, key=lambda row: row.batch_size)
    if best is most:
        return best, f"the most images a second; a larger batch gained less than {GAIN - 1:.0%} or did not fit"
    gain = most.images_per_s / best.images_per_s - 1
    return best, f"batch {most.batch_size} gives {gain:.1%} more and needs more memory"


def key_of(config: RunConfig, device: str, dtype: str, shape: str, parallel: str) -> str:
    """Return all that a measurement holds for, as the key under which it is remembered."""
    part = [config.backend.model_name, config.backend.revision, config.backend.backend, device, dtype, shape, parallel]
    others = {name: value for name, value in settings_that(TUNING, config.backend).items() if name not in IN_KEY}
    return json.dumps(
        [*part, settings_that(TUNING, config.optimization), config.max_sequence_length, *([others] if others else [])]
    )


def remember(config: RunConfig, machine: Mapping[str, object], rows: Sequence[Measured]) -> None:
    """Write down the sweet spot of each configuration."""
    path = config.backend.cache / REMEMBERED
    known = _read(path)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    for name in dict.fromkeys(row.parallel for row in rows if row.images_per_s):
        best, _ = sweet_spot([row for row in rows if row.parallel == name])
        key = key_of(config, str(machine["device"]), str(machine["dtype"]), str(machine["shape"]), name)
        known[key] = {"batch_size": best.batch_size, "images_per_s": best.images_per_s, "date": when}
    make_cache_folder(path.parent)
    with atomic_write(path) as temporary:
        temporary.write_text(strict_json.dumps(known, indent=1), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was measured for a configuration here."""

    sizes: Mapping[Shape, BatchSize]
    notes: list[str]
    """What of the file was left out, and why."""


def recall(config: RunConfig, machine: Machine, parallel: ParallelConfig) -> Recalled:
    """Return what was measured for a configuration here, by shape ("1024x1024"). Read by rank 0 for all ranks: the ranks of
    several machines must not plan by several files."""
    if config.batch_size != "auto":
        return Recalled({}, [])
    path = config.backend.cache / REMEMBERED
    found: dict[Shape, BatchSize] = {}
    try:
        known = _known(path)
    except ValueError as error:
        return Recalled({}, [f"{path} is ignored: {error}. The next dglaunch tune writes it anew."])
    bad = 0
    for key, entry in known.items():
        try:
            text = str(json.loads(key)[5])
            size, speed, date = int(entry["batch_size"]), float(entry["images_per_s"]), str(entry["date"])  # type: ignore[index]  # by someone else: any type
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            bad += 1  # not as `remember` writes it
            continue
        shape = Shape.parse(text)
        if shape is None or size < 1:
            bad += 1
        elif key == key_of(config, machine.name, machine.dtype, text, layout_of(parallel)):
            found[shape] = BatchSize(size, f"measured by tune on {date}: {speed:.4g} images/s on {machine.name}")
    said = [f"{path}: {bad:,} of {len(known):,} entries are not as dglaunch tune writes them and are ignored."]
    return Recalled(found, said if bad else [])


def _read(path: Path) -> Record:
    """A damaged file counts as empty: the next tune writes it anew."""
    try:
        return _known(path)
    except ValueError:
        return {}


def _known(path: Path) -> Record:
    """The entries of the file; none if there is no file.

    Raises:
        ValueError: it is something else, or cannot be read.
    """
    try:
        known = json.loads(read_bytes(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(known, dict):
        raise ValueError("it is not what dglaunch tune writes")
    return known
