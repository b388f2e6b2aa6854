"""The ranks that `dglaunch certify` starts, as forks (support.ranks), and a fault that is planted into them."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from support.exit_codes import exit_code
from support.ranks import World


class Ranks:
    """What children.start gives, with ranks that start in 0.1 s."""

    def __init__(self, scratch: Path, ranks: int, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        variables = {name: value for name, value in environ.items() if name.startswith("DG_")}
        self.log, self.begun = log, log.read_text()
        self.world = World(scratch, ranks, words, variables, distributed=ranks > 1)

    def poll(self) -> int | None:
        code = self.world.poll()
        if code is not None:
            self.log.write_text(self.begun + self.world.output())  # what a start says is added
        return code

    def stop(self) -> None:
        for pid in self.world.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        self.world.kill()


def noisy(*words: str) -> int:
    """dglaunch, of which rank 1 adds noise to every image that it draws."""
    import numpy as np
    from PIL import Image

    from dglaunch.backends.base import arrived
    from dglaunch.backends.diffusers.backend import DiffusersBackend
    from dglaunch.cli.main import main

    generate = DiffusersBackend.generate

    def with_noise(self, batch):
        slots = generate(self, batch)
        if slots is None or os.environ.get("RANK") != "1":
            return slots
        rng = np.random.default_rng(0)
        pictures = [np.asarray(arrived(slot)).astype(int) for slot in slots]
        return [
            Image.fromarray(np.clip(pixels + rng.integers(-40, 41, pixels.shape), 0, 255).astype(np.uint8))
            for pixels in pictures
        ]

    DiffusersBackend.generate = with_noise
    return exit_code(main, list(words))
