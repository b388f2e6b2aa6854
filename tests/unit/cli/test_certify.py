"""`dglaunch certify` over the fake backend, whose cases run in this process: which cases, what is kept, what is told. Real
ranks: torchrun/test_certify.py."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.cli import children
from dglaunch.output.ledger import OutputFolder, Part
from support.commands import Ended, dglaunch
from support.edit_images import SINGLE, save_table
from support.results import ledger, write_jsonl

Spoil = Callable[[int, Sequence[str], Path], None]


class Here:
    """A child that has run to its end in this process, on one rank whatever was asked for."""

    started: list[tuple[int, list[str], dict[str, str]]] = []

    def __init__(self, spoil: Spoil, ranks: int, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        given = {name: value for name, value in environ.items() if name.startswith("DG_")}
        self.started.append((ranks, list(words), given))
        ended = dglaunch(*words, **{name: value for name, value in given.items() if "XDIT" not in name})
        with log.open("a") as said:
            said.write(ended.output)
        self.code = ended.code
        spoil(ranks, words, Path(words[words.index("--output_dir") + 1]))

    def poll(self) -> int:
        return self.code


def nothing(ranks: int, words: Sequence[str], out: Path) -> None:
    """Every case draws what it should."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    Here.started.clear()
    five = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"prompt <b>{n}</b>"} for n in range(5)])

    def certify(
        *words: str | Path, spoil: Spoil = nothing, start: Any = None, prompts: Path | None = five,
        command: Sequence[str] = (), **variables: str,
    ) -> Ended:  # fmt: skip
        monkeypatch.setattr(children, "start", start or (lambda *given: Here(spoil, *given)))
        base = ["--backend", "fake", "--num_gpus", "2", "--output_dir", tmp_path / "out"]
        base += ["--prompts_file", prompts] if prompts is not None else []
        return dglaunch("certify", *command, *base, *words, **variables)

    return certify


def record(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "certify.json").read_text())
    return told


def cases_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in record(folder)["cases"]}


def test_every_case_is_run_or_told_why_not(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run()
    assert ended.code == 0, ended.output
    cases = cases_of(tmp_path / "out")
    assert [name for name, case in cases.items() if not case["refused"]] == [
        "reference", "again", "batch 2", "largest batch", "encode ahead", "2 replicas", "as by default",
    ]  # fmt: skip
    assert cases["ulysses 2"]["refused"] == cases["ring 2"]["refused"] == "--backend fake splits no image"
    assert "ended before it could be stopped" in cases["resume after SIGKILL"]["refused"]
    assert [ranks for ranks, _, _ in Here.started[:7]] == [1, 1, 1, 1, 1, 2, 2]
    assert cases["2 replicas"]["command"].startswith("torchrun --nproc_per_node 2 -m dglaunch t2i --backend fake ")
    assert cases["largest batch"]["command"].split("--batch_size ")[1].startswith("5 ")
    for case in ("batch 2", "2 replicas"):
        assert cases[case]["comparison"]["num_images"] == 5 and cases[case]["comparison"]["greatest"] == 0
        assert cases[case]["images_per_s"] > 0 and cases[case]["peak_memory"] > 0 and 0 <= cases[case]["idle"] <= 1
    assert cases["again"]["verdict"] == "equal" and cases["ring 2"]["verdict"] == "not possible"
    told = record(tmp_path / "out")
    assert told["certificate"]["versions"]["dglaunch"] and told["hardware"]["cores"] and told["outside"] == []
    page = (tmp_path / "out" / "certify.html").read_text()
    assert "Every case that is possible here" in page and "<img" not in page and "http:" not in page


def brighter(ranks: int, words: Sequence[str], out: Path) -> None:
    """Rank 1 of two draws another image than it should."""
    if ranks == 2 and "--batch_size" in words:
        file = out / "000003.png"
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)


def test_another_image_is_exit_3_and_on_the_page(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("--cases", "replicas", spoil=brighter)
    assert ended.code == 3, ended.output
    (outside,) = cases_of(tmp_path / "out")["2 replicas"]["outside"]
    assert re.fullmatch(r"image 3: a pixel differs by \d+ of 255, the limit is 2", outside)
    assert outside in ended.output and record(tmp_path / "out")["outside"] == ["2 replicas"]
    page = (tmp_path / "out" / "certify.html").read_text()
    assert "outside the limits: 2 replicas" in page and outside in page
    assert page.count("<img") == 3, "the reference's, the case's, and the difference"
    assert "prompt &lt;b&gt;3&lt;/b&gt;" in page and 'href="cases/2-replicas/000003.png"' in page
    wide = run("--cases", "replicas", "--max_difference", "255")
    assert wide.code == 0 and len(Here.started) == 2, "limits are asked anew, without running anything again"
    assert run("--cases", "replicas", "--max_share", "0.5").code == 3


def test_an_image_that_is_missing_or_a_run_that_breaks_off_is_exit_3(run: Callable[..., Ended], tmp_path: Path) -> None:
    def lose(ranks: int, words: Sequence[str], out: Path) -> None:
        if ranks == 2:
            (out / "000001.png").unlink()

    assert run("--cases", "replicas", spoil=lose).code == 3
    assert "image 1: " in cases_of(tmp_path / "out")["2 replicas"]["outside"][0]
    write_jsonl(tmp_path / "trouble.jsonl", [{"prompt": "[oom 1] two are too many"}, {"prompt": "good"}])
    ended = run("--cases", "batch", "--prompts_file", tmp_path / "trouble.jsonl", "--output_dir", tmp_path / "other")
    assert ended.code == 0, ended.output
    assert "out of memory" in str(cases_of(tmp_path / "other")["batch 2"]["notes"]), "halved, and told"


def test_what_broke_off_is_tried_once_more(run: Callable[..., Ended], tmp_path: Path) -> None:
    class Broken(Here):
        def __init__(self, *given: Any) -> None:
            super().__init__(nothing, *given)
            if given[0] == 2:
                with given[-1].open("a") as said:
                    said.write("RuntimeError: NCCL is not what it was\n")
                self.code = 1

    ended = run("--cases", "replicas", start=Broken)
    assert ended.code == 3 and "it left with exit code 1: RuntimeError: NCCL is not what it was" in ended.output
    assert run("--cases", "replicas,again").code == 0
    assert list(cases_of(tmp_path / "out")) == ["reference", "again", "2 replicas"], "in their own order"


def test_edits_are_certified_as_well(run: Callable[..., Ended], tmp_path: Path) -> None:
    table = save_table(tmp_path / "edits.csv", SINGLE[:2], task="make it new")
    ended = run("--input", table, "--cases", "again,batch 2,replicas", command=["edit"], prompts=None)
    assert ended.code == 0, ended.output
    assert [words[0] for _, words, _ in Here.started] == ["edit"] * 4


def test_a_reference_that_cannot_be_made_ends_it(run: Callable[..., Ended], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "[item error] never"}])
    ended = run("--prompts_file", tmp_path / "bad.jsonl")
    assert ended.code == 1 and "The reference could not be made: it left with exit code 3" in ended.output
    assert "logs/reference.txt" in ended.output


def test_finished_cases_are_kept(run: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(ranks: int, words: Sequence[str], out: Path) -> None:
        if out.name == "batch-2":
            raise KeyboardInterrupt

    assert run("--cases", "again,batch,replicas", spoil=stop).code == 130
    assert list(cases_of(tmp_path / "out")) == ["reference", "again"]
    assert len(ledger(tmp_path / "out" / "cases" / "batch-2")) == 5, "it ran, but it was not looked at"
    Here.started.clear()
    assert run("--cases", "again,batch,replicas").code == 0
    words = [words for _, words, _ in Here.started]
    assert [Path(line[line.index("--output_dir") + 1]).name for line in words] == [
        "batch-2",
        "largest-batch",
        "2-replicas",
    ]
    assert "--overwrite" in words[0] and "--overwrite" not in words[1]


class Endless:
    """A child that goes on until it is asked to stop; a signal comes to certify meanwhile."""

    asked = 0

    def __init__(self, *_: object) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return self.code

    def stop(self) -> None:
        Endless.asked += 1
        self.code = 130

    def kill(self) -> None:
        raise AssertionError("it has ended")


def test_a_signal_stops_the_case_in_order(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("--cases", "again", start=Endless)
    assert ended.code == 130 and "The same command goes on" in ended.output and Endless.asked == 1
    assert run("--cases", "again").code == 0


def test_another_certificate_or_another_folder_is_left_alone(run: Callable[..., Ended], tmp_path: Path) -> None:
    assert run("--cases", "again").code == 0
    ended = run("--cases", "again", "--num_inference_steps", "3")
    assert ended.code == 2 and "holds another certificate (command, tasks differ)" in ended.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "certify.json").write_text('{"cases": 1}')
    ended = run("--output_dir", tmp_path / "mine")
    assert ended.code == 2 and "Choose another --output_dir" in ended.output
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["certify.json"]


@pytest.mark.parametrize("name", ["certify.html", "logs/2-replicas.txt", "cases", "logs", "cases/2-replicas"])
@pytest.mark.parametrize("as_link", [False, True])
def test_what_is_not_certifys_is_not_written_to(
    run: Callable[..., Ended], tmp_path: Path, name: str, as_link: bool
) -> None:
    assert run("--cases", "again").code == 0
    Here.started.clear()
    precious, place = tmp_path / "precious", tmp_path / "out" / name
    is_folder = "." not in name
    if place.exists():
        place.rename(tmp_path / "before")
    if not as_link:
        place.write_text("mine")
    elif is_folder:
        precious.mkdir()
        place.symlink_to(precious)
    else:
        precious.write_text("mine")
        place.symlink_to(precious)
    ended = run("--cases", "again,replicas")
    assert ended.code == 2 and name in ended.output and not Here.started, ended.output
    assert place.is_symlink() == as_link
    assert not list(precious.iterdir()) if as_link and is_folder else place.read_text() == "mine"


def test_two_do_not_write_into_one_folder(run: Callable[..., Ended], tmp_path: Path) -> None:
    with contextlib.closing(OutputFolder(tmp_path / "out").lock(Part())):
        ended = run("--cases", "again")
    assert ended.code == 2 and "Another dglaunch is writing" in ended.output and not Here.started
    assert run("--cases", "again").code == 0


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--batch_size", "4"], {}, "certify chooses --batch_size itself"),
        (["--cases", "again"], {"DG_ENCODE": "ahead"}, "drop the variable DG_ENCODE"),
        (["--overwrite"], {}, "certify chooses --overwrite itself"),
        (["--backend", "xdit"], {}, "drop --backend xdit"),
        (["--backend", "openai"], {}, "--backend openai asks another; drop it"),
        (["--prompts_file", "/dev/stdin"], {}, "/dev/stdin can be read once; give a file"),
        (["--max_share", "2"], {}, "--max_share is 2; it must be from 0 to 1"),
        (["--cases", "nosuch"], {}, "No case has one of the words nosuch in its name"),
        ([], {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
         "certify is for one machine, and torchrun has started 2 of 4 ranks"),
        ([], {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
         "--num_gpus 2 under torchrun, which started 4 ranks"),
    ],
)  # fmt: skip
def test_what_certify_cannot_do_is_told(
    run: Callable[..., Ended], tmp_path: Path, words: list[str], variables: dict[str, str], said: str
) -> None:
    ended = run(*words, **variables)
    assert ended.code == 2 and said in ended.output
    assert not (tmp_path / "out").exists() and not Here.started


def test_under_torchrun_rank_0_does_it_with_as_many_ranks(run: Callable[..., Ended], tmp_path: Path) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert run("--cases", "again,replicas", RANK="1", **world).code == 0 and not Here.started
    assert run("--cases", "again,replicas", RANK="0", **world).code == 0
    assert [ranks for ranks, _, _ in Here.started] == [1, 1, 2]


def test_without_prompts_it_has_its_own_and_enough_images(run: Callable[..., Ended], tmp_path: Path) -> None:
    assert run("--num_gpus", "8", "--cases", "again", prompts=None).code == 0
    rows = ledger(tmp_path / "out" / "cases" / "again")
    assert len(rows) == 16 and len({row["prompt"] for row in rows}) == 8
