"""The training log has one JSON object a line, is appended to, and is small enough to commit."""

import json
import time
from collections import defaultdict
from pathlib import Path


class Log:
    """A log writes to a file and to the terminal, in the main process only (`is_on`)."""

    def __init__(self, path: Path, is_on: bool = True):
        self.path, self.is_on = path, is_on
        self.began = time.monotonic()
        self.values: dict[str, list[dict[str, float]]] = defaultdict(list)

    def write(self, **fields: object) -> None:
        """Append a line with these fields and the seconds since the log was opened."""
        if not self.is_on:
            return
        line = json.dumps(fields | {"seconds": round(time.monotonic() - self.began, 1)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def mean(self, step: int, every: int, event: str, **values: float) -> None:
        """Remember the values of a step; after each `every` steps write their means."""
        remembered = self.values[event]
        remembered.append(values)
        if (step + 1) % every == 0:
            means = {name: round(sum(each[name] for each in remembered) / len(remembered), 5) for name in values}
            self.write(event=event, step=step + 1, **means)
            remembered.clear()
