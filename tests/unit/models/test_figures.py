"""Figures as JSON: what anyone may have put into the cache is taken as figures or refused, and breaks nothing later."""

import json
from typing import Any

import pytest

from dglaunch.models.figures import Figures, StageCost
from dglaunch.planning.figures import SHIPPED

COST = {"fixed_bytes": 1, "image_bytes": 2, "flops": 3.5, "launches": 4, "sent_bytes": 5}
SIZES = {"largest": 3, "outside": 2, "tables": 0}
GOOD = {
    "weights": {"vae": 7},
    "block_sizes": {"vae": SIZES},
    "encode": COST,
    "denoise": COST,
    "decode": COST,
    "num_inference_steps": 28,
}


def test_figures_come_back_as_they_were() -> None:
    figures = Figures.from_json(GOOD)
    assert figures.denoise == StageCost(**COST) and Figures.from_json(figures.as_json()) == figures


def test_all_that_is_shipped_are_figures() -> None:
    if SHIPPED.exists():
        for found in json.loads(SHIPPED.read_text())["figures"].values():
            Figures.from_json(found)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_inference_steps": 1.5}, {"num_inference_steps": True}, {"num_inference_steps": -1}, {"num_inference_steps": None},
        {"weights": {"vae": 10**400}}, {"weights": {"vae": 1.5}}, {"weights": {"vae": "7"}}, {"weights": [7]},
        {"block_sizes": {"vae": SIZES | {"largest": -1}}}, {"block_sizes": {"vae": SIZES | {"more": 1}}}, {"block_sizes": [7]},
        {"block_sizes": {"vae": 7}}, {"block_sizes": None},
        {"denoise": COST | {"flops": 1e300}}, {"denoise": COST | {"flops": 10**400}}, {"denoise": COST | {"flops": float("nan")}},
        {"denoise": COST | {"image_bytes": 0.5}}, {"denoise": COST | {"launches": -1}}, {"denoise": COST | {"more": 1}},
        {"num_inference_steps": 0}, {"denoise": COST | {"flops": 0.0}}, {"denoise": {}, "encode": 5}, {"decode": []}, {"decode": None},
    ],
)  # fmt: skip
def test_what_is_no_figures_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no figures"):
        Figures.from_json(GOOD | changed)
