"""Make one image again from what its own file says, and tell whether it is the same.

    dglaunch replay out/000017.png
    dglaunch replay out/000017.png --set guidance_scale=5 --set seed=8

The file's text becomes a table of one row and a few flags, and these go the way of every job: the same reader, checks,
backend and writer as `t2i` or `edit`, in one process. The text may come from anyone: its values are checked as a row's
and a flag's are, and nothing in it can allow remote code or pickled weights (only --set can). The input images of an edit
are looked for where the text, the ledger and the table say (output/inputs.py).
"""

import difflib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dglaunch.atomic import atomic_write
from dglaunch.backends.profiles import profile_of
from dglaunch.backends.registry import BACKENDS
from dglaunch.cli.flag_table import Named
from dglaunch.cli.flags import build
from dglaunch.cli.recorded import differing_versions, typed, versions_in
from dglaunch.config import (
    REPLAY,
    TRUST,
    EditingConfig,
    RunConfig,
    T2IConfig,
    flags_that,
)
from dglaunch.data.columns import COLUMN_OF
from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image
from dglaunch.data.task import INPUT_FIELDS, LORA, ROW_FIELDS, Record, goes_with
from dglaunch.environment import environment, parse_value, types_of
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, EXIT_DRAINED, InputError, OutputError, UserError
from dglaunch.models.input_roles import Role, roles_text
from dglaunch.output.differences import difference, pixels_of
from dglaunch.output.encode import decode_description
from dglaunch.output.images import bytes_of, opened_to_read
from dglaunch.output.inputs import find_inputs, find_loras, results_folder
from dglaunch.output.ledger import FAILURES, OutputFolder, format_of
from dglaunch.output.lines import IMAGE_SUFFIXES, inputs_of
from dglaunch.output.ownership import refuse_to_replace
from dglaunch.terminal import Terminal

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.planning.job import Job

ROW = ("prompt", *ROW_FIELDS, *INPUT_FIELDS)
"""What becomes the row; the rest of what --set takes are flags."""
FLAGS = flags_that(REPLAY)
OF_INPUTS = ("model_type", "max_pixels", "controlnet", *INPUT_FIELDS)
"""What says something of input images alone."""
COLUMNS = {"input_images": "image_column", "mask": "mask_column", "control_image": "control_column"}
"""Of text to image: the columns of its input images, and the flags that name them."""
NAMES_IN_FILE = {"model": "model_name", "dtype": "torch_dtype"}
TYPES = types_of(T2IConfig) | types_of(EditingConfig) | {LORA: str}
"""Of --set: `lora` is the row's cell there, not the files."""
OWN_PIPELINE = "pipeline in the file"
"""Where a description keeps the module that the file names: it is told, not run."""
NEVER_FROM_A_FILE = flags_that(TRUST)


def replay(
    file: Path,
    /,
    changes: Annotated[tuple[str, ...], Named(name="set", metavar="KEY=VALUE")] = (),
    output: Path | None = None,
    tolerance: int = 2,
) -> int:
    """Make one image again from its own PNG text (or EXIF) and compare the two.

    Exit code 0: it is the same, or --set asked for another; 1: it differs by more than --tolerance.

    Args:
        file: an image that dglaunch made (.png, .jpg, .webp); one in a shard is OUT/NAME, as metadata.jsonl calls it.
        changes: for a variation: a row's value or a flag (guidance_scale=5, seed=8, prompt=..., torch_dtype=float32).
        output: where to write it; default is NAME-replay.png in this directory.
        tolerance: largest difference of a pixel, of 255, that still counts as the same (batch sizes differ by rounding).
    """
    if "RANK" in environment():
        raise UserError("replay makes one image in one process; start it without torchrun: dglaunch replay FILE.")
    terminal = Terminal()
    file = opened_to_read(file)
    described = read_description(file)
    wanted = with_changes(described, changes)
    target = output if output is not None else Path(f"{file.stem}-replay{file.suffix}")
    if format_of(target) is None:
        raise UserError(f"--output {target}: name a .png, .jpg or .webp file.")
    if target.exists() and file.exists() and target.samefile(file):
        raise UserError(f"--output {target} is the image itself; name another file.")
    refuse_to_replace(target)
    inputs = find_inputs(file, described) if inputs_of(described) else []
    _refuse_idle(wanted, described)
    for note in notes(described, wanted):
        terminal.print(note)
    loras = find_loras(file, described, str(wanted[LORA])) if wanted.get(LORA) else ()
    make(wanted, described, target, inputs, loras)
    for text in differences(described, read_description(target), wanted):
        terminal.print(text)
    code, text = compare(file, target, tolerance, varied=bool(changes))
    terminal.print(f"{target}: {text}")
    if code == EXIT_BROKEN:
        for line in explain_difference(file, described):
            terminal.print(line)
    return code


def _refuse_idle(wanted: Record, described: Record) -> None:
    """Refuse what --set says of input images that there are not.

    Raises:
        UserError: with what is missing.
    """
    there = columns_of(described)
    for name in OF_INPUTS:
        if name not in wanted or name in described:
            continue
        if not there:
            raise UserError(f"--set {name}: the image was made from text alone, so there is nothing that edits.")
        role: Role | None = "control" if name == "controlnet" else None
        if name in INPUT_FIELDS:
            role = goes_with(name, is_edit(described))
        if role is not None and COLUMN_OF[role] not in there:
            raise UserError(f"--set {name}: it does nothing, as the image was made without {roles_text([role])}.")


# -- what the file says -------------------------------------------------------------------------------------------


def read_description(file: Path) -> Record:
    """Return the values that an image carries, by the names that a table and the flags have.

    Raises:
        UserError: there is no such file, it is no image, or dglaunch did not write its text.
    """
    with opened(file) as image:
        described = decode_description(image)
    if described is None or not isinstance(described.get("prompt"), str) or "seed" not in described:
        raise UserError(
            f"{file} does not carry what made it (no prompt and seed in its PNG text or EXIF). Either dglaunch did not "
            "make it, or another program rewrote it and dropped the text; take the file as dglaunch wrote it."
        )
    values = {NAMES_IN_FILE.get(name, name): value for name, value in described.items()}
    if isinstance(values.get("rewritten_prompt"), str):
        values["prompt"] = values.pop("rewritten_prompt")  # what it was drawn from
    values[OWN_PIPELINE] = values.get("pipeline")
    return {name: value for name, value in values.items() if value is not None and name not in NEVER_FROM_A_FILE}


def is_edit(described: Record) -> bool:
    return "instruction" in described


def with_changes(described: Record, changes: Iterable[str]) -> Record:
    """Return the values to make it with: what was given then (not the pipeline's own defaults), and what --set changes.

    Raises:
        UserError: it cannot be made again here, or a change names nothing that there is.
    """
    backend = str(described.get("backend", "diffusers"))
    if backend in BACKENDS and not profile_of(backend).can_replay:
        raise UserError(
            f"The image was made by an API ({described.get('model_name')}), which does not promise the same image for "
            "the same seed; there is nothing to compare. Run t2i with its prompt for another."
        )
    defaults = described.get("defaults")
    left_open = defaults if isinstance(defaults, list) else []
    values = {name: described[name] for name in (*ROW, *FLAGS) if name in described and name not in left_open}
    if values.get("backend") == "xdit":
        # One process has no replica to share the image; xfuser's attention names are not diffusers'.
        values["backend"] = "diffusers"
        values.pop("attention_backend", None)
    if "control_sha256" not in described:  # of another row's image
        values.pop("controlnet", None)
    for change in changes:
        name, value = parse_change(change)
        values.pop(name, None)
        if value is not None:
            values[name] = value
    return values


def parse_change(change: str, known: Sequence[str] = (*ROW, *FLAGS)) -> tuple[str, object]:
    """Split `guidance_scale=5` into one of the known names and a value; nothing after the sign takes the value away."""
    name, sign, text = change.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    name = "prompt" if name == "instruction" else name
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UserError(f"--set {change}: there is nothing called {name!r} to set. The nearest is {near}.")
    if not sign:
        raise UserError(f"--set {change}: a name and a value are needed, such as --set guidance_scale=5.")
    return name, parse_value(f"--set {name}", text, TYPES[name]) if text else None


def notes(described: Record, values: Record) -> list[str]:
    """Return what is known beforehand to make a difference."""
    found = []
    if described.get("backend") == "xdit" and values.get("backend") == "diffusers":
        found.append("It was made by xdit; here diffusers makes it in one process, so expect differences of rounding.")
    if "backend" not in described:
        found.append("The file is of an older dglaunch and names no backend; diffusers makes it.")
    if (pipeline := described.get(OWN_PIPELINE)) is not None and pipeline != values.get("pipeline"):
        found.append(f"It was made with --pipeline {pipeline}; to run that code again, add --set pipeline={pipeline}.")
    if described.get("cache_type") is not None:
        found.append("It was made with a cache, so it depends on the images of its batch; here it is made alone.")
    if differing := differing_versions(described):
        found.append(f"Other versions made it: {', '.join(differing)}.")
    return found


# -- making it ----------------------------------------------------------------------------------------------------


def make(
    values: Record, described: Record, target: Path, inputs: Sequence[bytes] = (), loras: tuple[str, ...] = ()
) -> None:
    """Run a job of one row in a temporary folder and move its image to the target.

    Args:
        values: the row's values and flags.
        described: what the original says of itself.
        target: where the image goes.
        inputs: the input images of an edit.
        loras: what --lora is given.

    Raises:
        UserError: the values do not hold, as for t2i.
        OutputError: the image failed, or the target cannot be written.
    """
    from dglaunch.run import runner

    output_format = format_of(target)
    assert output_format is not None, "replay() has looked at the target"
    with tempfile.TemporaryDirectory(prefix="dglaunch-replay-") as temporary:
        folder = OutputFolder(Path(temporary, "out"))
        table = write_row(values, described, Path(temporary), inputs)
        config = config_of(values, table, folder.path, output_format, described, loras)
        job = prepare_row(config, described, excused={name for name in values if values[name] == described.get(name)})
        if runner.run(job, Terminal(quiet=True)).exit_code == EXIT_DRAINED:
            raise KeyboardInterrupt
        image = next((path for path in folder.path.iterdir() if path.suffix in IMAGE_SUFFIXES), None)
        if image is None:
            failure = next(folder.records(FAILURES))
            raise OutputError(f"The image could not be made: {failure['error']}")
        try:
            with atomic_write(target) as copy:
                shutil.copyfile(image, copy)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}.") from None


def write_row(values: Record, described: Record, folder: Path, inputs: Sequence[bytes]) -> Path:
    """Write a table of one row, and its input images beside it."""
    row: Record = {"index": int_at(described, "index"), **{name: values[name] for name in ROW if name in values}}
    for n, data in enumerate(inputs):
        (folder / f"input{n}").write_bytes(data)
    names = [f"input{n}" for n in range(len(inputs))]
    for name in reversed(["mask", "control_image"]):
        if name in columns_of(described):
            row[name] = names.pop()
    if names:
        row["input_images"] = names
    if is_edit(described):
        row["instruction"] = row.pop("prompt")
    table = folder / "row.jsonl"
    table.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return table


def prepare_row(config: RunConfig, described: Record, excused: Collection[str]) -> "Job":
    """Prepare the job of one row, as the sample of its row that the original was.

    Args:
        excused: values that the original was made with, though they may have done nothing.

    Raises:
        UserError: the values do not hold.
    """
    from dglaunch.planning.job import prepare

    try:
        job = prepare(config, {}, {}, excused=excused)
    except InputError as error:
        problems = "; ".join(text.removeprefix("line 1: ") for text in error.problems)
        raise UserError(
            f"The image cannot be made: {problems}. Correct --set, or the file is not as written."
        ) from None
    _check_weights(described, job.checkpoint.weights_identity)
    # The text names the images as the first table did, not by what they are called here.
    task, names = job.tasks[0], described.get("input_images", [])
    images = tuple(
        replace(image, name=str(name)) for image, name in zip(task.images, names if isinstance(names, list) else [])
    )
    mask = task.mask and replace(task.mask, name=str(described.get("mask")))
    control = task.control and replace(task.control, name=str(described.get("control_image")))
    # Several images of one row have seeds of their own, which the file carries; their number goes into the name.
    sample = int_at(described, "sample")
    return replace(job, tasks=[replace(task, sample=sample, images=images, mask=mask, control=control)])


def columns_of(described: Record) -> list[str]:
    """Return which columns of input images a row needs."""
    hashes = {"input_images": "input_sha256", "mask": "mask_sha256", "control_image": "control_sha256"}
    return [name for name, digest in hashes.items() if digest in described]


def _check_weights(described: Record, here: Mapping[str, str]) -> None:
    """Refuse to make an image again with other weights under the names of those that made it."""
    for name, digest in here.items():
        if described.get(name, digest) != digest:
            flag = name.removesuffix("_sha256")
            raise UserError(
                f"The file of the {flag} is another than the one that made the image (its sha256 begins with "
                f"{str(described[name])[:12]}, here it is {digest[:12]}). Name the right one: --set {flag}=FILE."
            )


def int_at(record: Record, name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) else 0


def config_of(
    values: Record, table: Path, folder: Path, output_format: str, described: Record, loras: tuple[str, ...] = ()
) -> RunConfig:
    """Return the flags among the values, checked as if they had been typed."""
    flags = {name: typed(name, values[name], TYPES[name]) for name in FLAGS if name in values}
    edits = is_edit(described)
    config_type = EditingConfig if edits else T2IConfig
    chosen = {name: flags[name] for name in types_of(config_type) if name in flags}
    chosen |= {"input" if edits else "prompts_file": table, "lora": loras}
    chosen |= {COLUMNS[name]: name for name in columns_of(described)}
    return build(config_type, {**chosen, "output_format": output_format, "output_dir": folder, "batch_size": 1})


# -- the same? ----------------------------------------------------------------------------------------------------


def differences(before: Record, after: Record, values: Record) -> list[str]:
    """Return what the two files say differently although nobody asked for it: a default or the type of the weights."""
    kept = [name for name in (*ROW, *FLAGS) if name not in values or values[name] == before.get(name)]
    return [
        f"{name} was {before.get(name)}, here it is {after.get(name)}"
        for name in kept
        if before.get(name) != after.get(name) and name != "backend" and name in before
    ]


def compare(file: Path, target: Path, tolerance: int, varied: bool) -> tuple[int, str]:
    """Return the exit code, and how far the two are apart."""
    sizes = size_of(file), size_of(target)
    if sizes[0] != sizes[1]:
        return EXIT_DONE if varied else EXIT_BROKEN, f"{sizes[1]}, the original is {sizes[0]}"
    found = difference(pixels_of(bytes_of(file)), pixels_of(bytes_of(target)), seen=0)
    text = f"largest difference of a pixel {found.greatest} of 255, {found.share:.2%} of the pixels differ"
    if varied:
        return EXIT_DONE, f"a variation ({text})"
    if found.greatest == 0:
        return EXIT_DONE, "the same, pixel for pixel"
    if found.greatest <= tolerance:
        return EXIT_DONE, f"the same but for rounding ({text})"
    return EXIT_BROKEN, f"NOT the same ({text})"


@contextmanager
def opened(file: Path) -> Iterator["Image"]:
    """An image with its pixels.

    Raises:
        UserError: there is no such file, or it is none that can be read.
    """
    try:
        data = bytes_of(file)
        with damage_is_a_bad_image(), open_image(data) as image:
            image.load()
            yield image
    except FileNotFoundError:
        raise UserError(f"There is no file {file} (looked in {Path.cwd()}).") from None
    except BadImage as error:
        raise UserError(f"{file} {error}; give a .png, .jpg or .webp that dglaunch made.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. Give a file that dglaunch made.") from None


def size_of(file: Path) -> str:
    with opened(file) as image:
        return f"{image.width}x{image.height}"


def explain_difference(file: Path, described: Record) -> list[str]:
    """Return what may be behind another image: an upgrade (by the file's own word, or of an older file by the run.json
    beside it), or else damage or another device."""
    run = results_folder(file).all_runs("").get("run.json", {})
    named = versions_in(described)
    differing = differing_versions(described if named else run)
    if differing:
        lines = ["Other versions need not draw the same, so this may be no damage; dglaunch verify compares its hash."]
        lines += [] if named else [f"run.json beside it: {text}" for text in differing]
    elif named:
        lines = ["The same versions made it: the file or the checkpoint is not what it was, or the device was another."]
    else:
        lines = []
    return [*lines, f"the device was {run.get('device')}"] if run else lines
