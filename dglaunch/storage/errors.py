"""What an object store answers, as the end of a sentence: never with what it says itself, which may hold parts of keys."""

import re

MISSING, REFUSED, TEMPORARY = "missing", "refused", "temporary"
"""Kinds of errors: no such object; asking again changes nothing; it may well change something."""
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>|\"(?:code|reason)\": ?\"([A-Za-z0-9]{1,60})\"")
_PLACES_OF_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "169.254.170.2", "CredentialProvider")

NO_BUCKET = "there is no such bucket; make it, or correct the name"
EXPIRED = "the credentials have expired; renew them (AWS: aws sso login, or a new session token)"
UNKNOWN_KEY = (
    "the credentials are not known there; see AWS_PROFILE, AWS_ACCESS_KEY_ID or what the cloud's own tool uses"
)
CLOCK = "this machine's clock is wrong, and the store refuses what was signed at another time; set the clock"
REGION = "the bucket is in another region; set AWS_REGION to it"
DENIED = "these credentials may not do that there"
NOBODY = (
    "no credentials were found; log in with the cloud's own tool (aws configure, gcloud auth application-default login, az "
    "login), or set its variables (a public bucket of S3: AWS_SKIP_SIGNATURE=true)"
)
WHERE = "look at the network, and at the endpoint and region: of S3 AWS_ENDPOINT_URL and AWS_REGION"
SENTENCES: dict[str, str] = {
    "NoSuchBucket": NO_BUCKET, "ContainerNotFound": NO_BUCKET,
    "ExpiredToken": EXPIRED, "ExpiredTokenException": EXPIRED, "TokenRefreshRequired": EXPIRED, "InvalidToken": EXPIRED,
    "InvalidAccessKeyId": UNKNOWN_KEY, "SignatureDoesNotMatch": UNKNOWN_KEY, "AuthenticationFailed": UNKNOWN_KEY,
    "RequestTimeTooSkewed": CLOCK,
    "PermanentRedirect": REGION, "AuthorizationHeaderMalformed": REGION, "IllegalLocationConstraintException": REGION,
    "InvalidBucketName": "that is no name that a bucket can have",
    "AccessDenied": DENIED, "AllAccessDisabled": DENIED,
}  # fmt: skip
MAY_PASS = {EXPIRED}
"""Refusals that end when someone renews what has expired, while a run goes on."""


class StorageError(OSError):
    """A store, or a server on the web, cannot do what is asked. `strerror` ends a sentence about the address."""

    def __init__(self, sentence: str, kind: str) -> None:
        super().__init__(None, sentence)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.strerror)


class NoObject(StorageError, FileNotFoundError):
    """There is no object of that name."""

    def __init__(self, sentence: str = "there is no such object") -> None:
        super().__init__(sentence, MISSING)


def explained(error: Exception) -> StorageError:
    """Return an error of the library as one of ours."""
    text = str(error)
    found = _CODE.search(text)
    code = (found[1] or found[2]) if found else ""
    status = match[1] if (match := _STATUS.search(text)) else ""
    if code in SENTENCES:
        sentence = SENTENCES[code]
        return StorageError(sentence, TEMPORARY if sentence in MAY_PASS else REFUSED)
    if isinstance(error, FileNotFoundError):
        return NoObject()
    if any(place in text for place in _PLACES_OF_CREDENTIALS):
        return StorageError(NOBODY, REFUSED)
    name = type(error).__name__
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in ("401", "403"):
        return StorageError(f"{DENIED} ({' '.join(filter(None, (status, code))) or 'denied'})", REFUSED)
    if status:
        kind = TEMPORARY if status[0] == "5" or status in ("408", "425", "429") else REFUSED
        how = "it is throttling or overloaded" if status in ("429", "503") else "it answered with an error"
        return StorageError(f"{how} ({' '.join(filter(None, (status, code)))})", kind)
    if name in ("GenericError", "JoinError"):
        return StorageError(_connection(text), TEMPORARY)
    return StorageError(f"the request is not possible ({name})", REFUSED)


def _connection(text: str) -> str:
    """Why there was no answer."""
    lower = text.lower()
    reasons = {
        "connection refused": f"nothing answers there ({WHERE})", "dns error": f"its name is not known ({WHERE})",
        "certificate": "its certificate is not trusted", "timed out": f"it does not answer in time ({WHERE})",
        "timedout": f"it does not answer in time ({WHERE})",
    }  # fmt: skip
    return next((said for mark, said in reasons.items() if mark in lower), f"the connection broke ({WHERE})")
