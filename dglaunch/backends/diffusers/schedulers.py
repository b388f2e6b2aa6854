"""--scheduler and --scheduler_options: how a scheduler is made, and what shows before a model is loaded whether it draws images.

A transformer is put in its place that knows the image which is to come, and predicts it perfectly: a scheduler that fits the
checkpoint then ends at that image, and one that does not ends in noise. It takes milliseconds. diffusers itself accepts any
scheduler in silence.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from dglaunch.config import BackendConfig
from dglaunch.data.task import Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.components import Component
from dglaunch.models.schedulers import (
    FLOW_PREDICTION,
    NAMES,
    SHORT,
    Calling,
    Choice,
    calling_of,
    chosen,
    is_flow,
)

Prediction = Callable[[torch.Tensor, float], torch.Tensor]
"""What a transformer predicts of its input at a time."""
FAR = 0.05
"""From the image that was to come, beyond which a scheduler is wrong: those that fit end within 0.005 of it, all others at
0.3 or more."""
FAR_DIFFUSION = 0.1
"""The same for schedules of diffusion, some of which end with a little noise left: 0.03 of it with SDXL's."""
MU = 1.15
"""The time shift that pipelines hand over for a megapixel."""
LEAST_TIME = 1e-3
TRIED_STEPS = 8
SIDE = 8
MOST_STEP_COUNTS = 6
"""Different numbers of steps of one job that are tried."""
NO_FIT = (ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError, RuntimeError, ImportError)
"""What diffusers raises for a scheduler, or options of it, that cannot be."""


# -- making one ---------------------------------------------------------------------------------------------------


def make_scheduler(choice: Choice) -> Any:
    """Make the scheduler of a choice: of the checkpoint's configuration, as the class's from_config does, with what follows
    from the checkpoint and what the user gave.

    Raises:
        UserError: diffusers does not have it, or the class does not take an option.
    """
    cls = _class(choice.class_name)
    options = _options(choice, cls)
    try:
        with _quiet():
            own = _class(choice.own.class_name).from_config(dict(choice.own.config))
            return cls.from_config(own.config, **options)
    except NO_FIT as error:
        raise UserError(
            f"{_flag(choice)}: {choice.class_name} cannot be made ({_reason(error)}). Correct --scheduler_options, or choose "
            "another scheduler."
        ) from None


def options_of(choice: Choice) -> dict[str, object]:
    """Return what a choice tells its scheduler, beyond the checkpoint's own configuration."""
    return _options(choice, _class(choice.class_name))


def describe(choice: Choice) -> str:
    """Return what is made, in words for run.json and the report."""
    shown = ", ".join(f"{name}={value}" for name, value in sorted(options_of(choice).items()))
    return f"{choice.class_name}({shown})"


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers tells of each option that one class has and the other has not."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _class(name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(
            f"--scheduler: diffusers {diffusers.__version__} has no {name}. Update diffusers, or choose another."
        )
    return found


def _options(choice: Choice, cls: Any) -> dict[str, object]:
    """The options by the names that the class has.

    Raises:
        UserError: it does not take one.
    """
    takes = inspect.signature(cls.__init__).parameters.keys() - {"self", "kwargs"}
    found = {name: value for name, value in choice.followed.items() if name in takes}
    for name, value in choice.given.items():
        own = next((each for each in SHORT.get(name, (name,)) if each in takes), None)
        if own is None:
            near = difflib.get_close_matches(name, [*takes, *SHORT], n=3, cutoff=0.0)
            raise UserError(
                f"--scheduler_options {name}: {choice.class_name} has no such option. The nearest: {', '.join(near)}."
            )
        found[own] = value
    return found


def _flag(choice: Choice) -> str:
    return f"--scheduler {choice.class_name.removesuffix('Scheduler')}"


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


# -- does it draw images? -----------------------------------------------------------------------------------------


def check_scheduler(checkpoint: Checkpoint, config: BackendConfig, tasks: Iterable[Task], xdit: bool = False) -> None:
    """Refuse a scheduler that would draw noise with this checkpoint, noise that no seed sets, or options that do nothing.

    Raises:
        UserError: with what would work.
    """
    choice = chosen(config, checkpoint)
    if choice is None:
        return
    scheduler = make_scheduler(choice)
    oracle = Oracle.of(checkpoint, choice.own)
    if oracle is None:
        raise UserError(
            f"{_flag(choice)}: {checkpoint.pipeline_class} uses its own {choice.own.class_name} in a way by which no other can "
            "be checked, so that the images might be noise. Drop the flag."
        )
    for steps in _step_counts(checkpoint, tasks):
        if reason := oracle.refusal(scheduler, steps, xdit):
            fitting = [name.removesuffix("Scheduler") for name in _fitting(checkpoint, oracle, xdit)]
            raise UserError(
                f"{_flag(choice)}: {reason}. With {checkpoint.source} these are right: {', '.join(fitting) or 'none'}."
            )
    _check_effect(choice, oracle)


def _step_counts(checkpoint: Checkpoint, tasks: Iterable[Task]) -> list[int]:
    """The numbers of steps of a job: the smallest and the largest of them, where there are many."""
    counts = sorted({checkpoint.num_steps(task.num_inference_steps) for task in tasks})
    half = MOST_STEP_COUNTS // 2
    return counts if len(counts) <= MOST_STEP_COUNTS else counts[:half] + counts[-half:]


def _fitting(checkpoint: Checkpoint, oracle: "Oracle", xdit: bool) -> list[str]:
    """The schedulers that are right with a checkpoint, without other options."""
    found = []
    for name in NAMES:
        other = chosen(BackendConfig(model_name=checkpoint.source, scheduler=name), checkpoint)
        assert other is not None
        try:
            scheduler = make_scheduler(other)
        except UserError:
            continue
        if not oracle.refusal(scheduler, TRIED_STEPS, xdit):
            found.append(name)
    return found


def _check_effect(choice: Choice, oracle: "Oracle") -> None:
    """Refuse an option that changes nothing, though its value is another than without it."""
    whole = oracle.path_of(make_scheduler(choice))
    for name, value in choice.given.items():
        without = make_scheduler(
            replace(choice, given={key: each for key, each in choice.given.items() if key != name})
        )
        own = next(each for each in SHORT.get(name, (name,)) if each in without.config)
        if without.config[own] != value and oracle.path_of(without) == whole:
            dynamic = "shift" in name and without.config.get("use_dynamic_shifting")
            why = ", as the shift follows from each image's size (use_dynamic_shifting)" if dynamic else ""
            also = " Add use_dynamic_shifting=false, or drop it." if dynamic else " Drop it."
            raise UserError(f"--scheduler_options {name}={value} would do nothing with {choice.class_name}{why}.{also}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """An oracle stands in for a checkpoint's transformer, as its pipeline calls it, and knows the image that is to come."""

    calling: Calling
    train_steps: int
    alphas: torch.Tensor | None
    """How much of the image is in each training step of a diffusion model; None: it is one of flow matching."""
    predicts: str
    """What the transformer predicts: epsilon, v_prediction, sample, flow_prediction."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, own: Component) -> "Oracle | None":
        """Return the oracle of a checkpoint; None if it would not even let the checkpoint's own scheduler pass: CogView 4 and
        GLM-Image tell the transformer other times than the noise is of."""
        flow = is_flow(own)
        with _quiet():
            scheduler = _class(own.class_name).from_config(dict(own.config))
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if not flow and not isinstance(alphas, torch.Tensor):
            return None
        oracle = cls(
            calling=calling_of(checkpoint.pipeline_class, flow),
            train_steps=scheduler.config.num_train_timesteps,
            alphas=None if flow else alphas,
            predicts=FLOW_PREDICTION if flow else str(scheduler.config.get("prediction_type", "epsilon")),
        )
        return None if oracle.refusal(scheduler, TRIED_STEPS, xdit=False) else oracle

    def refusal(self, scheduler: Any, steps: int, xdit: bool) -> str:
        """Say why a scheduler is wrong in so many steps, as a part of a sentence; empty: it is right."""
        noise, image = _noise(0), _noise(1)
        try:
            path, shared = self._run(
                scheduler, steps, noise, lambda seen, time: self._perfect(seen, time, image), seed=2
            )
            again, _ = self._run(scheduler, steps, noise, lambda seen, time: self._perfect(seen, time, image), seed=3)
        except NO_FIT as error:
            return f"it cannot run as this pipeline calls it ({_reason(error)})"
        if shared:
            return "it adds noise in each step, and this pipeline does not tell it the seeds: images would depend on their batch"
        if xdit and not all(map(torch.equal, path, again)):
            return "it adds noise in each step, which the ranks that share an image would not add alike"
        apart = path[-1] - image
        far = float(apart.abs().max() if self.alphas is None else apart.square().mean().sqrt())
        if far <= (FAR if self.alphas is None else FAR_DIFFUSION):
            return ""
        return f"it would draw noise, or leave some, in {steps} steps (a known image is missed by {far:.2g})"

    def path_of(self, scheduler: Any, steps: int = 6) -> list[list[float]]:
        """Return how latents change under a transformer that is none, for telling schedules apart."""
        path, _ = self._run(scheduler, steps, _noise(0), lambda seen, time: torch.sin(2 * seen + time), seed=2)
        return [each.flatten().tolist() for each in path]

    def _run(
        self, scheduler: Any, steps: int, noise: torch.Tensor, predict: Prediction, seed: int
    ) -> tuple[list[torch.Tensor], bool]:
        """The latents after each step, and whether noise was drawn from the state that all images share."""
        self._set_timesteps(scheduler, steps)
        takes = inspect.signature(scheduler.step).parameters
        more = (
            {"generator": [torch.Generator().manual_seed(seed)]}
            if self.calling.generator and "generator" in takes
            else {}
        )
        latents = noise * scheduler.init_noise_sigma if self.calling.scales else noise
        path: list[torch.Tensor] = []
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            for time in scheduler.timesteps:
                seen = scheduler.scale_model_input(latents, time) if self.calling.scales else latents
                prediction = predict(seen, float(time))
                latents = scheduler.step(prediction, time, latents, return_dict=False, **more)[0]
                path.append(latents)
            shared = not torch.equal(before, torch.get_rng_state())
        return path, shared

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        """As the pipelines do it."""
        takes = inspect.signature(scheduler.set_timesteps).parameters
        given: dict[str, object] = {"device": "cpu"}
        by_itself = self.calling.but_flow_sigmas and scheduler.config.get("use_flow_sigmas")
        if self.calling.sigmas and not by_itself:
            given |= self._schedule(steps)
        else:
            given["num_inference_steps"] = steps
        dynamic = self.calling.mu == "dynamic" and scheduler.config.get("use_dynamic_shifting")
        if self.calling.mu == "always" or dynamic:
            given["mu"] = MU
        if missing := [name for name in given if name not in takes]:
            raise ValueError(f"it is handed {' and '.join(missing)}, which it does not take")
        scheduler.set_timesteps(**given)

    def _schedule(self, steps: int) -> dict[str, object]:
        import numpy as np

        if not self.calling.timesteps:
            sigmas = np.linspace(1.0, 1 / steps, steps)
            forms: dict[str, Callable[[], object]] = {
                "array": lambda: sigmas,
                "list": sigmas.tolist,
                "tensor": lambda: torch.from_numpy(sigmas),
            }
            return {"sigmas": forms[self.calling.form]()}
        times = np.linspace(self.train_steps, 1.0, steps).astype(np.int64).astype(np.float32)
        return {"timesteps": times, "sigmas": times / self.train_steps}

    def _perfect(self, seen: torch.Tensor, time: float, image: torch.Tensor) -> torch.Tensor:
        """What leads from this input at this time straight to the image."""
        if self.alphas is None:
            return (seen - image) / max(time / self.train_steps, LEAST_TIME)
        alpha = _between(self.alphas, time)
        kept, added = math.sqrt(alpha), math.sqrt(1 - alpha)
        noise = (seen - kept * image) / added
        return {"epsilon": noise, "v_prediction": kept * noise - added * image, "sample": image}.get(
            self.predicts, noise
        )


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def _between(values: torch.Tensor, place: float) -> float:
    """A value between two entries of a list."""
    last = len(values) - 1
    low = min(max(int(place), 0), last)
    high = min(low + 1, last)
    share = min(max(place - low, 0.0), 1.0)
    return float(values[low] * (1 - share) + values[high] * share)
