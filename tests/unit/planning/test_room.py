"""One rule of fit: what a plan and a rehearsal say of the same bytes is the same, at every memory."""

from typing import Any

import pytest

from dglaunch.planning.estimate import Memory, StageMemory
from dglaunch.planning.rehearsal import room_for
from dglaunch.planning.room import SPARE, fits, room_of
from dglaunch.simulation.replica import BatchReport, ReplicaReport, StageReport

GIB = 2**30
WEIGHTS, LIVE = 22 * GIB, {"encode": GIB // 8, "denoise": GIB // 2, "decode": 3 * GIB // 2}


def planned() -> Memory:
    """In a plan what is live may be each image's, or there whatever the batch: sliced images are decoded one by one."""
    stages = {
        name: StageMemory(weights=WEIGHTS, fixed=live - live // 3, image=live // 3) for name, live in LIVE.items()
    }
    return Memory(stages=stages, source="traced")


def rehearsed() -> ReplicaReport:
    stages = {name: StageReport(peak_bytes=live, flops=1.0, sent_bytes=0) for name, live in LIVE.items()}
    batch: Any = ()
    report = BatchReport(batch=batch, stages=stages, crashes=[], disagreement=None, guesses={})
    return ReplicaReport(weights={"transformer": WEIGHTS}, ahead=GIB, batches=[report], crashes=[])


def test_a_plan_and_a_rehearsal_want_the_same_room() -> None:
    assert planned().needed(1) == rehearsed().peak == WEIGHTS + LIVE["decode"]
    assert planned().room(1) == room_for(rehearsed()) == room_of("decode", WEIGHTS, LIVE["decode"])
    assert planned().room(1) - rehearsed().peak == pytest.approx(0.35 * LIVE["decode"], abs=1)


def test_what_fits_is_what_the_largest_batch_says() -> None:
    enough = int(planned().room(1) / SPARE) + 2
    assert fits(planned().room(1), enough) and planned().most_images(enough) == 1
    assert not fits(planned().room(1), enough - 4) and planned().most_images(enough - 4) == 0
    assert planned().most_images(enough + 4 * GIB) > 1


def test_a_rehearsal_leaves_room_for_the_decoders_workspaces() -> None:
    """As a plan of the same job does: what is live alone would fit."""
    memory = int(rehearsed().peak / SPARE) + 2
    assert fits(rehearsed().peak, memory) and not fits(room_for(rehearsed()), memory)
