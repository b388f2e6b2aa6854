"""What answers of APIs say: pauses, and texts that must not show the key."""

import pytest

from dglaunch.backends.api import answers, google
from support.api_servers import KEY


def test_a_key_is_cut_out_of_texts_even_where_a_server_stars_its_middle_out() -> None:
    text = f"Incorrect API key provided: {KEY[:10]}*******{KEY[-4:]}, or {KEY}."
    assert answers.redact(text, KEY) == "Incorrect API key provided: [key], or [key]."


@pytest.mark.parametrize(("text", "seconds"), [("3", 3), ("0.5", 0.5), ("-1", 0), ("", None), ("soon", None)])
def test_retry_after(text: str, seconds: float | None) -> None:
    assert answers.retry_after({"retry-after": text}) == seconds


def test_google_names_a_pause_in_its_own_way() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "32.5s"}]
    assert google._retry_info({"error": {"details": details}}) == 32.5
    assert google._retry_info({"error": {"details": [{"retryDelay": "soon"}]}}) is None
    assert google._retry_info("no details") is None


def test_retry_after_as_a_date() -> None:
    seconds = answers.retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"})
    assert seconds is not None and seconds > 1e9
