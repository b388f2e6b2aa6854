"""Image 7 is prompt 7, seen in the pixels: the shipped checkpoint draws, and a checker without any model looks for
what each prompt asked for in the picture that has its index. Real ranks, gloo and xDiT groups, a real SIGKILL."""

import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.output import encode
from dglaunch.tiny import folder as tiny
from dglaunch.tiny.training import checker, draw
from dglaunch.tiny.training.prompts import POSITION_NAMES
from dglaunch.tiny.training.spec import Edit, Object, Objects
from dglaunch.tiny.words import COLORS, SHAPES
from support.commands import dglaunch
from support.ranks import World, launch
from support.results import ledger, write_jsonl
from support.selection import rarely, selected

pytestmark = [
    pytest.mark.skipif(not tiny.is_complete(tiny.WEIGHTS), reason="no trained weights in the package"),
    pytest.mark.timeout(1800),  # the first test waits for the runs of all
]

NUM_PROMPTS = 13
"""A number that no batch size or world size below divides."""


# -- what is asked for --------------------------------------------------------------------------------------------


def wanted(index: int) -> Objects:
    """Unlike its neighbours in background, colour, shape and place."""
    shift = 1 + index * 2 % 7
    background = COLORS[(index + shift) % len(COLORS)]
    thing = Object(SHAPES[index % 6], COLORS[index % 10], "large", row=index * 2 // 3 % 3, column=index * 2 % 3)
    return Objects(background, (thing,))


def prompt_of(item: Objects) -> str:
    (thing,) = item.objects
    position = POSITION_NAMES[thing.row][thing.column]
    return f"a {thing.size} {thing.color} {thing.shape} in the {position} on a {item.background} background"


def edit_of(index: int) -> tuple[str, Edit]:
    """The name of one of four shared pictures, and one of three colours for its shape; the four take turns."""
    number, colour = index % 4, ("green", "red", "purple")[index // 4]
    thing = Object(SHAPES[number], "orange", "large", row=number // 2 * 2, column=number % 2 * 2)
    before = Objects(("blue", "white", "black", "pink")[number], (thing,))
    after = Objects(before.background, (Object(thing.shape, colour, "large", thing.row, thing.column),))
    return f"{thing.shape}.png", Edit("recolor", before, after, f"make the {thing.shape} {colour}")


WANTED = [wanted(index) for index in range(NUM_PROMPTS)]
EDITS = [edit_of(index) for index in range(12)]


def test_neighbours_differ_in_everything_and_no_two_are_alike() -> None:
    for one, other in pairwise(WANTED):
        (a,), (b,) = one.objects, other.objects
        assert one.background != other.background and (a.color, a.shape) != (b.color, b.shape)
        assert a.color != b.color and a.shape != b.shape and (a.row, a.column) != (b.row, b.column)
    assert len(set(WANTED)) == NUM_PROMPTS and all(item.background != item.objects[0].color for item in WANTED)


# -- the eye ------------------------------------------------------------------------------------------------------


regions_of = checker.regions
found: dict[bytes, Any] = {}


@pytest.fixture(autouse=True)
def each_picture_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in a picture does not depend on what was asked for, and takes the checker most of its time."""

    def regions(image: Image.Image) -> Any:
        pixels = image.tobytes()
        if pixels not in found:
            found[pixels] = regions_of(image)
        return found[pixels]

    monkeypatch.setattr(checker, "regions", regions)


@cache
def shows(picture: bytes, index: int) -> bool:
    return checker.objects(Image.open(BytesIO(picture)), WANTED[index])["all"]


@cache
def shows_edit(picture: bytes, index: int) -> bool:
    _, asked = EDITS[index]
    return checker.edit(Image.open(BytesIO(picture)), draw.picture(asked.before, 64), asked)["all"]


def misplaced(folder: Path, count: int = NUM_PROMPTS, shown: Callable[[bytes, int], bool] = shows) -> list[int]:
    """The indices whose file does not show what was asked for there."""
    files = {line["index"]: line["file_name"] for line in ledger(folder)}
    assert sorted(files) == list(range(count))
    return [index for index, name in sorted(files.items()) if not shown((folder / name).read_bytes(), index)]


# -- the runs -----------------------------------------------------------------------------------------------------

T2I = {
    "2 ranks, diffusers, 1": (2, "diffusers", 1, {}),
    "2 ranks, diffusers, 8": (2, "diffusers", 8, {}),
    "2 ranks, xdit, ulysses 2, 5": (2, "xdit", 5, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "2 ranks, xdit, data parallel 2, 4": (2, "xdit", 4, {"DG_XDIT_DATA_PARALLEL_DEGREE": "2"}),
    "4 ranks, diffusers, 3": (4, "diffusers", 3, {}),
    "4 ranks, xdit, data parallel 4, 2": (4, "xdit", 2, {}),
    "4 ranks, xdit, ulysses 2 x data parallel 2, 7": (4, "xdit", 7, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "killed on 2 ranks, resumed on 4, diffusers": (4, "diffusers", 4, {}),
    "killed on 2 ranks, resumed on 4, xdit, ulysses 2": (4, "xdit", 6, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
}
EDIT = {
    "edit, 2 ranks, diffusers, 1": (2, "diffusers", 1, {}),
    "edit, 2 ranks, xdit, ulysses 2, 4": (2, "xdit", 4, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "edit, 4 ranks, diffusers, 5": (4, "diffusers", 5, {}),
}


RARE = (
    "2 ranks, diffusers, 1", "2 ranks, xdit, data parallel 2, 4", "4 ranks, diffusers, 3", "4 ranks, xdit, data parallel 4, 2",
    "killed on 2 ranks, resumed on 4, xdit, ulysses 2", "4 ranks, xdit, ulysses 2 x data parallel 2, 7",
)  # fmt: skip
RARE_EDIT = ("edit, 2 ranks, diffusers, 1",)


def killed(folder: Path, prompts: Path) -> None:
    """Two ranks, SIGKILL to all of them once some images are there; again if it came too late."""
    words = ["t2i", "--prompts_file", prompts, "--batch_size", "1", "--output_dir", folder]
    for _ in range(5):
        world = World(folder.parent, 2, words)
        limit = time.monotonic() + 120
        while len(ledger(folder)) < 2 and world.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        world.kill()
        if 2 <= len(ledger(folder)) < NUM_PROMPTS:
            return
        shutil.rmtree(folder)
    pytest.fail("never killed in the middle")


@pytest.fixture(scope="module")
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output folder of each run, by its name."""
    folder = tmp_path_factory.mktemp("end_to_end")
    prompts = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt_of(item)} for item in WANTED])
    for name, edit in EDITS[:4]:
        draw.picture(edit.before, 64).save(folder / name)
    rows = [{"input_images": name, "instruction": edit.instruction} for name, edit in EDITS]
    table = write_jsonl(folder / "edits.jsonl", rows)
    killed(folder / "killed", prompts)
    always = ["2 ranks, diffusers, 8", "killed on 2 ranks, resumed on 4, diffusers", "edit, 4 ranks, diffusers, 5"]
    chosen = dict.fromkeys(
        [*always, *(name for (name,) in [*selected(request, "job"), *selected(request, "edit_job")])]
    )
    for name in T2I:
        if name.startswith("killed"):
            shutil.copytree(folder / "killed", folder / name)
    for nproc in (2, 4):
        commands = []
        for name in chosen:
            ranks, backend, batch, environment = {**T2I, **EDIT}[name]
            source = ["t2i", "--prompts_file", prompts] if name in T2I else [
                "edit", "--input", table]  # fmt: skip
            words = [*source, "--backend", backend, "--batch_size", str(batch), "--output_dir", folder / name]
            commands += [(words, environment)] if ranks == nproc else []
        for case in launch(folder, nproc, commands):
            assert set(case.codes) == {0}, case.output
    return folder


@pytest.mark.parametrize("job", rarely(T2I, RARE))
def test_each_picture_stands_at_its_own_index(out: Path, job: str) -> None:
    assert misplaced(out / job) == []


@pytest.mark.parametrize("edit_job", rarely(EDIT, RARE_EDIT))
def test_each_edit_stands_at_its_own_row(out: Path, edit_job: str) -> None:
    assert misplaced(out / edit_job, len(EDITS), shows_edit) == []


def test_the_killed_run_was_gone_on_with(out: Path) -> None:
    before = {line["file_name"]: line for line in ledger(out / "killed")}
    after = {line["file_name"]: line for line in ledger(out / "killed on 2 ranks, resumed on 4, diffusers")}
    assert before.items() <= after.items() and len(after) == NUM_PROMPTS


# -- and it can fail ----------------------------------------------------------------------------------------------


def swap(folder: Path, one: int, other: int) -> None:
    """What a wrong shard would do: the pixels of two rows change places, all that is written about them does not."""
    lines = {line["index"]: line for line in ledger(folder)}
    pictures = {index: Image.open(BytesIO((folder / lines[index]["file_name"]).read_bytes())) for index in (one, other)}
    for index, picture in ((one, pictures[other]), (other, pictures[one])):
        described = encode.decode_description(pictures[index])
        assert described is not None
        data = encode.encode(picture, "png", described)
        (folder / lines[index]["file_name"]).write_bytes(data)
        lines[index] |= {"bytes": len(data), "sha256": encode.sha256(data)}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


@pytest.mark.parametrize(("count", "shown", "name"), [(NUM_PROMPTS, shows, "2 ranks, diffusers, 8"),
                                                      (len(EDITS), shows_edit, "edit, 4 ranks, diffusers, 5")])  # fmt: skip
def test_any_two_swapped_images_are_found(
    out: Path, tmp_path: Path, count: int, shown: Callable[[bytes, int], bool], name: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(out / name, folder)
    for one, other in combinations(range(count), 2):
        swap(folder, one, other)
        assert misplaced(folder, count, shown) == [one, other]
        swap(folder, one, other)
    swap(folder, 2, 5)
    assert dglaunch("verify", folder).code == 0, "files and ledger agree; only the pixels tell"
