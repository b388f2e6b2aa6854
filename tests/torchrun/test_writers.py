"""--writer main, node and rank on real ranks: who writes where, and that each goes on where another stopped.

Ranks that are told so stand for two nodes; two agents of a real torchrun are in test_nodes.py.
"""

from pathlib import Path
from typing import get_args

from dglaunch.cli.main import main
from dglaunch.config import WriterName
from dglaunch.output.lines import read_lines
from support.processes import prompts, until, words
from support.ranks import World, launch
from support.results import images, ledger, run_json

WRITERS = get_args(WriterName)
NUM = 18


def is_whole(folder: Path, num: int = NUM) -> None:
    """One ledger with a line for each image, and nothing of the ranks is left beside it."""
    assert sorted(line["index"] for line in ledger(folder)) == list(range(num))
    assert main(["verify", str(folder)]) == 0
    assert main(["status", str(folder)]) == 0
    left = {path.name for path in folder.iterdir() if path.suffix != ".png"}
    assert left <= {"metadata.jsonl", "run.json", "gallery.html", ".dglaunch.lock"}


def test_all_writers_leave_the_same_folder(tmp_path: Path) -> None:
    """The same images, failures, counts and exit codes; another writer retries what failed."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
    prompts(good, NUM)
    prompts(bad, 5, "[item error]")
    commands = [
        (
            [
                *words(folder)[:-2],
                "--writer",
                writer,
                "--shares",
                "static",
                "--output_dir",
                folder / writer,
                "--gallery",
            ],
            {},
        )
        for writer in WRITERS
        for folder in (good, bad)
    ]
    drained = [*words(tmp_path)[:-2], "--output_dir", tmp_path / "drained"]
    table = tmp_path / "prompts.jsonl"
    prompts(tmp_path, NUM)
    table.write_text(table.read_text().replace("prompt 7 ", "prompt 7 [interrupt] [sleep 2]"))
    stopped = [([*drained, "--writer", writer], {}) for writer in ("rank", "node")]
    cases = launch(tmp_path, 3, [*commands, *stopped])
    assert [case.codes for case in cases] == [[0] * 3, [3] * 3] * 3 + [[130] * 3] * 2, cases[0].output
    for writer in WRITERS:
        is_whole(good / writer)
        told = run_json(good / writer)
        assert (told["num_ok"], told["num_failed"], len(told["images_by_rank"])) == (NUM, 0, 3)
        assert (good / writer / "gallery.html").read_text().count("000017.png") == 1
        assert [
            line["index"] for line in sorted(ledger(bad / writer, "failures.jsonl"), key=lambda line: line["index"])
        ] == list(range(5))
        assert main(["status", str(bad / writer)]) == 3
        assert {p.name: p.read_bytes() for p in (good / writer).glob("*.png")} == {
            p.name: p.read_bytes() for p in (good / "main").glob("*.png")
        }
    assert run_json(tmp_path / "drained")["outcome"] == "drained"
    assert 0 < len(ledger(tmp_path / "drained")) < NUM
    assert main(["status", str(tmp_path / "drained")]) == 130


def test_killed_and_gone_on_by_other_writers_and_worlds(tmp_path: Path) -> None:
    """Twice everything dies at once, with a torn line in each ledger; what was whole is not made again."""
    prompts(tmp_path, NUM, "[sleep 0.3]")
    out = tmp_path / "out"
    kept: dict[str, int] = {}
    for nproc, writer, count in ((3, "rank", 5), (2, "node", 10)):
        world = World(tmp_path, nproc, words(tmp_path, "--writer", writer))
        until(lambda n=count, world=world: len(_times(out)) >= n or world.poll() is not None)
        world.kill()
        assert _times(out).items() >= kept.items()
        kept = _times(out)
        assert count <= len(kept) < NUM and main(["status", str(out)]) == 130
        for path in out.glob("metadata*.jsonl"):
            with path.open("a") as lines:
                lines.write('{"index": 3, "sam')
    assert main(words(tmp_path)) == 0
    is_whole(tmp_path / "out")
    assert _times(tmp_path / "out").items() >= kept.items()


def _times(out: Path) -> dict[str, int]:
    """When each file of a ledger's line was made."""
    lines = [line for path in out.glob("metadata*.jsonl") for _, line in read_lines(path)]
    return {line["file_name"]: (out / line["file_name"]).stat().st_mtime_ns for line in lines}


# -- several nodes ------------------------------------------------------------------------------------------------


def test_nodes_without_a_common_folder(tmp_path: Path) -> None:
    """Each node writes to its own disk; merge joins them; what is lost on one disk is made again, and nothing else."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    arguments = [*words(tmp_path)[:-2], "--writer", "node", "--output_dir", tmp_path / "node%node%" / "out"]
    prompts(tmp_path, NUM)
    first = World(tmp_path, 4, arguments, nodes=2)
    assert first.wait() == 0, first.output()
    made = [images(folder / "out").keys() for folder in folders]
    assert len(made[0]) + len(made[1]) == NUM and not made[0] & made[1] and made[0] and made[1]
    for folder in folders:
        assert main(["verify", str(folder / "out")]) == 1  # the other's images are missing, and nothing else is wrong
    one = sorted(made[1])[0]
    (folders[1] / "out" / one).unlink()
    again = World(tmp_path, 4, arguments, nodes=2)
    assert again.wait() == 0, again.output()
    told = max(
        (run_json(folder / "out") for folder in folders if (folder / "out" / "run.json").exists()),
        key=lambda run: run["num_ok"],
    )
    assert (told["num_ok"], told["num_skipped"]) == (1, NUM - 1)
    joined = tmp_path / "joined"
    assert main(["merge", *(str(folder / "out") for folder in folders), "--output_dir", str(joined)]) == 0
    is_whole(joined)


def test_nodes_with_a_common_folder(tmp_path: Path) -> None:
    """Several processes write there at once; --overwrite removes an earlier job once, and not what a sibling made."""
    prompts(tmp_path, NUM, "an earlier job")
    assert main(words(tmp_path, "--writer", "rank", "--output_format", "jpg")) == 0
    prompts(tmp_path, NUM)
    world = World(tmp_path, 4, words(tmp_path, "--writer", "rank", "--overwrite"), nodes=2)
    assert world.wait() == 0, world.output()
    is_whole(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jpg"))
