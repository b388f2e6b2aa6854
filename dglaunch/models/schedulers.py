"""Schedulers as data: their names, what their options are called, how often they call the transformer. torch is not imported.

    choice = chosen(config.backend, checkpoint)       # None: the checkpoint's own, as it is
    choice.class_name, choice.options                 # "UniPCMultistepScheduler", {"use_flow_sigmas": True, ...}
    num_calls(class_name, config, steps=8)            # 15 with Heun's method, 8 with Euler's

Whether a scheduler draws images or noise with a checkpoint is found by dglaunch.backends.diffusers.schedulers, which runs it.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dglaunch import strict_json
from dglaunch.config import BackendConfig, pairs_of
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.components import Component

NAMES: dict[str, tuple[str, ...]] = {
    "FlowMatchEulerDiscreteScheduler": ("euler", "flow_euler", "flow_match_euler"),
    "FlowMatchHeunDiscreteScheduler": ("heun", "flow_heun", "flow_match_heun"),
    "FlowMatchLCMScheduler": ("lcm", "flow_lcm"),
    "LTXEulerAncestralRFScheduler": (),
    "EulerDiscreteScheduler": ("euler",),
    "EulerAncestralDiscreteScheduler": ("euler_a", "euler_ancestral"),
    "HeunDiscreteScheduler": ("heun",),
    "KDPM2DiscreteScheduler": ("dpm2", "kdpm2"),
    "KDPM2AncestralDiscreteScheduler": ("dpm2_a",),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "dpm++_2m", "dpm++", "dpmsolver++"),
    "DPMSolverSinglestepScheduler": ("dpmpp_single", "dpm++_single"),
    "DPMSolverSDEScheduler": ("dpmpp_sde", "dpm++_sde"),
    "DEISMultistepScheduler": ("deis",),
    "UniPCMultistepScheduler": ("uni_pc", "unipc"),
    "SASolverScheduler": ("sa_solver",),
    "DDIMScheduler": ("ddim",),
    "DDPMScheduler": ("ddpm",),
    "PNDMScheduler": ("pndm", "plms"),
    "IPNDMScheduler": ("ipndm",),
    "LMSDiscreteScheduler": ("lms",),
    "LCMScheduler": ("lcm",),
    "TCDScheduler": ("tcd",),
}
"""diffusers' schedulers that draw images -> what people call them besides. A name that two have means the one that fits the
checkpoint."""
SHORT = {
    "shift": ("shift", "flow_shift"),
    "karras": ("use_karras_sigmas",),
    "beta": ("use_beta_sigmas",),
    "exponential": ("use_exponential_sigmas",),
    "flow": ("use_flow_sigmas",),
}
"""Options by a short name -> what the classes call them."""
TWICE = ("Heun", "KDPM2", "DPMSolverSDE")
"""In the names of schedulers that call the transformer twice a step, but for the last."""
PRK_CALLS = 9
"""That PNDM adds to its steps where it begins with Runge-Kutta steps."""
FLOW_PREDICTION = "flow_prediction"
_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """How a pipeline uses its scheduler."""

    sigmas: bool = False
    """Whether it hands over sigmas from 1 to 1/steps, which not every scheduler takes."""
    form: Literal["array", "list", "tensor"] = "array"
    """What they come as: with a list or a tensor some schedulers cannot compute."""
    but_flow_sigmas: bool = False
    """Whether it leaves that to a scheduler with use_flow_sigmas."""
    timesteps: bool = False
    """Whether it hands over timesteps besides the sigmas."""
    mu: Literal["always", "dynamic", "never"] = "never"
    """Whether it hands over the time shift of the image's size; dynamic: if the scheduler's use_dynamic_shifting is on."""
    scales: bool = False
    """Whether it scales the noise and the transformer's input as the scheduler says."""
    generator: bool = False
    """Whether noise that the scheduler adds comes from the images' own seeds."""


_FLUX = Calling(sigmas=True, but_flow_sigmas=True, mu="always")
_SIGMAS = Calling(sigmas=True, mu="always")
_COGVIEW = Calling(sigmas=True, timesteps=True, mu="always")
CALLINGS: dict[str, Calling] = {
    "FluxPipeline": _FLUX,
    "Flux2Pipeline": _FLUX,
    "Flux2KleinPipeline": _FLUX,
    "ZImagePipeline": Calling(sigmas=True, form="list", mu="always"),
    "CogView4Pipeline": _COGVIEW,
    "GlmImagePipeline": _COGVIEW,
    "StableDiffusion3Pipeline": Calling(mu="dynamic"),
    "HiDreamImagePipeline": Calling(mu="always"),
    "SanaPipeline": Calling(generator=True),
    "PRXPipeline": Calling(),
    "ErnieImagePipeline": Calling(sigmas=True, form="tensor"),
    "HunyuanImagePipeline": Calling(sigmas=True),
    "Ideogram4Pipeline": Calling(sigmas=True, form="list"),
}
"""By the pipeline's class, what was read in diffusers 0.42 (the tests watch the calls). Others: as `_SIGMAS` if their
checkpoint is of flow matching, else as `_DIFFUSION`."""
_DIFFUSION = Calling(scales=True, generator=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Another scheduler than the checkpoint's own, or its own with other options."""

    own: Component
    """The checkpoint's."""
    class_name: str
    given: Mapping[str, object]
    """Options that the user gave, by the names of the class, or by short ones."""
    followed: Mapping[str, object]
    """Options that follow from the checkpoint."""

    @property
    def identity(self) -> dict[str, object]:
        """What makes a job with it another job."""
        return {"scheduler": self.class_name, "scheduler_options": dict(sorted(self.given.items()))}


def chosen(config: BackendConfig, checkpoint: Checkpoint) -> Choice | None:
    """Return the scheduler that a configuration asks for; None: the checkpoint's own, as it is.

    Raises:
        UserError: there is none of that name, an option is none, or the checkpoint has no scheduler.
    """
    if config.scheduler is None and not config.scheduler_options:
        return None
    flag = "--scheduler" if config.scheduler is not None else "--scheduler_options"
    own = checkpoint.components.get("scheduler")
    if own is None:
        raise UserError(f"{flag}: {checkpoint.source} has no scheduler that could be replaced. Drop the flag.")
    flow = is_flow(own)
    class_name = own.class_name if config.scheduler is None else class_of(config.scheduler, flow)
    given = {name: _value(text) for name, text in pairs_of("scheduler_options", config.scheduler_options).items()}
    same = class_name == own.class_name
    return Choice(own=own, class_name=class_name, given=given, followed={} if same else _followed(own, flow))


def is_flow(scheduler: Component) -> bool:
    """Return whether a checkpoint's scheduler is one of flow matching, where the transformer predicts a velocity."""
    config = scheduler.config
    told = config.get("prediction_type") == FLOW_PREDICTION or bool(config.get("use_flow_sigmas"))
    return told or "Flow" in scheduler.class_name or scheduler.class_name.endswith("RFScheduler")


def class_of(name: str, flow: bool) -> str:
    """Return diffusers' class of a scheduler by any of its names.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    plain = _plain(name)
    fitting = [
        class_name for class_name, others in NAMES.items() if plain in map(_plain, (class_name, *others))
    ]  # fmt: skip
    if fitting:
        return next((each for each in fitting if ("Flow" in each) == flow), fitting[0])
    known = {_plain(each): each.removesuffix("Scheduler") for each in sorted(NAMES)}
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.0)
    raise UserError(
        f"--scheduler {name} is no scheduler that dglaunch knows. The nearest: {', '.join(known[each] for each in near)}. "
        f"All of them: {', '.join(known.values())}."
    )


def calling_of(pipeline_class: str, flow: bool) -> Calling:
    """Return how a pipeline uses its scheduler."""
    return CALLINGS.get(pipeline_class, _SIGMAS if flow else _DIFFUSION)


def num_calls(class_name: str, config: Mapping[str, object], steps: int) -> int:
    """Return how often a scheduler of this class calls the transformer in so many steps."""
    if any(word in class_name for word in TWICE):
        return 2 * steps - 1
    if class_name == "PNDMScheduler":
        return steps + (1 if config.get("skip_prk_steps", False) else PRK_CALLS)
    return steps


def calls_of(checkpoint: Checkpoint, config: BackendConfig, steps: int) -> int:
    """Return how often a job calls the transformer for an image of so many steps."""
    choice, own = chosen(config, checkpoint), checkpoint.components.get("scheduler")
    if choice is not None:
        return num_calls(choice.class_name, {**choice.own.config, **choice.followed, **choice.given}, steps)
    return steps if own is None else num_calls(own.class_name, own.config, steps)


def _followed(own: Component, flow: bool) -> dict[str, object]:
    """What another class must be told so that it does what the checkpoint was trained for; each takes what it has. A shift
    is called otherwise by other classes, and latents are never clipped to what pixels can be."""
    if not flow:
        return {} if "clip_sample" in own.config else {"clip_sample": False}
    found: dict[str, object] = {"use_flow_sigmas": True, "prediction_type": FLOW_PREDICTION}
    shift = own.config.get("shift", own.config.get("flow_shift"))
    return found if shift is None else found | {"shift": shift, "flow_shift": shift}


def _plain(name: str) -> str:
    """A name without what people write differently: case, blanks, dashes, the word scheduler."""
    return re.sub(r"[^a-z0-9+]+", "", name.casefold()).removesuffix("scheduler")


def _value(text: str) -> object:
    """An option's value as JSON, also with Python's spellings, else as a text."""
    text = text.strip()
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return strict_json.loads(text)
    except ValueError:
        return text
