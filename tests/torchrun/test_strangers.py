"""Who joins a run without belonging to it, on real ranks; and where the ranks of one machine can be reached from."""

import socket
from pathlib import Path

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

    def _torchrun_variables(self, nodes: int) -> list[dict[str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = super()._torchrun_variables(nodes)
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
