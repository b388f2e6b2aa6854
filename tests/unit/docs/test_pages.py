"""The documentation stays true: its generated parts are the code's, its links and paths lead somewhere, the README is short.

Layers, cheapest first: the pages as text, docs/generate.py on a copy of them, then as a command.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dglaunch.environment import known_flags
from dglaunch.models.families import FAMILIES, editors

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "docs"))
import generate

from support.versions import pinned_diffusers

ROOT = generate.ROOT
PAGES = [path.relative_to(ROOT).as_posix() for path in generate.PAGES]
LINKED = [*PAGES, "slurm/README.md", "kernels_bench/README.md"]
README_LINES = 150
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:dglaunch|tests|docs|slurm|kernels_bench|examples)/[\w./-]*\w")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


# -- pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKED)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), (
            f"{page} links to {link}, and {name or page} has no such heading"
        )


def test_every_path_that_a_page_names_is_there() -> None:
    named = {path for page in LINKED for path in PATH.findall(re.sub(r"https?://\S+", "", text_of(page)))}
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_a_sentence_about_itself(page: str) -> None:
    title, sentence = text_of(page).split("\n\n")[:2]
    assert re.match(r"# \S", title) and re.match(r"\w.*[.]", sentence, re.DOTALL), page


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= README_LINES
    assert {page for page in PAGES if page != "README.md"} <= set(LINK.findall(readme))


# -- generated parts ----------------------------------------------------------------------------------------------


def test_every_flag_has_its_row() -> None:
    assert {name for name in known_flags() if generate.flags().count(f"\n| `--{name}`") != 1} == set()


def test_every_family_has_its_rows() -> None:
    assert generate.models().count("\n") == 2 + sum(
        row.edit is not None or row.xdit is not None for row in FAMILIES.values()
    )
    assert generate.families().count("\n") == 1 + len(FAMILIES)
    assert generate.editing_families().count("\n") == 1 + len(editors())


@pinned_diffusers
def test_the_generated_parts_are_up_to_date() -> None:
    """As a command, which says nothing then."""
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pinned_diffusers
def test_a_stale_section_is_named_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dglaunch").symlink_to(ROOT / "dglaunch")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", [tmp_path / page for page in PAGES])
    flags = tmp_path / "docs" / "flags.md"
    right = flags.read_text(encoding="utf-8")
    flags.write_text(right.replace("--guidance_scale", "--guidancescale"), encoding="utf-8")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/flags.md: the section 'flags' is stale; run make docs\n"
    assert "--guidancescale" in flags.read_text(encoding="utf-8")
    assert generate.main([]) == 0
    assert capsys.readouterr().out == "docs/flags.md: the section 'flags' was rewritten\n"
    assert flags.read_text(encoding="utf-8") == right
