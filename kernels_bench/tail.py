"""How long GPUs wait for the slowest at the end of a job: shares that are fixed, against batches that are claimed.

    python -m kernels_bench tail                # 8, 64 and 512 replicas, four models, a clock of its own: seconds to run

Nothing is drawn: what each batch takes is made up, from the seconds an image that PEERS have published for an H100
(docs/throughput.md) and a spread of machines. dglaunch's own claims hand the batches out, against numbers in this process.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dglaunch.distributed.claims import Claims
from dglaunch.run.work import left_by_others
from kernels_bench import measure

MODELS = {"FLUX.1-dev": 6.69, "FLUX.2-klein-4B": 0.40, "Qwen-Image": 12.8, "Z-Image-Turbo": 0.906}
"""Seconds of one image of 1024x1024 on an H100 (SGLang's references of October 2026)."""
ENCODERS_S = 8.0
"""Until the text encoders are back where prompts are encoded ahead."""
SHARE = {"full": 200, "scaled": 50, "quick": 10}
"""Batches of each replica."""
OWN_SPREAD, BATCH_SPREAD = 0.03, 0.02
"""Standard deviations of a replica's speed and of a batch's, as parts of it."""
CASES = {"alike": (1.0, 1.0), "a slow replica": (3.0, 1.0), "costly rows": (1.0, 10.0)}
"""How much slower the last replica is, and how much more the rows of the last tenth cost than the plan knows."""
COLUMNS = {
    "model": "{model}",
    "replicas": "{replicas}",
    "machines and rows": "{case}",
    "idle at the end, static": "{static_idle[p50]:.3g} s",
    "claimed": "{claimed_idle[p50]:.3g} s",
    "in batches": "{claimed_batches[p50]:.2g}",
    "claimed, prompts ahead": "{ahead_idle[p50]:.3g} s",
    "the job's time, claimed to static": "{ratio[p50]:.3g}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench tail`. No device is used."""

    repeats: int = 5
    """Draws of the spread."""
    replicas: tuple[int, ...] = (8, 64, 512)
    """Numbers of replicas (--quick: the first only)."""


class Numbers:
    """What torchrun's store does, in this process."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()

    def add(self, key: str, amount: int) -> int:
        self._values[key] += amount
        return self._values[key]


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    share = SHARE[options.size]
    rows: list[measure.Row] = []
    for replicas in options.replicas[:1] if options.quick else options.replicas:
        count = max(share * options.replicas[0] // replicas, 10)
        for case in CASES:
            for model, seconds in MODELS.items():
                rows.append(row(options, model, seconds, replicas, count, case))
    return rows, [
        f"{share} batches a replica at {options.replicas[0]} replicas, 10 or more at the others; a made-up clock"
    ]


def row(options: Options, model: str, seconds: float, replicas: int, count: int, case: str) -> measure.Row:
    found: dict[str, list[float]] = {name: [] for name in ("static", "claimed", "ahead", "ratio")}
    for repeat in range(options.repeats):
        draw = random.Random(f"{options.seed}/{repeat}")
        takes = durations(draw, seconds, replicas, count, case)
        static, claimed = ends(takes, "static", options.damage), ends(takes, "claimed", options.damage)
        ahead = ends(takes, "ahead", options.damage)
        for name, through in (("static", static), ("claimed", claimed), ("ahead", ahead)):
            found[name].append(max(through) - min(through))
        found["ratio"].append(max(claimed) / max(static))
    slowest = seconds * max(CASES[case])
    return {
        "name": f"{model}, {replicas} replicas, {case}", "model": model, "replicas": replicas, "case": case,
        "static_idle": measure.spread(found["static"]), "claimed_idle": measure.spread(found["claimed"]),
        "claimed_batches": measure.spread([idle / slowest for idle in found["claimed"]]),
        "ahead_idle": measure.spread(found["ahead"]), "ratio": measure.spread(found["ratio"]),
    }  # fmt: skip


def durations(draw: random.Random, seconds: float, replicas: int, count: int, case: str) -> Any:
    """seconds(replica, whose, number): what a batch of a share takes on a replica."""
    slower, costlier = CASES[case]
    own = [draw.lognormvariate(0, OWN_SPREAD) for _ in range(replicas)]
    own[-1] *= slower
    batch = [[draw.lognormvariate(0, BATCH_SPREAD) for _ in range(count)] for _ in range(replicas)]
    for share in batch[replicas - max(replicas // 10, 1) :]:
        share[:] = [each * costlier for each in share]

    def takes(replica: int, whose: int, number: int) -> float:
        return seconds * own[replica] * batch[whose][number]

    return takes, replicas, count


def ends(made_up: Any, how: str, damage: bool) -> list[float]:
    """When each replica is through."""
    takes, replicas, count = made_up
    claims = Claims(Numbers(), [[1.0] * count] * replicas)
    clock = [(0.0, replica, 1) for replica in range(replicas)]
    through, made = [0.0] * replicas, 0
    while clock:
        now, replica, begun = heapq.heappop(clock)
        own = claims.own(replica)
        found = (replica, [own]) if own is not None else None
        if found is None and how != "static":
            cost = ENCODERS_S if how == "ahead" else 0.0
            found = left_by_others(claims, replicas, cost, now / begun)
            now += cost if found is not None else 0.0
        if found is None:
            through[replica] = now
            continue
        made += len(found[1])
        now += sum(takes(replica, found[0], number) for number in found[1])
        heapq.heappush(clock, (now, replica, begun + len(found[1])))
    measure.require("tail, batches that were handed out", abs(float(made + damage - replicas * count)), 0.0)
    return through


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "claimed_idle", "seconds idle at the end, claimed")
