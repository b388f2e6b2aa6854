"""The columns of a table: which of them are which settings, and which are merely carried into the ledger.

    columns = Columns(config)
    named = columns.name({"Prompt": "a fox", "id": "q1"})
    named.given                 # {"prompt": "a fox"}

Names match whatever their case; --prompt_column and the like name others. What is called nearly as a setting is refused
when the table is read to its end: a guidance scale that is misspelt would be ignored in silence. A folder that was begun
before goes on: there the columns mean what they meant.
"""

import difflib
import enum
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from dglaunch import strict_json
from dglaunch.config import API, CALL, IDENTITY, IMAGE, ROW, RunConfig, flags_that
from dglaunch.data.prompt_windows import LEDGER_KEYS
from dglaunch.data.task import LORA, ROW_FIELDS, Record
from dglaunch.data.values import is_given
from dglaunch.errors import UserError
from dglaunch.models.input_roles import Role

IMAGES, MASK, CONTROL = "input_images", "mask", "control_image"
COLUMN_OF: Mapping[Role, str] = {"image": IMAGES, "mask": MASK, "control": CONTROL}
"""By what an input image is for: the column that names it."""
NAMED_BY = {
    "prompt": "prompt_column",
    "instruction": "instruction_column",
    IMAGES: "image_column",
    MASK: "mask_column",
    CONTROL: "control_column",
    "seed": "seed_column",
    "negative_prompt": "negative_prompt_column",
}
"""What a flag names the column of."""
SETTINGS = (*ROW_FIELDS, "steps", "num_images_per_prompt")
PLACES = ("index", "id")
"""Columns that number the rows."""
SHOWN = 12
"""Names of columns in a message."""
CLOSE = 0.85
"""Of difflib, from where a name is taken for a setting that is misspelt: guidence_scale, seeds; not prompt_id (0.8)."""
INNOCENT = ("speed", *LEDGER_KEYS)
"""Words that are close to a setting's name and are others; dglaunch's own ledger may be a table, too."""
SIZE = "write width and height, in pixels"
NO_SAMPLER = "it is set for the whole job, by --scheduler"
NO_SECOND = "dglaunch has no such setting, all text encoders of a model get the same prompt"
RENAMED = {
    "guidance_scale": "cfg cfg_scale cfg_value guidance guidance_value true_cfg true_cfg_scale",
    "num_inference_steps": "num_steps n_steps nsteps step_count inference_steps sampling_steps denoising_steps sample_steps",
    "num_images_per_prompt": "n num_images n_images num_samples n_samples num_outputs images_per_prompt",
    "negative_prompt": "negative neg neg_prompt uncond_prompt",
    "seed": "random_seed rng_seed noise_seed image_seed",
    "width": "w image_width",
    "height": "h image_height",
}  # fmt: skip
"""By a setting: what other programs call it."""
UNKNOWN = {
    SIZE: "size image_size resolution aspect_ratio",
    NO_SAMPLER: "sampler sampler_name scheduler sampling_method",
    NO_SECOND: "prompt_2 negative_prompt_2 prompt_3 negative_prompt_3",
}
"""Settings of other programs that no column of dglaunch's is, by what to do about it."""


def _plain(name: str) -> str:
    """A name without what people write differently: case, blanks, dashes."""
    return re.sub(r"[\W_]+", "", name.casefold())


_OTHER_NAMES = {_plain(name): setting for setting, names in RENAMED.items() for name in names.split()}
_NO_COLUMNS = {_plain(name): remedy for remedy, names in UNKNOWN.items() for name in names.split()}
_OF_THE_JOB = {_plain(name): name for name in set(flags_that(CALL | IDENTITY | IMAGE)) - set(flags_that(ROW | API))}
_PLAIN_SETTINGS = {_plain(name): name for name in SETTINGS}


def near_miss(name: str) -> str | None:
    """Say what to do about a column that looks like a setting and is none, as the end of a sentence about it; None if it
    does not look like one."""
    plain = _plain(name)
    if name.casefold() in (*SETTINGS, *PLACES, *INNOCENT):
        return None
    setting = _PLAIN_SETTINGS.get(plain) or _OTHER_NAMES.get(plain)
    if setting is not None:
        return _remedy(setting, name)
    if plain in _NO_COLUMNS:
        return _NO_COLUMNS[plain]
    if plain in _OF_THE_JOB:
        return f"it is set for the whole job, by --{_OF_THE_JOB[plain]}"
    anagram = next((other for other in _PLAIN_SETTINGS if sorted(other) == sorted(plain)), None)  # heigth
    near = [anagram] if anagram else difflib.get_close_matches(plain, _PLAIN_SETTINGS, n=1, cutoff=CLOSE)
    return _remedy(_PLAIN_SETTINGS[near[0]], name) if near else None


def _remedy(setting: str, name: str) -> str:
    flag = NAMED_BY.get(setting)
    return f"rename it {setting}" + (f", or give --{flag} {quoted(name)}" if flag else "")


class Past(enum.Enum):
    """What the output folder says of an earlier start of this job."""

    NEW = "new"
    """There was none."""
    BEGUN = "begun"
    """It is to go on, whatever it did not look at."""
    EXACT = "exact"
    """The same, and it took columns for what they are only where their case was right."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the columns of a row are, found once for all rows that have the same."""

    column_of: Mapping[str, str]
    """By what dglaunch calls it: its column."""
    clash: str | None
    """What is wrong with the names."""


@dataclass(slots=True)
class Named:
    """A row, and those of its values that dglaunch knows, by the names that it has for them."""

    row: Record
    given: Record
    """Whoever uses a value takes it out; what is left is carried into the ledger with the other columns."""
    column_of: Mapping[str, str]

    def rest(self) -> Record:
        """Return the columns whose values nobody has taken out, by the table's own names."""
        taken = {column for name, column in self.column_of.items() if name not in self.given}
        return {column: self.row[column] for column in self.row if column not in taken}

    def called(self, name: str) -> str:
        """Return what the table calls it."""
        return self.column_of.get(name, name)


class Columns:
    """The Columns of one table: what they are, and what was found of them."""

    def __init__(self, config: RunConfig, past: Callable[[], Past] = lambda: Past.NEW) -> None:
        """
        Args:
            past: asked only if something depends on it: all ranks must come to ask, or none.
        """
        texts = ("instruction", IMAGES) if config.edits else ("prompt",)
        self.names = (*texts, *SETTINGS, *PLACES, *_names_of_inputs(config))
        named = {name: getattr(config, flag, None) for name, flag in NAMED_BY.items() if name in self.names}
        self.flagged = {name: column for name, column in named.items() if column is not None}
        self.ignored = config.ignore_columns
        self.has_lora = bool(config.backend.lora)
        self.used_otherwise: set[str] = set()
        """Columns that something else than a setting uses."""
        self.axes: Mapping[str, Sequence[object]] = {}
        """What --grid varies beside them."""
        self.told: dict[str, str] = {}
        """What is told of the rows besides, by its name among the reasons."""
        self._ask = past
        self._past: Past | None = None
        self._meanings: dict[tuple[str, ...], Meaning] = {}
        self._found: dict[str, str] = {}
        """What was used, and the column that it came from first."""
        self._kept: dict[str, None] = {}
        self._near: dict[str, tuple[str, int, str]] = {}
        """Columns that look like settings: the first row with a value there, the number of such rows, what to do."""

    @property
    def past(self) -> Past:
        if self._past is None:
            self._past = self._ask()
        return self._past

    # -- a row --------------------------------------------------------------------------------------------------------

    def name(self, row: Record) -> Named:
        """Return a row with its values by their names.

        Raises:
            ValueError: two columns would be the same.
        """
        meaning = self.meaning_of(tuple(row))
        if meaning.clash is not None:
            raise ValueError(meaning.clash)
        given = {name: row[column] for name, column in meaning.column_of.items()}
        return Named(row, given, meaning.column_of)

    def meaning_of(self, names: tuple[str, ...]) -> Meaning:
        """Return what the columns of these names are."""
        meaning = self._meanings.get(names)
        if meaning is None:
            meaning = self._meanings[names] = self._meaning(names)
        return meaning

    def _meaning(self, names: Sequence[str]) -> Meaning:
        column_of = {name: found for name, wanted in self.flagged.items() if (found := find(names, wanted)) is not None}
        apart = {*column_of.values(), *(find(names, column) for column in self.ignored)}
        left = [column for column in names if column not in apart]
        clashes = []
        for name in self.names:
            if name in self.flagged:
                continue
            alike = sorted((column for column in left if column.casefold() == name), key=name.__ne__)
            if alike and name == LORA and not self.has_lora and self.past is not Past.NEW:
                continue  # a folder that was begun when it was no setting yet, and was carried along
            if alike not in ([], [name]) and self.past is Past.EXACT:
                alike = [column for column in alike if column == name]
            if alike:
                column_of[name] = alike[0]
            if len(alike) > 1:
                both = " and ".join(map(repr, alike))
                clashes.append(
                    f"has the columns {both}, and one only can be the {name}: take one out, or name it in --ignore_columns"
                )
        return Meaning(column_of, "; ".join(clashes) or None)

    def ignores(self, column: str) -> bool:
        """Whether --ignore_columns says that a column is no setting."""
        return find(self.ignored, column) is not None

    def note(self, label: str, named: Named, kept: Iterable[str]) -> None:
        """Note what of a row was used, and what was kept."""
        if not self._found.keys() >= named.column_of.keys():
            for name, column in named.column_of.items():
                if name not in named.given and is_given(named.row[column]):
                    self.note_used(name, column)
        for column in kept:
            self.note_kept(label, column)

    def note_used(self, name: str, column: str) -> None:
        """Note that a column was used for what dglaunch calls `name`."""
        self._found.setdefault(name, column)

    def note_kept(self, label: str, column: str, num_rows: int = 1) -> None:
        """Note that a column was kept.

        Args:
            label: of the first of these rows.
        """
        if column not in self._kept:
            self._kept[column] = None
            remedy = None if self.ignores(column) else near_miss(column)
            if remedy is not None:
                self._near[column] = label, 0, remedy
        if column in self._near:
            first, count, remedy = self._near[column]
            self._near[column] = first, count + num_rows, remedy

    # -- the table ----------------------------------------------------------------------------------------------------

    def check(self, source: str) -> None:
        """Look at all columns, once the table is read to its end.

        Args:
            source: what the table is called.

        Raises:
            UserError: a flag names a column that is not there, or a column looks like a setting and is none.
        """
        seen = dict.fromkeys(chain.from_iterable(self._meanings))
        for flag, column in self._named():
            if find(seen, column) is None:
                raise UserError(
                    f"--{flag} {quoted(column)}: {source} has no such column{there_are(seen)}. Correct it, or drop it."
                )
        near = {column: found for column, found in self._near.items() if column not in self.used_otherwise}
        if near and self.past is Past.NEW:
            raise UserError(_refusal(source, near))

    def _named(self) -> Iterable[tuple[str, str]]:
        """Flags that name columns, each with one of them."""
        yield from ((NAMED_BY[name], column) for name, column in self.flagged.items())
        yield from (("ignore_columns", column) for column in self.ignored)

    def missing(self, name: str, named: Named) -> str:
        """Say that a row has nothing where it needs something."""
        wanted = self.flagged.get(name, name)
        if (column := named.column_of.get(name)) is not None:
            return f"{column} is empty"
        other = "" if name in self.flagged or not named.row else f"; --{NAMED_BY[name]} says what it is called here"
        return f"no {wanted}{there_are(named.row)}{other}"

    @property
    def num_points(self) -> int:
        """Return how many images --grid makes of one."""
        return math.prod(map(len, self.axes.values()))

    @property
    def summary(self) -> str:
        """Return in one line what was used and what was kept."""
        used = [name if column.casefold() == name else f"{name} ({column})" for name, column in self._found.items()]
        used += [f"{column} (in --prompt_template)" for column in self._kept if column in self.used_otherwise]
        kept = [column for column in self._kept if column not in self.used_otherwise]
        return f"used: {_listed(used)}" + (f"; kept: {_listed(kept)}" if kept else "")

    @property
    def record(self) -> Record:
        """Return what run.json says of the columns, for the next start too, and of the axes of a grid."""
        found = {"used": self._found, "kept": list(self._kept), "exact_names": self._past is Past.EXACT}
        return ({"grid": self.axes} if self.axes else {}) | {"columns": found}

    # -- for another process --------------------------------------------------------------------------------------------

    def dumps(self) -> str:
        """Return what was found of the table, for a process that has not read it."""
        otherwise = sorted(self.used_otherwise)
        return strict_json.dumps(
            {"found": self._found, "kept": [*self._kept], "otherwise": otherwise, "told": self.told}
        )

    def take_over(self, text: str) -> None:
        """Take over what another process has found of the same table."""
        said = json.loads(text)
        self._found, self._kept = said["found"], dict.fromkeys(said["kept"])
        self.used_otherwise, self.told = set(said["otherwise"]), said["told"]


def _names_of_inputs(config: RunConfig) -> Iterable[str]:
    """What a table has only where a flag names its column of input images; else columns of these names are carried along."""
    named = [name for name in (IMAGES, MASK, CONTROL) if getattr(config, NAMED_BY[name], None) is not None]
    yield from (name for name in named if not (config.edits and name == IMAGES))
    if (MASK if config.edits else IMAGES) in named:
        yield "strength"
    if CONTROL in named:
        yield "control_scale"


def find(names: Collection[str], wanted: str) -> str | None:
    """Return the name that is wanted: the very one, or else the first in another case."""
    if wanted in names:
        return wanted
    folded = wanted.casefold()
    return next((name for name in names if name.casefold() == folded), None)


def there_are(names: Iterable[str]) -> str:
    """Name the columns that there are, in brackets: they show how one may be called here."""
    names = list(names)
    return f" (there are: {_listed(names)})" if names else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def quoted(name: str) -> str:
    """Return a name as a shell takes it."""
    return name if re.fullmatch(r"[\w./-]+", name) else "'" + name.replace("'", "'\\''") + "'"


def _refusal(source: str, near: Mapping[str, tuple[str, int, str]]) -> str:
    columns = "a column" if len(near) == 1 else f"{len(near)} columns"
    looks = "looks like a setting and is" if len(near) == 1 else "look like settings and are"
    lines = [
        f"  {column}: {remedy} ({first}{f' and {count - 1:,} more' if count > 1 else ''})"
        for column, (first, count, remedy) in near.items()
    ]
    names = " ".join(map(quoted, near))
    return (
        f"{source} has {columns} that {looks} none, so nothing would come of what is written there. Nothing was run. Do as is "
        f"said below, or keep them as they are: --ignore_columns {names}\n" + "\n".join(lines)
    )
