"""A pipeline class that is none of diffusers': the user's own (--pipeline my_module:MyPipeline), or one that comes with a
checkpoint.

Here nothing of it is run: its source is read, for the class of the families' table that it derives from.
What derives from none is called by its signature, and the self-test says whether it may batch.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dglaunch.errors import UserError
from dglaunch.files import read_bytes
from dglaunch.models.components import CheckpointFiles, parts_of
from dglaunch.models.families import FAMILIES, Family
from dglaunch.models.folder import Folder
from dglaunch.models.unlisted import MOST_SOURCE, Takes, takes_in
from dglaunch.python_source import parse
from dglaunch.search_path import with_current_folder

TRUST = "which is not run unasked. Read it and, if you trust it, add --trust_remote_code."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPipeline:
    """What is known of such a class before it is imported."""

    module: str
    """my_module, my_package.my_module; or pipeline, of a pipeline.py in the checkpoint."""
    class_name: str
    in_checkpoint: bool
    base: str | None = None
    """The pipeline of the families' table that it derives from, as its source says."""
    takes: Takes | None = None
    """What its call takes, as its source says, where it derives from none."""
    content: str = ""
    """The sha256 of the module's source, where that is here."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.module}.py:{self.class_name}" if self.in_checkpoint else f"{self.module}:{self.class_name}"

    @property
    def pipeline_class(self) -> str:
        """The class whose rules hold for it."""
        return self.base or self.class_name

    def family(self, row: Family) -> Family:
        """Return the row of its base for it, without what only the base itself is known to do."""
        kept = row.xdit if row.xdit is not None and row.xdit.pipeline is None else None
        return replace(row, text_outputs=(), windows=None, takes=None, xdit=kept)


def named_by_flag(reference: str) -> OwnPipeline:
    """Return what --pipeline names; the module is looked for where Python looks, then in the current folder.

    Raises:
        UserError: it names none, or there is no such module.
    """
    module, _, class_name = reference.partition(":")
    if module.endswith(".py"):
        raise UserError(
            f"--pipeline {reference}: name the module, not its file: {module.removesuffix('.py')}:{class_name}."
        )
    names = [*module.split("."), class_name]
    if not all(name.isidentifier() for name in names):
        raise UserError(f"--pipeline {reference}: a module and a class in it are needed, such as my_module:MyPipeline.")
    source = find_module(module, f"--pipeline {reference}")
    known = OwnPipeline(module=module, class_name=class_name, in_checkpoint=False)
    return known if source is None else _with_source(known, source)


def find_module(module: str, flag: str) -> Path | None:
    """Look for a module of the user's where Python looks, then in the current folder, and return its file; None: it is not in
    Python.

    Args:
        module: its dotted name.
        flag: what named it, for the error.

    Raises:
        UserError: there is no such module.
    """
    with with_current_folder():
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:
            spec = None
    if spec is None:
        raise UserError(
            f"{flag}: there is no module {module} in this folder or on PYTHONPATH. Start in the folder that holds "
            f"{module.replace('.', '/')}.py, or put that folder into PYTHONPATH."
        )
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def named_by_index(files: CheckpointFiles, named: object) -> OwnPipeline | None:
    """Return the class that comes with a checkpoint, if `_class_name` of its model_index.json is the list of a module and a
    class, as diffusers writes it."""
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(name, str) for name in named):
        return None
    module, class_name = named
    known = OwnPipeline(module=module, class_name=class_name, in_checkpoint=True)
    if isinstance(files, Folder):
        file = files.path / f"{module}.py"
        if not str(module).isidentifier() or not file.is_file():
            raise UserError(
                f"The model_index.json of {files.source} names the pipeline {class_name} in {module}.py, which is not in the "
                "folder. Put the file there, or correct _class_name."
            )
        known = _with_source(known, file)
    return known


def code_of(files: CheckpointFiles, own: OwnPipeline | None) -> list[str]:
    """Return the names of the Python files that a checkpoint would have run, as far as it is known without the hub."""
    found = [f"{own.module}.py"] if own is not None and own.in_checkpoint else []
    if isinstance(files, Folder):
        names = (f"{part}/{library}.py" for part, (library, _) in parts_of(files).items())
        found += [name for name in names if (files.path / name).is_file()]
    return found


# -- the source ---------------------------------------------------------------------------------------------------


def _with_source(known: OwnPipeline, file: Path) -> OwnPipeline:
    """A class with what its source says: the class of the families' table that it derives from, else what its call takes."""
    class_name = known.class_name
    try:
        source = read_bytes(file, MOST_SOURCE)
        tree = parse(source)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} is no Python ({error}); correct it.") from None
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    if not _may_have(tree, class_name):
        there = f"; its classes: {', '.join(classes)}" if classes else ", and no other"
        raise UserError(f"{file} has no class {class_name}{there}. Correct the name of the pipeline, or the module.")
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffusers"
        for alias in node.names
    }
    base = next((name for name in _ancestors(class_name, classes, imported) if name in FAMILIES), None)
    takes = takes_in(file, class_name) if base is None else None
    return replace(known, base=base, takes=takes, content=hashlib.sha256(source).hexdigest())


def _may_have(tree: ast.Module, name: str) -> bool:
    """Whether a module has something of a name, or could get it from where its source does not say."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name in (name, "__getattr__"):
                return True
            case ast.alias() if (node.asname or node.name) in (name, "*"):
                return True
            case ast.Name(id=bound, ctx=ast.Store()) if bound == name:
                return True
            case ast.Name(id="globals" | "setattr" | "exec"):
                return True
    return False


def _ancestors(
    class_name: str,
    classes: Mapping[str, ast.ClassDef],
    imported: Mapping[str, str],
    seen: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """diffusers' names of the classes that a class derives from: `FluxPipeline`, also as `diffusers.FluxPipeline`."""
    if class_name not in classes or class_name in seen:
        return
    for base in classes[class_name].bases:
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "diffusers":
            yield base.attr
        elif isinstance(base, ast.Name) and base.id in imported:
            yield imported[base.id]
        elif isinstance(base, ast.Name):
            yield from _ancestors(base.id, classes, imported, seen | {class_name})
