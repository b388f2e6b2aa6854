"""The checker of the embedded checkpoint's pictures against hundreds of drawings: a minute of looking. Its rules, one by one: unit/tiny/test_tiny.py."""

import random

import numpy as np
import pytest

from dglaunch.tiny.training import checker, draw, spec


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 128)])
def test_drawn_objects_pass_the_checker_at_any_size(size):
    rng = random.Random(3)
    items = [spec.sample(rng, kind) for kind in ("one", "two") for _ in range(10)]
    assert np.mean([checker.objects(draw.picture(item, *size), item)["all"] for item in items]) >= 0.95


@pytest.mark.slow
def test_the_checker_against_the_drawing_code():
    scores = checker.self_test(count=60)
    for name, share in scores.items():
        assert share >= 0.97 if name.endswith("right") else share <= 0.1, scores
