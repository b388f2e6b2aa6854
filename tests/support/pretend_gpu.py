"""A GPU that is not there: tensors compute on the CPU, but say where they would be, and may not meet from two places.

    with PretendGpu():
        pipeline.to("cuda:0")
        pipeline("a cat")          # RuntimeError if a tensor that was left on the host meets one on "cuda:0"

It sees each call of torch from Python (a TorchFunctionMode) and keeps torch's rules: a call takes tensors of one device,
but numbers (no dimensions) and indices may be on the host; a generator belongs to the device of what it draws; numpy reads
host memory only. A copy to the host that nobody waits for comes when an event recorded after it is waited for, and not
before. What happens inside of a compiled kernel it cannot see, nor memory, streams and speed.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, HOST = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), torch.device("cpu")
SET_DATA, GET_IS_CUDA = vars(torch._C.TensorBase)["data"].__set__, vars(torch._C.TensorBase)["is_cuda"].__get__
MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}
BETWEEN_DEVICES = {
    torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__, SET_DATA,
    torch._has_compatible_shallow_copy_type,
}  # fmt: skip
"""What may be given tensors of two devices."""
READS_HOST = {torch.Tensor.numpy, torch.Tensor.__array__}
ANSWERS: dict[str, Any] = {
    "is_available": True, "device_count": int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "current_device": GPU.index,
    "get_device_capability": (9, 0), "set_device": None, "synchronize": None, "empty_cache": None,
    "max_memory_allocated": 2**30, "reset_peak_memory_stats": None,
    "get_device_properties": SimpleNamespace(name="Pretended GPU", total_memory=80 * 2**30, major=9, minor=0, gcnArchName=""),
}  # fmt: skip
"""What torch.cuda says of it."""


class Event:
    """Of the one stream: it is over once all copies before it have been made."""

    def __init__(self, copies: "deque[Callable[[], Any]]") -> None:
        self.copies = copies
        self.before: list[Callable[[], Any]] = []
        self.lock = threading.Lock()

    def record(self) -> None:
        self.before = list(self.copies)
        self.copies.clear()

    def synchronize(self) -> None:
        with self.lock:
            while self.before:
                self.before.pop(0)()


class PretendGpu(TorchFunctionMode):
    """Of the thread that enters it."""

    def __enter__(self) -> "PretendGpu":
        self.copies: deque[Callable[[], Any]] = deque()
        self.patches = ExitStack()
        for name, answer in ANSWERS.items():
            self.patches.enter_context(mock.patch(f"torch.cuda.{name}", return_value=answer))
        self.patches.enter_context(mock.patch("torch.cuda.Event", partial(Event, self.copies)))
        for name in ("init_process_group", "new_group"):
            own = getattr(torch.distributed, name)
            self.patches.enter_context(mock.patch(f"torch.distributed.{name}", partial(_over_gloo, own)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return GPU if on_gpu(args[0]) else func(*args)
        if func == GET_IS_CUDA:
            return on_gpu(args[0])
        if func in MOVES:
            return _move(func, args, kwargs)
        if func == torch.Tensor.copy_ and kwargs.get("non_blocking") and on_gpu(args[1]) and not on_gpu(args[0]):
            self.copies.append(partial(torch.Tensor.copy_, args[0], args[1].clone()))
            return args[0]
        kwargs.pop("pin_memory", None)  # of an accelerator's host allocator
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        if func in READS_HOST and on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        left = any(tensor.dim() > 0 and not on_gpu(tensor) for tensor in tensors)
        if left and any(map(on_gpu, tensors)) and func not in BETWEEN_DEVICES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func.__name__} got {_told(tensors)}"
            )
        if (device := kwargs.get("device")) is None:
            place = any(map(on_gpu, tensors[: 1 if func in BETWEEN_DEVICES else None]))
        else:
            place = torch.device(device).type == "cuda"
            kwargs["device"] = HOST if place else device
        if place and isinstance(generator := kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found {generator.device}")
        if func == SET_DATA:
            place = on_gpu(args[1])
            func(*args)
            return labelled(args[0], place)
        return tree_map(lambda value: labelled(value, place), func(*args, **kwargs))


def _over_gloo(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Groups of ranks, which on GPUs would talk over NCCL; those of a world that is not there stay as they are."""
    if "fake" in (*args[:1], kwargs.get("backend")):
        return function(*args, **kwargs)
    asked = {name: value for name, value in kwargs.items() if name not in ("backend", "device_id")}
    return function(
        *(value for value in args if not (isinstance(value, str) and "nccl" in value)), backend="gloo", **asked
    )


def on_gpu(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_on_pretended_gpu", False)


def labelled(value: Any, place: bool) -> Any:
    """Let a tensor be on the GPU, or on the host; anything else stays as it is."""
    if isinstance(value, torch.Tensor):
        if place:
            value._on_pretended_gpu = True  # type: ignore[attr-defined]
        elif on_gpu(value):
            del value._on_pretended_gpu  # type: ignore[attr-defined]
    return value


def _move(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """A copy where the device is another one, as torch does."""
    tensor, place = args[0], func is torch.Tensor.cuda or (func is torch.Tensor.to and on_gpu(args[0]))
    if func is not torch.Tensor.to:
        return labelled(tensor.clone() if place != on_gpu(tensor) else tensor, place)

    def on_host(value: Any) -> Any:
        nonlocal place
        if isinstance(value, torch.Tensor):
            place = on_gpu(value)
        if not isinstance(value, str | torch.device):
            return value
        place = torch.device(value).type == "cuda"
        return HOST if place else value

    moved = tensor.to(*map(on_host, args[1:]), **{name: on_host(value) for name, value in kwargs.items()})
    return labelled(moved.clone() if moved is tensor and place != on_gpu(tensor) else moved, place)


def _told(tensors: Iterable[torch.Tensor]) -> str:
    return ", ".join(f"{tuple(tensor.shape)} on {GPU if on_gpu(tensor) else HOST}" for tensor in tensors)
