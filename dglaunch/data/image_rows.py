"""Rows with input images, whatever those are for: named while the table is read, and looked at once it is read to its end.

reader.read(rows)                   # a small table: all at once
large_table.write_tasks(reader, ...)    # a large one: `inputs` and the tasks come and go some at a time
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from dglaunch.data.columns import IMAGES, MASK, Named
from dglaunch.data.prompts import RowReader
from dglaunch.data.row_images import Here, Inputs, Reference, RowImages
from dglaunch.data.task import Task
from dglaunch.data.values import is_given
from dglaunch.models.input_roles import Role


class ImageRowReader(RowReader):
    """Rows that have input images, or may have some. Each file is looked at once, several at a time."""

    column_of: Mapping[Role, str]
    """By what images are for: the column that names them."""
    goes_with: Mapping[str, str] = MappingProxyType({MASK: IMAGES})
    """Columns in which a row may only have something where it has something in another."""
    fields: Sequence[str] = ()
    """What a row may set besides where it has input images."""
    needs_image = False
    """Whether each row must have one."""
    max_pixels: int
    inputs: dict[int, Inputs]
    """By index: the input images of the rows that have some."""

    @cached_property
    def images(self) -> RowImages:
        """The images of the table, whose place is known once it is read."""
        return RowImages(self.table or Here(), self.max_pixels)

    def takes_several(self, role: Role) -> bool:
        """Whether a cell may name several images."""
        return False

    def references(self, role: Role, cell: object, number: int, column: str) -> list[Reference]:
        """Return the images that a cell names.

        Args:
            number: the row's in the table.
            column: the table's own name of the column.

        Raises:
            ValueError: it is neither a path nor bytes, nor, where it may name several, a list of them.
        """
        if self.takes_several(role):
            return self.images.several(cell, number, column)
        return [self.images.one(cell, number, column)]

    def refuse_idle_fields(self, label: str, named: Named, roles: Collection[Role]) -> None:
        """Refuse what a row sets of an image that it does not have.

        Args:
            roles: of the images that it has.
        """
        role_of = {column: role for role, column in self.column_of.items()}
        for name in self.fields:
            column, role = named.column_of.get(name), role_of[self.goes_with[name]]
            if column is not None and is_given(named.row[column]) and role not in roles:
                self.problems.append(
                    f"{label}: {column} does nothing, as the row has no {role}; take one of them out or add it"
                )

    def look_at_inputs(self, tasks: Sequence[Task]) -> None:
        self.check_before_images(len(tasks))
        self.images.probe()
        self.add_inputs(tasks)
        self.tell_of_inputs(len(tasks), sum(bool(task.roles) for task in tasks))

    def check_before_images(self, num_tasks: int) -> None:
        """Refuse what needs no look at the images, which takes long.

        Raises:
            InputError: rows are bad.
            UserError: a flag is wrong.
        """

    @abstractmethod
    def add_inputs(self, tasks: Sequence[Task]) -> None:
        """Give tasks what is known of their `inputs`, whose files have been looked at; problems go to `self.problems`. It is the
        same for tasks with the same inputs and settings."""

    def tell_of_inputs(self, num_tasks: int, num_drawn: int) -> None:
        """Say once for all rows what was done to their images.

        Args:
            num_drawn: how many of the tasks are drawn from images.
        """

    def place_of(self, task: Task) -> str:
        """Return what the row of a task with input images is called in messages about its table."""
        return task.row.removeprefix(f"{self.source}, ")
