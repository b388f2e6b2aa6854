"""The training log: one JSON object a line, appended, small enough to commit."""

import json
import time
from collections import defaultdict
from pathlib import Path


class Log:
    def __init__(self, path: Path, is_on: bool = True):
        self.is_on = is_on
        self.path, self.began = path, time.monotonic()
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def write(self, **fields: object) -> None:
        if not self.is_on:
            return
        line = json.dumps(fields | {"seconds": round(time.monotonic() - self.began, 1)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def mean(self, step: int, every: int, event: str, **values: float) -> None:
        """Keep the values of each step, write their means now and then."""
        for name, value in values.items():
            self.sums[name] += value
        self.count += 1
        if (step + 1) % every == 0:
            means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
            self.write(event=event, step=step + 1, **means)
            self.sums.clear()
            self.count = 0
