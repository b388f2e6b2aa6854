"""The present speed of each replica."""

from dglaunch.run.rates import WINDOW_S, Rates


def test_a_replica_that_became_slow_shows_so() -> None:
    rates, images = Rates([0, 3], 0.0), {0: 0, 3: 0}
    for tick in range(1, 41):
        images[0] += 30
        images[3] += 30 if tick <= 20 else 3
        rates.note(tick * 30.0, images)
    assert rates.per_second() == {0: 1.0, 3: 0.1}
    assert rates.quiet_s() == {0: 0.0, 3: 0.0}


def test_one_that_has_stopped_and_one_that_never_began() -> None:
    rates = Rates([0, 1], 0.0)
    for tick in range(1, 31):
        rates.note(tick * 30.0, {0: min(tick, 10)})
    assert rates.quiet_s() == {0: 600.0, 1: 900.0}
    assert rates.per_second()[1] == 0.0


def test_slow_models_count_over_the_whole_start() -> None:
    rates = Rates([0], 0.0)
    for tick in range(1, 41):
        rates.note(tick * WINDOW_S / 4, {0: tick // 8})
    assert rates.per_second()[0] == 5 / (10 * WINDOW_S)
