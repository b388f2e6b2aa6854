"""The HTML pages that dglaunch writes: their templates and what stands in them as it is."""

from importlib import resources
from typing import TYPE_CHECKING

from dglaunch.errors import MissingPackage

if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = "page"


def template(name: str, purpose: str) -> "Template":
    """Return a page's template: what is filled in is text, never markup, and nothing may be missing.

    Args:
        purpose: what needs it, as the beginning of a sentence.

    Raises:
        MissingPackage: jinja2 is not there.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingPackage("jinja2", purpose, "pip install jinja2") from None
    loader = PackageLoader("dglaunch.output", FOLDER)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)


def text_of(*names: str) -> str:
    """Return what is in files beside the templates, one after the other."""
    folder = resources.files("dglaunch.output") / FOLDER
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)
