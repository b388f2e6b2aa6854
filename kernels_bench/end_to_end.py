"""dglaunch t2i against what people would run instead: same model, prompts and noise, one run, one machine.

    pip install --no-deps --target /tmp/diffgentor diffgentor==0.1.2
    python -m kernels_bench end_to_end --diffgentor /tmp/diffgentor
    python tests/support/tiny_models.py qwenimage /tmp/qwen        # a pipeline whose text is as long as the prompt
    python -m kernels_bench end_to_end --diffgentor /tmp/diffgentor --model_name /tmp/qwen --num_inference_steps 28

The contenders take turns (each round begins with another one), every time in fresh processes on a new folder, with new
prompts in each round. Each carries the same stop-watch (trace/sitecustomize.py). Every picture of every run is compared
with the plain loop's one by one, in the first round before anything counts. All images have the same seed, because
diffgentor gives its --seed to each of them, and all runs the same text length: it cannot be told one, so it has the
pipeline's 512. It has --batch_size but does not use it for t2i (diffgentor/workers/t2i_worker.py calls the pipeline
prompt by prompt), so it runs at 1.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bench import measure
from kernels_bench.batch import WORDS

HERE = Path(__file__).parent
PIPELINE_TEXT_LENGTH = 512
"""FluxPipeline's own max_sequence_length, to which it pads, and QwenImagePipeline's, which only cuts there."""
LIMITS = {"float32": 2.0, "bfloat16": 8.0}
"""Allowed difference of 255 from the plain loop: of any pixel in float32, of the average pixel in bfloat16."""
COLUMNS = {
    "contender": "{contender}",
    "batch": "{batch}",
    "ranks": "{ranks}",
    "images/s overall": "{overall[p50]:.3g} ({overall[p20]:.3g}-{overall[p80]:.3g})",
    "after start-up": "{after_start[p50]:.3g} ({after_start[p20]:.3g}-{after_start[p80]:.3g})",
    "denoising": "{denoising[p50]:.3g} ({denoising[p20]:.3g}-{denoising[p80]:.3g})",
    "first image s": "{first_image[p50]:.2f} ({first_image[p20]:.2f}-{first_image[p80]:.2f})",
    "difference": "{difference}",
    "lost": "{lost}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench end_to_end`."""

    repeats: int = 3
    """Timed rounds; in each, every contender runs once with every number of ranks."""
    warm_up: int = 1
    """Rounds before them that are checked but not counted."""
    model_name: str = "tiny"
    """`tiny`, or a folder with a diffusers pipeline."""
    num_prompts: int = 64
    """Images of a run."""
    side: int = 128
    """Width and height in pixels."""
    num_inference_steps: int = 4
    """Denoising steps."""
    max_sequence_length: int = PIPELINE_TEXT_LENGTH
    """Text tokens. With another number than 512 diffgentor is left out: it cannot be told one."""
    batch_size: int = 8
    """Of the contenders that batch; dglaunch and the plain loop run at 1 too."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks to measure."""
    diffgentor: Path | None = None
    """Folder into which diffgentor 0.1.2 was installed with pip's --no-deps --target."""

    def __post_init__(self) -> None:
        measure.Options.__post_init__(self)
        if self.quick:
            self.repeats, self.warm_up, self.num_prompts, self.batch_size, self.ranks = 1, 0, 2, 2, self.ranks[:1]
            self.side, self.num_inference_steps = 64, 2


@dataclass(frozen=True, slots=True)
class Model:
    """What all contenders load."""

    source: str
    """A local folder."""
    pipeline: str
    """"module:class" of diffusers, for the stop-watch."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One program at one batch size."""

    program: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.program}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Ended:
    """What one run told by its files and the stop-watch."""

    overall: float
    after_start: float
    denoising: float
    first_image: float
    difference: float | None
    """None where the noise cannot be the same."""
    lost: int
    """Pictures that it did not make although it ended well."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """All rounds; a contender that cannot run here is a row with the reason."""
    model = Model(*measure.in_process("kernels_bench.end_to_end:work", {"model_name": options.model_name}, options))
    contenders, rows = line_up(options)
    runs: dict[tuple[Contender, int], list[Ended]] = {(c, ranks): [] for ranks in options.ranks for c in contenders}
    rng = random.Random(options.seed)
    for turn in range(options.warm_up + options.repeats):
        prompts = ["a " + " ".join(map(rng.choice, WORDS)) for _ in range(options.num_prompts)]
        with tempfile.TemporaryDirectory(prefix="kernels_bench-e2e-") as folder:
            for ended in one_round(options, model, prompts, contenders, Path(folder), turn):
                if turn >= options.warm_up:
                    runs[ended[0]].append(ended[1])
    rows = [row(contender, ranks, ended) for (contender, ranks), ended in runs.items()] + rows
    note = (
        f"{options.model_name}, {options.num_prompts} prompts, {options.side}x{options.side}, {options.num_inference_steps} "
        f"steps, {options.max_sequence_length} text tokens, {options.dtype}, {options.threads} thread(s) a rank. Overall: from "
        "the command to its end. After start-up: from the first call of the pipeline to the last file. Difference: of 255, "
        "largest in all runs. Lost: pictures, in all runs."
    )
    return rows, [note]


def line_up(options: Options) -> tuple[list[Contender], list[measure.Row]]:
    """Who runs, the plain loop one by one first because the others are compared with it; and who does not, and why."""
    batched = [Contender(program, options.batch_size) for program in ("dglaunch", "plain loop", "accelerate")]
    if options.quick:
        return [Contender("plain loop", 1), batched[0]], []
    contenders = [Contender("plain loop", 1), Contender("dglaunch", 1), *batched]
    reasons = {
        "its command cannot set the text length; it always uses the pipeline's 512": options.max_sequence_length != PIPELINE_TEXT_LENGTH,
        "the folder is not given: pip install --no-deps --target DIR diffgentor==0.1.2, then --diffgentor DIR": options.diffgentor is None,
    }  # fmt: skip
    missing = [reason for reason, holds in reasons.items() if holds]
    if missing:
        return list(dict.fromkeys(contenders)), [{"name": "diffgentor 0.1.2", "not_run": missing[0]}]
    return list(dict.fromkeys([*contenders, Contender("diffgentor", 1)])), []


def one_round(
    options: Options, model: Model, prompts: Sequence[str], contenders: Sequence[Contender], folder: Path, turn: int
) -> list[tuple[tuple[Contender, int], Ended]]:
    """Each contender once with each number of ranks, then all pictures against the plain loop's.

    Raises:
        WrongOutput: a picture is missing or differs.
    """
    entries = [(contender, ranks) for ranks in options.ranks for contender in contenders]
    shift = turn % len(entries)
    ended = []
    for contender, ranks in entries[shift:] + entries[:shift]:
        out = folder / f"{contender.program}-{contender.batch}-{ranks}"
        times = one_run(options, model, prompts, contender, ranks, out)
        ended.append(((contender, ranks), out, times))
    expected = folder / f"plain loop-1-{options.ranks[0]}"
    compared = [compare(entry[0], expected, out, len(prompts), options) for entry, out, _ in ended]
    return [
        (entry, Ended(**times, difference=difference, lost=lost))
        for (entry, _, times), (difference, lost) in zip(ended, compared)
    ]


def row(contender: Contender, ranks: int, ended: Sequence[Ended]) -> measure.Row:
    measured = {
        name: measure.spread([getattr(e, name) for e in ended])
        for name in ("overall", "after_start", "denoising", "first_image")
    }
    differences = [e.difference for e in ended]
    known = [difference for difference in differences if difference is not None]
    difference = "not comparable" if len(known) < len(differences) else round(max(known), 2)
    return {
        "name": f"{contender.name}, {ranks} rank{'s' if ranks > 1 else ''}", "contender": contender.program,
        "batch": contender.batch, "ranks": ranks, **measured, "difference": difference, "lost": sum(e.lost for e in ended),
    }  # fmt: skip


# -- one run --------------------------------------------------------------------------------------------------------


def one_run(
    options: Options, model: Model, prompts: Sequence[str], contender: Contender, ranks: int, out: Path
) -> dict[str, float]:
    """Start it, wait for its end, read its times from its files and the stop-watch."""
    trace = out.with_name(out.name + "-trace")
    out.mkdir()
    trace.mkdir()
    job = {
        "model": model.source, "prompts": prompts, "batch_size": contender.batch, "seed": options.seed, "device": options.device,
        "dtype": options.dtype, "out": str(out), "file": str(out.with_name(out.name + "-prompts.jsonl")), "ranks": ranks,
        "arguments": {
            "height": options.side, "width": options.side, "num_inference_steps": options.num_inference_steps,
            "guidance_scale": 1.0, "max_sequence_length": options.max_sequence_length,
        },
    }  # fmt: skip
    rows = [{"prompt": prompt, "index": n, "seed": options.seed} for n, prompt in enumerate(prompts)]
    Path(job["file"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    words, extra = COMMANDS[contender.program](job, options)
    paths = [str(HERE / "trace"), str(measure.ROOT), extra.pop("PYTHONPATH", "")]
    env = measure.environment(
        options, extra | {"KERNELS_BENCH_TRACE": str(trace), "KERNELS_BENCH_PIPELINE": model.pipeline}
    )
    env["PYTHONPATH"] = ":".join([*filter(None, paths), env["PYTHONPATH"]])
    began = time.time()
    ended = measure.run_command(words, env, timeout=1800)
    end = time.time()
    if ended.returncode:
        raise measure.BenchError(f"{contender.name} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
    return times(began, end, out, trace)


def times(began: float, end: float, out: Path, trace: Path) -> dict[str, float]:
    """Images/s overall, after start-up and of the denoising of all ranks; seconds to the first file."""
    written = sorted(file.stat().st_mtime for file in out.glob("*.png"))
    calls = [json.loads(line) for file in trace.glob("*.jsonl") for line in file.read_text().splitlines()]
    if not written or not calls:
        raise measure.BenchError(f"{out.name} ended well but left {len(written)} images and {len(calls)} calls")
    denoising = 0.0
    for rank in {call["rank"] for call in calls}:
        mine = [call for call in calls if call["rank"] == rank]
        denoising += sum(call["images"] for call in mine) / sum(call["denoise"] for call in mine)
    first_call = min(call["start"] for call in calls)
    return {
        "overall": len(written) / (end - began), "after_start": len(written) / (written[-1] - first_call),
        "denoising": denoising, "first_image": written[0] - began,
    }  # fmt: skip


def compare(contender: Contender, expected: Path, out: Path, count: int, options: Options) -> tuple[float | None, int]:
    """The largest difference of a picture from the plain loop's, None where the noise cannot be the same; and how many
    pictures there are not. diffgentor may lose some: its ranks skip what they find made and then share out what is left,
    so that a rank that looks later shares out a shorter list.

    Raises:
        WrongOutput: a picture of another contender is missing, or one has another size or differs too much.
    """
    import numpy
    from PIL import Image

    names = [f"{n:06d}.png" for n in range(count) if (out / f"{n:06d}.png").is_file()]
    lost = count - len(names)
    if contender.program == "diffgentor":
        if options.device == "cuda":
            return None, lost  # it draws the noise on the GPU
    else:
        measure.require(f"{contender.name}, missing pictures", lost, 0)
    largest = 0.0
    for name in names:
        picture = measure.spoil(numpy.asarray(Image.open(out / name).convert("RGB")), options.damage).astype(float)
        reference = numpy.asarray(Image.open(expected / name).convert("RGB")).astype(float)
        if picture.shape != reference.shape:
            raise measure.WrongOutput(f"{contender.name}, {name}: {picture.shape}, not {reference.shape}")
        away = abs(picture - reference)
        largest = max(largest, float(away.max() if options.dtype == "float32" else away.mean()))
    measure.require(f"{contender.name} against the plain loop, of 255", largest, LIMITS[options.dtype])
    return largest, lost


# -- the commands -----------------------------------------------------------------------------------------------------

Command = tuple[list[str], dict[str, str]]
"""Words, and what the environment has besides."""


def with_flags(flags: Mapping[str, Any]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def dglaunch(job: Mapping[str, Any], _options: Options) -> Command:
    flags = {
        "model_name": job["model"], "prompts_file": job["file"], "output_dir": job["out"], "batch_size": job["batch_size"],
        "device": job["device"], "torch_dtype": job["dtype"], **job["arguments"],
    }  # fmt: skip
    return [*measure.python(_ranks(job)), "-m", "dglaunch", "t2i", *with_flags(flags)], {}


def script(name: str) -> Callable[[Mapping[str, Any], Options], Command]:
    """A contender that is a file of this folder."""

    def command(job: Mapping[str, Any], _options: Options) -> Command:
        file = Path(job["out"] + "-job.json")
        file.write_text(json.dumps(job))
        return [*measure.python(_ranks(job)), str(HERE / "contenders" / name), str(file)], {}

    return command


def diffgentor(job: Mapping[str, Any], options: Options) -> Command:
    """Its command starts torchrun itself: from PATH, and (PET_STANDALONE) on a free port instead of 29500."""
    arguments = {name: value for name, value in job["arguments"].items() if name != "max_sequence_length"}
    flags = {
        "backend": "diffusers", "model_name": job["model"], "device": job["device"],
        "torch_dtype": job["dtype"], "num_gpus": job["ranks"], "seed": job["seed"], "prompts_file": job["file"],
        "output_dir": job["out"], "batch_size": job["batch_size"], **arguments,
    }  # fmt: skip
    path = f"{Path(sys.executable).parent}:{measure.environment(options).get('PATH', '')}"
    extra = {"PATH": path, "PYTHONPATH": str(options.diffgentor), "PET_STANDALONE": "1"}
    return [sys.executable, "-m", "diffgentor", "t2i", *with_flags(flags)], extra


def _ranks(job: Mapping[str, Any]) -> int:
    """torchrun only where there is more than one rank: start-up is measured too."""
    return job["ranks"] if job["ranks"] > 1 else 0


COMMANDS: dict[str, Callable[[Mapping[str, Any], Options], Command]] = {
    "dglaunch": dglaunch,
    "plain loop": script("plain.py"),
    "accelerate": script("split.py"),
    "diffgentor": diffgentor,
}


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> tuple[str, str]:
    """The checkpoint as a folder that every contender can load (`tiny` may have to be built first), and "module:class"
    of its pipeline."""
    import diffusers

    from dglaunch.config import BackendConfig
    from dglaunch.models.checkpoint import resolve

    checkpoint = resolve(BackendConfig(model_name=payload["model_name"]))
    pipeline = getattr(diffusers, checkpoint.pipeline_class)
    return checkpoint.source, f"{pipeline.__module__}:{pipeline.__name__}"


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "after_start", "images/s after start-up")
