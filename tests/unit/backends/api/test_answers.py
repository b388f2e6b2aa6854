"""What answers of APIs say: pauses, and texts that must not show the key."""

import math

import pytest

from dglaunch.backends.api import answers, google
from support.api_servers import KEY


def test_a_key_is_cut_out_of_texts_even_where_a_server_stars_its_middle_out() -> None:
    text = f"Incorrect API key provided: {KEY[:10]}*******{KEY[-4:]}, or {KEY}."
    assert answers.redact(text, KEY) == "Incorrect API key provided: [key], or [key]."


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3), ("0.5", 0.5), ("", None), ("soon", None),
        ("-1", None), ("nan", None), ("inf", None), ("-inf", None), ("1e999", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert answers.retry_after({"retry-after": text}) == seconds


def test_google_names_a_pause_in_its_own_way() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "32.5s"}]
    assert google._retry_info({"error": {"details": details}}) == 32.5
    assert google._retry_info({"error": {"details": [{"retryDelay": "soon"}]}}) is None
    assert google._retry_info("no details") is None
    for text in ("nans", "infs", "9" * 400 + "s", "\u00b2s", "-3s"):
        assert google._retry_info({"error": {"details": [{"retryDelay": text}]}}) is None


def test_retry_after_as_a_date() -> None:
    seconds = answers.retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"})
    assert seconds is not None and seconds > 1e9


def test_a_usage_report_of_numbers_that_add_up() -> None:
    """A cost of NaN was added to what was spent: --max_cost was never reached."""
    report: dict[str, object] = {"tokens": 3, "cost": math.nan, "more": {"a": -1, "b": math.inf, "c": 0.5, "d": True}}
    report |= {"e": 10**400, "f": "1"}
    assert answers.flat_numbers(report) == {"tokens": 3, "more.c": 0.5}
    deep: dict[str, object] = {"a": 1}
    for _ in range(500):
        deep = {"a": deep}
    assert answers.flat_numbers(deep) == {}
