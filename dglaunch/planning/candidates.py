"""Which optimizations `dglaunch tune --search` tries: every row of the table that this model and machine have, and pairs.

    for candidate in singles(job): print(candidate.name, candidate.flags, candidate.refused)

They come from the table of optimizations and from the rules that refuse a run; nothing is listed here a second time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from dglaunch.errors import UserError
from dglaunch.models.optimizations import ATTENTION, OPTIMIZATIONS, XFUSER_ATTENTION, Optimization, image_settings
from dglaunch.planning.job import Job

PLAIN = "as given"
"""The name of the run without any of them, with which the others are compared."""
AGAIN = f"{PLAIN}, again"
"""The name of the same run, later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Optimizations that are tried together, besides those that the command has already."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Their flags, and the values of these."""
    batch_size: int | None = None
    """Images per forward pass; None: as all others."""
    again: bool = False
    """Whether it is the run as given once more."""
    changes: bool = False
    """Whether they may change the images beyond rounding, as the table says."""
    refused: str = ""
    """Why they cannot be had here."""

    @property
    def is_check(self) -> bool:
        """Whether it shows only what rounding and noise are here."""
        return self.again or self.batch_size is not None

    @property
    def name(self) -> str:
        if self.again:
            return AGAIN
        parts = [flag if value is True else f"{flag} {value}" for flag, value in self.settings.items()]
        if self.batch_size is not None:
            parts.append(f"in batches of {self.batch_size}")
        return " + ".join(parts) or PLAIN

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        return re.sub(r"[^A-Za-z0-9_]+", "-", self.name)

    @property
    def flags(self) -> list[str]:
        """Its words on a command line."""
        given = [[f"--{flag}"] if value is True else [f"--{flag}", str(value)] for flag, value in self.settings.items()]
        return [word for words in given for word in words]


def singles(job: Job) -> list[Candidate]:
    """Return a candidate for each row of the table of optimizations and each of its values, in the table's order."""
    return [_checked(job, settings) for row in OPTIMIZATIONS for settings in _settings_of(row, job)]


def pairs(job: Job, chosen: Sequence[Candidate], known: Iterable[str]) -> list[Candidate]:
    """Return what two of these candidates are together, but for what is known by its name already."""
    seen = set(known)
    found: list[Candidate] = []
    for one, other in combinations(chosen, 2):
        both = {**one.settings, **other.settings}
        agree = all(both[flag] == value for flag, value in one.settings.items())
        ordered = {flag: both[flag] for flag in dict.fromkeys(row.flag for row in OPTIMIZATIONS) if flag in both}
        candidate = _checked(job, ordered | both)
        if agree and candidate.name not in seen:
            seen.add(candidate.name)
            found.append(candidate)
    return found


def _settings_of(row: Optimization, job: Job) -> list[dict[str, object]]:
    """What a row's flag is set to, each with what it needs besides."""
    if row.flag == "attention_backend":
        kernels = XFUSER_ATTENTION if job.config.backend.backend == "xdit" else ATTENTION
        return [{row.flag: name} for name in kernels]
    settings: dict[str, object] = {row.flag: True if row.value is None else row.value}
    if row.uncompiled and job.device == "cuda":
        settings["enable_compile"] = True
    return [settings, *(settings | {flag: value} for flag, value in row.variants)]


def _checked(job: Job, settings: Mapping[str, Any]) -> Candidate:
    """A candidate, and why the rules for runs refuse it, if they do."""
    given = job.config.optimization
    candidate = Candidate(settings=settings)
    taken = [flag for flag in settings if job.origins.get(flag, "default") != "default"]
    if taken:
        return replace(candidate, refused=f"the command sets --{taken[0]} itself")
    optimization = replace(given, **settings)
    candidate = replace(candidate, changes=image_settings(optimization) != image_settings(given))
    try:
        job.profile.check(replace(job.config, optimization=optimization), job.target, job.topology, job.makeable)
    except UserError as error:
        return replace(candidate, refused=str(error))
    return candidate


def reasons(candidates: Iterable[Candidate]) -> dict[str, list[str]]:
    """Return why candidates were refused, each reason once, with the names of those that it holds for."""
    found: dict[str, list[str]] = {}
    for candidate in candidates:
        reason = candidate.refused
        if len(candidate.settings) == 1:
            reason = reason.replace(" ".join(candidate.flags), "it")
        found.setdefault(reason[:1].upper() + reason[1:], []).append(candidate.name)
    return found
