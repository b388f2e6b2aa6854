"""What sequence parallelism sends between ranks: Ulysses' all-to-all, a ring of neighbours, an all-gather.

    python -m kernels_bench exchange                                # 2 and 4 ranks, gloo
    python -m kernels_bench exchange --device cuda --ranks 2 4 8    # NCCL, one rank a GPU

Real torchrun. Every rank starts with its share of the tokens of one tensor that all of them can rebuild; what it holds
after the exchange must equal, bit for bit, what it would have cut from the whole. A repeat takes as long as its slowest
rank. Rate: bytes that a rank sends / seconds, (n-1)/n of its tensor for the all-to-all and n-1 shares for the others,
which is the "bus bandwidth" of NVIDIA's nccl-tests (doc/PERFORMANCE.md).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels_bench import measure

SHAPES = {"full": (4608, 24, 128), "scaled": (1152, 8, 64), "quick": (64, 8, 16)}
"""(tokens, heads, dim) of FLUX.1 at 1024x1024, and smaller."""
COLUMNS = {
    "exchange": "{exchange}",
    "ranks": "{ranks}",
    "sent a rank": "{sent_mb:.3g} MB",
    "ms": "{ms[p50]:.2f} ({ms[p20]:.2f}-{ms[p80]:.2f})",
    "MB/s": "{mb_per_s[p50]:.4g} ({mb_per_s[p20]:.4g}-{mb_per_s[p80]:.4g})",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench exchange`."""

    ranks: tuple[int, ...] = (2, 4)
    """Numbers of ranks to measure (--quick: the first only)."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """A torchrun for each number of ranks; in it the exchanges take turns."""
    rows: list[measure.Row] = []
    for ranks in options.ranks[:1] if options.quick else options.ranks:
        payload = options.shared() | {"dims": SHAPES[options.size]}
        rows += measure.in_process("kernels_bench.exchange:work", payload, options, ranks=ranks, timeout=600)
    backend = "NCCL" if options.device == "cuda" else "gloo"
    dims = "x".join(map(str, SHAPES[options.size]))
    return rows, [f"{backend}, {dims} (tokens x heads x dim), {options.dtype}; the ring and the gather carry K and V"]


# -- in the children ------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """On each rank: join, check every exchange, time them in turns; the slowest rank counts."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import ReduceOp

    cuda = payload["device"] == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        taken = measure_all(payload, device)
        worst = torch.tensor([taken[name] for name in EXCHANGES], dtype=torch.float64, device=device)
        dist.all_reduce(worst, op=ReduceOp.MAX)
    finally:
        dist.destroy_process_group()
    return [row(payload, name, ranks, list(times)) for name, times in zip(EXCHANGES, worst.tolist())]


def measure_all(payload: dict[str, Any], device: Any) -> dict[str, list[float]]:
    """The rounds, with a barrier before each exchange so that no rank is still busy with the last one."""
    import torch
    import torch.distributed as dist

    tokens, heads, dim = payload["dims"]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in EXCHANGES}
    for turn in range(-payload["warm_up"] - 1, payload["repeats"]):
        # The same numbers on every rank, so that each can check what it receives; CPU generators agree everywhere.
        generator = torch.Generator().manual_seed(payload["seed"] + turn)
        whole = torch.randn(tokens, heads, dim, generator=generator).to(device, getattr(torch, payload["dtype"]))
        mine = whole.chunk(ranks)[rank].contiguous()
        for name, (exchange, expected) in EXCHANGES.items():
            dist.barrier()
            wait()
            start = time.perf_counter()
            output = exchange(mine)
            wait()
            took = time.perf_counter() - start
            if turn >= 0:
                taken[name].append(took)
            else:
                compare(name, measure.spoil(output, payload["damage"]), expected(whole, rank, ranks))
    return taken


def compare(name: str, output: Any, expected: Any) -> None:
    """Exact; all ranks refuse together, or some would wait for one that has left.

    Raises:
        WrongOutput: on every rank, if it is wrong on any.
    """
    import torch
    import torch.distributed as dist

    wrong = (output != expected).float().mean().reshape(1).to(torch.float32)
    dist.all_reduce(wrong, op=dist.ReduceOp.MAX)
    measure.require(f"{name}, share of the values", float(wrong), 0.0)


def row(payload: dict[str, Any], name: str, ranks: int, taken: list[float]) -> measure.Row:
    tokens, heads, dim = payload["dims"]
    share = tokens * heads * dim * {"float32": 4, "bfloat16": 2}[payload["dtype"]] / ranks
    sent = share * (ranks - 1) / ranks if name == "ulysses all-to-all" else 2 * share * (ranks - 1)
    return {
        "name": f"{name}, {ranks} ranks", "exchange": name, "ranks": ranks, "dims": payload["dims"], "dtype": payload["dtype"],
        "sent_mb": sent / 1e6, "ms": measure.spread([s * 1e3 for s in taken]),
        "mb_per_s": measure.spread([sent / s / 1e6 for s in taken]),
    }  # fmt: skip


# -- the exchanges, each with what a rank must hold after it -----------------------------------------------------------


def ulysses(mine: Any) -> Any:
    """(tokens/n, heads, dim) -> (tokens, heads/n, dim): all tokens of some heads, before attention (arXiv:2309.14509)."""
    import torch
    import torch.distributed as dist

    ranks = dist.get_world_size()
    tokens, heads, dim = mine.shape
    sent = mine.reshape(tokens, ranks, heads // ranks, dim).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.reshape(tokens * ranks, heads // ranks, dim)


def ring(mine: Any) -> Any:
    """K and V go round the ring in n-1 steps (arXiv:2310.01889); what arrives is kept, for the check."""
    import torch
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    held = [torch.stack([mine, mine])]
    for _ in range(ranks - 1):
        arriving = torch.empty_like(held[-1])
        steps = [
            dist.P2POp(dist.isend, held[-1], (rank + 1) % ranks),
            dist.P2POp(dist.irecv, arriving, (rank - 1) % ranks),
        ]
        for step in dist.batch_isend_irecv(steps):
            step.wait()
        held.append(arriving)
    return torch.stack(held)


def gather(mine: Any) -> Any:
    """K and V of everyone at once: diffusers' ring attention does this instead."""
    import torch
    import torch.distributed as dist

    both = torch.stack([mine, mine])
    ranks = dist.get_world_size()
    everyone = both.new_empty(ranks * 2, *mine.shape)
    dist.all_gather_into_tensor(everyone, both)
    return everyone.reshape(ranks, *both.shape)


def cut_heads(whole: Any, rank: int, ranks: int) -> Any:
    return whole.chunk(ranks, dim=1)[rank]


def in_ring_order(whole: Any, rank: int, ranks: int) -> Any:
    import torch

    shares = whole.chunk(ranks)
    return torch.stack([torch.stack([shares[(rank - step) % ranks]] * 2) for step in range(ranks)])


def in_order(whole: Any, rank: int, ranks: int) -> Any:
    import torch

    return torch.stack([torch.stack([share, share]) for share in whole.chunk(ranks)])


EXCHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any, int, int], Any]]] = {
    "ulysses all-to-all": (ulysses, cut_heads),
    "ring": (ring, in_ring_order),
    "all-gather": (gather, in_order),
}


def plot(axes: Any, rows: list[measure.Row]) -> None:
    measure.bars(axes, rows, "mb_per_s", "MB/s that a rank sends")
