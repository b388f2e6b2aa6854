"""A pipeline without a row in the families' table: what its call takes is read from its source, and makes a row for it.

row = unlisted("NewPipeline", takes := takes_of("NewPipeline"))

Nothing of it is imported or run, so that a plan knows it, too. What a signature does not say (whether a batch is right, on
what an image depends besides its seed, which sizes there are) the self-test finds out on the loaded model.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path

from dglaunch.files import read_bytes
from dglaunch.models.families import OTHER, Family
from dglaunch.python_source import parse

MOST_SOURCE = 1 << 24
"""Bytes of a module."""
GUIDANCE = ("true_cfg_scale", "distilled_guidance_scale", "guidance_scale")
"""What pipelines call the scale that --guidance_scale sets; the first that a call takes is meant."""
SWITCHES = re.compile(r"use_pe|use_resolution_binning|\w*(rewrit|rewire|upsampl|enhanc|expan)\w*")
"""Names of switches that change what was asked for: the prompt, often at random, or the size."""
Takes = Mapping[str, object]
"""What a call takes: a parameter's name and its default."""


class Unsaid(Enum):
    """In the place of a default that a signature does not say."""

    REQUIRED = auto()
    """There is none: a call must give it."""
    COMPUTED = auto()
    """It is no plain value."""


def unlisted(class_name: str, takes: Takes | None) -> Family:
    """Return the row of a pipeline by what its call takes (None: its source is not there to be read)."""
    row = replace(OTHER, name=class_name.removesuffix("Pipeline"), is_measured=False)
    if takes is None:
        return row
    steps, length = takes.get("num_inference_steps"), takes.get("max_sequence_length")
    side = takes.get("height")
    switches = [name for name, default in takes.items() if isinstance(default, bool) and SWITCHES.fullmatch(name)]
    return replace(
        row,
        guidance=next((name for name in GUIDANCE if name in takes), ""),
        takes_negative="negative_prompt" in takes,
        takes_text_length="max_sequence_length" in takes,
        max_sequence_length=length if isinstance(length, int) else row.max_sequence_length,
        default_size=side if isinstance(side, int) else row.default_size,
        num_steps=steps if isinstance(steps, int) else None,
        arguments=tuple((name, False) for name in switches),
    )


@functools.cache
def takes_of(class_name: str) -> Takes | None:
    """Return what the call of a pipeline class of the installed diffusers takes; None if diffusers has no such class."""
    file = _file_of(class_name)
    return takes_in(file, class_name) if file is not None else None


def takes_in(file: Path, class_name: str) -> Takes | None:
    """Return what the call of a class in a file takes; None if the file has no such class, or the call is not in reach.

    A call that hands `**kwargs` on takes what the classes that it derives from take, too.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read, or is no Python.
    """
    tree = parse(read_bytes(file, MOST_SOURCE))
    found: dict[str, object] | None = None
    for call in _calls(tree, class_name, frozenset()):
        found = _parameters(call) | (found or {})
        if call.args.kwarg is None:
            break  # before more files are looked into
    return found


def _calls(tree: ast.Module, class_name: str, seen: frozenset[str]) -> Iterator[ast.FunctionDef]:
    """The `__call__` of a class, then those of the classes that it derives from, in this file and in diffusers."""
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    if class_name in seen or class_name not in classes:
        return
    node, of_diffusers = classes[class_name], _imported_from_diffusers(tree)
    yield from (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__call__")
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        if name in classes:
            yield from _calls(tree, name, seen | {class_name})
        elif (isinstance(base, ast.Attribute) or name in of_diffusers) and (file := _file_of(name)) is not None:
            yield from _calls(parse(read_bytes(file, MOST_SOURCE)), name, seen | {class_name})


def _imported_from_diffusers(tree: ast.Module) -> set[str]:
    """The names that a file imports from diffusers, of which it may be a part itself."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "diffusers")
        for alias in node.names
    }


def _parameters(call: ast.FunctionDef) -> dict[str, object]:
    """The parameters of a call besides `self`, with their defaults."""
    positional = [*call.args.posonlyargs, *call.args.args]
    defaults = [None] * (len(positional) - len(call.args.defaults)) + call.args.defaults
    pairs = [*zip(positional, defaults), *zip(call.args.kwonlyargs, call.args.kw_defaults)][1:]
    return {argument.arg: _value(default) for argument, default in pairs}


def _value(default: ast.expr | None) -> object:
    try:
        return Unsaid.REQUIRED if default is None else ast.literal_eval(default)
    except ValueError:
        return Unsaid.COMPUTED


@functools.cache
def _file_of(class_name: str) -> Path | None:
    """The file of the installed diffusers that defines a pipeline class."""
    spec = importlib.util.find_spec("diffusers")
    marker = f"\nclass {class_name}(".encode()
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder, "pipelines").rglob("pipeline_*.py")):
            if marker in read_bytes(file, MOST_SOURCE):
                return file
    return None
