"""A GPU that is not there, for networks without weights: what is in pretend_gpu.py, at the true size of a published model.

    with weightless_gpu():
        run_short(context_on_cuda, setting)      # a crash of the rank whose tensor was left on the host meets one on the GPU

Branches of the libraries that ask for "cuda" are taken, as fake tensors say that they are there. They are on the host all
the same, as torch without CUDA cannot have them elsewhere: whoever computes with them sees that (`Meter`), and nobody else.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor

from dglaunch.simulation import networks
from dglaunch.simulation.meter import Meter
from support.pretend_gpu import GPU, PretendGpu, labelled, on_gpu


@contextmanager
def weightless_gpu() -> Iterator[None]:
    """Pretend a GPU to this thread, and to the children that it forks."""
    with ExitStack() as undo:
        computing = _Computing()
        undo.enter_context(mock.patch.object(Meter, "__torch_dispatch__", computing.dispatch(Meter.__torch_dispatch__)))
        undo.enter_context(
            mock.patch.object(FakeTensor, "device", property(computing.device(FakeTensor.device.__get__)))
        )
        undo.enter_context(mock.patch.object(networks, "_apply", _apply))
        undo.enter_context(
            mock.patch("torch.backends.cudnn.is_available", return_value=True)
        )  # as all torch for CUDA has it
        undo.enter_context(PretendGpu())
        yield


class _Computing:
    """Where a fake tensor is depends on who asks: an operation on it, or the code of a pipeline."""

    def __init__(self) -> None:
        self.depth = 0

    def dispatch(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def dispatched(meter: Meter, *args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            try:
                return own(meter, *args, **kwargs)
            finally:
                self.depth -= 1

        return dispatched

    def device(self, own: Callable[[FakeTensor], torch.device]) -> Callable[[FakeTensor], torch.device]:
        return lambda tensor: GPU if on_gpu(tensor) and not self.depth else own(tensor)


def _apply(network: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """A network's new weights are where `change` has put them: torch does not tell a mode that it makes a parameter."""
    for child in network.children() if recurse else ():
        child._apply(change)  # type: ignore[no-untyped-call]
    for name, weight in network._parameters.items():
        if weight is not None and (changed := change(weight)) is not weight:
            network._parameters[name] = labelled(torch.nn.Parameter(changed, requires_grad=False), on_gpu(changed))
    for name, buffer in network._buffers.items():
        if buffer is not None:
            network._buffers[name] = change(buffer)
    return network
