"""`dglaunch tune --search` with scripted runs: the fake backend draws, and speeds and colors are changed afterwards as the flags
say. A search of the real `tiny`: torchrun/test_tune.py."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.cli import tune
from dglaunch.cli.search import why
from support.commands import Ended, dglaunch
from support.results import ledger, write_jsonl

SECONDS = {"--enable_compile": 0.5, "--compile_scope": 1.5, "pab": 0.8, "taylor_seer": 0.4, "int8": 2.0}
"""By a word of the flags: what it multiplies a batch's second by."""
BRIGHTER = {"pab": 3, "taylor_seer": 30, "int8": 8}
"""By a word of the flags: what is added to the first image; the others get twice as much."""


class Script:
    """Stands in for torchrun: what is started, and what comes of it."""

    def __init__(self, **ended: str) -> None:
        self.started: list[list[str]] = []
        self.ended = ended
        """By a word of the flags: what such a run prints before it fails."""
        self.stop_after = 1000
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
        words = list(command[command.index("dglaunch") + 1 :])
        if len(self.started) == self.stop_after:
            raise KeyboardInterrupt
        self.started.append(words)
        self.environments.append(environ)
        if words[0] == "tune-rank":
            machine = {"device": "CPU", "dtype": "float32", "shape": "64x64"}
            rows = [{"batch_size": size, "images_per_s": speed} for size, speed in ((1, 1.0), (2, 2.0), (4, 2.01))]
            write_jsonl(Path(words[1]), [machine, *rows])
            return 0, ""
        for word, said in self.ended.items():
            if word in words:
                return 1, said
        return self.draw(words)

    def draw(self, words: list[str]) -> tuple[int, str]:
        """A run of the fake backend, with the seconds, the memory and the colors of a real one."""
        given = dict(pairwise(words))
        kept = ("--prompts_file", "--batch_size", "--output_dir")
        run = dglaunch("t2i", "--backend", "fake", "--overwrite", *(w for name in kept for w in (name, given[name])))
        folder = Path(given["--output_dir"])
        seconds = float(np.prod([factor for word, factor in SECONDS.items() if word in words]))
        lines = [line | {"seconds": seconds, "num_inference_steps": 4} for line in ledger(folder)]
        lines[0]["seconds"] = 60.0  # compiling
        write_jsonl(folder / "metadata.jsonl", lines)
        record = json.loads((folder / "run.json").read_text())
        record["peak_memory_bytes"] = (50 if "--enable_compile" in words else 10) * 2**30
        (folder / "run.json").write_text(json.dumps(record))
        for file in folder.glob("*.png"):
            brighter = sum(more for word, more in BRIGHTER.items() if word in words) * (1 + (file.stem > "000000"))
            Image.fromarray((np.asarray(Image.open(file)) // 2 + 60 + brighter).astype(np.uint8)).save(file)
        return run.code, run.output

    @property
    def flags(self) -> list[str]:
        """What was tried, in its order."""
        return [
            " ".join(words[words.index("--prompts_file") + 2 : words.index("--batch_size")])
            for words in self.started
            if words[0] == "t2i"
        ]


def search(folder: Path, script: Script, *flags: str | Path, **environment: str) -> Ended:
    prompts = folder / "p.jsonl"
    if not prompts.exists():
        write_jsonl(prompts, [{"prompt": f"a red circle {n}", "seed": 7 + n} for n in range(3)])
    words = [
        "--prompts_file",
        prompts,
        "--num_gpus",
        "1",
        "--cache_dir",
        folder / "cache",
        "--output_dir",
        folder / "out",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "_run", script)
        patch.setattr(tune, "_plot", lambda *_: "")
        return dglaunch("tune", "t2i", "--search", *words, *flags, **environment)


def notebook(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "search.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Script, Ended]:
    folder = tmp_path_factory.mktemp("search 'quoted'")
    script = Script(flex="ValueError: no such kernel\ntorch...ChildFailedError: \n")
    return folder, script, search(folder, script, "--max_difference", "8", "--guidance_scale", "1")


def test_all_is_measured_with_the_same_prompts_seeds_and_batch(done: tuple[Path, Script, Ended]) -> None:
    folder, script, ended = done
    assert ended.code == 0, ended.output
    assert [words[0] for words in script.started].count("tune-rank") == 1
    rows = [
        json.loads(line) for line in (folder / "out" / "search" / ".dglaunch-prompts.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 8 and {row["guidance_scale"] for row in rows} == {1.0}
    assert len({(row["prompt"], row["seed"]) for row in rows}) == 8, "with too few prompts, other seeds"
    assert rows[0] == {"prompt": "a red circle 0", "seed": 7, "guidance_scale": 1.0}
    runs = [words for words in script.started if words[0] == "t2i"]
    sizes = [words[words.index("--batch_size") + 1] for words in runs]
    assert sizes[:2] == ["2", "1"] and set(sizes[2:]) == {"2"}, "as given, in batches of 1, and the rest"
    assert script.flags.count("") == 3, "as given, in batches of 1, and as given once more"


def test_the_fastest_are_told_with_a_command_to_copy(done: tuple[Path, Script, Ended], tmp_path: Path) -> None:
    folder, _, ended = done
    lossless, within = notebook(folder)["choices"].values()
    assert lossless["name"] == "enable_compile" and within["name"] == "cache_type pab + enable_compile"
    for choice, flags in ((lossless, "--enable_compile"), (within, "--cache_type pab --enable_compile")):
        assert choice["command"] in ended.output and f"{flags} --batch_size 2 --output_dir out" in choice["command"]
        words = shlex.split(choice["command"])
        assert words[:2] == ["dglaunch", "t2i"] and "--guidance_scale" in words and "--search" not in words
        planned = dglaunch("plan", *words[1:], cwd=tmp_path)
        assert planned.code == 0, planned.output
    assert "moves no image by more than 8 of 255" in ended.output


def test_the_numbers_are_those_of_the_runs(done: tuple[Path, Script, Ended]) -> None:
    folder, _, ended = done
    trials = {trial["name"]: trial for trial in notebook(folder)["trials"]}
    assert trials["as given"]["images_per_s"] == 2 and trials["as given"]["seconds_per_step"] == 0.25
    assert trials["enable_compile"]["images_per_s"] == 4, "the first batch, which compiles, does not count"
    pab = trials["cache_type pab"]
    assert pab["greatest"] == 6 and pab["difference"] == 6 and pab["worst"] == "000001.png", (
        "0 moved by 3, the others by 6"
    )
    assert pab["psnr"] == pytest.approx(33.0, abs=0.01) and 0.9 < pab["ssim"] < 1 and pab["num_compared"] == 8
    assert notebook(folder)["front"] == ["enable_compile", "cache_type pab + enable_compile", "cache_type taylor_seer + enable_compile"]  # fmt: skip
    (line,) = [line for line in ended.output.splitlines() if line.split()[2:4] == ["enable_compile", "4"]]
    assert line.split() == ["4", ">*=", "enable_compile", "4", "2.00", "0.12", "50.0", "equal", "1.000", "0.00"]
    with Image.open(folder / "out" / "search.png") as picture:
        assert picture.format == "PNG"


def test_pairs_of_those_that_gained_are_tried(done: tuple[Path, Script, Ended]) -> None:
    _, script, _ = done
    pairs = [flags for flags in script.flags if flags.count("--") > 1 and "--compile_scope" not in flags]
    assert pairs == ["--cache_type taylor_seer --enable_compile", "--cache_type pab --enable_compile"]


def test_what_could_not_be_had_is_told_with_its_reason(done: tuple[Path, Script, Ended]) -> None:
    folder, _, ended = done
    assert "not tried: quantization fp8. It runs on GPUs only" in ended.output
    assert "pip install xformers" in ended.output
    assert "attention_backend flex: ValueError: no such kernel" in ended.output
    assert {"names": ["enable_cpu_offload", "enable_group_offloading"],
            "reason": "It runs on GPUs only (the weights are in host memory already); drop it on a CPU."} in notebook(folder)["not_tried"]  # fmt: skip


def test_the_same_command_tries_again_only_what_failed(done: tuple[Path, Script, Ended], tmp_path: Path) -> None:
    folder, _, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    again = Script()
    flags = ("--max_difference", "100", "--guidance_scale", "1", "--output_dir", tmp_path / "out")
    ended = search(folder, again, *flags)
    assert ended.code == 0 and again.flags == ["--attention_backend flex"], ended.output
    assert list(notebook(tmp_path)["choices"].values())[1]["name"] == "cache_type taylor_seer + enable_compile"


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some of the table, for tests of what does not depend on it."""
    from dglaunch.models.optimizations import OPTIMIZATIONS
    from dglaunch.planning import candidates

    rows = [row for row in OPTIMIZATIONS if row.name in ("enable_compile", "cache_type pab", "quantization fp8")]
    monkeypatch.setattr(candidates, "OPTIMIZATIONS", rows)


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    first = Script()
    first.stop_after = 4
    ended = search(tmp_path, first, "--max_difference", "8")
    assert ended.code == 130 and ended.output.count("Stopped") == 1, ended.output
    assert re.search(r"^2 of \d+, about [\d.]+ \w+ left: in batches of 1 \.\.\.$", ended.output, re.MULTILINE), (
        ended.output
    )
    assert re.search(
        r"Stopped with 3 of \d+ measured\. The best so far .* \(cache_type pab, 1\.25 times as fast", ended.output
    )
    command, last = ended.output.splitlines()[-2:]
    assert "dglaunch t2i" in command and "--cache_type pab" in command
    assert last == "Start the same command again to go on."
    kept = notebook(tmp_path)
    assert [trial["name"] for trial in kept["trials"]] == ["as given", "in batches of 1", "cache_type pab"]
    (tmp_path / "p.jsonl").write_text((tmp_path / "p.jsonl").read_text())
    second = Script()
    ended = search(tmp_path, second)
    assert ended.code == 0, ended.output
    assert "3 were measured before" in ended.output
    compiled = ["--enable_compile", "--enable_compile --compile_scope whole"]
    assert second.flags == [*compiled, "", "--cache_type pab --enable_compile"], "and as given once more"
    assert not any(words[0] == "tune-rank" for words in second.started), "the batch size was found before"
    third = Script()
    assert search(tmp_path, third).code == 0 and third.started == []


def test_flags_do_not_come_from_the_notebook(done: tuple[Path, Script, Ended], tmp_path: Path) -> None:
    """Anyone may have written it; what is run and what is told to be typed comes from the table."""
    shutil.copytree(done[0] / "out", tmp_path / "out")
    record = notebook(tmp_path)
    best = next(trial for trial in record["trials"] if trial["name"] == "enable_compile")
    record["trials"].append(best | {"name": "trust_remote_code", "images_per_s": 900.0})
    (tmp_path / "out" / "search.json").write_text(json.dumps(record))
    ended = search(done[0], Script(), "--guidance_scale", "1", "--output_dir", tmp_path / "out")
    assert ended.code == 0 and "trust_remote_code" not in ended.output, ended.output


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    assert search(tmp_path, Script()).code == 0
    before = notebook(tmp_path)
    script = Script()
    ended = search(tmp_path, script, "--guidance_scale", "0.5")
    assert ended.code == 2 and "guidance_scale, tasks differ" in ended.output and "--overwrite" in ended.output
    assert script.started == [] and notebook(tmp_path) == before
    anew = Script()
    assert search(tmp_path, anew, "--guidance_scale", "0.5", "--overwrite").code == 0
    assert len(anew.started) == 8, "the sweep and all runs"
    assert "--overwrite" not in json.dumps(notebook(tmp_path)["choices"])


@pytest.mark.parametrize("content", ['{"my": "own"}', "no JSON", "[1, 2]", '{"asked": {}, "trials": [{}], "point": 1}'])
def test_a_file_of_the_users_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.json").write_text(content)
    for flags in ((), ("--overwrite",)):
        script = Script()
        ended = search(tmp_path, script, *flags)
        assert ended.code == 2 and "is not what dglaunch tune --search writes" in ended.output
        assert script.started == [] and (tmp_path / "out" / "search.json").read_text() == content


def test_without_a_plain_run_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    script = Script(**{"--batch_size": "dglaunch: The disk is full. Make room."})
    ended = search(tmp_path, script)
    assert ended.code == 1 and "The run as given could not be measured: The disk is full. Make room." in ended.output


def test_why_a_run_came_to_nothing_is_told(tmp_path: Path) -> None:
    assert why(tmp_path, 1, "") == "it left with exit code 1"
    write_jsonl(tmp_path / "failures.jsonl", [{"index": 0, "sample": 0, "error": "ValueError: the image is NaN"}])
    assert why(tmp_path, 1, "...ChildFailedError: \n") == "ValueError: the image is NaN"
    assert why(tmp_path, 1, "dglaunch: --x cannot take effect.\n...ChildFailedError: \n") == "--x cannot take effect."


def test_variables_reach_the_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    script = Script()
    ended = search(
        tmp_path, script, DG_ENABLE_FUSE_QKV="1", DG_LAYOUT="webdataset", DG_JOB_TOKEN="secret-token-of-the-job"
    )
    assert ended.code == 0, ended.output
    runs = [words for words in script.started if words[0] == "t2i"]
    assert all("--enable_fuse_qkv" in words and "--layout" not in words for words in runs)
    assert {name for name in script.environments[-1] if name.startswith("DG_")} == {"DG_JOB_TOKEN"}


def test_what_another_gpu_cannot_hold_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    ended = search(tmp_path, Script(), "--gpu", "40GiB")
    assert ended.code == 0 and "enable_compile: 50.0 GiB are more than 36.0 of a GPU 40GiB" in ended.output, (
        ended.output
    )
    assert "--enable_compile" not in json.dumps(notebook(tmp_path)["choices"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_difference", "3"], "does nothing without --search"),
        (["--search", "--max_difference", "far"], "--max_difference 'far' is not a number"),
        (["--search", "--max_difference", "nan"], "it must be a number from 0 to 255"),
        (["--search", "--batch_size", "2"], "drop --batch_size"),
    ],
)
def test_flags_that_do_not_hold(words: list[str], said: str) -> None:
    ended = dglaunch("tune", "t2i", "--prompt", "a red circle", *words)
    assert ended.code == 2 and said in " ".join(ended.output.split())
