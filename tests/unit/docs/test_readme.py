"""The README stays true: its tables are generated from the code, and its paths exist. `make readme` writes them."""

import ast
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from dglaunch import config as configs
from dglaunch.environment import known_flags
from dglaunch.models import optimizations
from dglaunch.models.editing import family_table
from dglaunch.models.families import FAMILIES
from support.commands import ROOT

README = ROOT / "README.md"


def section(name: str, text: str | None = None) -> str:
    text = README.read_text(encoding="utf-8") if text is None else text
    found = re.search(rf"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->", text, re.DOTALL)
    assert found, f"README.md has no section {name}"
    return found[1]


def documented_fields() -> dict[str, list[tuple[str, str, str]]]:
    """Class -> (field, type, help text), read from config.py as it stands."""
    tree = ast.parse((ROOT / "dglaunch" / "config.py").read_text(encoding="utf-8"))
    found: dict[str, list[tuple[str, str, str]]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for item, after in zip(node.body, node.body[1:]):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and told:
                    entry = (item.target.id, ast.unparse(item.annotation), str(after.value.value))
                    found.setdefault(node.name, []).append(entry)
    return found


def flags() -> str:
    classes = {name: getattr(configs, name) for name in documented_fields()}
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for name, fields in documented_fields().items():
        if name == "ParallelConfig":
            continue
        rows.append(f"| **{name}** | | |")
        defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(classes[name])}
        for field, kind, text in fields:
            choices = re.findall(r"'([^']+)'", kind)
            shown = f" `{{{','.join(choices)}}}`" if choices else ""
            default = "" if defaults[field] in (None, dataclasses.MISSING) else f"`{defaults[field]}`"
            rows.append(f"| `--{field}`{shown} | {default} | {text} |")
    return "\n".join(rows)


def families() -> str:
    rows = [
        "| family | pipeline | sizes in multiples of | Ulysses | ring | CFG parallel | PipeFusion (GPUs) |",
        "|---|---|---|---|---|---|---|",
    ]
    for pipeline, family in FAMILIES.items():
        if (xdit := family.xdit) is not None:
            marks = [True, xdit.ring, xdit.cfg, xdit.pipefusion]
            rows.append(
                f"| {family.name} | {pipeline} | {family.size_multiple} | "
                + " | ".join("yes" if m else "no" for m in marks)
                + " |"
            )
    return "\n".join(rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "families": families,
    "editing families": family_table,
    "optimisations": optimizations.table,
}


@pytest.mark.parametrize("name", SECTIONS)
def test_generated_sections_are_up_to_date(name: str) -> None:
    assert section(name) == SECTIONS[name](), "run make readme"


def test_every_flag_has_a_help_text() -> None:
    documented = {field for fields in documented_fields().values() for field, _, _ in fields}
    assert known_flags() - documented == set()


def test_the_tree_names_what_is_there() -> None:
    tree = section("tree")
    named = set(re.findall(r"^ {4}(\w+\.py)", tree, re.MULTILINE))
    there = {path.name for path in (ROOT / "dglaunch").glob("*.py")} - {"__init__.py"}
    assert named == there


def write() -> None:
    """Write all generated sections."""
    text = README.read_text(encoding="utf-8")
    for name, generate in SECTIONS.items():
        before = section(name, text)
        text = text.replace(f"<!-- begin {name} -->\n{before}\n", f"<!-- begin {name} -->\n{generate()}\n")
    README.write_text(text, encoding="utf-8")
