"""--scheduler on every family: equal to plain diffusers with the same scheduler one by one, and noise refused beforehand."""

from pathlib import Path
from typing import Any

import pytest

from dglaunch.models.schedulers import NAMES, num_calls
from support.commands import dglaunch
from support.matrix import measured, refused
from support.plain_diffusers import OF_TABLE, apart, made_images, plain_images, words_for
from support.ranks import launch
from support.results import images, ledger, run_json
from support.selection import rarely
from support.tiny_models import build

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
RIGHT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "flux": [("UniPCMultistepScheduler", FLOW), ("DPMSolverMultistepScheduler", FLOW), ("DPMSolverSinglestepScheduler", FLOW)],
    "flux2": [("UniPCMultistepScheduler", FLOW)],
    "flux2_klein": [("UniPCMultistepScheduler", FLOW)],
    "flux_kontext": [("UniPCMultistepScheduler", FLOW)],
    "qwenimage": [("UniPCMultistepScheduler", FLOW)],
    "qwenimage_edit": [("UniPCMultistepScheduler", FLOW)],
    "qwenimage_edit_plus": [("UniPCMultistepScheduler", FLOW)],
    "longcat_edit": [("UniPCMultistepScheduler", FLOW)],
    "lumina2": [("UniPCMultistepScheduler", FLOW | {"flow_shift": 3.0})],
    "sd3": [
        ("FlowMatchHeunDiscreteScheduler", {}), ("UniPCMultistepScheduler", FLOW | {"flow_shift": 3.0}),
        ("DPMSolverMultistepScheduler", FLOW | {"flow_shift": 3.0}),
    ],
    "pixart_sigma": [("UniPCMultistepScheduler", {}), ("HeunDiscreteScheduler", {})],
    "sdxl": [
        ("DPMSolverMultistepScheduler", {}), ("HeunDiscreteScheduler", {}), ("KDPM2DiscreteScheduler", {}),
        ("UniPCMultistepScheduler", {}), ("DEISMultistepScheduler", {}),
        ("DDIMScheduler", {"clip_sample": False}), ("EulerAncestralDiscreteScheduler", {}),
    ],
}  # fmt: skip
"""Family -> schedulers, and the options that plain diffusers has to be told besides."""
CASES = [(family, name) for family, all_of in RIGHT.items() for name, _ in all_of]
ALWAYS = {("sd3", "FlowMatchHeunDiscreteScheduler")}
WRONG = {
    "flux": ["Heun", "DEIS", "DDIM"],
    "zimage": ["Heun", "UniPC"],
    "sd3": ["EulerDiscreteScheduler", "DDIM", "PNDM", "LMSDiscrete", "IPNDM", "SASolver"],
    "sdxl": ["FlowMatchEulerDiscreteScheduler", "IPNDM"],
    "sana": ["DDIM", "EulerDiscreteScheduler"],
    "hidream": ["EulerDiscreteScheduler"],
    "glm_image": ["UniPC"],
}
"""What diffusers accepts, or fails on only once the model is loaded."""


@pytest.mark.parametrize(("family", "name"), rarely(CASES, set(CASES) - ALWAYS))
def test_every_family_equals_plain_diffusers(families: Path, tmp_path: Path, family: str, name: str) -> None:
    import diffusers

    model = build(family, families / family)
    options = dict(RIGHT[family])[name]

    def change(pipeline: Any) -> None:
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)

    plain = plain_images(family, model, change)
    made = made_images(family, model, tmp_path / "out", "--scheduler", name)
    difference = apart(plain, made)
    assert difference <= 2 / 255
    measured(OF_TABLE[family], "scheduler", difference)
    own = made_images(family, model, tmp_path / "own")
    assert apart(own, made) > 4 / 255, "else it would not have shown"
    assert name in run_json(tmp_path / "out")["effects"]["scheduler"]


def test_the_number_of_calls_is_the_one_that_diffusers_makes() -> None:
    import diffusers

    seen = {}
    for name in NAMES:
        try:
            scheduler = getattr(diffusers, name)()
        except (ImportError, AttributeError):  # wants a package that is not here
            continue
        for steps in (4, 8, 30):
            scheduler.set_timesteps(steps)
            seen[name, steps] = len(scheduler.timesteps)
    assert seen == {key: num_calls(key[0], {}, key[1]) for key in seen} and len(seen) > 50
    assert seen["HeunDiscreteScheduler", 8] == 15 and seen["PNDMScheduler", 8] == 17
    skipping = diffusers.PNDMScheduler(skip_prk_steps=True)
    skipping.set_timesteps(8)
    assert len(skipping.timesteps) == num_calls("PNDMScheduler", {"skip_prk_steps": True}, 8)


WRONGS = [(family, name) for family, names in WRONG.items() for name in names]


@pytest.mark.parametrize(
    ("family", "name"), rarely(WRONGS, set(WRONGS) - {("flux", "DEIS"), ("sd3", "EulerDiscreteScheduler")})
)
def test_what_would_draw_noise_is_refused_before_the_model_is_loaded(
    families: Path, tmp_path: Path, family: str, name: str
) -> None:
    model = build(family, families / family)
    ended = dglaunch(*words_for(family, model, tmp_path / "out"), "--scheduler", name)
    assert ended.code == 2, ended.output
    said = " ".join(ended.output.split())
    if family == "glm_image":
        assert "by which no other can be checked" in said
        refused("GlmImage", "scheduler", "it tells the transformer other times than the noise is of")
    else:
        if family == "zimage":
            refused("ZImage", "scheduler", "its own only, with other options: it hands over a list of sigmas")
        assert "these are right: " in said or "requires the" in said or "cannot be made" in said, said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_pipelines_call_their_schedulers_as_the_table_says(families: Path, tmp_path: Path) -> None:
    """What of them was handed over, and whether the noise is scaled; the others of a row share their code."""
    import diffusers

    from dglaunch.models.schedulers import calling_of

    seen: dict[str, set[str]] = {}

    def watch(pipeline: Any) -> None:
        set_timesteps, scheduler = pipeline.scheduler.set_timesteps, pipeline.scheduler

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen[type(pipeline).__name__] = {key for key, value in kwargs.items() if value is not None} - {"device"}
            return set_timesteps(*args, **kwargs)

        watched.__signature__ = __import__("inspect").signature(set_timesteps)  # type: ignore[attr-defined]
        scheduler.set_timesteps = watched

    for family in ("flux", "qwenimage", "sd3", "sdxl", "zimage", "lumina2"):
        plain_images(family, build(family, families / family), watch, steps=2)
    for pipeline, given in seen.items():
        calling = calling_of(pipeline, flow=pipeline != "StableDiffusionXLPipeline")
        assert ("sigmas" in given, "mu" in given) == (calling.sigmas, calling.mu == "always"), pipeline
    assert len(seen) == 6 and diffusers


def test_the_ledger_the_image_and_replay_know_the_scheduler(tmp_path: Path) -> None:
    words = ["--prompt", "a red circle", "--num_inference_steps", "4", "--png_parameters"]
    given = ["--scheduler", "unipc", "--scheduler_options", "solver_order=3"]
    ended = dglaunch("t2i", *words, *given, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    (line,) = ledger(tmp_path / "out")
    assert line["scheduler"] == "UniPCMultistepScheduler" and line["scheduler_options"] == {"solver_order": 3}
    told = run_json(tmp_path / "out")
    assert told["settings"]["scheduler"] == "UniPCMultistepScheduler"
    assert "use_flow_sigmas=True" in told["effects"]["scheduler"] and "solver_order=3" in told["effects"]["scheduler"]
    (image,) = (tmp_path / "out").glob("*.png")
    from PIL import Image

    with Image.open(image) as opened:
        assert "Sampler: UniPC" in opened.text["parameters"]  # type: ignore[attr-defined]
    again = dglaunch("replay", image, "--output", tmp_path / "again.png")
    assert again.code == 0 and "the same" in again.output, again.output
    # The same scheduler by another name goes on; another scheduler is another job.
    same = dglaunch("t2i", *words, "--scheduler", "UniPCMultistep", *given[2:], "--output_dir", tmp_path / "out")
    assert same.code == 0, same.output
    other = dglaunch("t2i", *words, "--output_dir", tmp_path / "out")
    assert other.code == 2 and "scheduler" in other.output


def test_options_that_do_nothing_are_refused(families: Path, tmp_path: Path) -> None:
    flux, sd3 = (build(name, families / name) for name in ("flux", "sd3"))

    def said(model: Path, *words: str) -> str:
        ended = dglaunch(*words_for("x", model, tmp_path / "out"), *words)
        assert ended.code == 2, ended.output
        return " ".join(ended.output.split())

    assert "use_dynamic_shifting=false" in said(flux, "--scheduler_options", "shift=5")
    assert "would do nothing" in said(sd3, "--scheduler_options", "base_shift=2")
    assert "nearest: use_karras_sigmas" in said(sd3, "--scheduler_options", "use_karas_sigmas=true")
    assert "cannot be made" in said(sd3, "--scheduler_options", "karras=true", "beta=true")
    assert "UniPCMultistep" in said(sd3, "--scheduler", "unipcc")


@pytest.mark.slow
def test_a_shift_of_one_checkpoint(families: Path, tmp_path: Path) -> None:
    """--scheduler_options without --scheduler: the checkpoint's own, told otherwise."""
    import diffusers

    model = build("sd3", families / "sd3")

    def change(pipeline: Any) -> None:
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=6.0)

    made = made_images("sd3", model, tmp_path / "out", "--scheduler_options", "shift=6")
    assert apart(plain_images("sd3", model, change), made) <= 2 / 255


XDIT = [
    ("flux", "unipc"),
    ("sd3", "heun"),
    ("sd3", "dpmpp_2m"),
    ("qwenimage", "unipc"),
    ("lumina2", "unipc"),
    ("pixart_sigma", "unipc"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), XDIT)
def test_with_xdit(families: Path, tmp_path: Path, family: str, name: str) -> None:
    model = build(family, families / family)
    one = made_images(family, model, tmp_path / "one", "--scheduler", name)
    words = [*words_for(family, model, tmp_path / "two"), "--scheduler", name, "--backend", "xdit"]
    (case,) = launch(tmp_path, 2, [(words, {"DG_XDIT_ULYSSES_DEGREE": "2"})])
    assert case.codes == [0, 0], case.output
    assert apart(one, list(images(tmp_path / "two").values())) <= 2 / 255


def test_noise_that_ranks_would_not_share_is_refused_with_xdit(families: Path, tmp_path: Path) -> None:
    model = build("pixart_sigma", families / "pixart_sigma")
    words = [*words_for("pixart_sigma", model, tmp_path / "out"), "--scheduler", "euler_a", "--backend", "xdit"]
    ended = dglaunch(*words)
    assert ended.code == 2 and "ranks that share an image" in " ".join(ended.output.split()), ended.output


def test_a_cache_that_counts_is_refused_where_a_step_takes_two_calls(families: Path, tmp_path: Path) -> None:
    model = build("sd3", families / "sd3")
    words = [*words_for("sd3", model, tmp_path / "out"), "--scheduler", "heun"]
    ended = dglaunch(*words, "--cache_type", "cache_dit")
    assert ended.code == 2 and "counts the transformer's calls" in " ".join(ended.output.split()), ended.output
