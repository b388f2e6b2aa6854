"""What a computation on fake tensors would hold, compute and send: they have a shape and a type, and no values.

with Meter() as meter:
    network(...)                  # whose weights are fake
meter.peak, meter.flops, meter.collectives

A fake tensor makes all that it flows into fake. What no weight touches (token ids, masks, timesteps, noise, rotary
frequencies) is computed as ever, so a branch on such a value goes as it will on a GPU. Fake tensors are on the host
here: torch without CUDA cannot pretend a GPU. So that their bytes are those of a GPU, what is one kernel there (attention,
RMSNorm, upsampling) is one here.
"""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _resolve_process_group
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.distributed_c10d import GroupName
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

GRAIN = 512
"""Bytes: CUDA's caching allocator rounds each tensor up to it."""
COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
"""Namespaces of torch's operations between ranks."""
MOST_NUMBERS = 1 << 26
"""In a tensor of zeros or the like that has its memory and values here; a larger one is fake (Ideogram 4 puts gigabytes of zeros
behind its text)."""
NO_TRAFFIC = frozenset(("wait_tensor", "wrap_tensor_autograd", "barrier", "monitored_barrier_"))
REDUCTIONS = ("sum", "avg", "max", "min", "product")

aten = torch.ops.aten
FILLED = (aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
Operation = Any
"""An overload of a torch operation, as __torch_dispatch__ gets it; torch has no public type for it."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One operation between ranks, as one of them sees it."""

    kind: str
    ranks: tuple[int, ...]
    """Of its group, in the group's order."""
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    num_bytes: int
    """Of this rank's part."""
    peer: int | None = None
    """With send and recv: the other rank."""


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it, here and below
    """A meter counts the live bytes of tensors (each storage once) and their peak, floating-point operations as torch's
    own FLOP counter does (2 for a multiply-add), and collectives, of all that runs inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self.flops = 0.0
        self.launches = 0
        """Operations that start a kernel: all that are no mere views."""
        self.collectives: list[Collective] = []
        self.guesses: Counter[str] = Counter()
        """Where the host asked a fake tensor for a value, by `file:line`: there it went on with a guess."""
        self.num_experts: int | None = None
        """Of the mixture that runs, if one does: its tokens are taken to go to all of them alike, which is as much work as any other
        way."""
        self._sizes: dict[int, weakref.finalize[Any, Any]] = {}
        """Of storages that are counted, by their address."""
        self._composite: dict[Operation, bool] = {}

    def restart(self) -> None:
        """Begin a new stage: what is live stays, the rest is counted anew."""
        self.peak, self.flops, self.launches = self.live, 0.0, 0
        self.collectives, self.guesses = [], Counter()

    def empty(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a fake tensor on the host, counted as live."""
        with _disable_current_modes(), self.fake:
            made = torch.empty_strided(like.shape, like.stride(), dtype=dtype)
        self._count(made)
        return made

    def __torch_dispatch__(
        self, func: Operation, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tree_leaves((args, kwargs))
        if func.namespace in COLLECTIVES:
            self._note(func, args, inputs)
        if not any(isinstance(each, FakeTensor) for each in inputs):
            if any(map(is_traceable_wrapper_subclass, inputs)):
                if self._is_composite(func):
                    with self:
                        return func.decompose(*args, **kwargs)
                return NotImplemented  # DTensor makes operations on its parts of it, which are counted
            if func in FILLED and math.prod(args[0]) > MOST_NUMBERS and _is_on_host(kwargs):
                with self.fake:
                    return self._count(func(*args, **kwargs))
            return self._count(func(*args, **kwargs))
        if (special := SPECIAL.get(func)) is not None:
            self.launches += func.namespace == "aten"
            return special(self, func, args, kwargs)
        if func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            args = (args[0], [each for index in args[1] for each in self._positions(index)])
        if self._is_composite(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        with self.fake:
            output = func(*args, **kwargs)
        self.launches += func.namespace == "aten" and not func.is_view
        if (work := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += work(*args, **kwargs, out_val=output)
        return self._count(output)

    # -- operations that are not what they seem --------------------------------------------------------------------

    def _is_composite(self, func: Operation) -> bool:
        """Whether torch makes it of others, so that those are counted."""
        if func not in self._composite:
            implicit = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
            self._composite[func] = implicit and func is not aten.detach.default
        return self._composite[func]

    def _device(self, _func: Operation, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> torch.device:
        device: torch.device = args[0].fake_device
        return device

    def _value(self, _func: Operation, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> bool | float | int:
        """The host asks for a number: whatever was asked holds, and what was counted is nothing."""
        self._guess()
        dtype = args[0].dtype
        if dtype is torch.bool:
            return True
        return 0.0 if dtype.is_floating_point else 0

    def _by_values(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Its output's size depends on values: ones take the place of those that are not known."""
        return self._count(func(*[self._ones(each) for each in args], **kwargs))

    def _counts(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """How many tokens go to each expert of a mixture."""
        if self.num_experts is None:
            with self.fake:
                return func(*args, **kwargs)  # which torch cannot say
        self._guess()
        each, more = divmod(args[0].numel(), self.num_experts)
        with _disable_current_modes():
            return torch.tensor([each + (number < more) for number in range(self.num_experts)])

    def _rms_norm(self, _func: Operation, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        given = args[0]
        with self.fake:
            return self._count((torch.empty_like(given), given.new_empty((*given.shape[:-1], 1), dtype=torch.float32)))

    def _upsampled(self, _func: Operation, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        given, size, scales = args[:3]
        if size is None:
            size = [int(side * scale) for side, scale in zip(given.shape[2:], scales)]
        with self.fake:
            return self._count(given.new_empty((*given.shape[:2], *size)))

    def _attention(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One fused kernel, as on a GPU: its output and the log-sum-exp of each row; a boolean mask becomes a bias."""
        query, key, value = args[:3]
        if query.dim() == 3:  # one head, without a dimension of its own
            return self._attention(func, (*(each.unsqueeze(1) for each in args[:3]), *args[3:]), kwargs).squeeze(1)
        whole = func is aten.scaled_dot_product_attention.default
        mask = kwargs.get("attn_mask", args[3] if whole and len(args) > 3 else None)
        batch, heads, length, _ = query.shape
        self.flops += sdpa_flop_count(  # type: ignore[no-untyped-call]
            query.shape, (key.shape[0], heads, *key.shape[2:]), (value.shape[0], heads, *value.shape[2:])
        )
        with self.fake:
            bias = torch.empty(mask.shape, dtype=query.dtype) if mask is not None and _is_mask(mask) else None
            output = torch.empty(batch, length, heads, value.shape[-1], dtype=query.dtype).transpose(1, 2)
            sums = torch.empty(batch, heads, length, dtype=torch.float32)
        self._count((bias, output, sums))
        return output if whole else (output, sums)

    def _positions(self, index: Any) -> tuple[Any, ...]:
        """A boolean index as the positions at which it is true."""
        return self._ones(index).nonzero(as_tuple=True) if _is_mask(index) else (index,)

    def _ones(self, given: Any) -> Any:
        if not isinstance(given, FakeTensor):
            return given
        self._guess()
        with _disable_current_modes():
            return torch.ones(given.shape, dtype=given.dtype)

    def _guess(self) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and (
            "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__
        ):
            frame = frame.f_back
        self.guesses[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1

    # -- counting ----------------------------------------------------------------------------------------------------

    def _count(self, output: Any) -> Any:
        for each in tree_leaves(output):
            for tensor in _held(each):
                self._count_storage(tensor.untyped_storage())
        return output

    def _count_storage(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // GRAIN) * GRAIN
        self._sizes[key] = weakref.finalize(storage, self._forget, key, size)
        self._sizes[key].atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def recount(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor anew, of which the size has been changed."""
        storage = tensor.untyped_storage()
        if (counted := self._sizes.get(storage._cdata)) is not None:
            counted()
        self._count_storage(storage)

    def _forget(self, key: int, size: int) -> None:
        del self._sizes[key]
        self.live -= size

    def _note(self, func: Operation, args: tuple[Any, ...], inputs: Sequence[Any]) -> None:
        kind = func.name().partition("::")[2].strip("_")
        if kind in NO_TRAFFIC:
            return
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        sent = [each for each in tree_leaves(args[0]) if isinstance(each, torch.Tensor)]
        self.collectives.append(
            Collective(
                kind=kind,
                ranks=_group_ranks(inputs),
                shapes=tuple(tuple(tensor.shape) for tensor in tensors[:2]),
                dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
                num_bytes=max((tensor.numel() * tensor.element_size() for tensor in sent), default=0),
                peer=next((each for each in args[2:] if isinstance(each, int)), None)
                if kind in ("send", "recv")
                else None,
            )
        )


def _held(value: object) -> Iterator[torch.Tensor]:
    """The tensors of which a value has the memory: none of one on the meta device; a DTensor says that it is as large as the
    whole, and holds this rank's part."""
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from _held(getattr(value, name))
    elif isinstance(value, FakeTensor) or (isinstance(value, torch.Tensor) and not value.is_meta):
        yield value


def _is_on_host(kwargs: dict[str, Any]) -> bool:
    return torch.device(kwargs.get("device") or "cpu").type == "cpu"


def _is_mask(index: object) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype is torch.bool


def _group_ranks(inputs: Sequence[Any]) -> tuple[int, ...]:
    """The group of a collective: given as an object, or by its name."""
    for each in inputs:
        if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each._type()):
            return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(each)))
    for each in reversed(inputs):
        if isinstance(each, str) and each not in REDUCTIONS:
            return tuple(dist.get_process_group_ranks(_resolve_process_group(GroupName(each))))
    return ()


Special = Callable[[Meter, Operation, tuple[Any, ...], dict[str, Any]], Any]
SPECIAL: dict[Operation, Special] = {
    torch.ops.prim.device.default: Meter._device,
    aten._local_scalar_dense.default: Meter._value,
    aten._fused_rms_norm.default: Meter._rms_norm,
    aten.bincount.default: Meter._counts,
    aten.scaled_dot_product_attention.default: Meter._attention,
    aten._scaled_dot_product_flash_attention_for_cpu.default: Meter._attention,
    **dict.fromkeys((aten.nonzero.default, aten._unique2.default, aten.masked_select.default), Meter._by_values),
    **dict.fromkeys(
        (
            aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec,
            aten.upsample_nearest3d.vec, aten._upsample_nearest_exact3d.vec,
        ),
        Meter._upsampled,
    ),
}  # fmt: skip
"""Operations on fake tensors that torch would count otherwise, or cannot do."""
