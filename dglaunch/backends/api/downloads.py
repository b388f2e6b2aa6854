"""An image that an answer only points to is fetched here. The server chooses the address, so it is not trusted
(storage/public_web.py); the API's own host and port are the user's choice and may be anywhere."""

import http.client
import time

from dglaunch.backends.api.answers import RequestError
from dglaunch.storage.public_web import Origin, Refused, opened, pieces

MOST_BYTES = 1 << 27
PAUSE_S = 1.0
TRIES = 3


def download(address: str, timeout: float, own: Origin) -> bytes:
    """Fetch an image. It is paid for already, so the download has tries of its own.

    Args:
        timeout: seconds for all of it, whatever it is that takes long.
        own: the API's own host and port.

    Raises:
        RequestError: it cannot be fetched, or must not.
    """
    deadline = time.monotonic() + timeout
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            with opened(address, deadline, [own]) as answer:
                data = b"".join(pieces(answer, MOST_BYTES))
            return data
        except Refused as error:
            raise RequestError(
                "refused",
                f"the address in the answer {error}. What a server points to is fetched from public addresses only, or from "
                "its own",
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            late = time.monotonic() > deadline
            if last or late:
                reason = f"not within {timeout:g} s (--timeout)" if late else error
                raise RequestError(
                    "again", f"the image cannot be fetched from the address in the answer: {reason}"
                ) from None
        time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")
