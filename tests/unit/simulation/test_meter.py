"""What is counted of a computation on fake tensors."""

import pytest
import torch

from dglaunch.simulation.meter import GRAIN, MOST_NUMBERS, Meter


def test_zeros_of_a_gigabyte_take_no_memory_of_the_host() -> None:
    with Meter() as meter:
        few, many = torch.zeros(8, 8), torch.zeros(4, MOST_NUMBERS)
    assert not is_fake(few) and is_fake(many)
    assert meter.live == GRAIN + 4 * MOST_NUMBERS * 4, "both are counted"


def test_tensors_on_meta_are_not_counted() -> None:
    """FSDP makes them of the size of what it gathers, which is counted as it is."""
    with Meter() as meter:
        nothing = torch.empty(2, MOST_NUMBERS, device="meta")
    assert nothing.is_meta and meter.live == meter.peak == 0


def test_the_tokens_of_a_mixture_go_to_its_experts_alike() -> None:
    meter = Meter()
    chosen = meter.empty(torch.empty(10, device="meta"), torch.long)
    with meter:
        meter.num_experts = 4
        assert chosen.bincount().tolist() == [3, 3, 2, 2]
        meter.num_experts = None
        with pytest.raises(Exception, match="bincount"):
            chosen.bincount()


def is_fake(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "FakeTensor"
