"""A published model at its true size on one GPU: each flag's speed, memory by stage beside what `plan` said, and pixels.

    python -m kernels_bench true_size --device cuda                                  # FLUX.1-dev, every case
    python -m kernels_bench true_size --device cuda --model Qwen/Qwen-Image --cases plain "batch of 2" compiled
    python -m kernels_bench true_size --quick                                        # `tiny` on a CPU: every line runs

The weights are seeded random numbers (kernels_bench/seeded.py): speed and memory are the real model's, and pictures are
noise. How far a picture moves on random weights is more than on trained ones; the real checkpoint's must be looked at
besides. Each case is `dglaunch t2i` in a process of its own, with hooks that read the GPU's memory between the stages.
"""

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels_bench import measure

COLUMNS = {
    "case": "{name}",
    "s a step": "{step_s:.4g}",
    "MFU": "{mfu}",
    "decode s": "{decode_s:.3g}",
    "images/s": "{images_per_s:.3g}",
    "load s": "{load_s:.0f}",
    "GiB: encode": "{measured[encode]:.2f} ({planned[encode]:.2f})",
    "denoise": "{measured[denoise]:.2f} ({planned[denoise]:.2f})",
    "decode": "{measured[decode]:.2f} ({planned[decode]:.2f})",
    "furthest": "{greatest}",
    "PSNR": "{psnr}",
}
STAGES = ("encode", "denoise", "decode")
REFERENCE = "plain"
UNPLANNED = float("nan")
WORDS = ("red", "green", "blue", "circle", "star", "square")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Case:
    """Flags of `dglaunch t2i`."""

    flags: tuple[str, ...] = ()
    batch: int | str = 1
    batches: int = 2
    """Batches that are timed, of which the fastest counts; one more warms up."""
    steps: int | None = None
    """Other than --steps."""


CASES: dict[str, Case] = {
    REFERENCE: Case(),
    "plain again": Case(),
    "batch of 2": Case(batch=2),
    "batch of 4": Case(batch=4, batches=1),
    "auto": Case(batch="auto", batches=1),
    "inline": Case(("--encode", "inline")),
    "compiled": Case(("--enable_compile",)),
    "compiled, batch of 4": Case(("--enable_compile",), batch=4, batches=1),
    "cudnn attention": Case(("--attention_backend", "_native_cudnn")),
    "flash attention": Case(("--attention_backend", "_native_flash")),
    "fused projections": Case(("--enable_fuse_qkv",)),
    "channels last": Case(("--enable_channels_last",)),
    "int8": Case(("--quantization", "int8")),
    "int8, compiled": Case(("--quantization", "int8", "--enable_compile")),
    "fp8": Case(("--quantization", "fp8")),
    "fp8, compiled": Case(("--quantization", "fp8", "--enable_compile")),
    "nf4": Case(("--quantization", "nf4")),
    "layerwise casting": Case(("--enable_layerwise_casting",)),
    "first block cache": Case(("--cache_type", "first_block_cache")),
    "cache-dit": Case(("--cache_type", "cache_dit")),
    "tiled": Case(("--enable_vae_tiling",)),
    "sliced, batch of 4": Case(("--enable_vae_slicing",), batch=4, batches=1),
    "cpu offload": Case(("--enable_cpu_offload",), batches=1),
    "group offloading": Case(("--enable_group_offloading",), batches=1),
    "xDiT": Case(("--backend", "xdit")),
    "halving": Case(batch=96, batches=0, steps=1),
    "idle": Case(batches=4),
}
"""The first is the reference. `halving` must run out of memory on 80 GiB and make every image; `idle` is profiled."""


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench true_size`."""

    model: str = "black-forest-labs/FLUX.1-dev"
    """A model of dglaunch's catalog."""
    cases: tuple[str, ...] = ()
    """Names, as the table shows them; default: all."""
    steps: int = 8
    """Denoising steps of each image."""
    side: int = 1024
    """Height and width."""
    work: Path | None = None
    """Folder for the checkpoint and the images, kept: a later call goes on with them. Default: one that goes away."""
    one_case_s: int = 600
    """A case that takes longer is ended and said to have failed."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """Each case in a process of its own. One that fails is told, and the others go on."""
    wanted = options.cases or tuple(CASES)
    if unknown := set(wanted) - CASES.keys():
        raise measure.BenchError(f"there is no case {sorted(unknown)}; there are {', '.join(CASES)}")
    work = options.work or Path(tempfile.mkdtemp(prefix="kernels_bench-", dir=_roomy(options)))
    try:
        payload = options.shared() | {"steps": options.steps, "side": options.side, "work": str(work)}
        payload |= measure.in_process("kernels_bench.true_size:prepare", payload | _model(options), options)
        rows = [_row(name, payload, options) for name in wanted]
    finally:
        if options.work is None:
            shutil.rmtree(work)
    where = "seeded random weights at true size" if not options.quick else "a toy: every line runs, no more"
    notes = [f"{_model(options)['model']}, {where}, {options.dtype}, {options.side} pixels, {options.steps} steps",
             "GiB: the peak that was measured in a stage, and in parentheses what plan said; furthest and PSNR: from "
             f"the images of {REFERENCE}, on random weights"]  # fmt: skip
    return rows, notes + [f"{row['name']}: {line}" for row in rows for line in row.get("events", ())]


def _roomy(options: Options) -> Path | None:
    """Where a checkpoint as large as a GPU's memory is read fastest."""
    return SHARED_MEMORY if options.device == "cuda" and SHARED_MEMORY.is_dir() else None


def _model(options: Options) -> dict[str, Any]:
    return {"model": "tiny" if options.quick else options.model} | ({"side": 64, "steps": 4} if options.quick else {})


def _row(name: str, payload: dict[str, Any], options: Options) -> measure.Row:
    given = payload | _model(options) | {"name": name}
    try:
        return measure.in_process("kernels_bench.true_size:case", given, options, timeout=options.one_case_s)  # type: ignore[no-any-return]
    except measure.WrongOutput:
        raise
    except measure.BenchError as error:
        return {"name": name, "not_run": str(error).strip()[-1500:]}


# -- in the children ------------------------------------------------------------------------------------------------


def prepare(payload: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint, if it is not there from an earlier call, and the peak of this device."""
    folder, began = Path(payload["work"], payload["model"].replace("/", "--")), time.perf_counter()
    if payload["model"] != "tiny" and not (folder / "model_index.json").is_file():
        from kernels_bench.seeded import write_checkpoint

        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(payload["model"], folder, payload["device"])
    source = "tiny" if payload["model"] == "tiny" else str(folder)
    return {"source": source, "peak_flops": matmul_flops(payload), "written_s": time.perf_counter() - began}


def matmul_flops(payload: dict[str, Any]) -> float:
    """Operations a second of a large matrix product in the type of the weights: what the MFU is a share of."""
    import torch

    side = 8192 if payload["device"] == "cuda" else 256
    left, right = (torch.randn(side, side).to(payload["device"], getattr(torch, payload["dtype"])) for _ in range(2))
    wait = torch.cuda.synchronize if payload["device"] == "cuda" else lambda: None
    (taken,) = measure.seconds({"matmul": lambda: left @ right}, lambda: (), 10, 3, wait).values()
    return 2 * side**3 / measure.spread(taken)["p50"]


@dataclass
class Watch:
    """Reads the clock and the peak of the memory where a stage ends."""

    cuda: bool
    batches: list[dict[str, float]] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    began: float = 0.0
    profile: Any = None

    def end(self, stage: str) -> float:
        """Note the stage's peak in GiB, and forget it; return the time."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.peaks[stage] = max(self.peaks.get(stage, 0.0), peak)
        return time.perf_counter()

    def install(self) -> None:
        """Into dglaunch's backend of this process."""
        from dglaunch.backends.diffusers.backend import DiffusersBackend

        load, ahead, generate = DiffusersBackend.load, DiffusersBackend._encode_ahead, DiffusersBackend.generate
        watch = self

        def encoding(backend: Any, cache: Any) -> Any:
            watch.end("load")
            made = ahead(backend, cache)
            watch.end("encode")
            return made

        def loading(backend: Any) -> Any:
            facts = load(backend)
            watch.end("load")
            decode = backend.pipeline.vae.decode

            def decoding(*args: Any, **kwargs: Any) -> Any:
                started = watch.end("denoise")
                if watch.batches:
                    watch.batches[-1]["denoise"] = started - watch.began
                try:
                    return decode(*args, **kwargs)
                finally:
                    if watch.batches:
                        watch.batches[-1]["decode"] = watch.end("decode") - started

            backend.pipeline.vae.decode = decoding
            return facts

        def generating(backend: Any, batch: Any) -> Any:
            watch.began = watch.end("between")
            watch.batches.append({})
            watch.sizes.append(len(batch))
            if watch.profile is not None and len(watch.batches) == 2:
                watch.profile.start()
            made = generate(backend, batch)
            if watch.profile is not None and len(watch.batches) == CASES["idle"].batches + 1:
                watch.end("between")
                watch.profile.stop()
            return made

        DiffusersBackend.load, DiffusersBackend._encode_ahead = loading, encoding  # type: ignore[method-assign]
        DiffusersBackend.generate = generating  # type: ignore[method-assign]


def case(payload: dict[str, Any]) -> measure.Row:
    """Plan and run it; what was measured beside what was planned."""
    from dglaunch.cli.main import main
    from dglaunch.output.differences import compare

    name, work = payload["name"], Path(payload["work"])
    case, cuda = CASES[name], payload["device"] == "cuda"
    steps = case.steps or payload["steps"]
    out, scratch = work / "images" / name.replace(" ", "_"), work / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    count = (case.batches + 1) * (case.batch if isinstance(case.batch, int) else 8)
    words = _words(payload, case, count, steps, scratch)
    planned = _plan(main, [*words, "--output_dir", str(out)], scratch)
    watch = Watch(cuda)
    watch.install()
    if name == "idle":
        watch.profile = _profiler(cuda)
    # Plans are corrected by what earlier runs measured: each case begins without.
    os.environ["DG_CACHE_DIR"] = str(scratch / "cache" / name.replace(" ", "_"))
    start = time.perf_counter()
    code = main([*words, "--output_dir", str(out)])
    wall = time.perf_counter() - start
    record = json.loads((out / "run.json").read_text()) if (out / "run.json").is_file() else {}
    if code or record.get("num_ok") != count:
        failures = "".join(file.read_text()[-1500:] for file in out.glob("failures*.jsonl"))
        raise measure.BenchError(f"{name} left with {code}: {record.get('num_ok')} of {count} images. {failures}")
    if name == "halving" and cuda and not any("ran out of memory" in event for event in record["events"]):
        raise measure.WrongOutput(f"a batch of {case.batch} was to run out of memory: {record['events']}")
    timed = [batch for batch in watch.batches[1:] or watch.batches if "decode" in batch]
    fastest = min(timed, key=lambda batch: batch["denoise"])  # a new length of prompt costs its first batch more
    step_s, decode_s = fastest["denoise"] / steps, min(batch["decode"] for batch in timed)
    apart = compare(out, work / "images" / REFERENCE) if steps == payload["steps"] else None
    size = statistics.median(watch.sizes)
    row = {
        "name": name, "step_s": step_s, "decode_s": decode_s,
        "steps": measure.spread([batch["denoise"] / steps for batch in timed]),
        "images_per_s": size / (fastest["denoise"] + decode_s),
        "mfu": f"{planned['step_tflop'] * size * 1e12 / step_s / payload['peak_flops']:.1%}",
        "batch": size, "wall_s": wall, "load_s": record["seconds"].get("load", 0.0), "seconds": record["seconds"],
        "measured": dict.fromkeys(STAGES, UNPLANNED) | watch.peaks, "planned": planned["stages"],
        "reserved_gib": _reserved(cuda), "peak_tflops": payload["peak_flops"] / 1e12, "written_s": payload["written_s"],
        "effects": record["effects"], "events": record["events"],
        "pipeline_share": record["pipeline_share"], "batches": watch.batches,
        "greatest": apart.greatest if apart else "-", "mean": apart.mean if apart else None,
        "share": apart.share if apart else None,
        "psnr": "-" if apart is None else f"{apart.psnr:.1f}" if math.isfinite(apart.psnr) else "equal",
    }  # fmt: skip
    if watch.profile is not None:
        row |= _idle(watch.profile, cuda)
        row["events"] = [*row["events"], f"{row['idle_share']:.2%} of the time without a kernel, the longest gap "
                         f"{row['longest_gap_s'] * 1e3:.1f} ms"]  # fmt: skip
    return row


def _words(payload: dict[str, Any], case: Case, count: int, steps: int, scratch: Path) -> list[str]:
    """The same prompts and seeds for every case."""
    prompts = scratch / f"{count}.jsonl"
    rows = [{"prompt": f"a {WORDS[n % 3]} {WORDS[3 + n // 3 % 3]}", "seed": n} for n in range(count)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = str(payload["side"])
    words = ["t2i", "--model_name", payload["source"], "--prompts_file", str(prompts), "--batch_size", str(case.batch)]
    words += ["--device", payload["device"], "--torch_dtype", payload["dtype"], "--height", side, "--width", side]
    return [*words, "--num_inference_steps", str(steps), *case.flags]


def _plan(main: Any, words: list[str], scratch: Path) -> dict[str, Any]:
    """What `dglaunch plan` says of it: GiB by stage, and TFLOP a step of one image."""
    told = scratch / "plan.json"
    told.unlink(missing_ok=True)
    code = main(["plan", *words, "--json", str(told)])
    plan = json.loads(told.read_text()) if not code and told.is_file() else {}
    stages = (plan.get("memory") or {}).get("stages") or {}
    peaks = {stage: stages.get(stage, {}).get("peak_gib", UNPLANNED) for stage in STAGES}
    return {"stages": peaks, "step_tflop": (plan.get("work") or {}).get("step_tflop") or UNPLANNED}


def _reserved(cuda: bool) -> float | None:
    if not cuda:
        return None
    import torch

    return torch.cuda.max_memory_reserved() / 2**30


def _profiler(cuda: bool) -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])


def _idle(profiler: Any, cuda: bool) -> dict[str, float]:
    """The share of the time, from the first kernel of the second batch to the last of the last one, that has none:
    encoding, sending and the next batch are to be beside the denoising."""
    device = "CUDA" if cuda else "CPU"
    events = [event for event in profiler.profiler.kineto_results.events() if device in str(event.device_type())]
    share, longest = idle_share(sorted((event.start_ns(), event.end_ns()) for event in events))
    return {"idle_share": share, "longest_gap_s": longest}


def idle_share(spans: list[tuple[int, int]]) -> tuple[float, float]:
    """Of sorted (start, end) in nanoseconds: the share of the whole that none covers, and the longest gap in seconds."""
    free, longest, end = 0, 0, spans[0][1]
    for start, stop in spans:
        gap = max(start - end, 0)
        free, longest, end = free + gap, max(longest, gap), max(end, stop)
    return free / max(end - spans[0][0], 1), longest / 1e9


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """Seconds a step as bars, the memory written on them."""
    rows = [row for row in rows if "step_s" in row]
    axes.barh([row["name"] for row in rows], [row["step_s"] / row["batch"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds a denoising step and image")
    for place, row in enumerate(rows):
        axes.text(0, place, f"  {max(row['measured'][stage] for stage in STAGES):.1f} GiB", va="center", color="white")
