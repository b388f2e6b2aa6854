"""What `dglaunch redo` is asked: which images of a job are made anew, and what is changed about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from dglaunch.config import MAX_SEED
from dglaunch.data import values
from dglaunch.data.row_filter import RowFilter
from dglaunch.data.task import INPUT_FIELDS, LORA, Record, Task, goes_with
from dglaunch.data.values import Check
from dglaunch.errors import UserError
from dglaunch.models.input_roles import roles_text
from dglaunch.output import scores
from dglaunch.output.ledger import FAILURES, OutputFolder
from dglaunch.output.lines import TaskId, id_of
from dglaunch.output.replaced import PendingRedo


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """A Redo says which images are made anew, and how; the same on every rank."""

    filter_rows: str | None = None
    failed: bool = False
    """Those that failed and have no image, in place of a filter."""
    seed_offset: int = 0
    """What is added to the seed that the row has."""
    values: Mapping[str, object] = field(default_factory=dict)
    """What takes the place of a row's own values: prompt, seed, guidance_scale, ..."""

    @property
    def asked(self) -> Record:
        """The same in JSON's types."""
        return {
            "filter_rows": self.filter_rows, "failed": self.failed, "seed_offset": self.seed_offset, "set": dict(self.values)
        }  # fmt: skip

    @property
    def changes(self) -> bool:
        """Whether other images are wanted than those that there are."""
        return bool(self.seed_offset or self.values)

    # -- which ----------------------------------------------------------------------------------------------------

    def choose(self, folder: OutputFolder, tasks: Sequence[Task], done: Iterable[TaskId]) -> PendingRedo:
        """Return which of a job's tasks are meant: those of the same command that was stopped before its end, else those that
        the flags choose now. Nothing is changed.

        Raises:
            UserError: a filter names what is not there, or leaves nothing.
        """
        pending = PendingRedo.read(folder)
        if pending is not None and pending.asked == self.asked:
            return pending
        if self.failed:
            failed = {id_of(record) for record in folder.records(FAILURES)}.difference(done)
            return PendingRedo.begun(self.asked, [task.id for task in tasks if task.id in failed])
        assert self.filter_rows is not None, "one of both is given"
        return PendingRedo.begun(self.asked, self._filtered(self.filter_rows, folder, tasks))

    def _filtered(self, text: str, folder: OutputFolder, tasks: Sequence[Task]) -> list[TaskId]:
        """Each image is asked about with all that its ledger line says, and its scores; one that is not made, with what is known of its row."""
        wanted = RowFilter(text)
        left = {task.id: task for task in tasks}
        chosen: list[TaskId] = []
        scored = scores.read_all(folder)
        for record in chain(folder.records(), folder.records(FAILURES)):
            if (task := left.pop(id_of(record), None)) is not None and wanted.wants(
                task.index, _columns(task) | scores.with_scores(record, scored)
            ):
                chosen.append(task.id)
        chosen += [task.id for task in left.values() if wanted.wants(task.index, _columns(task))]
        indices = [task.index for task in tasks]
        wanted.check(str(folder.path), min(indices), max(indices))
        if not chosen:
            raise UserError(
                f"--filter_rows {text} leaves none of the {len(tasks):,} images of {folder.path}, whose indices are "
                f"{min(indices)} to {max(indices)}. Correct it."
            )
        return chosen

    # -- how ------------------------------------------------------------------------------------------------------

    def applied(self, tasks: Sequence[Task], token: str, checks: Mapping[str, Check]) -> list[Task]:
        """Return the tasks as they are made now.

        Args:
            tasks: as the table has them.
            token: what their ledger lines say in `redo`.
            checks: what looks at the value of a row.

        Raises:
            UserError: a value is none that a row may have, or says something of an image that a row does not have, or a seed is
                beyond what there is.
        """
        for name in INPUT_FIELDS:
            if self.values.get(name) is not None:
                _refuse_idle(name, tasks)
        changed = {name: self._checked(name, value, checks) for name, value in self.values.items() if name != "seed"}
        given = self.values.get("seed")
        first = None if given is None else self._checked("seed", given, checks)
        found = []
        for task in tasks:
            seed = (task.seed if not isinstance(first, int) else first + task.sample) + self.seed_offset
            if not 0 <= seed <= MAX_SEED:
                raise UserError(
                    f"--seed_offset {self.seed_offset}: the seed of row {task.index} would be {seed}; it must be 0 to 2^63 - 1."
                )
            redo: Record = {"redo": token, "redo_of": task.key}
            found.append(replace(task, seed=seed, redo=redo, **changed))  # type: ignore[arg-type]  # checked by `checks`
        return found

    @staticmethod
    def _checked(name: str, value: object, checks: Mapping[str, Check]) -> object:
        if value is None and name not in ("prompt", "seed"):
            return () if name == LORA else None
        check = values.text if name == "prompt" else checks[name]
        try:
            return check(value)
        except ValueError as error:
            raise UserError(f"--set {name} {error}.") from None


def _refuse_idle(name: str, tasks: Sequence[Task]) -> None:
    """Refuse a value of INPUT_FIELDS for rows that lack the image which it goes with."""
    lacking = {task.index: role for task in tasks if (role := goes_with(name, _edits(task))) not in task.roles}
    if lacking:
        index, role = next(iter(lacking.items()))
        rest = (
            f" Leave such rows out with --filter_rows ({len(lacking)} of {len(tasks)})."
            if len(lacking) < len(tasks)
            else ""
        )
        raise UserError(
            f"--set {name}: it does nothing for row {index}, which is made without {roles_text([role])}.{rest}"
        )


def _edits(task: Task) -> bool:
    return bool(task.images) and not task.is_fitted


def _columns(task: Task) -> Record:
    """What is known of a task without an image, by the names that the ledger has."""
    return {**(task.extra or {}), "index": task.index, "sample": task.sample, **task.content(), **task.origin()}
