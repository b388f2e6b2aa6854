"""Where the time of a pipeline's calls goes, and with --debug the shapes that go into its networks."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from dglaunch.backends.diffusers.protocols import Pipeline, plain_pipeline
from dglaunch.files import make_cache_folder, may_be_others
from dglaunch.streams import say

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class Stages:
    """Stages add up the seconds of a pipeline's calls: encode_prompts, decode, denoise, and compile."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.seconds: dict[str, float] = {}

    def watch(self, pipeline: Pipeline) -> None:
        """Count prompt encoding and VAE decoding apart; the rest of a call is denoising."""
        plain = plain_pipeline(pipeline)
        if hasattr(plain, "encode_prompt"):
            plain.encode_prompt = self._timed("encode_prompts", plain.encode_prompt)
        vae = getattr(pipeline, "vae", None)
        if vae is not None and hasattr(vae, "decode"):
            vae.decode = self._timed("decode", vae.decode)

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Count as denoising what a call takes beyond the stages that are counted apart."""
        start, others = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            counted_apart = sum(self.seconds.values()) - others
            self._add("denoise", time.perf_counter() - start - counted_apart)

    def _timed(self, stage: str, function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        @functools.wraps(function)
        def timed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            self._wait_for_gpu()
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._wait_for_gpu()
                self._add(stage, time.perf_counter() - start)

        return timed

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def _wait_for_gpu(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def time_compilation(folder: Path, seconds: dict[str, float], events: list[str], undo: ExitStack) -> None:
    """Count what torch.compile takes as a stage of its own, and keep what it compiles in `folder` for later runs.

    What is kept there is code: it runs in every later run that finds it. So a folder that is not this user's alone is left.

    Args:
        folder: for torch's cache, unless TORCHINDUCTOR_CACHE_DIR names one.
        seconds: gets `compile`.
        events: gets one line, kept up to date.
    """
    from torch._dynamo.callback import callback_handler
    from torch._dynamo.utils import counters
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torch_default = default_cache_dir()  # to which torch itself sets the variable when it is imported
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", torch_default) == torch_default:
        if reason := why_not_own(folder):
            events.append(
                f"--enable_compile: {folder} is not used, as {reason}; what is compiled goes to {torch_default}"
            )
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
            undo.callback(os.environ.pop, "TORCHINDUCTOR_CACHE_DIR", None)
    began, times, line = 0.0, 0, len(events)
    before = counters["inductor"]["fxgraph_cache_hit"]
    events.append("--enable_compile: nothing was compiled")

    def start(_: object) -> None:
        nonlocal began
        began = time.perf_counter()

    def end(_: object) -> None:
        nonlocal times
        times += 1
        seconds["compile"] = seconds.get("compile", 0.0) + time.perf_counter() - began
        found = counters["inductor"]["fxgraph_cache_hit"] - before
        events[line] = (
            f"torch.compile worked {times} times, {seconds['compile']:.1f} s in all (a new size of batch or image "
            f"may need it again); {found} graphs were in {os.environ.get('TORCHINDUCTOR_CACHE_DIR', torch_default)}"
        )

    undo.callback(_remove, callback_handler.start_callbacks, callback_handler.register_start_callback(start))
    undo.callback(_remove, callback_handler.end_callbacks, callback_handler.register_end_callback(end))


def why_not_own(folder: Path) -> str:
    """Create a folder for code that this user alone can write; where that cannot be, say why. Empty: all is well."""
    try:
        make_cache_folder(folder, 0o700)
        return may_be_others(folder) or may_be_others(folder.parent)
    except OSError as error:
        return f"it cannot be made ({error.strerror or error})"


def _remove(callbacks: list[Returned], callback: Returned) -> None:
    """torch._dynamo.reset() may have cleared the list."""
    if callback in callbacks:
        callbacks.remove(callback)


def trace_shapes(pipeline: Pipeline) -> None:
    """Print the shapes of the tensors that go into each network, whenever they change (--debug)."""
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            decoder = getattr(module, "decoder", None) if name == "vae" else None
            if isinstance(decoder, torch.nn.Module):
                name, module = "vae.decoder", decoder
            module.register_forward_pre_hook(_shape_printer(name), with_kwargs=True)


def _shape_printer(name: str) -> Callable[[object, tuple[object, ...], dict[str, object]], None]:
    shown = ""

    def show(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        nonlocal shown
        named = {str(position): value for position, value in enumerate(args)} | kwargs
        tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
        text = ", ".join(f"{key} {tuple(value.shape)} {value.dtype}" for key, value in tensors.items())
        if text != shown:
            shown = text
            say(f"{name}: {text}".replace("torch.", ""), error=True)

    return show
