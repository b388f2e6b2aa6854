"""What `dglaunch tune --search` measured, and which of it is worth having: the front of speed and difference, two choices.

A difference is the mean difference of the pixels (of 255) of the image that moved most, against the run as given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self, get_type_hints

from dglaunch.data.task import Record
from dglaunch.output.differences import SEEN
from dglaunch.planning.candidates import AGAIN, PLAIN, Candidate
from dglaunch.planning.tuned import GAIN

ROUNDING = 2.0
"""What only rounds otherwise may move the images so many times as far as batches of another size do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The parallel configuration and the batch size at which all are measured."""

    parallel: Mapping[str, str]
    """DG_XDIT_* variables."""
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one candidate came to."""

    name: str
    num_flags: int = 0
    changes: bool = False
    """Whether it may change the images beyond rounding, as the table says."""
    is_check: bool = False
    """Whether it shows only what rounding and noise are here: the plain run in batches of another size, or once more."""
    images_per_s: float = 0.0
    """Of all replicas together; 0: it could not be measured."""
    seconds_per_step: float = 0.0
    """Of a batch: its seconds, decoding included, by its denoising steps."""
    peak_memory: int = 0
    """Bytes, of the rank that needed most."""
    num_compared: int = 0
    greatest: int = 0
    """Of 255, of any pixel of any image."""
    difference: float = 0.0
    """Of 255: the mean over the pixels of the image that moved most."""
    psnr: float | None = None
    """In dB, of all images together; None where all are equal."""
    ssim: float = 1.0
    worst: str = ""
    """The file of the image that moved most."""
    note: str = ""
    ended: str = ""
    """Why there are no numbers."""

    @classmethod
    def of(cls, record: object) -> Self:
        """Return a trial from JSON.

        Raises:
            ValueError: it is not one.
        """
        kinds = get_type_hints(cls)
        if not isinstance(record, dict) or record.keys() != kinds.keys():
            raise ValueError("it is no trial")
        if not all(isinstance(value, kinds[name]) for name, value in record.items()):
            raise ValueError("it is no trial")
        return cls(**record)

    def record(self) -> Record:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured, and what it comes to."""

    trials: Sequence[Trial]

    @property
    def measured(self) -> list[Trial]:
        """Those with numbers, the fastest first."""
        return sorted((trial for trial in self.trials if trial.images_per_s), key=lambda trial: -trial.images_per_s)

    @property
    def plain(self) -> Trial:
        return next(trial for trial in self.trials if trial.name == PLAIN)

    def gain(self, trial: Trial) -> float:
        """Return how many times as fast it is as the plain run."""
        return trial.images_per_s / self.plain.images_per_s

    @property
    def noise(self) -> float:
        """How many times as fast the plain run was at one time as at another; at least GAIN, below which nothing counts."""
        speeds = [trial.images_per_s for trial in self.measured if trial.name in (PLAIN, AGAIN)]
        return max(GAIN, max(speeds) / min(speeds))

    @property
    def front(self) -> list[Trial]:
        """Those than which no other is both as fast and as near to the plain run, the nearest first."""
        return front(self._choices)

    def is_lossless(self, trial: Trial) -> bool:
        """Whether it changes nothing beyond rounding: by the table, and as measured. What rounding does here is seen at the
        plain run in batches of another size."""
        rounding = max((other.difference for other in self.measured if other.is_check), default=0.0)
        near = trial.greatest <= SEEN or trial.difference <= ROUNDING * rounding
        return not trial.changes and near

    @property
    def lossless(self) -> Trial:
        """The fastest that changes nothing beyond rounding."""
        return self._fastest([trial for trial in self._choices if self.is_lossless(trial)])

    def within(self, most: float) -> Trial:
        """Return the fastest that moves no image by more."""
        return self._fastest([trial for trial in self._choices if trial.difference <= most])

    @property
    def _choices(self) -> list[Trial]:
        return [trial for trial in self.measured if not trial.is_check]

    def _fastest(self, trials: Sequence[Trial]) -> Trial:
        """Of those that are as fast as the fastest but for noise, the one with the fewest flags, then the nearest."""
        most = max(trial.images_per_s for trial in trials)
        near = [trial for trial in trials if trial.images_per_s * self.noise >= most]
        return min(near, key=lambda trial: (trial.num_flags, trial.difference, -trial.images_per_s))

    def worth_pairing(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return those that were faster than the plain run and, of those with the same first flag, on the front."""
        by_name = {trial.name: trial for trial in self.measured}
        by_flag: dict[str, list[Trial]] = {}
        for candidate in candidates:
            trial = by_name.get(candidate.name)
            if trial is not None and candidate.settings and self.gain(trial) >= self.noise:
                by_flag.setdefault(next(iter(candidate.settings)), []).append(trial)
        worth = {trial.name for trials in by_flag.values() for trial in front(trials)}
        return [candidate for candidate in candidates if candidate.name in worth]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Return those than which no other is faster and as near, or nearer and as fast; the nearest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.difference, -trial.images_per_s)):
        if not found or trial.images_per_s > found[-1].images_per_s:
            found.append(trial)
    return found
