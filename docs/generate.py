"""Write the parts of the documentation that the code already knows: flags, families, optimizations, the tree.

    python docs/generate.py            # rewrite each section between <!-- begin NAME --> and <!-- end NAME -->
    python docs/generate.py --check    # change nothing; exit 1 and name each section that is stale (make lint)

A new section is a function in SECTIONS and a pair of marks in a page. No torch is needed.
"""

import ast
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(ROOT))  # this checkout's package, whatever is installed

from dglaunch import diffgentor  # noqa: E402
from dglaunch.cli.completion import commands  # noqa: E402
from dglaunch.cli.flag_table import Flag, flags_of  # noqa: E402
from dglaunch.config import COMMANDS, Group, ParallelConfig  # noqa: E402
from dglaunch.data.task import Bucket  # noqa: E402
from dglaunch.distributed.topology import Topology  # noqa: E402
from dglaunch.models.catalogue import Entry, known  # noqa: E402
from dglaunch.models.catalogue import names as known_models  # noqa: E402
from dglaunch.models.families import FAMILIES, OTHER, Family, attends_twice, families_taking, xdit_families_taking  # noqa: E402
from dglaunch.models.figures import Figures  # noqa: E402
from dglaunch.models.input_roles import InputPipeline, roles_text  # noqa: E402
from dglaunch.models.optimizations import (  # noqa: E402
    ATTENTION,
    CACHE_FLAGS,
    OPTIMIZATIONS,
    XFUSER_ATTENTION,
    Optimization,
)
from dglaunch.models.shape import Shape  # noqa: E402
from dglaunch.planning.estimate import Memory, memory_of  # noqa: E402
from dglaunch.planning.figures import FigureBook  # noqa: E402
from dglaunch.planning.fit import as_plain, left_out  # noqa: E402
from dglaunch.planning.gpus import GPUS, Gpu, find_gpu  # noqa: E402
from dglaunch.planning.measurements import MEASUREMENTS, Run  # noqa: E402
from dglaunch.planning.outlook import work_of  # noqa: E402
from dglaunch.planning.room import fits  # noqa: E402
from dglaunch.planning.shipping import checkpoint_of  # noqa: E402
from dglaunch.planning.speed import seconds_of  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SECTION = re.compile(r"^<!-- begin (?P<name>.+?) -->\n(?P<text>.*?)^<!-- end (?P=name) -->$", re.DOTALL | re.MULTILINE)

# -- Markdown -----------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def code(names: Iterable[str]) -> str:
    """Names side by side, each as code; a name that is there twice is shown once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


# -- flags --------------------------------------------------------------------------------------------------------


def flags() -> str:
    """The flags of the jobs, in the groups of --help."""
    of = {name: flags_of(config_type) for name, config_type in COMMANDS.items()}
    known = {name: flag for found in of.values() for name, flag in found.items()}
    places = {name: place for config_type in COMMANDS.values() for name, place in places_in_python(config_type)}
    if silent := [name for name, flag in known.items() if flag.group is None or not flag.text]:
        raise SystemExit(
            f"dglaunch/config.py: --{silent[0]} has no group or no text; write flag(DEFAULT, CONCERNS, Group.X) and a text."
        )
    rows: list[list[str]] = []
    for group in Group:
        rows.append([f"**{group.value}**", "", "", "", ""])
        for flag in sorted((flag for flag in known.values() if flag.group is group), key=lambda flag: not flag.usual):
            jobs = [name for name, found in of.items() if flag.name in found]
            rows.append([*flag_cells(flag), "" if len(jobs) == len(of) else code(jobs), places[flag.name]])
    return table(["flag", "default", "what it does", "of", "in Python"], rows)


def flag_cells(flag: Flag) -> list[str]:
    """A flag with its choices, its default, and its text."""
    choices = f" `{{{','.join(flag.choices)}}}`" if flag.choices else ""
    name = f"`{flag.name.upper()}`" if flag.by_place else f"`--{flag.name}`"
    default = flag.with_default("").removeprefix(" (default: ").removesuffix(")")
    return [f"{name}{choices}", f"`{default}`" if default else "", flag.text]


def places_in_python(config_type: type) -> Iterable[tuple[str, str]]:
    """Flag -> where it stands in a configuration: of T2IConfig itself, or of the part of it that is named."""
    for item in dataclasses.fields(config_type):
        part: object = item.default_factory
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            yield from ((inner.name, f"`{item.name}=`") for inner in dataclasses.fields(part))
        else:
            yield item.name, ""


def own_flags() -> str:
    """The flags that a command has beside a job's, and those of the tools."""
    rows: list[list[str]] = []
    for command in commands():
        found = [flag for flag in command.flags.values() if flag.group is None]
        rows += [[f"**{command.name}**", "", ""], *map(flag_cells, found)] if found else []
    return table(["flag", "default", "what it does"], rows)


# -- models -------------------------------------------------------------------------------------------------------


def splits(family: Family, transformer: Mapping[str, object]) -> str:
    """How xDiT may divide one image of the family over several ranks."""
    if family.xdit is None:
        return "no"
    sequence = not attends_twice(transformer)
    ways = {"Ulysses": sequence, "ring": sequence and family.xdit.ring, "CFG": family.xdit.cfg}
    return ", ".join(way for way, possible in ways.items() if possible)


def edits(family: Family) -> str:
    if family.edit is None:
        return "no"
    return "fails in these library versions" if family.edit.known_trouble else "yes"


def models() -> str:
    """The families that edit or that xDiT runs, with the known models that are theirs; all others in a row."""
    published: dict[str, list[str]] = {}
    for entry in known_entries():
        if not entry.apart:
            published.setdefault(entry.pipeline, []).append(entry.name.rpartition("/")[2])
    rows = [
        [
            ", ".join(published.pop(pipeline, ["-"])),
            pipeline.removesuffix("Pipeline"),
            yes_or_no(not family.only_edits),
            edits(family),
            splits(family, {}),
        ]
        for pipeline, family in FAMILIES.items()
        if family.edit is not None or family.xdit is not None
    ]
    others = ", ".join(name for names in published.values() for name in names)
    rows.append([others, "these, and any other of diffusers that draws from text", "yes", "no", "no"])
    head = [
        "published checkpoints, such as",
        "pipeline class",
        "`t2i`",
        "`edit`",
        "`--backend xdit` splits an image by",
    ]
    return table(head, rows)


BILLION = 1e9


def billions(count: int) -> str:
    """A number of weights as people say it."""
    return f"{count / BILLION:.2f}" if count < 10 * BILLION else f"{count / BILLION:.1f}"


def runs(entry: Entry) -> str:
    """Which commands run a known model."""
    if entry.apart:
        return f"no: {', '.join(f'`{name}`' for name in entry.apart)} is a repository of its own"
    family = FAMILIES.get(entry.pipeline, OTHER)
    commands = [] if family.only_edits else ["`t2i`"]
    if family.edit is not None and not family.edit.known_trouble:
        commands.append("`edit`")
    return ", ".join(commands)


def known_entries() -> list[Entry]:
    return [entry for name in sorted(known_models(), key=str.lower) if (entry := known(name)) is not None]


def catalogue() -> str:
    rows = []
    for entry in known_entries():
        family = FAMILIES.get(entry.pipeline)
        denoisers = [count for name, count in entry.parameters.items() if name.endswith(("transformer", "unet"))]
        others = sum(entry.parameters.values()) - sum(denoisers)
        rows.append(
            [
                entry.name,
                family.name if family is not None else "none, plain diffusers",
                runs(entry),
                "not measured" if family is None else "yes" if batches(family) else "one image a call",
                splits(family, entry.json("transformer/config.json") or {}) if family is not None else "no",
                " + ".join(map(billions, denoisers)),
                billions(others),
                entry.confidence,
                entry.license or "not found",
                "not found" if entry.gated is None else yes_or_no(entry.gated),
                entry.diffusers,
            ]
        )
    head = ["`--model_name`", "family", "runs with", "batches", "xDiT splits by", "denoiser, billions of weights",
            "all else", "how sure", "license", "gated", "diffusers from"]  # fmt: skip
    return table(head, rows)


def catalogue_notes() -> str:
    alike: dict[str, list[str]] = {}
    for entry in known_entries():
        if entry.notes:
            alike.setdefault(entry.notes, []).append(entry.name)
    return "\n".join(f"- {', '.join(names)}: {notes}." for notes, names in alike.items())


def batches(family: Family) -> bool:
    """Whether rows can share a call; of a family that only edits, its editing rules say so."""
    return family.batch and not (family.only_edits and family.edit is not None and family.edit.batch_disabled)


def families() -> str:
    rows = [
        [
            family.name,
            f"`{pipeline}`",
            str(family.size_multiple),
            str(family.max_sequence_length),
            (f"`{family.guidance}`" if family.guidance else "-")
            + (", only with a negative prompt" if family.guidance_needs_negative else ""),
            yes_or_no(family.takes_negative),
            "yes" if batches(family) else "one image a call",
            yes_or_no(bool(family.text_outputs)),
        ]
        for pipeline, family in FAMILIES.items()
    ]
    head = ["family", "pipeline class", "sizes in multiples of", "text tokens", "`--guidance_scale` sets",
            "negative prompt", "batches", "prompts ahead"]  # fmt: skip
    return table(head, rows)


ONLY_XDIT = {row.name for row in OPTIMIZATIONS if row.only_xdit}


def effect(family: Family, flag: str) -> str:
    """What a flag that changes the image does with a family: "yes", "no" (it is refused), or under which condition.

    Args:
        flag: its name; with its value, or the cache that it belongs to, where each is a thing of its own.
    """
    name = flag.split()[0]
    if name in ("height", "width"):
        return yes_or_no(family.edit is None or family.edit.sets_size)
    if name == "guidance_scale" and not family.guidance:
        return "no"
    if name == "guidance_scale" and family.guidance_needs_negative:
        return "with a negative prompt"
    if name == "guidance_scale" and (switch := family.guidance_switch) is not None:
        return f"where `{switch.key}` is {str(switch.guided).lower()}"
    if name == "negative_prompt" and family.takes_negative and family.guided_above is not None:
        return f"with guidance above {family.guided_above:g}"
    if name == "negative_prompt":
        return yes_or_no(family.takes_negative)
    if name == "max_sequence_length":
        return yes_or_no(family.takes_text_length)
    cache = f"cache_type {flag.split()[-1]}" if name in ("cache_threshold", "cache_interval", "cache_warmup") else flag
    if cache in ONLY_XDIT:
        return yes_or_no(family.name in xdit_families_taking(cache))
    measured = families_taking(cache)
    if measured and family.takes is None:
        return "not measured"
    return yes_or_no(not measured or cache in (family.takes or ()))


def flags_and_families() -> str:
    called = ("guidance_scale", "negative_prompt", "max_sequence_length", "height")
    caches = [row.name for row in OPTIMIZATIONS if row.flag == "cache_type"]
    rows = [
        [
            family.name,
            *(effect(family, flag) for flag in called),
            "not measured"
            if family.takes is None
            else code(name.split()[1] for name in caches if effect(family, name) == "yes") or "no",
        ]
        for family in FAMILIES.values()
    ]
    return table(["family", *(f"`--{flag}`" for flag in called[:-1]), "`--height`, `--width`", "`--cache_type`"], rows)


def weights_and_inputs() -> str:
    """What tests measured (tests/support/matrix.py): a family's row, a feature's column."""
    seen = json.loads((ROOT / "docs" / "matrix.json").read_text())
    columns: list[str] = seen["columns"]
    families: dict[str, dict[str, str]] = seen["families"]
    return table(
        ["family", *columns], ([name, *(families[name].get(c, "-") for c in columns)] for name in sorted(families))
    )


def xdit_families() -> str:
    rows = [
        [
            family.name,
            f"`{pipeline}`",
            *map(yes_or_no, (True, family.xdit.ring, family.xdit.cfg)),
        ]
        for pipeline, family in FAMILIES.items()
        if family.xdit is not None
    ]
    return table(["family", "pipeline class", "Ulysses", "ring", "CFG parallel"], rows)


def shared_families() -> str:
    rows = [
        [family.name, f"`{pipeline}`", *(yes_or_no(way in family.shares) for way in ("fsdp", "tensor", "context"))]
        for pipeline, family in FAMILIES.items()
        if family.shares
    ]
    return table(["family", "pipeline class", "`--shard fsdp`", "`--shard tensor`", "`--parallel context`"], rows)


def editing_families() -> str:
    rows = [
        [
            f"`{row.name}`",
            pipeline.removesuffix("Pipeline"),
            "1 or more" if row.multi_image else "1",
            row.batch_text,
            row.reason + (f"; {row.known_trouble}" if row.known_trouble else ""),
            row.input_text,
            row.output_text,
            yes_or_no(family.xdit is not None),
        ]
        for pipeline, family in FAMILIES.items()
        if (row := family.edit) is not None
    ]
    head = ["`--model_type`", "pipeline", "images a row", "rows in one call", "why", "input size", "output size",
            "xDiT"]  # fmt: skip
    return table(head, rows)


def masked_edits() -> str:
    rows = [
        [
            f"`{row.name}`",
            f"`{row.inpaint.pipeline}`",
            f"{row.inpaint.strength:g}",
            row.input_text,
            "rows that share their image" if row.multi_image else row.batch_text,
            yes_or_no(family.xdit is not None and row.inpaint.pipeline in family.xdit.inputs),
            row.inpaint.since or "any",
        ]
        for family in FAMILIES.values()
        if (row := family.edit) is not None and row.inpaint is not None
    ]
    head = [
        "`--model_type`",
        "pipeline",
        "`strength`",
        "size of what is drawn",
        "rows in one call",
        "xDiT",
        "diffusers from",
    ]
    return table(head, rows)


def input_pipelines() -> str:
    def row(family: Family, each: InputPipeline) -> list[str]:
        split = "yes" if family.xdit is not None and each.pipeline in family.xdit.inputs else "no"
        own = [f"{value:g}" if value is not None else "" for value in (each.strength, each.control_scale)]
        name = f"`{each.pipeline}`" if not each.refused else f"refused: {each.refused}"
        return [
            family.name,
            roles_text(each.roles),
            name,
            *own,
            code([each.controlnet]) if each.controlnet else "",
            split,
        ]

    rows = [row(family, each) for family in FAMILIES.values() for each in family.with_inputs]
    return table(["family", "rows with", "pipeline", "`strength`", "`control_scale`", "ControlNet", "xDiT"], rows)


# -- optimizations ------------------------------------------------------------------------------------------------


def needs(row: Optimization) -> list[str]:
    listed = [f"`{row.package[0]}`"] if row.package else []
    if row.gpu:
        above = f" of {row.capability[0]}.{row.capability[1]}" if row.capability > (0, 0) else ""
        listed.append(f"a GPU{above}")
    if row.dtypes:
        listed.append(" or ".join(row.dtypes))
    if row.uncompiled:
        listed.append("on a GPU `enable_compile`")
    return listed


def families_with(row: Optimization) -> str:
    measured = ", ".join((xdit_families_taking if row.only_xdit else families_taking)(row.name))
    if row.flag == "enable_compile":
        return f"all; the blocks alone: {measured}"
    return measured or "all"


def optimizations() -> str:
    rows = []
    for row in OPTIMIZATIONS:
        excluded_by = [other.name for other in OPTIMIZATIONS if row.name in other.excludes]
        with_xdit = "no" if row.xdit else ", ".join(xdit_families_taking(row.name)) or "yes"
        rows.append(
            [
                f"`--{row.name}`",
                row.does,
                row.changes or "no",
                ", ".join(needs(row)),
                families_with(row),
                with_xdit,
                code([*row.excludes, *excluded_by]),
            ]
        )
    return table(["flag", "what it does", "changes images", "needs", "families", "with xDiT", "not with"], rows)


def cache_parameters() -> str:
    rows = [[f"`{name}`", code(f"--{flag}" for flag in taken)] for name, taken in CACHE_FLAGS.items()]
    return table(["`--cache_type`", "takes"], rows)


def attention_backends() -> str:
    rows = []
    for engine, names in (("diffusers", ATTENTION), ("xdit", XFUSER_ATTENTION)):
        alike: dict[tuple[str, str, bool], list[str]] = {}
        for name, row in names.items():
            alike.setdefault(row, []).append(name)
        for (module, install, gpu), same in alike.items():
            runs_on = "GPU" if gpu else "any"
            rows.append([f"`{engine}`", code(same), runs_on, f"`{module}`: {install}" if module else ""])
    return table(["`--backend`", "`--attention_backend`", "device", "package"], rows)


# -- GPUs and times -----------------------------------------------------------------------------------------------


def gpus() -> str:
    rows = [
        [
            gpu.name,
            f"{gpu.memory / 2**30:.1f}",
            *(f"{gpu.peaks[kind]:g}" if kind in gpu.peaks else "-" for kind in ("bfloat16", "float32", "fp8", "int8")),
            f"{gpu.bandwidth:,.0f}",
            f"{gpu.link:g} ({gpu.link_kind})",
            ".".join(map(str, gpu.capability or ())),
            gpu.source,
        ]
        for gpu in GPUS
    ]
    head = [
        "`--gpu`",
        "GiB",
        "bf16 TFLOP/s",
        "fp32",
        "fp8",
        "int8",
        "memory GB/s",
        "link GB/s, one way",
        "capability",
        "source",
    ]
    return table(head, rows)


def source(run: Run) -> str:
    """Where a figure stands, as a link if it has an address."""
    host = re.match(r"https://(?:www\.)?(?P<place>[^/]+/[^/]+(?:/[^/]+)?)", run.source)
    return f"[{host['place']}]({run.source})" if host else run.source


PLANNED = (
    "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.2-dev", "black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen-Image",
    "Tongyi-MAI/Z-Image", "stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-xl-base-1.0",
    "HiDream-ai/HiDream-I1-Full",
)  # fmt: skip
PLANNED_EDITS = ("black-forest-labs/FLUX.1-Kontext-dev", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2511")
INPUT = Shape(1024, 1024)
PLANNED_ON = ("H100", "A100 80GB", "L40S", "RTX 4090")
PLANNED_BATCHES = (1, 2, 4, 8)


def memory_and_time() -> str:
    """What the traces that dglaunch ships say of well-known models, and the seconds that follow on some GPUs."""
    rows = [planned_row(model, size) for model in PLANNED for size in (512, 1024)]
    rows += [planned_row(model, INPUT.height) for model in PLANNED_EDITS]
    head = ["model", "size", "weights, GiB", *(f"peak, batch {n}" for n in PLANNED_BATCHES), "TFLOP an image"]
    return table([*head, *(f"s an image, {gpu}" for gpu in PLANNED_ON)], rows)


def planned_row(model: str, size: int) -> list[str]:
    checkpoint, config = checkpoint_of(model)
    bucket = Bucket(height=size, width=size, input_shapes=(INPUT,) if config.edits else ())
    book = FigureBook(checkpoint, config, ParallelConfig(), "bfloat16")
    figures = book(bucket)
    assert figures is not None, f"{model} at {size} is not among the figures that are shipped: make figures"
    shape = Shape(size, size)
    memory = memory_of(checkpoint, config, Topology(), "bfloat16", shape, figures=figures)
    assert memory is not None
    steps = figures.num_inference_steps
    tflop = (figures.encode.flops + steps * figures.denoise.flops + figures.decode.flops) / 1e12
    rules = checkpoint.family.edit if config.edits else None
    most = 1 if rules is not None and rules.batch_disabled else max(PLANNED_BATCHES)
    cells = [f"{memory.needed(images) / 2**30:.1f}" if images <= most else "one a call" for images in PLANNED_BATCHES]
    times = [seconds_on(find_gpu(gpu), model, figures, memory) for gpu in PLANNED_ON]
    name = model.partition("/")[2]
    edits = f", an edit of one {INPUT}" if config.edits else ""
    return [
        f"{name}, {steps} steps",
        f"{shape}{edits}",
        f"{memory.weights / 2**30:.1f}",
        *cells,
        f"{tflop:,.0f}",
        *times,
    ]


def seconds_on(gpu: Gpu, model: str, figures: Figures, memory: Memory) -> str:
    """Of one image alone; what does not fit is said."""
    if not fits(memory.room(1), gpu.memory):
        return "does not fit"
    seconds = seconds_of(work_of(model, figures, 1, figures.num_inference_steps), gpu)
    return "?" if seconds is None else str(seconds.a_batch)


def published_times() -> str:
    """Plain diffusers as published, and as the other rows predict it."""
    rows = []
    for setup in dict.fromkeys(run.setup for run in MEASUREMENTS if run.plain):
        gpu, model, size, compiled = setup
        check = left_out(setup)
        rows.append(
            [
                gpu,
                f"{model}, {size}x{size}" + (", compiled" if compiled else ""),
                str(check.runs[0].steps),
                " to ".join(dict.fromkeys(f"{end:.3g}" for end in (check.published.low, check.published.high))),
                str(check.predicted),
                f"{check.likely / check.published.middle - 1:+.0%}",
                ", ".join(dict.fromkeys(map(source, check.runs))),
            ]
        )
    timed = {run.gpu for run in MEASUREMENTS if run.plain}
    missing = ", ".join(gpu.name for gpu in GPUS if gpu.name not in timed and gpu.same_compute not in timed)
    head = ["GPU", "model", "steps", "published s", "by the others", "likeliest", "source"]
    return f"{table(head, rows)}\n\nNo such run was found for {missing}: their times rest on the other GPUs alone."


def other_times() -> str:
    """Other engines, caches, types and several GPUs, beside plain diffusers' range for the same work."""
    rows = [
        [
            run.gpu,
            f"{run.model}, {run.size}x{run.size}",
            str(run.steps),
            ", ".join([run.engine, run.dtype, *run.on]),
            f"{run.seconds:.3g}",
            str(as_plain(run)),
            source(run),
        ]
        for run in MEASUREMENTS
        if not run.plain
    ]
    return table(["GPU", "model", "steps", "with", "published s", "diffusers in bf16 by this page", "source"], rows)


# -- the tree -----------------------------------------------------------------------------------------------------

FIRST = ("errors.py", "system.py", "atomic.py", "config.py", "environment.py")
PACKAGES = {
    "storage": "what lies elsewhere: objects in s3://, gs:// and az://, files of the web",
    "tiny": "the embedded checkpoint, which draws 64x64 pictures of shapes",
    "tiny/training": "what made the embedded checkpoint and what measures it",
    "tiny/weights": "the embedded checkpoint itself, a diffusers folder",
    "models": "what can be run",
    "data": "what is asked for",
    "distributed": "who am I, and how do ranks talk to each other",
    "output": "what a run leaves behind",
    "output/page": "the gallery's HTML, style and script",
    "backends": "who makes the images",
    "backends/diffusers": "plain diffusers pipelines, each rank a replica",
    "backends/xdit": "xfuser: several ranks share one image",
    "backends/api": "images from a provider's API",
    "backends/rewriting": "language models that rewrite prompts before any image is made",
    "backends/scoring": "models and functions that score the images of a folder",
    "simulation": "a run on fake tensors: what it holds, computes and sends at the model's true size",
    "planning": "what will happen, decided before a model is loaded",
    "run": "the run itself",
    "cli": "one file a command",
    "cli/slurm_templates": "the batch scripts that dglaunch slurm fills in",
}
"""What a folder of the package is for, in the order in which one may import the other."""


def first_sentence(module: Path) -> str:
    """The first sentence of a module's docstring; a module without one is a mistake."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{module.relative_to(ROOT)} has no docstring, so docs/architecture.md cannot say what it is.")
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.)\s", paragraph)[0].rstrip(".:")


def tree() -> str:
    package = ROOT / "dglaunch"
    lines = ["```text", "dglaunch/"]

    def add(depth: int, name: str, text: str) -> None:
        lines.append(f"{'  ' * depth}{name:<{32 - 2 * depth}} {text}".rstrip())

    def modules(folder: Path) -> list[Path]:
        return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")

    top = {path.name: path for path in modules(package)}
    order = [name for name in FIRST if name in top]
    for name in order:
        add(1, name, first_sentence(top[name]))
    known = [name for name in PACKAGES if (package / name).is_dir()]
    for folder in sorted(path for path in package.rglob("*") if path.is_dir() and any(path.glob("*.py"))):
        if (name := folder.relative_to(package).as_posix()) not in PACKAGES:
            raise SystemExit(f"docs/generate.py does not say what dglaunch/{name} is for; add it to PACKAGES.")
    for name in known:
        depth = name.count("/") + 1
        add(depth, name.rpartition("/")[2] + "/", PACKAGES[name])
        for path in modules(package / name):
            add(depth + 1, path.name, first_sentence(path))
    for name in sorted(top.keys() - set(order)):
        add(1, name, first_sentence(top[name]))
    add(1, "__init__.py", first_sentence(package / "__init__.py"))
    return "\n".join([*lines, "```"])


# -- diffgentor ---------------------------------------------------------------------------------------------------

FLAG = re.compile(r"(?<![`\w])(--[a-z][\w-]*)")


def here(text: str) -> str:
    """What does the work of something of diffgentor's, for a cell of a table."""
    return FLAG.sub(r"`\1`", text.removesuffix("."))


def flags_of_diffgentor() -> str:
    same = [
        [f"`--{name}`", f"{f'the same name: {here(differs)}' if differs else 'the same'}"]
        for name, differs in diffgentor.SAME.items()
    ]
    others = [[f"`--{name}`", here(instead)] for name, instead in diffgentor.FLAGS.items()]
    return table(["flag of diffgentor", "here"], [*others, *same])


def variables_of_diffgentor() -> str:
    rows = [[f"`{name}`", here(instead)] for name, instead in diffgentor.VARIABLES.items()]
    for prefix, names in diffgentor.OF_MODELS.items():
        rows.append([code(f"{prefix}{name}" for name in names), here(diffgentor.PREFIXES[prefix])])
    return table(["variable of diffgentor", "here"], rows)


def names_of_diffgentor() -> str:
    rows = [
        [f"`--{flag} {value}`", here(instead)]
        for flag, values in diffgentor.VALUES.items()
        for value, instead in values.items()
    ]
    rows += [[f"`{name}`, a command", here(instead)] for name, instead in diffgentor.COMMANDS.items()]
    return table(["name of diffgentor", "here"], rows)


def optimize_of_diffgentor() -> str:
    return table(
        ["word of `--optimize`", "here"], [[f"`{word}`", here(flag)] for word, flag in diffgentor.OPTIMIZE.items()]
    )


# -- pages --------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "own flags": own_flags,
    "memory and time": memory_and_time,
    "models": models,
    "families": families,
    "flags and families": flags_and_families,
    "known models": catalogue,
    "notes on known models": catalogue_notes,
    "weights and inputs": weights_and_inputs,
    "xdit families": xdit_families,
    "shared families": shared_families,
    "editing families": editing_families,
    "input pipelines": input_pipelines,
    "masked edits": masked_edits,
    "optimizations": optimizations,
    "cache parameters": cache_parameters,
    "attention backends": attention_backends,
    "gpus": gpus,
    "published times": published_times,
    "other times": other_times,
    "tree": tree,
    "flags of diffgentor": flags_of_diffgentor,
    "variables of diffgentor": variables_of_diffgentor,
    "names of diffgentor": names_of_diffgentor,
    "optimize of diffgentor": optimize_of_diffgentor,
}


def rewritten(page: str) -> tuple[str, list[str]]:
    """A page's text with its sections as the code has them now, and the names of those that were stale."""
    stale: list[str] = []

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in SECTIONS:
            raise SystemExit(f"A page has the section {name!r}, which docs/generate.py does not make.")
        text = SECTIONS[name]() + "\n"
        if found["text"] != text:
            stale.append(name)
        return f"<!-- begin {name} -->\n{text}<!-- end {name} -->"

    return SECTION.sub(replace, page), stale


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES if path.exists()}
    if missing := SECTIONS.keys() - {found["name"] for text in pages.values() for found in SECTION.finditer(text)}:
        print(f"No page has the section {', '.join(sorted(missing))}.", file=sys.stderr)
        return 1
    now = "is stale; run make docs" if arguments else "was rewritten"
    num_stale = 0
    for path, text in pages.items():
        new, stale = rewritten(text)
        num_stale += len(stale)
        for name in stale:
            print(f"{path.relative_to(ROOT)}: the section {name!r} {now}")
        if stale and not arguments:
            path.write_text(new, encoding="utf-8")
    return 1 if num_stale and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
