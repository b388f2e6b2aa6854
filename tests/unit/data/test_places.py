"""Places of many tasks in short, as ranks tell them to one another."""

import numpy as np
import pytest

from dglaunch.data.places import numbers_in, runs_of


@pytest.mark.parametrize(
    ("places", "runs"), [([], []), ([3], [3, 4]), ([0, 1, 2], [0, 3]), ([0, 2, 3, 9, 10], [0, 1, 2, 4, 9, 11])]
)
def test_runs_say_the_same(places: list[int], runs: list[int]) -> None:
    assert runs_of(np.array(places, np.int64)) == runs
    assert numbers_in(runs).tolist() == places
