"""Who joins a run without belonging to it, on real ranks; and where the ranks of one machine can be reached from."""

import json
import pickle
import shutil
import socket
from pathlib import Path

from dglaunch.tiny.folder import WEIGHTS
from support.ranks import World, launch

CHECKS = "support.replica_checks"


def command(folder: Path) -> list[str]:
    return ["t2i", "--backend", "fake", "--prompt", "x", "--output_dir", str(folder / "out")]


def test_a_rank_with_another_token_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    (case,) = launch(tmp_path, 2, [([f"{CHECKS}:with_tokens_of_their_own", *command(tmp_path)], {})])
    assert case.codes == [2, 2]
    assert "Rank 1 does not know this job's token" in case.output and "DG_JOB_TOKEN" in case.output
    assert "token-" not in case.output and not (tmp_path / "out").exists()


def test_a_strangers_pickle_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (case,) = launch(tmp_path, 2, [([f"{CHECKS}:a_stray_that_pickles", str(made), *command(tmp_path)], {})])
    assert case.codes == [2, 0] and "Rank 1 does not know this job's token" in case.output
    assert not made.exists() and not (tmp_path / "out").exists()


def test_the_same_token_on_all_is_no_hindrance(tmp_path: Path) -> None:
    (case,) = launch(tmp_path, 2, [(command(tmp_path), {"DG_JOB_TOKEN": "a long random text"})])
    assert case.codes == [0, 0]
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert files and not any(b"a long random text" in path.read_bytes() for path in files)


class WithoutAgent(World):
    """As srun starts ranks: rank 0 holds the store."""

    def _torchrun_variables(self, nodes: int, run_id: str) -> list[dict[str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = super()._torchrun_variables(nodes, run_id)
        for place in places:
            place |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(port)}
            del place["TORCHELASTIC_USE_AGENT_STORE"], place["GLOO_SOCKET_IFNAME"]
        return places


def test_on_one_machine_the_ranks_listen_on_the_loopback_device_only(tmp_path: Path) -> None:
    words = [f"{CHECKS}:what_listens"]
    world = WithoutAgent(tmp_path, 2, words)
    assert world.wait() == 0
    (case,) = world.results()
    listened = [line.split()[1] for line in case.output.splitlines() if line.startswith("LISTENS")]
    assert len(listened) >= 3, case.output  # the store, and gloo on each rank
    assert set(listened) == {"0100007F"}, case.output


class Runs:
    """A pickle that makes a file where it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.made,)


def test_a_checkpoint_runs_no_code_unasked(tmp_path: Path) -> None:
    """Neither by pickled weights nor by a module that lies in it."""
    made = tmp_path / "made"
    pickled, coded = (shutil.copytree(WEIGHTS, tmp_path / name) for name in ("pickled", "coded"))
    for weights in (pickled / "transformer").glob("*.safetensors"):
        weights.unlink()
    (pickled / "transformer" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Runs(made)))
    index = json.loads((coded / "model_index.json").read_text())
    (coded / "model_index.json").write_text(json.dumps(index | {"transformer": ["mine", "FluxTransformer2DModel"]}))
    module = f"import pathlib\npathlib.Path({str(made)!r}).touch()\nclass FluxTransformer2DModel: pass\n"
    for place in ("mine.py", "transformer/mine.py", "pipeline.py"):
        (coded / place).write_text(module)
    words = ["t2i", "--prompt", "x", "--device", "cpu", "--output_dir"]
    cases = launch(
        tmp_path, 1, [([*words, str(tmp_path / f"{model.name}-out"), "--model_name", str(model)], {}) for model in (pickled, coded)]
    )  # fmt: skip
    for case, flag in zip(cases, ("--allow_pickle", "--trust_remote_code")):
        assert case.codes == [2] and flag in case.output, case.output
    assert not made.exists()
