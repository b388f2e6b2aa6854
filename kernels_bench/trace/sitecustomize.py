"""The stop-watch that all contenders of end_to_end carry alike, themselves unchanged: this folder is on their PYTHONPATH.

Once the pipeline's module is imported, calls of its class (KERNELS_BENCH_PIPELINE, "module:class") are timed: a call,
less encode_prompt and the VAE's decode, is denoising. A line for each call goes to KERNELS_BENCH_TRACE/<pid>.jsonl.
Without that variable nothing happens.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class Finder(importlib.abc.MetaPathFinder):
    """Lets the others find the module, and times its pipeline after it was executed."""

    def __init__(self, module: str, pipeline: str) -> None:
        self.module, self.pipeline = module, pipeline

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                watch(getattr(module, self.pipeline))

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch(pipeline: Any) -> None:
    """Time each call of the class, and of two parts of the instance."""
    call = pipeline.__call__

    @functools.wraps(call)
    def timed_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts = self.__dict__.setdefault("_seconds_of_parts", [])
        if not hasattr(self, "_is_watched"):
            self._is_watched = True
            self.encode_prompt = timed(self.encode_prompt, parts)
            self.vae.decode = timed(self.vae.decode, parts)
        parts.clear()
        told = {"rank": int(os.environ.get("RANK", "0")), "start": time.time(), "denoise": 0.0, "images": 0}
        clock = now()
        try:
            output = call(self, *args, **kwargs)
        except Exception:  # dglaunch encodes its prompts ahead in calls that it ends before the denoising: time too
            write(told | {"seconds": now() - clock})
            raise
        seconds = now() - clock
        write(told | {"seconds": seconds, "denoise": seconds - sum(parts), "images": len(output.images)})
        return output

    pipeline.__call__ = timed_call


def timed(function: Callable[..., Any], parts: list[float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = now()
        try:
            return function(*args, **kwargs)
        finally:
            parts.append(now() - start)

    return call


def now() -> float:
    """The clock once the GPU has done what it was told."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write(line: dict[str, Any]) -> None:
    with open(os.path.join(os.environ["KERNELS_BENCH_TRACE"], f"{os.getpid()}.jsonl"), "a") as file:
        file.write(json.dumps(line) + "\n")


if "KERNELS_BENCH_TRACE" in os.environ:
    import importlib.util

    sys.meta_path.insert(0, Finder(*os.environ["KERNELS_BENCH_PIPELINE"].split(":")))
