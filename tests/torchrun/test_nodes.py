"""Machines that do not fit together, as two agents of a real torchrun."""

from pathlib import Path

from support.processes import nodes, prompts, words


def test_nodes_with_different_versions_stop_before_a_model_is_loaded(tmp_path: Path) -> None:
    """Two torchrun agents; the second finds another diffusers on its path."""
    other = tmp_path / "packages" / "diffusers-0.1.2.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1.2\n")
    prompts(tmp_path, 4)
    jobs = nodes([tmp_path] * 2, words(tmp_path)[:-2], nproc=1, paths=("", str(other.parent)))
    outputs = [job.end() for job in jobs]
    told = "\n".join(one.output for one in outputs)
    assert all(one.code != 0 for one in outputs), told
    assert "have different versions: diffusers " in told and " 0.1.2" in told and "install the same on both" in told
    assert not list((tmp_path / "out").glob("*.png"))
