"""`dglaunch certify` with `tiny` on two real ranks: what is equal, what cannot be run here, and a fault that is planted.

Layers, cheapest first: cases that are forks (support.certify_ranks), then all of them under real torchruns (slow). Which
cases there are, and what is told: unit/cli/test_certify.py.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dglaunch.cli import children
from support import browser
from support.certify_ranks import Ranks
from support.commands import Ended, dglaunch, run_process

WORDS = ["--model_name", "tiny", "--num_gpus", "2", "--num_inference_steps", "2"]
CASES = "batch 2,replicas,ulysses,SIGTERM"
EVERY = [
    "reference", "again", "batch 2", "largest batch", "encode ahead", "2 replicas", "as by default", "ulysses 2", "ring 2",
    "cfg 2", "fsdp 2", "tensor 2", "context 2", "resume after SIGTERM", "resume after SIGKILL",
]  # fmt: skip

pytestmark = pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")


def certify(folder: Path, cases: str, *command: str) -> Ended:
    """The command, whose cases are forks; `command` stands before the words of each of them."""

    def start(ranks: int, words: list[str], environ: Mapping[str, str], log: Path) -> children.Child:
        return Ranks(folder.parent, ranks, [*command, *words], environ, log)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(children, "start", start)
        return dglaunch("certify", *WORDS, "--cases", cases, "--output_dir", folder)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("certify") / "out"
    return folder, certify(folder, CASES)


def cases_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads((folder / "certify.json").read_text())["cases"]}


def test_replicas_batches_splits_and_a_run_that_was_stopped_draw_the_same(certified: tuple[Path, Ended]) -> None:
    folder, ended = certified
    assert ended.code == 0, ended.output
    cases = cases_of(folder)
    assert list(cases) == ["reference", "batch 2", "2 replicas", "ulysses 2", "resume after SIGTERM"]
    for name, case in cases.items():
        assert not case["refused"] and not case["failed"] and not case["outside"], case
        assert name == "reference" or (case["comparison"]["num_images"] == 8 and case["comparison"]["greatest"] <= 2)
        assert case["images_per_s"] > 0 and 0 <= case["idle"] < 1, name
        assert case["peak_memory"] > 2**27 and case["planned_memory"] > 2**20
        assert case["planned_seconds"] is None, "what a CPU takes is not planned"
    (stopped,) = [note for note in cases["resume after SIGTERM"]["notes"] if "then started again" in note]
    assert int(stopped.split()[2]) in range(1, 8)


def test_noise_on_rank_1_is_found_and_shown(certified: tuple[Path, Ended], tmp_path: Path) -> None:
    """The other cases are finished: only the one that is missing is run again."""
    folder = shutil.copytree(certified[0], tmp_path / "out", ignore=shutil.ignore_patterns("2-replicas"))
    told = json.loads((folder / "certify.json").read_text())
    told["cases"] = [case for case in told["cases"] if case["name"] != "2 replicas"]
    (folder / "certify.json").write_text(json.dumps(told))
    ended = certify(folder, CASES, "support.certify_ranks:noisy")
    assert ended.code == 3, ended.output
    cases = cases_of(folder)
    assert [name for name, case in cases.items() if case["outside"]] == ["2 replicas"]
    images = cases["2 replicas"]["comparison"]["images"]
    assert sorted({image["greatest"] > 2 for image in images}) == [False, True], "those of rank 0 are right"
    assert cases["2 replicas"]["comparison"]["worst"][0] in {
        image["index"] for image in images if image["greatest"] > 30
    }
    page = (folder / "certify.html").read_text()
    assert "outside the limits: 2 replicas" in page and page.count("data:image/webp") >= 9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_case_under_real_torchruns(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ended = run_process("certify", *WORDS, "--output_dir", folder, timeout=1200)
    assert ended.code == 0, ended.output
    cases = cases_of(folder)
    assert list(cases) == EVERY
    assert [name for name, case in cases.items() if case["refused"]] == ["cfg 2"]
    assert "no second guidance branch" in cases["cfg 2"]["refused"]
    if browser.missing() is None:
        with browser.browser() as tab:
            tab.open(folder / "certify.html")
            assert tab.complaints() == []
