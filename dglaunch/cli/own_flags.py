"""The flags that a command has beside its job's: --world_size of `plan`, --nodes of `slurm`, --config of all.

They are fields as in dglaunch/config.py, and read, shown and completed as these are. They concern no job, so they are plain
fields, have no DG_* variable and do not stand in run.json.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dglaunch.cli.flag_table import Named
from dglaunch.config import NOTHING, Group, flag
from dglaunch.errors import UserError

MOST_DIFFERENCE = 5.0
"""--max_difference of `tune --search`, of 255: about 30 dB."""


@dataclass(kw_only=True, slots=True)
class OwnFlags:
    """What every command that has a job takes."""

    config: Path | None = flag(None, NOTHING, Group.WHAT, usual="Flags from a job's file, or from a run.json")
    """Take flags from a job's file (.yaml, .toml, .json, or the run.json of a folder); the command line and DG_* win."""


@dataclass(kw_only=True, slots=True)
class LookingFlags(OwnFlags):
    """What `plan` and `rehearse` take: the machines that the job is looked at for, and where the answer goes."""

    world_size: int | None = None
    """Ranks to plan for, instead of those that are here: 32 for 4 nodes of 8 GPUs."""
    gpu: str | None = None
    """A GPU that is not here, by its name (H100, A100-80GB, "RTX 4090") or by its memory (80GiB)."""
    json: Path | None = None
    """Write all figures to this file, too."""

    def __post_init__(self) -> None:
        if self.world_size is not None and self.world_size < 1:
            raise UserError(f"--world_size is {self.world_size}; it must be 1 or more: a number of ranks.")


@dataclass(kw_only=True, slots=True)
class PlanFlags(LookingFlags):
    """Print what a command would do (topology, shares, batches, memory, time, which flags make it fit) and stop."""

    compare: bool = False
    """Set the ways to lay the job out on the ranks side by side, with memory and time of each."""


@dataclass(kw_only=True, slots=True)
class RehearseFlags(LookingFlags):
    """Run a command's own code as every rank of a replica, at the model's true size, without its GPUs and weights: does it
    crash, do the ranks agree, does it fit?"""


@dataclass(kw_only=True, slots=True)
class TuneFlags(OwnFlags):
    """Measure batch sizes and parallel configurations on the real model on this machine; --batch_size auto uses it from then
    on. --num_gpus is the number of ranks, by default all GPUs."""

    gpu: str | None = None
    """Count only what fits the memory of this GPU (H100, or 80GiB)."""
    search: bool = False
    """Measure the optimizations, too, and what each does to the images."""
    max_difference: float | None = None
    """With --search: the mean difference to the plain images, of 255, that is wanted at most. Default: 5, about 30 dB."""

    def __post_init__(self) -> None:
        if self.max_difference is None:
            return
        if not self.search:
            raise UserError("--max_difference does nothing without --search; add it, or drop --max_difference.")
        if not 0 <= self.max_difference <= 255:
            raise UserError(f"--max_difference is {self.max_difference:g}; it must be a number from 0 to 255.")

    @property
    def wanted(self) -> float | None:
        """The greatest difference that is wanted; None: nothing is searched."""
        if not self.search:
            return None
        return MOST_DIFFERENCE if self.max_difference is None else self.max_difference


@dataclass(kw_only=True, slots=True)
class CertifyFlags(OwnFlags):
    """Draw (or `certify edit`: edit) the same images in every way in which this machine can run a model, and compare them
    with those of one rank with plain diffusers: a page and a JSON in --output_dir, where each case is one run in a folder of
    its own. --num_gpus is the number of ranks, by default all GPUs. Where no limit is given: --max_difference 2 in float32,
    and --max_mean 8 in bfloat16 and float16."""

    max_difference: float | None = None
    """The most by which any pixel may differ, of 255."""
    max_mean: float | None = None
    """The most by which an image's pixels may differ on average, of 255."""
    max_share: float | None = None
    """The largest part of an image's pixels (0 to 1) that may differ by more than 2 of 255."""
    cases: str | None = None
    """Only the cases with one of these words in their names, such as batch,resume; the reference always."""

    def __post_init__(self) -> None:
        for name, most in (("max_difference", 255.0), ("max_mean", 255.0), ("max_share", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise UserError(f"--{name} is {value:g}; it must be from 0 to {most:g}.")

    @property
    def words(self) -> list[str]:
        return [word.strip() for word in (self.cases or "").split(",") if word.strip()]


@dataclass(kw_only=True, slots=True)
class SlurmFlags(OwnFlags):
    """Print (or --submit) the batch script that runs a command on a Slurm cluster: where and how long. A job that is preempted,
    or reaches its time limit, finishes the step under way, goes back to the queue and goes on with what is left: preemptible
    nodes need no flag but the one that chooses them, such as --partition or --sbatch=--qos=NAME."""

    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs, and ranks, on each."""
    array: bool = False
    """Independent nodes as a job array, with no rendezvous: each starts when Slurm has room for it."""
    elastic: bool = False
    """Up to so many nodes that come and go (preemptible ones) as one world, which is formed anew when one joins or dies."""
    partition: str | None = None
    """Slurm's partition. Default: the cluster's."""
    time: str = "24:00:00"
    """Time limit of each start; what is left then goes back to the queue."""
    cpus_per_gpu: int = 4
    """Cores for each rank: loading, and encoding images."""
    venv: Path | None = None
    """Virtual environment to activate on the nodes. Default: what is active when the job is submitted, or this command's."""
    job_name: str = "dglaunch"
    """Name in the queue, and of the log file."""
    max_requeues: int = 20
    """How often the job may go back to the queue by itself, preempted or at its time limit."""
    sbatch: tuple[str, ...] = ()
    """A further option for sbatch, such as --sbatch=--account=me; may be given several times."""
    submit: bool = False
    """Hand the script to sbatch instead of printing it."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "cpus_per_gpu"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.array and self.elastic:
            raise UserError(
                "--array shares the work out beforehand, --elastic in one world of whoever is there; drop one of them."
            )
        if self.elastic and self.nodes < 2:
            raise UserError("--elastic is for nodes that come and go; say how many there may be: --nodes 4.")
        for name in ("partition", "time", "venv", "job_name", "sbatch"):
            _refuse_line_breaks(name, getattr(self, name))


def _refuse_line_breaks(name: str, value: str | Path | tuple[str, ...] | None) -> None:
    """What stands behind #SBATCH ends with its line: the next one would be a command of the script."""
    for text in value if isinstance(value, tuple) else [str(value or "")]:
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
            raise UserError(f"--{name} {text!r} holds a line break or another control character; give it without.")


@dataclass(kw_only=True, slots=True)
class RedoFlags:
    """Make some images of a job again, in its folder; the old ones go to OUT/replaced, and the same command goes on after a stop.

    torchrun --nproc_per_node 8 -m dglaunch redo OUT ... uses several GPUs, as --num_gpus does.
    """

    folder: Annotated[Path, Named(by_place=True)]
    """What --output_dir was."""
    filter_rows: str | None = None
    """Which: indices (3,7,11), ranges (0:100 is 0 to 99) or a comparison of what the ledger says (style == "oil" and seed > 3)."""
    failed: bool = False
    """Those that failed."""
    seed_offset: int = 0
    """Added to the seed of each: other images of the same prompts."""
    changes: Annotated[tuple[str, ...], Named(name="set", metavar="KEY=VALUE")] = ()
    """Another value for them: prompt=..., guidance_scale=5, seed=8, or how it is run (batch_size=1)."""
    num_gpus: int | None = None
    """Start under torchrun with this many ranks on this machine."""


@dataclass(kw_only=True, slots=True)
class ScoreFlags:
    """Give the images of a folder a score each, beside its ledger: in OUT/scores, as the column score_NAME of the gallery, of redo's
    --filter_rows and of layouts. The same command goes on after a stop, and scores what has come since.

    --with clip, siglip, pickscore or aesthetic (with --head); a folder or hub id of a model of transformers with images and
    texts; or a function of yours, my_module:my_function. torchrun --nproc_per_node 8 -m dglaunch score OUT ... uses several GPUs.
    """

    folder: Annotated[Path, Named(by_place=True)]
    """What --output_dir was."""
    scorer: Annotated[str | None, Named(name="with")] = None
    """What scores: clip, siglip, pickscore, aesthetic; a folder or hub id; my_module:my_function(images, lines)."""
    name: str | None = None
    """What the scores are called. Default: the last part of --with."""
    head: Path | None = None
    """Linear layers over the image's vector, whose answer is the score, whatever the prompt: LAION's predictor of beauty."""
    allow_pickle: bool = False
    """Read a --head that is a pickle (.pth), with torch's restricted reader."""
    best_of: int | None = None
    """Then make the view OUT/best_of_N_NAME: the N images of each prompt that have the highest scores."""
    batch_size: int | None = None
    """Images at a time. Default: 64 on a GPU, 8 on a CPU."""
    device: Literal["cuda", "cpu"] | None = None
    """Where to run. Default: the GPU of this local rank, the CPU where there is none."""
    torch_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the model's weights."""
    overwrite: bool = False
    """Forget earlier scores of this name."""
    num_gpus: int | None = None
    """Start under torchrun with this many ranks on this machine."""

    def __post_init__(self) -> None:
        for name in ("best_of", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be 1 or more.")
        if self.scorer is None:
            self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Without --with nothing is scored."""
        given = {
            name: getattr(self, name)
            for name in ("head", "allow_pickle", "batch_size", "device", "overwrite", "num_gpus")
        }
        if idle := [f"--{name}" for name, value in given.items() if value]:
            raise UserError(f"{', '.join(idle)} does nothing without --with; name what scores.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """A command around a job: its own flags, and of which commands it takes the flags, the usual one first."""

    own: type
    """OwnFlags and its like; of a command that takes no job's flags, any dataclass of flags."""
    jobs: tuple[str, ...] = ("t2i", "edit")
    needs_job: bool = True
    """Whether the job's command must be named: `plan t2i`."""


AROUND: dict[str, Around] = {
    "plan": Around(own=PlanFlags),
    "rehearse": Around(own=RehearseFlags),
    "tune": Around(own=TuneFlags, jobs=("t2i",)),
    "certify": Around(own=CertifyFlags, needs_job=False),
    "slurm": Around(own=SlurmFlags),
    "redo": Around(own=RedoFlags, jobs=(), needs_job=False),
    "score": Around(own=ScoreFlags, jobs=(), needs_job=False),
}
