"""What flags a command has, as data: --help, docs/flags.md, completion and the reader of the words all go by it.

flags_of(T2IConfig)              the fields of a configuration; the text under a field is its help
flags_of_tool(verify)            the arguments of a function; `Args:` of its docstring is their help
"""

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from dglaunch.config import Group, leaf_fields
from dglaunch.environment import kinds_of, takes_several, types_of
from dglaunch.python_source import parse

METAVARS: dict[object, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}
SENTENCE_END = re.compile(r"(?<=[^.]\.)\s+(?=[A-Z`-])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Beside the type of a tool's argument, or of a field: what its flag is called where Python has another name for it.

    changes: Annotated[tuple[str, ...], Named(name="set", metavar="KEY=VALUE")]
    folder: Annotated[Path, Named(by_place=True)]
    """

    name: str = ""
    metavar: str | None = None
    by_place: bool = False
    """It is no flag, but the word in its place. (A function says so by itself: its argument is positional only.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of a command, or a word that it takes by its place."""

    name: str
    kind: Any
    """Its type."""
    default: object = None
    """MISSING: it must be given."""
    told: Callable[[], str] = str
    """Returns what it does. For that the source is read, which a command that is typed right has no need of."""
    group: Group | None = None
    """None: it is the command's own."""
    usual: str = ""
    """What --help says of it without `all`; empty: nothing, unless it is the command's own."""
    by_place: bool = False
    also: tuple[str, ...] = ()
    """Other names of its values, which are taken and not shown."""
    argument: str = ""
    """What the function or the dataclass calls it."""
    metavar: str | None = None

    @property
    def text(self) -> str:
        """What it does."""
        return self.told()

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, if it takes only some (or some beside a number)."""
        literals = [kind for kind in kinds_of(self.kind) if typing.get_origin(kind) is Literal]
        return tuple(str(choice) for kind in literals for choice in typing.get_args(kind) if choice not in self.also)

    @property
    def takes(self) -> str:
        """What stands behind it in --help: a|b, N, PATH ..."""
        if self.metavar is not None:
            shown = self.metavar
        else:
            kinds = [typing.get_args(kind)[0] if takes_several(kind) else kind for kind in kinds_of(self.kind)]
            names = dict.fromkeys(METAVARS[kind] for kind in kinds if kind in METAVARS)
            shown = "|".join([*names, *self.choices])
        return f"{shown} ..." if takes_several(self.kind) else shown

    def with_default(self, text: str) -> str:
        """Return a text on it that ends with its default, unless it has none, or the text says it."""
        has_one = not any(self.default is nothing for nothing in (None, False, MISSING)) and self.default != ()
        says_it = not has_one or "default" in text.lower()
        return text if says_it else f"{text} (default: {self.default})"

    @property
    def first_sentence(self) -> str:
        return SENTENCE_END.split(self.text)[0]


# -- of configurations --------------------------------------------------------------------------------------------


def flags_of(*config_types: type) -> dict[str, Flag]:
    """Return the flags of configurations by name, in the order of their fields; of what is to be made, a command's own come
    before those that all commands have."""
    found: dict[str, Flag] = {}
    for config_type in config_types:
        kinds, hints = types_of(config_type), typing.get_type_hints(config_type, include_extras=True)
        for item in sorted(leaf_fields(config_type), key=partial(_is_common, config_type)):
            about, named = item.metadata, _named(hints.get(item.name))
            name = named.name or item.name
            found[name] = Flag(
                name=name, kind=kinds[item.name], default=item.default, told=partial(_text_of, config_type, item.name),
                group=about.get("group"), usual=about.get("usual", ""), by_place=named.by_place,
                also=tuple(about.get("also", ())), argument=item.name, metavar=named.metavar,
            )  # fmt: skip
    return found


def _is_common(config_type: type, item: "Field[object]") -> bool:
    return item.metadata.get("group") is Group.WHAT and item.name not in config_type.__annotations__


def _text_of(config_type: type, name: str) -> str:
    return texts_of(config_type).get(name, "")


@cache
def texts_of(config_type: type) -> dict[str, str]:
    """Return the help text of each field of a dataclass and of those in it."""
    texts: dict[str, str] = {}
    for base in reversed(config_type.__mro__[:-1]):
        texts |= _texts_of_module(base.__module__).get(base.__name__, {})
    for kind in typing.get_type_hints(config_type).values():
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
            texts |= texts_of(kind)
    return texts


@cache
def _texts_of_module(name: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the text under it. Python itself does not keep them, so they are read from the source."""
    file = getattr(sys.modules[name], "__file__", None)
    if file is None:
        return {}
    tree = parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: _texts_in(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts_in(node: ast.ClassDef) -> dict[str, str]:
    return {
        item.target.id: " ".join(str(after.value.value).split())
        for item, after in zip(node.body, node.body[1:])
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


# -- of functions -------------------------------------------------------------------------------------------------


def flags_of_tool(function: Callable[..., object]) -> dict[str, Flag]:
    """Return the arguments of a command's function as flags by name; what is positional in Python is one by its place."""
    kinds, hints = typing.get_type_hints(function), typing.get_type_hints(function, include_extras=True)
    texts = _argument_texts(inspect.getdoc(function) or "")
    found: dict[str, Flag] = {}
    for argument, parameter in inspect.signature(function).parameters.items():
        named = _named(hints[argument])
        name = named.name or argument
        default = MISSING if parameter.default is parameter.empty else parameter.default
        found[name] = Flag(
            name=name, kind=kinds[argument], default=default, told=partial(str, texts.get(argument, "")), argument=argument,
            by_place=parameter.kind is parameter.POSITIONAL_ONLY, metavar=named.metavar,
        )  # fmt: skip
    return found


def _named(hint: Any) -> Named:
    """What `Annotated` says beside a type."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Named)), Named())


def about_tool(function: Callable[..., object]) -> str:
    """Return what a tool's docstring says before its arguments."""
    return re.split(r"\n(?:Args|Raises|Returns):", inspect.getdoc(function) or "")[0].strip()


def _argument_texts(docstring: str) -> dict[str, str]:
    """What stands under `Args:`, by argument."""
    _, _, section = docstring.partition("\nArgs:\n")
    section = re.split(r"\n\n(?=\S)", section)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: _as_sentence(" ".join(text.split())) for name, text in entries}


def _as_sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def is_optional(kind: object) -> bool:
    """Return whether a flag of this type may be left out by the word None."""
    return types.NoneType in typing.get_args(kind)
