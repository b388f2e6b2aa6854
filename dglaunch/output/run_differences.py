"""What differs between runs: their settings, as run.json has them, and what their images' lines say.

headings(runs)                       # of several run.json: [Heading("guidance_scale", ("1", "4")), ...]
found = RowDifferences(2)            # the same of ledger lines, one image after the other
found.add([line_of_one, line_of_other])
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dglaunch import strict_json
from dglaunch.config import API, CALL, FILE, IDENTITY, IMAGE, LOCAL, REPLAY, ROW, flags_that
from dglaunch.data.task import Record
from dglaunch.output.ledger import object_at

NOT_SAID = object()
MOST_SHOWN = 100
"""Characters of a setting in a heading."""
OF_A_LINE = frozenset(
    {"index", "sample", "file_name", "bytes", "key", "sha256", "rank", "node", "batch_size", "seconds", "time", "error"}
    | {"input_sha256", "input_file_names", "redo", "redo_of"}
)
"""What says which image it is, or when and where it was made: no setting."""


@dataclass(frozen=True, slots=True)
class Heading:
    """One thing that differs between runs, and what it is in each of them, as text."""

    name: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {' | '.join(self.values)}"


def headings(runs: Sequence[Record]) -> list[Heading]:
    """Return what differs between runs, as their run.json say it: settings first, then the machine and the versions. What one
    of them does not say at all (an older one) is not compared."""
    said = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for settings in said for name in settings))
    found: list[Heading] = []
    for name in names:
        values = [settings.get(name, NOT_SAID) for settings in said]
        if NOT_SAID not in values and any(value != values[0] for value in values):
            found.append(Heading(name, tuple(map(shown, values))))
    return found


def _settings(run: Record) -> Record:
    """All of a run.json by which images or their time could differ; what was left to a default has the default's value."""
    flags, given, defaults = (
        flags_that(IDENTITY | IMAGE | FILE | REPLAY | ROW | CALL | LOCAL | API),
        {},
        object_at(run, "defaults"),
    )
    for name, entry in object_at(run, "config").items():
        if name in flags and isinstance(entry, Mapping):
            given[name] = entry.get("value")
    found = given | object_at(run, "settings")
    found |= {name: defaults[name] for name, value in found.items() if value is None and name in defaults}
    topology = object_at(run, "topology")
    degrees = object_at(topology, "degrees")
    found |= {
        name: item[name]
        for item in (run, topology, degrees)
        for name in ("device", "world_size", *degrees)
        if name in item
    }
    versions = {name: value for name, value in object_at(run, "versions").items() if name != "host"}
    return found | {f"version of {name}": value for name, value in versions.items()}


def shown(value: object) -> str:
    """Return a setting as a heading shows it: 4 for 4.0, and of a long text the beginning."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or value is NOT_SAID:
        return "none" if value is None else "not said"
    text = value if isinstance(value, str) else strict_json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


@dataclass(slots=True)
class RowDifferences:
    """What differs between the lines about one image in several ledgers, over all images. What a line does not say at all (that
    of a failure, or of an older version) is not compared."""

    num_runs: int
    _num_said: Counter[str] = field(default_factory=Counter)
    """In how many rows at least two lines say it."""
    _num_differing: Counter[str] = field(default_factory=Counter)
    _first: dict[str, list[object]] = field(default_factory=dict)
    """What each run said first of what differs."""
    _changing: set[str] = field(default_factory=set)

    def add(self, lines: Sequence[Record | None]) -> dict[str, list[object]]:
        """Take the lines about one image (None: a run has none), and return what differs between them: a value a run."""
        found: dict[str, list[object]] = {}
        for name in dict.fromkeys(name for line in lines if line is not None for name in line):
            said = [line[name] for line in lines if line is not None and name in line]
            if name in OF_A_LINE or len(said) < 2:
                continue
            self._num_said[name] += 1
            if any(value != said[0] for value in said):
                found[name] = [line.get(name) if line is not None else None for line in lines]
                self._note(name, [NOT_SAID if line is None else line.get(name, NOT_SAID) for line in lines])
        return found

    def _note(self, name: str, values: Sequence[object]) -> None:
        self._num_differing[name] += 1
        first = self._first.setdefault(name, [NOT_SAID] * self.num_runs)
        for number, value in enumerate(values):
            if first[number] is NOT_SAID:
                first[number] = value
            elif value is not NOT_SAID and value != first[number]:
                self._changing.add(name)

    def constant(self) -> list[Heading]:
        """Return what differs in the same way for every image: it is the runs', not the images'."""
        return [
            Heading(name, tuple(map(shown, self._first[name])))
            for name, count in self._num_differing.items()
            if count == self._num_said[name] and name not in self._changing
        ]

    def by_row(self) -> list[str]:
        """Return the names of what differs between the runs otherwise for some images than for others."""
        constant = {heading.name for heading in self.constant()}
        return [name for name in self._num_differing if name not in constant]
