"""The text encoders of a pipeline: there while prompts are encoded, and gone for the rest of a run."""

import time
from collections.abc import Callable

import torch

from dglaunch.backends.diffusers.protocols import Pipeline


class TextEncoders:
    """Text encoders come to the device of their pipeline when a prompt needs them, and leave it for the denoising."""

    def __init__(self, pipeline: Pipeline, device: str, load: Callable[[], dict[str, torch.nn.Module]]) -> None:
        """
        Args:
            load: reads the pipeline's text encoders, by name; called only when there is something to encode.
        """
        self.pipeline, self.device, self.load = pipeline, device, load
        self.load_seconds = 0.0
        """What loading them took, once they were needed."""
        self._encoders: dict[str, torch.nn.Module] = {}
        self._moved_away: list[torch.nn.Module] = []
        """Networks that left the device for the text encoders."""

    def attach(self) -> None:
        """Put the text encoders into the pipeline, on its device."""
        if not self._encoders:
            start = time.perf_counter()
            self._encoders = self.load()
            self.load_seconds = time.perf_counter() - start
        for name, encoder in self._encoders.items():
            setattr(self.pipeline, name, encoder.to(self.device))

    @property
    def modules(self) -> list[torch.nn.Module]:
        """Those that are here."""
        return list(self._encoders.values())

    def make_room(self) -> bool:
        """Take the other networks off the device until `detach`; False if there are none on it."""
        others = [part for part in self.pipeline.components.values() if part not in self._encoders.values()]
        on_device = [part for part in others if isinstance(part, torch.nn.Module) and _off_host(part)]
        self._moved_away += [part.to("cpu") for part in on_device]
        self._empty_cache()
        return bool(self._moved_away)

    def detach(self, needed_again: bool) -> None:
        """Take the text encoders out of the pipeline, to the host or for good, and let the other networks come back."""
        for name in self._encoders:
            setattr(self.pipeline, name, None)  # or pipeline.to(device) would take it along
        if not needed_again:
            self._encoders = {}
        for encoder in self._encoders.values():
            encoder.to("cpu")
        self._empty_cache()
        for part in self._moved_away:
            part.to(self.device)
        self._moved_away = []

    def _empty_cache(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _off_host(module: torch.nn.Module) -> bool:
    return any(weight.device.type not in ("cpu", "meta") for weight in module.parameters())
