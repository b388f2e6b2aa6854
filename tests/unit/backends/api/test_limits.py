"""How many requests at a time, how long a pause, and the spending on requests and cost. Free of HTTP."""

import threading
import time

import pytest

from dglaunch.backends.api import limits, servers
from dglaunch.errors import Drained, UserError


def test_shares_add_up_to_the_total() -> None:
    assert all(sum(limits.share(t, n, parts) for n in range(parts)) == t for t in range(20) for parts in range(1, 7))


def test_delays_double_up_to_a_limit_and_a_server_that_names_a_time_gets_it() -> None:
    assert all(0.5 * 2**n <= limits.delay(n, 1.0, None) <= 2**n for n in range(6))
    assert limits.delay(30, 1.0, None) <= limits.LONGEST_DELAY_S
    assert limits.delay(2000, 1.0, None) <= limits.LONGEST_DELAY_S
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
    pool = servers.Pool([], 2, 1.0, lambda _: None)
    limiter = pool.first.limiter
    for _ in range(5):
        limiter.slow_down(time.monotonic(), None)
    assert limiter.limit == 1
    pool.enter(lambda: False)
    with pytest.raises(Drained):
        pool.enter(lambda: True)
    limiter.leave()
    assert pool.enter(lambda: False)[1] > 0


def test_a_pause_holds_for_all_requests_of_the_rank() -> None:
    pool, start = servers.Pool([], 4, 1.0, lambda _: None), time.monotonic()
    pool.first.limiter.slow_down(start, 0.2)
    assert pool.enter(lambda: False)[1] - start >= 0.2


def test_work_goes_to_the_server_that_is_free() -> None:
    pool = servers.Pool(["http://a", "http://b"], 2, 1.0, lambda _: None)
    taken = [pool.enter(lambda: False)[0] for _ in range(4)]
    assert sorted(server.base for server in taken) == ["http://a", "http://a", "http://b", "http://b"]
    taken[1].limiter.leave()
    assert pool.enter(lambda: False)[0] is taken[1]


def test_a_server_that_fails_is_set_aside_for_longer_each_time_and_comes_back() -> None:
    events: list[str] = []
    pool = servers.Pool(["http://a", "http://b"], 2, 0.2, events.append)
    bad, good = pool.servers
    pauses = []
    for _ in range(4):
        start = time.monotonic()
        pool.fails(bad, start, "gone")
        pool.fails(bad, start - 1, "gone")  # it was under way together with the first
        pauses.append(round(bad.not_before - start, 1))
    assert pauses == [0.2, 0.4, 0.8, 1.6]
    assert [pool.enter(lambda: False)[0] for _ in range(2)] == [good, good]
    bad.not_before = 0.0
    assert pool.enter(lambda: False)[0] is bad and not bad.limiter.is_free(time.monotonic())  # one tries it
    pool.works(bad)
    assert bad.failures == 0 and events[0] == "http://a is set aside for 0.2 s, the others go on: gone"
    assert "http://a answers again" in events


def test_a_server_may_be_gone_for_days() -> None:
    pool = servers.Pool(["http://a", "http://b"], 2, 1.0, lambda _: None)
    pool.first.failures, start = 2000, time.monotonic()
    pool.fails(pool.first, start, "gone")
    assert round(pool.first.not_before - start) == limits.LONGEST_DELAY_S


def test_a_single_server_is_not_set_aside() -> None:
    pool = servers.Pool(["http://a/v1/"], 2, 1.0, lambda _: None)
    pool.fails(pool.first, time.monotonic(), "gone")
    assert pool.first.not_before == 0.0 and pool.first.base == "http://a/v1" and pool.first.origin == ("a", 80)


def go_on() -> bool:
    return False


def test_the_brake_stops_at_its_limits() -> None:
    events: list[str] = []
    spending = limits.SpendLimit(2, None, events.append)
    spending.take(None, go_on), spending.take(None, go_on)
    for _ in range(2):
        with pytest.raises(Drained):
            spending.take(None, go_on)
    assert len(events) == 1 and "--max_requests (2)" in events[0]


def test_what_is_under_way_may_cost_what_it_may_cost_at_the_most() -> None:
    events: list[str] = []
    spending = limits.SpendLimit(None, 1.0, events.append)
    asides = [spending.take(0.3, go_on) for _ in range(3)]
    waited: list[float | None] = []

    def fourth() -> None:
        waited.append(spending.take(0.3, go_on))

    thread = threading.Thread(target=fourth)
    thread.start()
    time.sleep(0.05)
    assert asides == [0.3] * 3 and not waited, "a fourth might go beyond the limit"
    spending.settle(asides.pop(), 0.05)
    thread.join(5)
    assert waited == [0.3], "the answer was cheaper, so there is room"
    for aside in [*asides, 0.3]:
        spending.settle(aside, 0.25)
    with pytest.raises(Drained):
        spending.take(0.3, go_on)
    assert spending.cost == pytest.approx(0.8) and "might go beyond this rank's part of --max_cost (1)" in events[0]


def test_where_no_price_is_known_the_first_goes_alone_and_the_dearest_so_far_is_set_aside() -> None:
    spending = limits.SpendLimit(None, 1.0, lambda _: None)
    assert spending.take(None, go_on) == 0.0
    with pytest.raises(Drained):
        spending.take(None, lambda: True)  # it waits for the first one's answer, and is stopped meanwhile
    spending.settle(0.0, 0.4)
    assert spending.take(None, go_on) == 0.4
    spending.settle(0.4, 0.7)
    with pytest.raises(Drained):
        spending.take(None, go_on)


def test_a_request_that_costs_more_than_was_thought_raises_what_is_set_aside() -> None:
    spending = limits.SpendLimit(None, 1.0, lambda _: None)
    spending.settle(spending.take(0.1, go_on), 0.3)
    assert spending.take(0.1, go_on) == 0.3


def test_answers_that_do_not_say_what_they_cost_end_the_run_where_there_is_a_limit() -> None:
    free = limits.SpendLimit(None, None, lambda _: None)
    free.uncounted(), free.take(None, go_on)
    spending = limits.SpendLimit(None, 1.0, lambda _: None)
    spending.uncounted()
    with pytest.raises(UserError, match="do not report a cost"):
        spending.take(None, go_on)
