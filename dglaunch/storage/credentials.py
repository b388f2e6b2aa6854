"""Where a store is and who asks it: each cloud's usual chain of credentials, which dglaunch neither keeps nor shows.

Google's and Azure's chains are the library's own: variables, the file of `gcloud auth application-default login`, service
accounts, workload identity, managed identity. So are S3's variables and roles of machines; profiles, SSO and the like, which it
does not know, are read by boto3.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dglaunch.addresses import Address
from dglaunch.storage.errors import NOBODY, REFUSED, StorageError
from dglaunch.system import need

LIBRARYS_OWN = (
    "AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip
"""Variables by which the library itself finds credentials for S3."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the library is told of a store beside its address."""

    config: Mapping[str, Any] = field(default_factory=dict)
    credentials: Any = None
    allow_http: bool = False

    def __repr__(self) -> str:
        return "Settings(...)"


def settings_of(root: Address) -> Settings:
    """Return what belongs to an address in this environment.

    Raises:
        StorageError: there are no credentials.
        MissingPackage: a profile is needed, and boto3 is not installed.
    """
    allow_http = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    if root.scheme != "s3":
        return Settings(allow_http=allow_http)
    config = {"endpoint": endpoint} if (endpoint := os.environ.get("AWS_ENDPOINT_URL_S3")) else {}
    if any(os.environ.get(name) for name in LIBRARYS_OWN):
        return Settings(config, None, allow_http)
    if not (os.environ.get("AWS_PROFILE") or _has_profiles()):
        return Settings(config, None, allow_http)  # the role of a machine
    need("boto3", "A profile of AWS (~/.aws, AWS_PROFILE)", "pip install 'dglaunch[cloud]'")
    return Settings(config, _profile(), allow_http)


def _has_profiles() -> bool:
    files = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    return any(Path(os.path.expanduser(os.environ.get(name, usual))).is_file() for name, usual in files.items())


def _profile() -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session())
    except (BotoCoreError, ValueError):
        raise StorageError(NOBODY, REFUSED) from None
