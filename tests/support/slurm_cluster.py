"""A real Slurm of two nodes for the tests (with_slurm), and what they ask it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.commands import ROOT, SUPPORT, clean_environment
from support.processes import until
from support.results import ledger


@dataclass
class Cluster:
    """Two nodes that run until the tests end; commands enter their namespaces."""

    pid: int
    conf: str

    def run(self, *words: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-n", "-u", "-i", "-p", f"--wdns={cwd}", *map(str, words)],
            env=clean_environment({"SLURM_CONF": self.conf, **(environment or {})}), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(
        self, folder: Path, words: Sequence[str | Path], environment: Mapping[str, str] | None = None, gpus: int = 2
    ) -> str:
        """`dglaunch slurm WORDS --submit`, with the images in folder/out; the job's number."""
        place = ["--gpus_per_node", str(gpus), "--cpus_per_gpu", "1", "--time", "10", "--output_dir", folder / "out"]
        arguments = [sys.executable, "-m", "dglaunch", "slurm", *words, *place, "--submit"]
        return self.run(*arguments, cwd=folder, environment=environment).split()[-1]

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def until_made(self, number: str, out: Path, count: int, name: str = "metadata.jsonl") -> None:
        """Until the job is in the middle of its work."""
        until(lambda: len(ledger(out, name)) >= count or self.state(number) in ("FAILED", "COMPLETED"), 240)
        assert self.state(number) == "RUNNING", log_of(out.parent)

    def wait(self, number: str, seconds: float = 300) -> dict[str, str]:
        """Until it has ended for good."""
        until(lambda: self.state(number) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), seconds, 0.3)
        return self.job(number)


def start_cluster(folder: Path, *options: str) -> tuple["subprocess.Popen[bytes]", Cluster]:
    if os.geteuid() != 0 or shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("Slurm is not installed, or this is not root (apt-get install slurmctld slurmd slurm-client munge)")
    said = folder / "conf"
    process = subprocess.Popen(
        [SUPPORT / "with_slurm", *options, "sh", "-c", f"echo $SLURM_CONF > {said}; exec sleep infinity"],
        env=clean_environment({"WITH_SLURM_LOGS": str(folder / "logs")}), start_new_session=True,
    )  # fmt: skip
    until(lambda: (said.exists() and said.read_text().endswith("\n")) or process.poll() is not None, 60)
    if process.poll() is not None:
        pytest.skip("the cluster does not start here (namespaces are not allowed?)")
    outer = _child(process.pid)  # with_slurm -> unshare -> with_slurm inside
    return process, Cluster(_child(outer), said.read_text().strip())


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def log_of(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("slurm-*.out")))


def is_whole(folder: Path, num: int) -> None:
    assert [line["index"] for line in sorted(ledger(folder / "out"), key=lambda line: line["index"])] == list(
        range(num)
    )
    assert main(["verify", str(folder / "out")]) == 0
