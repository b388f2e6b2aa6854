"""Images are scored by a function of the user's: `my_function(images, lines)` returns a number for each.

def contrast(images, lines):        # PIL images in RGB, and their lines of the ledger: line["prompt"], ...
    return [ImageStat.Stat(image.convert("L")).stddev[0] for image in images]
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dglaunch.backends.scoring.base import Wanted
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output.scores import Scored
from dglaunch.search_path import with_current_folder

if TYPE_CHECKING:
    from PIL.Image import Image

AT_A_TIME = 16


class OwnFunction:
    """See the module's docstring."""

    at_a_time = AT_A_TIME

    def __init__(self, wanted: Wanted) -> None:
        """
        Raises:
            UserError: the module does not import, or has no such function.
        """
        assert wanted.function is not None, "a function"
        module, name = wanted.function
        try:
            with with_current_folder():
                found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # the user's own code, whatever it raises
            raise UserError(
                f"--with {wanted.said}: the module {module} does not import: {type(error).__name__}: {error}. Correct it."
            ) from None
        if not callable(found):
            raise UserError(f"--with {wanted.said}: the module {module} has no function {name}. Correct the name.")
        self._said = wanted.said
        self._function: Callable[[list[Image], list[Record]], Any] = found

    def score(self, images: "Sequence[Image]", records: Sequence[Record]) -> Sequence[Scored | str]:
        given = self._function(list(images), [dict(record) for record in records])
        try:
            answers = list(given)
        except TypeError:
            answers = []
        if len(answers) != len(images):
            raise UserError(
                f"--with {self._said}: the function was given {len(images)} images and returned {type(given).__name__} of "
                f"{len(answers)} values; it must return a list with one number for each image (None: no score)."
            )
        return [_scored(answer) for answer in answers]


def _scored(answer: object) -> Scored | str:
    try:
        value = math.nan if answer is None else float(answer)  # type: ignore[arg-type]  # whatever the function returns
    except (TypeError, ValueError):
        return f"the function returned {type(answer).__name__}, which is no number"
    return Scored(value) if math.isfinite(value) else f"the function returned {answer}"
