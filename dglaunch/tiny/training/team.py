"""Training runs on one process or, under torchrun, on several, which average their gradients over gloo or NCCL.

Each process takes its share of a batch. On shared CPU cores this is faster than threads, which wait for one another
several hundred times a step. Without torchrun a team is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist


class Team:
    """A team is all processes that train together: torchrun's world, or this process alone."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")
        if self.size > 1:
            dist.init_process_group("nccl" if has_gpu else "gloo")
            if not has_gpu:
                torch.set_num_threads(1)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log, the states and the result."""
        return self.rank == 0

    def sum(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the team, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace each parameter's gradient by its mean over the team."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.sum(gradients)
        if self.size > 1:
            torch._foreach_div_(gradients, self.size)

    def barrier(self) -> None:
        """Wait until every process of the team has come here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()
