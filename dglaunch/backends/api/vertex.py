"""Vertex AI: Google's models in a project of Google Cloud, with its application default credentials in place of a key."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from dglaunch.config import RemoteConfig
from dglaunch.environment import is_true
from dglaunch.errors import UserError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
PROJECT, LOCATION = "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"
SWITCHES = ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE")
"""Variables that choose Vertex AI for all programs of Google's SDK."""
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
DEFAULT_LOCATION = "global"


class Project(NamedTuple):
    """A project of Google Cloud, and where its models run."""

    project: str
    location: str


def project_of(remote: RemoteConfig, environ: Mapping[str, str]) -> Project | None:
    """Return the project that is asked, None for the Gemini API: --api_project, or Google's own variables where one of them
    chooses Vertex AI.

    Raises:
        UserError: there is a key as well, or a location without a project.
    """
    switch = next((name for name in SWITCHES if is_true(environ.get(name, ""))), None)
    project = remote.api_project or (environ.get(PROJECT, "") if switch else "")
    if not project:
        if remote.api_location:
            raise UserError("--api_location is that of a Google Cloud project; name it with --api_project.")
        return None
    key = next((name for name in KEYS if environ.get(name, "").strip()), None)
    if key is not None:
        chosen = "--api_project" if remote.api_project else f"{switch} and {PROJECT}"
        raise UserError(
            f"{chosen} asks Vertex AI with the project's credentials, and {key} is a key, which asks the Gemini API: only one "
            f"of the two can be meant. Unset {key}, or drop {chosen}."
        )
    return Project(project, remote.api_location or environ.get(LOCATION, "") or DEFAULT_LOCATION)


def credentials() -> "Credentials":
    """Return the application default credentials.

    Raises:
        UserError: there are none.
    """
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        found, _ = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError as error:
        raise UserError(
            "Vertex AI needs application default credentials: run `gcloud auth application-default login`, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS to the file of a service account. ({str(error).splitlines()[0]})"
        ) from None
    return found
