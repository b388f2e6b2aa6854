"""What an API can do with a model, known without a connection: the adapters say it, by the table of models (models.py)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any
from urllib.parse import urlsplit

from dglaunch.backends.api.models import Model, is_vendors
from dglaunch.backends.api.sizes import SizeOf
from dglaunch.backends.api.vertex import project_of
from dglaunch.backends.registry import backend_factory
from dglaunch.config import RunConfig
from dglaunch.environment import environment
from dglaunch.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What one API can do with one model; known without a connection."""

    name: str
    package: str
    keys: tuple[str, ...]
    """Variables that may hold the key, the first one that is set counts."""
    fields: frozenset[str]
    """What of ROW_FIELDS can be sent."""
    images_per_request: int
    most_per_request: int | None = None
    """The same where --batch_size asks for more, which a server of one's own may take. None: no more."""
    max_images: int | None = None
    """Input images of an edit at the most; 0: it edits none; None: only the server knows."""
    image_formats: frozenset[str] = frozenset({"PNG", "JPEG", "WEBP"})
    """Pillow's names of what it takes as input images; others are sent as one of these."""
    max_image_bytes: int | None = None
    """Of one input image."""
    max_aspect: float = math.inf
    """Of an input image."""
    takes_mask: bool = False
    size: SizeOf = field(repr=False)
    """Width and height to what the API calls them; a ValueError lists the sizes that it has."""
    max_seed: int = 0
    options: Mapping[str, tuple[str, ...]]
    """Flags of models that it takes, with their values; an empty list: any."""
    refused_extra: frozenset[str] = frozenset()
    """What --api_extra must not set, as dglaunch does."""
    model: Model | None = None
    """The row of the table of models, if it has one."""
    servers: tuple[str, ...] = ()
    """The addresses of servers that are not the vendor's own."""
    by_credentials: bool = False
    """It is asked with a project's credentials (Vertex AI) in place of a key."""

    @property
    def ends(self) -> date | None:
        """The day on which the vendor's own server ends it. Another server may have it longer, and Vertex AI has its own days."""
        return self.model.ends if self.model is not None and not self.servers and not self.by_credentials else None

    @property
    def successor(self) -> str:
        """The model that the vendor names in its place."""
        return self.model.successor if self.model is not None else ""

    @property
    def is_own_model(self) -> bool:
        """Whether it is a model of none of the vendors, on a server of the user's."""
        return bool(self.servers) and self.model is None


def addresses_of(config: RunConfig) -> tuple[str, ...]:
    """Return the addresses that are asked in place of the SDK's own: --api_base, else the SDK's own variable."""
    adapter = backend_factory(config.backend.backend)
    variable: str = adapter.base_variable  # type: ignore[attr-defined]  # adapters have it, Backend not
    return config.remote.api_base or tuple(filter(None, [environment().get(variable)]))


def api_of(config: RunConfig) -> Api:
    """Return what the API of --backend can do with --model_name."""
    name = config.backend.backend
    adapter = backend_factory(name)
    own = tuple(base for base in addresses_of(config) if not is_vendors(name, urlsplit(base).hostname or ""))
    api: Api = adapter.describe(config.backend.model_name, own)  # type: ignore[attr-defined]  # as above
    if name != "google_genai" and (config.remote.api_project or config.remote.api_location):
        raise UserError("--api_project and --api_location are Vertex AI's, with --backend google_genai. Drop them.")
    vertex = name == "google_genai" and project_of(config.remote, environment()) is not None
    return replace(api, by_credentials=vertex)


def facts_of(
    row: Model | None, images_per_request: int, most_per_request: int, options: Sequence[str]
) -> dict[str, Any]:
    """Return what follows from the row of a model in the table; and for one that the table does not know, what is tried.

    Args:
        images_per_request: of a model that the table does not know.
        most_per_request: the same where the user asks for more.
        options: the flags of models that the API has.
    """
    if row is None:
        return {
            "images_per_request": images_per_request, "most_per_request": most_per_request, "takes_mask": True,
            "options": dict.fromkeys(options, ()),
        }  # fmt: skip
    return {
        "model": row, "images_per_request": row.images_per_request, "max_images": row.max_images,
        "max_image_bytes": row.max_image_bytes, "image_formats": row.image_formats, "takes_mask": row.takes_mask,
        "max_aspect": row.max_aspect or math.inf, "options": row.options,
    }  # fmt: skip


def key_of(api: Api, environ: Mapping[str, str]) -> str:
    """Return the key, which comes from the environment only; "" where a server of one's own is asked without one.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    key = next((environ[name].strip() for name in api.keys if environ.get(name, "").strip()), "")
    names = " or ".join(api.keys)
    if api.by_credentials:
        return ""
    if not key and not api.servers:
        raise UserError(f"{api.name} needs a key: set {names} in the environment.")
    if not key.isascii() or (key and not key.isprintable()) or " " in key:
        raise UserError(
            f"The key in {names} has a character that no key has (a space, a line break, a quote?). Set it again."
        )
    return key
