"""Every split that the families' table allows, at the size of a published model: each rank of a replica runs, all of them agree
on what they exchange, and what they compute together is the whole. On fake tensors, as `dglaunch rehearse` does.

    python -m pytest -m slow tests/torchrun/test_true_size_splits.py -k "FLUX.1 and ulysses8"       or `make rehearsals`

One block of each kind, one denoising step, a prompt of a word beside a long one: what differs between blocks or steps is
not seen here. All of it on the host, and once more on a GPU that is only pretended: what asks for "cuda" is run, and what is left
on the host is caught.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dglaunch.cli.flags import parse
from dglaunch.config import XDIT_PREFIX, BackendConfig, EditingConfig, T2IConfig
from dglaunch.data.task import Batch
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import resolve
from dglaunch.models.shape import Shape
from dglaunch.planning.gpus import find_gpu
from dglaunch.planning.job import Job, prepare
from support.edit_images import picture
from support.results import write_jsonl
from support.selection import rarely

if TYPE_CHECKING:
    from dglaunch.simulation.rank import RankRun

pytestmark = pytest.mark.usefixtures("published_size")

MODELS = {
    "black-forest-labs/FLUX.1-dev": {},
    "black-forest-labs/FLUX.2-dev": {},
    "black-forest-labs/FLUX.2-klein-4B": {},
    "Qwen/Qwen-Image": {"negative_prompt": "blurred"},
    "Tongyi-MAI/Z-Image": {"negative_prompt": "blurred"},
    "stabilityai/stable-diffusion-3.5-large": {"negative_prompt": "blurred"},
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": {"negative_prompt": "blurred"},
    "Alpha-VLLM/Lumina-Image-2.0": {"negative_prompt": "blurred"},
}
"""One of each family that draws from text and that xfuser runs, and what its rows have besides a prompt."""
EDITORS = {
    "edit black-forest-labs/FLUX.1-Kontext-dev": {},
    "edit black-forest-labs/FLUX.2-dev": {},
    "edit black-forest-labs/FLUX.2-klein-4B": {},
    "edit Qwen/Qwen-Image-Edit": {"negative_prompt": "blurred"},
    "edit Qwen/Qwen-Image-Edit-2509": {"negative_prompt": "blurred"},
}
"""One of each family that edits and that xfuser runs; the sizes are those of its input images."""
UNSPLIT = {
    "stabilityai/stable-diffusion-xl-base-1.0": {"negative_prompt": "blurred"},
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": {"negative_prompt": "blurred"},
    "lodestones/Chroma1-HD": {"negative_prompt": "blurred"},
    "krea/Krea-2-Raw": {"negative_prompt": "blurred"},
    "hunyuanvideo-community/HunyuanImage-2.1-Diffusers": {},
    "baidu/ERNIE-Image": {"negative_prompt": "blurred"},
    "HiDream-ai/HiDream-I1-Full": {"negative_prompt": "blurred"},
    "ideogram-ai/ideogram-4-fp8": {},
    "meituan-longcat/LongCat-Image": {"negative_prompt": "blurred"},
    "edit meituan-longcat/LongCat-Image-Edit": {"negative_prompt": "blurred"},
}
"""Others that only diffusers runs."""
ROWS = {**MODELS, **EDITORS, **UNSPLIT}
SIZES = (512, 1024, 2048)
WORLDS = (1, 2, 4, 8)
Split = tuple[int, int, bool]
"""Ulysses degree, ring degree, CFG parallelism."""
SPLITS: list[Split] = [
    (ulysses, ring, cfg)
    for ulysses, ring, cfg in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (False, True))
    if 1 < ulysses * ring * (1 + cfg) <= max(WORLDS)
]


def size_of(split: Split) -> int:
    ulysses, ring, cfg = split
    return ulysses * ring * (2 if cfg else 1)


LONG = "a harbor at night, with lights on the water " * 12


def words(text: str) -> int:
    """A tokenizer in the place of the model's."""
    return len(text.split()) + 1


ALONE: Split = (1, 1, False)
QUICK = ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "xdit", 2, (1, 1, True), SIZES[:1])
"""One in `make test`, which two ranks and a pipeline of xfuser make quick enough."""
CASES = [
    (model, backend, world, split, SIZES)
    for model in ROWS
    for backend, world, split in [
        ("diffusers", 1, ALONE),
        *(
            ("xdit", world, split)
            for split in [ALONE, *SPLITS]
            for world in WORLDS
            if size_of(split) in (world, world / 4) and model not in UNSPLIT
        ),
    ]
]
"""A replica that is the world, and one of four."""


def named(case: object) -> str:
    if case in (SIZES, QUICK[-1]):
        return "quick" if case == QUICK[-1] else ""
    if isinstance(case, tuple):
        ulysses, ring, cfg = case
        return f"ulysses{ulysses}_ring{ring}" + ("_cfg" if cfg else "")
    return ("edit_" if str(case).startswith("edit ") else "") + str(case).rpartition("/")[2]


@pytest.mark.parametrize(("model", "backend", "world", "split", "sizes"), rarely([QUICK, *CASES], CASES), ids=named)
def test_ranks_run_and_agree_and_compute_the_whole(
    model: str, backend: str, world: int, split: Split, sizes: Sequence[int], tmp_path: Path
) -> None:
    from dglaunch.simulation.replica import agreement_of

    sizes = allowed(model, backend, world, split, sizes, tmp_path)
    runs = rehearsed(model, backend, world, split, sizes, tmp_path)
    crashes = [crash for run in runs for crash in run.all_crashes]
    assert not crashes, crashes[0].traceback
    assert [agreement_of(runs, number) for number in range(len(runs[0].batches))] == [None] * len(runs[0].batches)
    assert len(runs) == size_of(split) and len(runs[0].batches) in [each * len(sizes) for each in batches_of(model)]
    if size_of(split) > 1:
        together, whole = work_of(runs), alone(model, sizes, tmp_path)
        most = repeated(model, split, sizes, len(whole) // len(sizes))
        for found, each, more in zip(together, whole, most, strict=True):
            assert 0.95 * each < found < 1.05 * each * more


ON_GPU = [(model, backend, split) for model, backend, world, split, _ in CASES if world == size_of(split)]
"""A replica that is the world."""
QUICK_ON_GPU = ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "diffusers", ALONE)


@pytest.mark.parametrize(("model", "backend", "split"), rarely(ON_GPU, set(ON_GPU) - {QUICK_ON_GPU}), ids=named)
def test_on_a_gpu_ranks_compute_the_same(model: str, backend: str, split: Split, tmp_path: Path) -> None:
    from support.weightless_gpu import weightless_gpu

    sizes = allowed(model, backend, size_of(split), split, (1024,), tmp_path)
    on_host = rehearsed(model, backend, size_of(split), split, sizes, tmp_path)
    with weightless_gpu():
        on_gpu = rehearsed(model, backend, size_of(split), split, sizes, tmp_path, "cuda")
    crashes = [crash for run in on_gpu for crash in run.all_crashes]
    assert not crashes, crashes[0].traceback
    assert told(on_gpu) == told(on_host)


@pytest.mark.slow
def test_a_ring_takes_kernels_whose_parts_can_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flash-attn 4 is installed, xfuser takes it, and refused the ring after all weights had been read."""
    from dglaunch.backends.xdit.cpu import import_xfuser
    from support.weightless_gpu import weightless_gpu

    import_xfuser()
    import xfuser.core.distributed.runtime_state as state

    monkeypatch.setitem(state.env_info, "has_flash_attn_4", True)
    with weightless_gpu():
        runs = rehearsed("black-forest-labs/FLUX.1-dev", "xdit", 2, (1, 2, False), (512,), tmp_path, "cuda")
    assert not [crash.message for run in runs for crash in run.all_crashes]


def told(runs: "Iterable[RankRun]") -> list[object]:
    """What ranks compute and exchange. (What they hold differs by a little: a copy to the GPU is none on the host.)"""
    return [
        (run.rank, run.weights, [[(s.flops, s.collectives) for s in batch.stages.values()] for batch in run.batches])
        for run in runs
    ]


def test_on_a_gpu_a_tensor_on_the_host_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    from diffusers.models.embeddings import Timesteps

    from support.weightless_gpu import weightless_gpu

    forward = Timesteps.forward
    monkeypatch.setattr(Timesteps, "forward", lambda *args: forward(*args).cpu())
    model, backend, split = QUICK_ON_GPU
    with weightless_gpu():
        (run,) = rehearsed(model, backend, 1, split, (512,), tmp_path, "cuda")
    assert len(run.all_crashes) == 2, "one a batch"
    assert all(crash.stage == "denoise" and "same device" in crash.message for crash in run.all_crashes)


def batches_of(model: str) -> tuple[int, ...]:
    """How many different batches three prompts of different lengths are, of which two may share one."""
    family = resolve(BackendConfig(model_name=model.removeprefix("edit "))).family
    alone = model.startswith("edit ") and family.edit is not None and family.edit.batch_disabled
    return (1,) if alone else (2, 3)


def repeated(model: str, split: Split, sizes: Sequence[int], batches: int) -> list[float]:
    """How many times the work of one rank all of them may do, for each of some batches of a size: xfuser does not split the
    text of SD3 (333 tokens), so that each rank of a sequence computes all of it. The text of Qwen-Image-Edit, of which 1,369 tokens are
    the image's, is projected on each rank before it is split: 1 % of the work beside one block, and nothing beside sixty."""
    checkpoint, (ulysses, ring, _) = resolve(BackendConfig(model_name=model.removeprefix("edit "))), split
    if checkpoint.family.name == "QwenImageEdit":
        return [1 + 0.01 * (ulysses * ring - 1)] * batches * len(sizes)
    if checkpoint.family.name != "SD3":
        return [1.0] * batches * len(sizes)
    text = checkpoint.text_length(None)
    shares = [text / (text + checkpoint.image_tokens(Shape(size, size))) for size in sizes]
    return [1 + (ulysses * ring - 1) * share for share in shares for _ in range(batches)]


def allowed(model: str, backend: str, world: int, split: Split, sizes: Iterable[int], folder: Path) -> list[int]:
    """The sizes at which dglaunch lets the split through; the test is skipped if there are none."""
    taken, refusal = [], ""
    for size in sizes:
        try:
            job_of(model, backend, world, split, size, folder)
            taken.append(size)
        except UserError as error:
            refusal = str(error)
    if not taken:
        pytest.skip(refusal)
    return taken


def job_of(model: str, backend: str, world: int, split: Split, size: int, folder: Path) -> Job:
    """Two prompts of unequal length in one batch, and a last batch of one; a family that cannot batch has three."""
    texts = ("dogs", LONG, "two cats")
    if model.startswith("edit "):
        picture(1, (size, size)).save(folder / f"{size}.png")
        rows = [{"input_images": f"{size}.png", "instruction": text, **ROWS[model]} for text in texts]
        kind, flags = EditingConfig, ["--input", str(write_jsonl(folder / f"{size}.jsonl", rows))]
    else:
        rows = [{"prompt": text, **ROWS[model]} for text in texts]
        kind, flags = T2IConfig, ["--prompts_file", str(write_jsonl(folder / f"{size}.jsonl", rows))]
        flags += ["--height", str(size), "--width", str(size)]
    flags += [
        "--model_name",
        model.removeprefix("edit "),
        "--backend",
        backend,
        "--batch_size",
        "2",
        "--output_dir",
        str(folder / "out"),
    ]
    ulysses, ring, cfg = split
    degrees = {"ULYSSES_DEGREE": ulysses, "RING_DEGREE": ring, "USE_CFG_PARALLEL": int(cfg)}
    environ = {f"{XDIT_PREFIX}{name}": str(value) for name, value in degrees.items()} if backend == "xdit" else {}
    config, origins = parse(kind, flags, environ, "rehearse")
    return prepare(config, origins, environ, world, find_gpu("H100").machine, only_planned=True)


def rehearsed(
    model: str, backend: str, world: int, split: Split, sizes: Sequence[int], folder: Path, device: str = "cpu"
) -> "list[RankRun]":
    """The ranks of the first replica, with all sizes one after the other; the plan is one replica's, as the table is small."""
    from dglaunch.planning.rehearsal import to_rehearse
    from dglaunch.simulation.rank import Setting
    from dglaunch.simulation.replica import run_short

    contexts = []
    for size in sizes:
        job = job_of(model, backend, world, split, size, folder)
        one = replace(job, topology=replace(job.topology, world_size=job.topology.replica_size))
        contexts.append(to_rehearse(job, one.schedule((), {}, {}, None)).context)
    batches = [one_step(batch) for context in contexts for batch in context.batches]
    setting = Setting(text_tokens=words, own_tokenizers=False)
    return run_short(replace(contexts[0], batches=batches, device=device), setting)


def one_step(batch: Batch) -> Batch:
    return Batch(tuple(replace(task, num_inference_steps=1) for task in batch.tasks))


def work_of(runs: "Sequence[RankRun]") -> list[float]:
    """What the ranks compute together in the denoising of each batch."""
    return [sum(run.batches[number].stages["denoise"].flops for run in runs) for number in range(len(runs[0].batches))]


WHOLE: dict[tuple[str, int], list[float]] = {}


def alone(model: str, sizes: Sequence[int], folder: Path) -> list[float]:
    """The same on one rank."""
    missing = [size for size in sizes if (model, size) not in WHOLE]
    if missing:
        work = work_of(rehearsed(model, "xdit", 1, ALONE, missing, folder))
        each = len(work) // len(missing)
        WHOLE.update({(model, size): work[each * n : each * n + each] for n, size in enumerate(missing)})
    return [each for size in sizes for each in WHOLE[model, size]]
