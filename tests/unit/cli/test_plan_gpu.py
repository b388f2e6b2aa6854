"""`plan --gpu`: a plan on a laptop for the GPUs of a cluster."""

from dglaunch import BackendConfig, T2IConfig
from dglaunch.planning.gpus import GPUS, find_gpu, gpu_of
from dglaunch.planning.job import prepare
from dglaunch.system import Machine
from support.commands import dglaunch


def test_a_job_is_planned_for_the_gpu_that_was_named() -> None:
    config = T2IConfig(prompt="x", backend=BackendConfig(model_name="tiny"))
    for name in ("RTX 4090", "24GiB"):
        gpu = find_gpu(name)
        job = prepare(config, {}, {}, 8, gpu.machine)
        assert (job.device, job.machine.dtype, job.machine.memory) == ("cuda", "bfloat16", gpu.memory)
        assert gpu_of(job.machine) == gpu
    here = prepare(config, {}, {}, 8)
    assert (here.device, here.machine.dtype, gpu_of(here.machine)) == ("cpu", "float32", None)
    half = prepare(
        T2IConfig(prompt="x", backend=BackendConfig(torch_dtype="float16")), {}, {}, 8, find_gpu("L4").machine
    )
    assert half.machine.dtype == "float16" and half.machine.capability == (8, 9)


def test_every_gpu_is_known_again_by_what_stands_in_for_it() -> None:
    assert [gpu_of(gpu.machine) for gpu in GPUS] == list(GPUS)
    assert gpu_of(Machine(name="Tesla T4", memory=None, dtype="float16")) is None


def test_a_plan_for_gpus_that_are_not_here() -> None:
    ended = dglaunch("plan", "t2i", "--prompt", "x", "--gpu", "H100", "--world_size", "8")
    assert ended.code == 0, ended.output
    assert (
        "bfloat16" in ended.output and "cuda: planned for NVIDIA H100 80GB HBM3, not for this machine" in ended.output
    )


def test_what_needs_a_gpu_of_a_generation_is_known_without_one() -> None:
    words = ("plan", "t2i", "--prompt", "x", "--quantization", "fp8", "--enable_compile")
    old, new = (dglaunch(*words, "--gpu", name) for name in ("A100-40GB", "L40S"))
    assert old.code == 2 and "needs compute capability 8.9" in old.output and "this GPU has 8.0" in old.output
    assert "compute capability" not in new.output
