"""The figures that dglaunch ships are what a trace says today: each of them anew (`make soak`; test_true_size.py compares one trace
with figures that were measured otherwise, always)."""

import json
from functools import cache
from typing import Any

import pytest

from dglaunch.models.catalogue import names
from dglaunch.planning.figures import SHIPPED, are_alike, in_this_process, key_of
from dglaunch.planning.shipping import PACKAGES, checkpoint_of, usual_requests
from dglaunch.system import versions
from support.versions import pinned_diffusers

pytestmark = [pinned_diffusers, pytest.mark.slow, pytest.mark.usefixtures("published_size")]

NOT_TRACED = ("zai-org/GLM-Image",)
"""Models that no trace can follow: for these plan says a formula."""


@cache
def shipped() -> Any:
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


def test_they_were_traced_with_versions_that_count_for_those_here() -> None:
    assert are_alike({name: versions().get(name, "") for name in PACKAGES}, shipped()["versions"])


@pytest.mark.parametrize("model", names())
def test_shipped_figures_are_traced_anew(model: str) -> None:
    checkpoint, config = checkpoint_of(model)
    asked = [
        (key, request)
        for request in usual_requests(checkpoint, config)
        if (key := key_of(checkpoint, request)) in shipped()["figures"]
    ]
    assert (not asked) == (model in NOT_TRACED)
    for key, request in asked:
        found = json.loads(json.dumps(in_this_process(checkpoint, config)(request).as_json()))
        assert found == shipped()["figures"][key], request
