"""The training log: one JSON object a line, appended, small enough to commit."""

import json
import time
from collections import defaultdict
from pathlib import Path


class Log:
    """Only the main process's log is on."""

    def __init__(self, path: Path, is_on: bool = True):
        self.path, self.is_on = path, is_on
        self.began = time.monotonic()
        self.values: dict[str, list[dict[str, float]]] = defaultdict(list)

    def write(self, **fields: object) -> None:
        if not self.is_on:
            return
        line = json.dumps(fields | {"seconds": round(time.monotonic() - self.began, 1)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def mean(self, step: int, every: int, event: str, **values: float) -> None:
        """Keep the values of each step, write their means now and then."""
        kept = self.values[event]
        kept.append(values)
        if (step + 1) % every == 0:
            means = {name: round(sum(each[name] for each in kept) / len(kept), 5) for name in values}
            self.write(event=event, step=step + 1, **means)
            kept.clear()
