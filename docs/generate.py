"""Write the parts of the documentation that the code already knows: flags, families, optimizations, the tree.

    python docs/generate.py            # rewrite each section between <!-- begin NAME --> and <!-- end NAME -->
    python docs/generate.py --check    # change nothing; exit 1 and name each section that is stale (make lint)

A new section is a function in SECTIONS and a pair of marks in a page. No torch is needed.
"""

import ast
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's package, whatever is installed

from dglaunch import config as configs  # noqa: E402
from dglaunch.models.families import FAMILIES, Family, families_taking, xdit_families_taking  # noqa: E402
from dglaunch.models.optimizations import (  # noqa: E402
    ATTENTION,
    CACHE_FLAGS,
    OPTIMIZATIONS,
    XFUSER_ATTENTION,
    Optimization,
)

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


def documented_fields() -> dict[str, list[tuple[str, str, str]]]:
    """Class -> (field, type, help text), read from config.py: a help text is the string under its field."""
    tree = ast.parse(Path(configs.__file__).read_text(encoding="utf-8"))
    found: dict[str, list[tuple[str, str, str]]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item, after in zip(node.body, node.body[1:]):
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                continue
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                entry = (item.target.id, ast.unparse(item.annotation), str(after.value.value))
                found.setdefault(node.name, []).append(entry)
    return found


def flags() -> str:
    rows: list[list[str]] = []
    for name, documented in documented_fields().items():
        if name == "ParallelConfig":  # has no flags: docs/xdit.md has its variables
            continue
        rows.append([f"**{name}**", "", ""])
        items = {item.name: item for item in dataclasses.fields(getattr(configs, name))}
        defaults = {item.name: item.default for item in items.values()}
        for field, kind, text in documented:
            if field not in defaults:  # a fact about the class, not a flag
                continue
            if "concerns" not in items[field].metadata:
                raise SystemExit(
                    f"dglaunch/config.py: --{field} does not say what it concerns; write flag(DEFAULT, CONCERNS)."
                )
            choices = re.findall(r"'([^']+)'", kind)
            shown = f" `{{{','.join(choices)}}}`" if choices else ""
            default = "" if defaults[field] in (None, dataclasses.MISSING) else f"`{defaults[field]}`"
            rows.append([f"`--{field}`{shown}", default, text])
    return table(["flag", "default", "what it does"], rows)


# -- models -------------------------------------------------------------------------------------------------------


def splits(family: Family) -> str:
    """How xDiT may divide one image of the family over several ranks."""
    if family.xdit is None:
        return "no"
    ways = {"Ulysses": True, "ring": family.xdit.ring, "CFG": family.xdit.cfg}
    return ", ".join(way for way, possible in ways.items() if possible)


def edits(family: Family) -> str:
    if family.edit is None:
        return "no"
    return "fails in these library versions" if family.edit.known_trouble else "yes"


def models() -> str:
    rows = [
        [pipeline.removesuffix("Pipeline"), yes_or_no(not family.only_edits), edits(family), splits(family)]
        for pipeline, family in FAMILIES.items()
    ]
    rows.append(["any other of diffusers, such as StableDiffusionXL", "yes", "no", "no"])
    return table(["pipeline of the checkpoint", "`t2i`", "`edit`", "`--backend xdit` splits an image by"], rows)


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
            f"`{family.guidance}`" + (", only with a negative prompt" if family.guidance_needs_negative else ""),
            yes_or_no(family.takes_negative),
            "yes" if batches(family) else "one image a call",
            yes_or_no(bool(family.text_outputs)),
        ]
        for pipeline, family in FAMILIES.items()
    ]
    head = ["family", "pipeline class", "sizes in multiples of", "text tokens", "`--guidance_scale` sets",
            "negative prompt", "batches", "prompts ahead"]  # fmt: skip
    return table(head, rows)


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
    measured = ", ".join(families_taking(row.name))
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


# -- the tree -----------------------------------------------------------------------------------------------------

FIRST = ("errors.py", "system.py", "atomic.py", "config.py", "environment.py")
PACKAGES = {
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


# -- pages --------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "models": models,
    "families": families,
    "xdit families": xdit_families,
    "editing families": editing_families,
    "optimizations": optimizations,
    "cache parameters": cache_parameters,
    "attention backends": attention_backends,
    "tree": tree,
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
