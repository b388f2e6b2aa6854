"""What an API can do with a model, known without a connection: the adapters say it, by the table of models (models.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from urllib.parse import urlsplit

from dglaunch.backends.api.models import Model, is_vendors
from dglaunch.backends.api.sizes import SizeOf
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
    """What of SAMPLING can be sent."""
    model: Model
    """Its row of the table of models, or what is tried with one that has none."""
    is_known: bool
    """Whether it has a row."""
    most_per_request: int | None = None
    """Images of a request where --batch_size asks for more than the model's, which a server of one's own may take. None: no
    more."""
    size: SizeOf = field(repr=False)
    """Width and height to what the API calls them; a ValueError lists the sizes that it has."""
    max_seed: int = 0
    refused_extra: frozenset[str] = frozenset()
    """What --api_extra must not set, as dglaunch does."""
    servers: tuple[str, ...] = ()
    """The addresses of servers that are not the vendor's own."""
    by_credentials: bool = False
    """It is asked with a project's credentials (Vertex AI) in place of a key."""

    @property
    def ends(self) -> date | None:
        """The day on which the vendor's own server ends it. Another server may have it longer, and Vertex AI has its own days."""
        return None if self.servers or self.by_credentials else self.model.ends

    @property
    def is_own_model(self) -> bool:
        """Whether it is a model of none of the vendors, on a server of the user's."""
        return bool(self.servers) and not self.is_known


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
    return replace(api, by_credentials=adapter.takes_credentials(config.remote))  # type: ignore[attr-defined]


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
