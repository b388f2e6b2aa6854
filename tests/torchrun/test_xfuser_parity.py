"""Does xfuser, splitting one image over several ranks, draw what plain diffusers draws in one process?

The layer is real processes: one torchrun per world size, on gloo, serves all of its cases (importing costs 8 s, a case
under 1 s). This file is both sides of it: pytest collects the tests below and starts the file itself as the worker.

    pytest -m slow tests/torchrun/test_xfuser_parity.py -k lumina2    # cases by family and split
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # two minutes; test_t2i_models.py has the short form
TOLERANCE = 2 / 255
SIZE = {"height": 64, "width": 64}
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model under one split."""

    family: str
    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    dp: int = 1
    images: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline call."""
    what: str = ""
    """What `extra` is about, for the id."""
    refused: str = ""
    """A part of the error that every rank has to raise."""

    @property
    def world_size(self) -> int:
        return self.ulysses * self.ring * self.cfg * self.dp

    @property
    def id(self) -> str:
        degrees = [f"{name}{n}" for name in ("ulysses", "ring", "cfg", "dp") if (n := getattr(self, name)) > 1]
        return "-".join([self.family + "+images" * self.images, *degrees, *([self.what] if self.what else self.extra)])

    def call(self, replica: int) -> dict[str, Any]:
        """The arguments of the pipeline call, apart from the prompts' noise: the replicas get different prompts."""
        from PIL import Image

        prompts = ["a red cat", "two blue dogs on the moon"]
        if "qwen" in self.family:
            # Equal lengths that the degree divides: the others are cases of their own. A digit is a token, and the
            # template adds 5: 8 tokens.
            prompts = ["123", "890"]
        arguments = {"prompt": prompts, **SIZE, **self.extra}
        if replica:
            arguments["prompt"] = arguments["prompt"][::-1]
        if self.images:
            cats = [Image.radial_gradient("L").resize((64, 64)).convert("RGB").rotate(a) for a in (0, 45)]
            cats[1] = cats[1].transform((64, 64), Image.Transform.AFFINE, (1, 0.5, 0, 0, 1, 9))
            arguments["image"] = cats[:1] if self.family.startswith("flux2") else cats
        if self.family == "flux_kontext":
            arguments |= {"max_area": 64 * 64, "_auto_resize": False}
        if self.family == "pixart_sigma":
            arguments |= {"use_resolution_binning": False}
        return arguments


WRAPPED = ["flux", "flux2", "flux2_klein", "qwenimage", "zimage"]
PIPELINES = ["sd3", "pixart_sigma"]
EDITING = ["flux_kontext", "flux2", "flux2_klein", "qwenimage_edit"]
TRUE_CFG = {"negative_prompt": ["456", "567"], "true_cfg_scale": 4.0}

# 5 tokens more than digits; 3 x 5 image tokens and, of the size that `second` below gives it, 3 x 8.
ODD = {"height": 48, "width": 80}
NEGATIVE = {"true_cfg_scale": 4.0, "negative_prompt": ["45", "56"]}
QWEN: list[tuple[str, dict[str, Any]]] = [
    ("odd-text", {"prompt": ["1234", "8901"]}),
    ("odd-image", ODD),
    ("odd-negative", NEGATIVE),
    ("unequal", {"prompt": ["123", "8901234"]}),
    ("unequal-negative", {**NEGATIVE, "negative_prompt": ["456", "5678901"]}),
    ("all", {"prompt": ["1234", "890123456"], **ODD, **NEGATIVE, "negative_prompt": ["5", "567890"]}),
]
QWEN_SPLITS: list[dict[str, int]] = [{"ulysses": 2}, {"ulysses": 4}, {"dp": 2}, {"ulysses": 2, "dp": 2}]

# The empty negative prompt, like every prompt of up to 32 tokens, is one bucket.
LONG, MIXED = {"prompt": ["1" * 40, "2" * 41]}, {"prompt": ["1" * 3, "2" * 41]}
ZIMAGE: list[tuple[str, dict[str, Any]]] = [
    ("long", LONG),
    ("mixed", MIXED),
    ("mixed-negative", {**MIXED, "negative_prompt": ["4" * 41, "5"]}),
]
UNGUIDED = {**MIXED, "guidance_scale": 0.0}
# Text and image are one sequence, which xfuser pads where the degree does not divide it: one of these two lengths is odd.
LUMINA2: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("equal-3", {"prompt": ["123", "890"]}),
    ("equal-4", {"prompt": ["1234", "8901"]}),
    ("negative", {"negative_prompt": ["ugly", "very ugly"]}),
    ("unguided", {"guidance_scale": 1.0}),
]
LUMINA2_SPLITS: list[dict[str, int]] = [
    {"ulysses": 2}, {"cfg": 2}, {"dp": 2}, {"ulysses": 2, "cfg": 2}, {"ulysses": 2, "dp": 2}
]  # fmt: skip
ZIMAGE_SPLITS: list[dict[str, int]] = [{"ulysses": 2}, {"cfg": 2}, {"dp": 2}, {"ring": 2}, {"ulysses": 2, "cfg": 2}]

CASES = [
    *(Case(family=f, ulysses=2) for f in WRAPPED + PIPELINES),
    *(Case(family=f, ring=2) for f in WRAPPED + PIPELINES),
    *(Case(family=f, cfg=2) for f in ["sd3", "pixart_sigma", "zimage"]),
    *(Case(family=f, dp=2) for f in WRAPPED + PIPELINES),
    *(Case(family=f, images=True, ulysses=2) for f in EDITING),
    *(Case(family=f, images=True, ring=2) for f in EDITING),
    Case(family="qwenimage", ulysses=2, extra=TRUE_CFG),
    *(Case(family=f, ulysses=2, dp=2) for f in WRAPPED + PIPELINES),
    *(Case(family=f, ulysses=4) for f in [*WRAPPED, "pixart_sigma"]),
    Case(family="sd3", ulysses=4, refused="has 38 heads"),
    Case(family="zimage", ulysses=4, extra=MIXED, what="mixed"),
    Case(family="zimage", ulysses=8),
    *(Case(family=f, ulysses=2, ring=2) for f in WRAPPED + PIPELINES),
    *(Case(family=f, ulysses=2, cfg=2) for f in ["sd3", "pixart_sigma", "zimage"]),
    *(Case(family=f, images=True, ulysses=2, dp=2) for f in EDITING),
    *(Case(family="qwenimage", what=what, extra=extra, **split) for what, extra in QWEN for split in QWEN_SPLITS),
    *(Case(family="qwenimage", what=what, extra=extra, ring=2) for what, extra in QWEN[3:5]),
    Case(family="qwenimage", what=QWEN[0][0], extra=QWEN[0][1], ring=2, refused="ring attention would attend to"),
    *(Case(family="qwenimage_edit", images=True, what=what, extra=extra, ulysses=2) for what, extra in QWEN),
    Case(family="qwenimage_edit", images=True, what=QWEN[-1][0], extra=QWEN[-1][1], ulysses=4),
    Case(family="qwenimage_edit_2511", images=True, what="one", extra={"prompt": ["123"]}, ulysses=2),
    Case(family="qwenimage_edit_2511", images=True, what="odd", extra={"prompt": ["1234"], **ODD}, ulysses=2),
    *(Case(family="zimage", what=what, extra=extra, **split) for what, extra in ZIMAGE for split in ZIMAGE_SPLITS),
    *(Case(family="zimage", what="unguided", extra=UNGUIDED, **split) for split in ({"ulysses": 2}, {"dp": 2})),
    *(Case(family="lumina2", what=what, extra=extra, **split) for what, extra in LUMINA2 for split in LUMINA2_SPLITS),
    Case(family="lumina2", cfg=2, what="odd-image", extra=ODD),
    *(
        Case(family=f, ulysses=2, what="odd-image", extra=ODD, refused="not a multiple of (patch_size")
        for f in [*PIPELINES, "lumina2"]
    ),
    Case(family="lumina2", ring=2, refused="currently supports Ulysses only"),
    Case(family="lumina2", ulysses=4),
    Case(family="lumina2", ulysses=3, refused="KV heads must be divisible"),
    Case(family="zimage", what="unguided", extra=UNGUIDED, cfg=2, refused="needs guidance"),
]


# --- the test --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What the ranks of each case report, by the case's id. A case that a crash kept from running is missing."""
    from support.commands import clean_environment
    from support.tiny_models import build

    selected = [vars(item)["callspec"].params["case"] for item in request.session.items if item.path == Path(__file__)]
    folder = tmp_path_factory.mktemp("parity")
    for family in {case.family for case in selected}:
        build(family, folder / family)
    reports: dict[str, list[dict]] = {}
    for world_size in sorted({case.world_size for case in selected}):
        cases = [asdict(case) for case in selected if case.world_size == world_size]
        (folder / "cases.json").write_text(json.dumps(cases))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
        with open(folder / f"world{world_size}.log", "w") as log:
            subprocess.run(
                [*command, __file__, str(folder)], env=clean_environment(), stdout=log, stderr=log, timeout=600
            )
        for path in folder.glob("rank*.jsonl"):
            for line in path.read_text().splitlines():
                report = json.loads(line)
                reports.setdefault(report["case"], []).append(report)
            path.unlink()
    return reports


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_split_image_is_the_image_of_one_process(case: Case, results: dict[str, list[dict]]) -> None:
    reports = results.get(case.id, [])
    if case.refused:
        assert [case.refused in (r["error"] or "") for r in reports] == [True] * case.world_size
        return
    assert [r["error"] for r in reports] == [None] * case.world_size
    owners = [r for r in reports if r["difference"] is not None]
    assert max(r["difference"] for r in owners) <= TOLERANCE
    # One whole replica may return its images on a single rank, but each replica must return them somewhere.
    assert {r["dp_rank"] for r in owners} == set(range(case.dp))
    if case.world_size > case.dp:
        assert all(r["collectives"] for r in reports), "the ranks did not talk to each other"


COLLECTIVES = [
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "all_to_all_single",
    "batch_isend_irecv",
    "broadcast",
    "permute_tensor",
]


# --- the worker ------------------------------------------------------------------------------------------------------


def count_calls(counter: Counter) -> None:
    """Count the collectives of torch.distributed, by name, under every name that xfuser and yunchang call them."""
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
            return function(*args, **kwargs)

        return call

    for module, prefix in ((dist, "dist"), (functional, "functional")):
        for name in COLLECTIVES:
            if hasattr(module, name):
                setattr(module, name, counted(f"{prefix}.{name}", getattr(module, name)))


def load(case: Case, folder: Path, engine_config: Any) -> Any:
    """The pipeline of a case, split over the groups that are initialised."""
    import torch
    import xfuser
    from diffusers import DiffusionPipeline
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.models.transformers.transformer_flux import xFuserFlux1Transformer2DWrapper
    from xfuser.model_executor.models.transformers.transformer_flux2 import xFuserFlux2Transformer2DWrapper

    from dglaunch.backends.xdit.exact import wrap_qwen, wrap_zimage

    pipelines = {
        "sd3": xfuser.xFuserStableDiffusion3Pipeline,
        "pixart_sigma": xfuser.xFuserPixArtSigmaPipeline,
        "lumina2": xfuser.xFuserLumina2Pipeline,
    }
    wrappers = {
        "flux": xFuserFlux1Transformer2DWrapper,
        "flux_kontext": xFuserFlux1Transformer2DWrapper,
        "flux2": xFuserFlux2Transformer2DWrapper,
        "flux2_klein": xFuserFlux2Transformer2DWrapper,
    }
    if case.family in pipelines:
        return pipelines[case.family].from_pretrained(folder, engine_config=engine_config, torch_dtype=torch.float32)
    if case.family not in wrappers:
        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        (wrap_zimage if case.family == "zimage" else wrap_qwen)(pipeline.transformer)
    else:
        transformer = wrappers[case.family].from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
        pipeline = DiffusionPipeline.from_pretrained(folder, transformer=transformer, torch_dtype=torch.float32)
    initialize_runtime_state(pipeline, engine_config)
    return pipeline


def draw(pipeline: Any, arguments: dict[str, Any]) -> Any:
    """The images as an array, or None on a rank that gets none."""
    import torch
    from xfuser.model_executor.pipelines.base_pipeline import xFuserPipelineBaseWrapper

    # Copies: ZImagePipeline writes its chat template into the lists of prompts that it is given.
    arguments = {key: list(value) if isinstance(value, list) else value for key, value in arguments.items()}
    prompts = arguments.pop("prompt")
    arguments |= {
        "num_inference_steps": STEPS,
        "generator": [torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        "output_type": "np",
    }
    if isinstance(pipeline, xFuserPipelineBaseWrapper):
        # By position, else it shares `prompt=` (but not the generators) out among the data parallel replicas.
        output = pipeline(prompts, **arguments)
    else:
        output = pipeline(prompt=prompts, **arguments)
    return None if output is None else output.images


def run(case: Case, folder: Path, counter: Counter) -> dict[str, Any]:
    import xfuser
    from diffusers import DiffusionPipeline
    from xfuser.core import distributed as groups
    from xfuser.core.distributed import parallel_state

    from dglaunch.backends.xdit.cpu import ATTENTION_BACKEND

    arguments = xfuser.xFuserArgs(
        ulysses_degree=case.ulysses,
        ring_degree=case.ring,
        use_cfg_parallel=case.cfg == 2,
        data_parallel_degree=case.dp,
        attention_backend=ATTENTION_BACKEND,
    )
    engine_config, _ = arguments.create_config()
    groups.initialize_model_parallel(
        data_parallel_degree=case.dp,
        classifier_free_guidance_degree=case.cfg,
        sequence_parallel_degree=case.ulysses * case.ring,
        ulysses_degree=case.ulysses,
        ring_degree=case.ring,
        backend="gloo",
    )
    try:
        dp_rank = groups.get_data_parallel_rank()
        call = case.call(dp_rank)
        pipeline = load(case, folder / case.family, engine_config)
        if case.family in ("flux", "flux_kontext"):
            # Once, not for each batch, and without the size: only PipeFusion uses it. The others do without.
            groups.get_runtime_state().set_input_parameters(
                batch_size=2, num_inference_steps=STEPS, max_condition_sequence_length=512
            )
        counter.clear()
        images = draw(pipeline, call)
        collectives = dict(counter)
        plain = DiffusionPipeline.from_pretrained(folder / case.family)
        # A smaller batch of another size must do with what was set up for the first.
        second = {**call, "prompt": call["prompt"][-1:], "width": 128} | {
            key: call[key][-1:] for key in ("image", "negative_prompt") if key in call
        }
        if case.family.startswith("flux2") and case.images:
            second["image"] = call["image"]
        differences = [
            float(abs(split - draw(plain, arguments)).max())
            for arguments, split in ((call, images), (second, draw(pipeline, second)))
            if split is not None
        ]
        return {
            "difference": max(differences, default=None),
            "differences": differences,
            "dp_rank": dp_rank,
            "replica": parallel_state.get_model_replica_group().ranks,
            "collectives": collectives,
        }
    finally:
        parallel_state.destroy_model_parallel()


def main(folder: Path) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    from dglaunch.backends.xdit.cpu import import_xfuser

    import_xfuser()
    from xfuser.core.distributed import init_distributed_environment

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))  # a rank that fails alone must not hang the others
    init_distributed_environment(backend="gloo")
    counter: Counter = Counter()
    count_calls(counter)
    with open(folder / f"rank{dist.get_rank()}.jsonl", "w", buffering=1) as report:
        for fields in json.loads((folder / "cases.json").read_text()):
            case = Case(**fields)
            print("CASE", case.id, flush=True)
            try:
                outcome = {"error": None, **run(case, folder, counter)}
            except Exception as error:
                outcome = {"error": f"{type(error).__name__}: {error}"[:300], "difference": None, "dp_rank": None}
            report.write(json.dumps({"case": case.id, "rank": dist.get_rank(), **outcome}) + "\n")
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
