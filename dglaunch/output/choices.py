"""What was chosen on blind pages, summed up: in how many rows each run's image was taken for the best.

A file of choices names images by the beginning of their sha256, not by their run: so it does not give away which is which,
the folders may be named in any order, and a choice between images that were made anew since does not count.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dglaunch import strict_json
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import read_bytes
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId, id_of

KIND = "choices"
MOST_BYTES = 1 << 28
CONFIDENT = 1.959964
"""Standard deviations to either side that hold 95 %."""


def short_hash(line: Record) -> str | None:
    """Return the beginning of an image's sha256, as its ledger line says it."""
    digest = line.get("sha256")
    return digest[:16] if isinstance(digest, str) else None


@dataclass(frozen=True, slots=True)
class Choice:
    """What somebody chose in one row."""

    task: TaskId
    among: tuple[str, ...]
    """The images, by `short_hash`, as they stood from left to right."""
    chosen: str | None
    """One of them, or None where none was better."""


def read_choices(path: Path) -> list[Choice]:
    """Return what is in a file that a blind page wrote.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        found = strict_json.loads(read_bytes(path, MOST_BYTES))
    except OSError as error:
        raise UserError(f"--choices {path} cannot be read: {error.strerror or error}.") from None
    except ValueError:
        found = None
    listed = found.get("choices") if isinstance(found, dict) and found.get("dglaunch") == KIND else None
    choices = [_choice(item) for item in listed] if isinstance(listed, list) else []
    if not isinstance(listed, list) or None in choices:
        raise UserError(
            f"--choices {path} is no file of choices. Open a page of dglaunch gallery A B --blind, choose, and take the file "
            "that its button Download choices gives."
        )
    return [choice for choice in choices if choice is not None]


def _choice(item: object) -> Choice | None:
    if not isinstance(item, dict):
        return None
    index, sample, among, chosen = (item.get(name) for name in ("index", "sample", "among", "chosen"))
    whole = all(type(value) is int or (isinstance(value, str) and value.isdigit()) for value in (index, sample))
    if not whole or not isinstance(among, list) or not all(isinstance(value, str) for value in among):
        return None
    if len(among) < 2 or not (chosen is None or chosen in among):
        return None
    return Choice((int(str(index)), int(str(sample))), tuple(among), chosen)


@dataclass(slots=True)
class Tally:
    """How often each of several runs was chosen."""

    wins: list[int]
    ties: int = 0
    rows: set[TaskId] = field(default_factory=set)
    num_left_out: int = 0
    """Choices among images that are not these folders' (any more)."""

    @property
    def num_choices(self) -> int:
        return sum(self.wins) + self.ties

    def interval(self, run: int) -> tuple[float, float]:
        """Return the shares between which a run's true share of wins lies, with 95 % confidence (Wilson, 1927)."""
        n, share, z = self.num_choices, self.wins[run] / self.num_choices, CONFIDENT
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def chance(self) -> float:
        """Of two runs that are equally good: how likely it is that one wins as often as here, or oftener (a sign test of
        both sides, ties left out)."""
        n, most = sum(self.wins), max(self.wins)
        tail = math.fsum(
            math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
            for k in range(most, n + 1)
        )
        return min(1.0, 2 * tail)


def tally(folders: Sequence[Path], choices: Iterable[Choice]) -> Tally:
    """Return how often the images of each folder were chosen.

    Raises:
        UserError: one is no folder of results.
    """
    listed = list(choices)
    wanted = {choice.task for choice in listed}
    images: list[dict[TaskId, str | None]] = []
    for folder in folders:
        opened = OutputFolder(folder)
        opened.require_results()
        images.append({id_of(line): short_hash(line) for line in opened.records() if id_of(line) in wanted})
    found = Tally([0] * len(folders))
    for choice in listed:
        here = [of_run.get(choice.task) for of_run in images]
        if set(choice.among) != set(here) - {None}:
            found.num_left_out += 1
            continue
        found.rows.add(choice.task)
        winners = [number for number, digest in enumerate(here) if digest == choice.chosen]
        if choice.chosen is not None and len(winners) == 1:
            found.wins[winners[0]] += 1
        else:
            found.ties += 1
    return found
