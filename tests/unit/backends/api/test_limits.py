"""How many requests at a time, how long a pause, and the spending on requests and cost. Free of HTTP."""

import time

import pytest

from dglaunch.backends.api import limits
from dglaunch.errors import Drained, UserError


def test_shares_add_up_to_the_total() -> None:
    assert all(sum(limits.share(t, n, parts) for n in range(parts)) == t for t in range(20) for parts in range(1, 7))


def test_delays_double_up_to_a_limit_and_a_server_that_names_a_time_gets_it() -> None:
    assert all(0.5 * 2**n <= limits.delay(n, 1.0, None) <= 2**n for n in range(6))
    assert limits.delay(30, 1.0, None) <= limits.LONGEST_DELAY_S
    assert all(7.0 <= limits.delay(n, 1.0, 7.0) <= 8.0 for n in range(6))


def test_the_gate_halves_once_for_requests_that_were_under_way_together_and_comes_back() -> None:
    events: list[str] = []
    limiter = limits.ConcurrencyLimiter(8, events.append)
    started = time.monotonic()
    for _ in range(8):
        limiter.slow_down(started, None)
    assert limiter.limit == 4
    limiter.slow_down(time.monotonic(), None)
    assert limiter.limit == 2
    answers = 0
    while limiter.limit < 8:
        limiter.went_well()
        answers += 1
    assert 25 < answers < 45  # about 2 + 3 + ... + 7
    assert [event.split(" s ")[1] for event in events] == [
        "the server asked to slow down: 8 -> 4 requests at a time",
        "the server asked to slow down: 4 -> 2 requests at a time",
        "back to 8 requests at a time",
    ]


def test_the_gate_never_closes_for_good_and_lets_go_of_who_must_stop() -> None:
    limiter = limits.ConcurrencyLimiter(2, lambda _: None)
    for _ in range(5):
        limiter.slow_down(time.monotonic(), None)
    assert limiter.limit == 1
    limiter.enter(lambda: False)
    with pytest.raises(Drained):
        limiter.enter(lambda: True)
    limiter.leave()
    assert limiter.enter(lambda: False) > 0


def test_a_pause_holds_for_all_requests_of_the_rank() -> None:
    limiter, start = limits.ConcurrencyLimiter(4, lambda _: None), time.monotonic()
    limiter.slow_down(start, 0.2)
    assert limiter.enter(lambda: False) - start >= 0.2


def test_the_brake_stops_at_its_limits() -> None:
    events: list[str] = []
    spending = limits.SpendLimit(2, None, events.append)
    spending.take(), spending.take()
    for _ in range(2):
        with pytest.raises(Drained):
            spending.take()
    assert len(events) == 1 and "--max_requests (2)" in events[0]
    spending = limits.SpendLimit(None, 1.0, events.append)
    spending.take(), spending.paid(0.6), spending.take(), spending.paid(0.6)
    with pytest.raises(Drained):
        spending.take()
    spending.paid(None)
    with pytest.raises(UserError, match="do not report a cost"):
        spending.take()
