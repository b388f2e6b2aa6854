"""The table of GPUs: how one is named, and that its figures hang together."""

import pytest

from dglaunch.errors import UserError
from dglaunch.planning.gpus import GIB, GPUS, find_gpu, gpus_of_memory


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("H100", "H100 SXM"),
        ("h100-pcie", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
        ("A100-40GB", "A100 40GB SXM"),
        ("a100 80gb", "A100 80GB SXM"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("L4", "L4"),
        ("nvidia_l40s", "L40S"),
        ("RTX-4090", "RTX 4090"),
        ("5090", "RTX 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_gpu_is_found_by_the_names_that_people_and_torch_use(said: str, meant: str) -> None:
    assert find_gpu(said).name == meant


def test_every_name_leads_back_to_its_own_gpu() -> None:
    for gpu in GPUS:
        assert [find_gpu(name) for name in (gpu.name, *gpu.reported)] == [gpu] * (1 + len(gpu.reported))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("H300", "nearest: H200"),
        ("RTX 4099", "nearest: RTX 4090"),
        ("A100", "--gpu A100-40GB or --gpu A100-80GB"),
        ("", "such as H100, or its memory, such as 80GiB"),
        ("0GiB", "1 to 1024 GiB"),
        ("-8GiB", "nearest"),
    ],
)
def test_an_unknown_gpu_gets_the_nearest_names_and_the_way_out(said: str, told: str) -> None:
    with pytest.raises(UserError, match="--gpu") as error:
        find_gpu(said)
    assert told in str(error.value)


@pytest.mark.parametrize("said", ["80GiB", "80 gib", "80GB", "80.0GiB"])
def test_a_memory_alone_is_a_gpu_of_which_only_that_is_known(said: str) -> None:
    gpu = find_gpu(said)
    assert gpu.memory == 80 * GIB and not gpu.known and gpu.name == "80GiB" and find_gpu(gpu.name) == gpu
    assert {gpu.name for gpu in gpus_of_memory(gpu.memory)} >= {"A100 80GB SXM", "H100 SXM", "H100 PCIe"}
    assert {gpu.name for gpu in gpus_of_memory(find_gpu("24GiB").memory)} >= {"L4", "RTX 4090", "A10"}
    assert gpus_of_memory(find_gpu("13GiB").memory) == ()


def test_the_figures_of_each_gpu_hang_together() -> None:
    """No column is shifted: more than a page could hide, less than what makes a data sheet."""
    for gpu in GPUS:
        peaks = gpu.peaks
        assert peaks["bfloat16"] == peaks["float16"] > peaks["tf32"] >= peaks["float32"], gpu.name
        assert peaks["bfloat16"] == pytest.approx(2 * peaks["tf32"], rel=0.03), gpu.name
        if "fp8" in peaks:
            assert peaks["fp8"] == pytest.approx(2 * peaks["bfloat16"], rel=0.02), gpu.name
        assert ("fp8" in peaks) == (gpu.capability is not None and gpu.capability >= (8, 9)), gpu.name
        assert gpu.source and gpu.reported and gpu.link_kind and 20 * GIB < gpu.memory < 200 * GIB, gpu.name
        assert 300 <= gpu.bandwidth <= 8000 and 32 <= gpu.link <= 900, gpu.name
        if gpu.same_compute:
            twin = find_gpu(gpu.same_compute)
            assert (twin.peaks, twin.capability) == (peaks, gpu.capability), gpu.name


def test_it_stands_in_for_this_machines_gpu() -> None:
    machine = find_gpu("L40S").machine
    assert (machine.name, machine.capability) == ("NVIDIA L40S", (8, 9))
    assert machine.memory is not None and 44 * GIB < machine.memory < 45 * GIB
