"""Machines that do not fit together: as ranks of two machines, and with `make soak` as two agents of a real torchrun."""

from pathlib import Path

import pytest

from support.processes import nodes, prompts, words
from support.ranks import World
from support.selection import rarely


def other_diffusers(folder: Path) -> Path:
    """A folder of packages in which lies another version of diffusers."""
    other = folder / "packages" / "diffusers-0.1.2.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1.2\n")
    return other.parent


@pytest.mark.parametrize("way", rarely(["forks", "torchrun"], ["torchrun"]))
def test_nodes_with_different_versions_stop_before_a_model_is_loaded(tmp_path: Path, way: str) -> None:
    """The second machine finds another diffusers on its path."""
    packages = str(other_diffusers(tmp_path))
    prompts(tmp_path, 4)
    if way == "forks":
        world = World(
            tmp_path, 2, ["support.replica_checks:with_packages_on_rank_1", packages, *words(tmp_path)], nodes=2
        )
        world.wait()
        codes, told = world.codes(), world.output()
    else:
        jobs = nodes([tmp_path] * 2, words(tmp_path)[:-2], nproc=1, paths=("", packages))
        outputs = [job.end() for job in jobs]
        codes, told = [one.code for one in outputs], "\n".join(one.output for one in outputs)
    assert 0 not in codes, told
    assert "have different versions: diffusers " in told and " 0.1.2" in told and "install the same on both" in told
    assert not list((tmp_path / "out").glob("*.png"))
