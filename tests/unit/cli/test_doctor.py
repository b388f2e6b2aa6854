"""doctor: what it makes of what it found. As a command, on this machine: system/test_doctor_here.py."""

import os
import socket
from pathlib import Path

import pytest

from dglaunch.cli import doctor, probes
from dglaunch.cli.doctor import NOTE, OK, WARNING, WRONG
from dglaunch.cli.probes import Probed

FINE = {"version": "2.9.0+cu128", "cuda": "12.8", "hip": None, "available": True, "gloo": True, "nccl": "2.27.5"}
GPU = ["NVIDIA H100 80GB HBM3", 80 * 2**30, 79 * 2**30, "9.0"]


def test_a_misspelt_variable() -> None:
    line = doctor.variables_line({"DG_BATCHSIZE": "3"})
    assert line.state == WRONG and "DG_BATCH_SIZE" in line.remedy
    assert doctor.variables_line({"DG_BATCH_SIZE": "3"}).state == OK


def test_one_that_ends_the_process_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {
        "fine": "print('noise'); found = 3",
        "crash": "import os; os._exit(7)",
        "late": "pass",
        "error": "import sys; sys.exit('no way')",
        "last": "pass",
    }
    assert probes.probe(codes) == {
        "fine": Probed(3),
        "crash": Probed(error="importing it ends the process with exit code 7"),
        "late": Probed(),
        "error": Probed(error="SystemExit: no way"),
        "last": Probed(),
    }
    monkeypatch.setattr(probes, "IMPORT_S", 1)
    slow = probes.probe({"first": "pass", "hangs": "import time; time.sleep(60)", "last": "pass"})
    assert [result.error for result in slow.values()] == ["", "not imported within 1 s", ""]


def states(found: dict[str, object] | None, driver: list[str] | None, error: str = "") -> dict[str, str]:
    return {line.name: line.state for line in doctor.torch_lines(Probed(found, error), driver)}


def test_gpus() -> None:
    two = FINE | {"gpus": [GPU, [*GPU[:2], 3 * 2**30, GPU[3]]]}
    assert states(two, ["H100"] * 2) == {"torch": OK, "CUDA": OK, "NCCL": OK, "GPU 0": OK, "GPU 1": WARNING}
    assert states(two | {"nccl": None}, ["H100"])["NCCL"] == WARNING
    unseen = FINE | {"gpus": [], "available": False}
    assert states(unseen, None) == {"torch": OK, "CUDA": NOTE}
    (_, cuda) = doctor.torch_lines(Probed(unseen | {"cuda": None}), ["H100"])
    assert cuda.state == WARNING and "built for CPUs" in cuda.remedy
    (_, cuda) = doctor.torch_lines(Probed(unseen), ["H100"])
    assert "too old for CUDA 12.8" in cuda.remedy
    assert states(FINE | {"gpus": [], "version": "2.1.0"}, None)["torch"] == WRONG
    assert states(None, ["H100"], error="broken")["torch"] == WRONG
    assert doctor.torch_lines(None, None)[0].state == WRONG


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    needed, wanted = probes.PACKAGES[0], next(p for p in probes.PACKAGES if p.name == "torchvision")
    assert (needed.name, doctor.package_line(needed, None).state) == ("diffusers", WRONG)
    assert doctor.package_line(wanted, None).state == NOTE
    assert doctor.package_line(wanted, Probed(error="undefined symbol")).state == WARNING
    monkeypatch.setattr(doctor, "_least", lambda _: "99.0")
    assert "diffusers>=99.0" in doctor.package_line(needed, Probed()).remedy


def test_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert doctor.host_line().state == WARNING
    script = tmp_path / "sbatch"
    script.write_text("#!/bin/sh\necho slurm 23.11.4\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.slurm_line({"SLURM_JOB_ID": "7"}).value == "slurm 23.11.4, inside job 7"
    monkeypatch.setattr(doctor, "LITTLE_DISK", 2**60)
    assert {line.state for line in doctor.disk_lines({})} == {WARNING}


def test_no_home_folder_is_a_line_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_user(_uid: int) -> object:
        raise KeyError("this user has no name")

    monkeypatch.setattr("pwd.getpwuid", no_user)
    monkeypatch.delenv("HOME", raising=False)
    lines = doctor.disk_lines({})
    assert [line.name for line in lines if "set HOME" in line.remedy] == ["disk, hub cache", "disk, --cache_dir"]
