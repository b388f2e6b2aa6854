"""What a search comes to: the front, the two choices, and what is tried in pairs."""

import json
from dataclasses import replace

import pytest

from dglaunch import strict_json
from dglaunch.planning.candidates import PLAIN, Candidate
from dglaunch.planning.search import Found, Trial, front


def trial(name: str, speed: float, difference: float = 0.0, changes: bool = False, **more: object) -> Trial:
    num_flags = 0 if name == PLAIN else 1 + name.count(" + ")
    more = {"greatest": round(4 * difference)} | more
    return Trial(name=name, num_flags=num_flags, images_per_s=speed, difference=difference, changes=changes, **more)


TRIALS = [
    trial(PLAIN, 1.0),
    trial("compile", 1.5, 0.2),
    trial("fuse", 1.01, 0.1),
    trial("pab", 1.4, 3.0, changes=True),
    trial("taylor", 2.0, 12.0, changes=True),
    trial("int8", 0.5, 6.0, changes=True),
    Trial(name="flex", ended="it raised"),
]


def test_the_front_has_what_no_other_beats() -> None:
    assert [found.name for found in Found(TRIALS).front] == [PLAIN, "fuse", "compile", "taylor"]
    assert [found.name for found in front([trial("a", 1), trial("b", 2)])] == ["b"]
    assert front([]) == []


def test_the_fastest_lossless_and_the_fastest_within_a_difference() -> None:
    found = Found(TRIALS)
    assert found.lossless.name == "compile" and found.gain(found.lossless) == 1.5
    assert found.within(5).name == "compile" and found.within(12).name == "taylor" and found.within(0).name == PLAIN


def test_noise_is_no_gain() -> None:
    """Of what is as fast as the fastest but for 2 %, the fewest flags."""
    found = Found([trial(PLAIN, 1.0), trial("compile", 1.5), trial("compile + fuse", 1.52)])
    assert found.lossless.name == "compile"
    assert Found([trial(PLAIN, 1.0), trial("fuse", 1.01)]).lossless.name == PLAIN


def test_gains_within_what_the_plain_run_varies_by_do_not_count() -> None:
    again = trial("as given, again", 1.6, is_check=True)
    trials = [trial(PLAIN, 1.0), trial("compile", 1.5), trial("taylor", 2.5, 3.0, changes=True), again]
    found = Found(trials)
    assert found.noise == 1.6 and found.lossless.name == PLAIN and found.within(5).name == "taylor"
    assert found.worth_pairing([Candidate(settings={"compile": True}), Candidate(settings={"taylor": True})]) == [
        Candidate(settings={"taylor": True})
    ]
    assert [each.name for each in found.front] == ["compile", "taylor"]
    assert Found(trials[:3]).noise == 1.02 and Found(trials[:3]).lossless.name == "compile"


def test_a_cache_that_skipped_nothing_is_not_called_lossless() -> None:
    found = Found([trial(PLAIN, 1.0), trial("first_block_cache", 1.3, 0.0, changes=True)])
    assert found.lossless.name == PLAIN and found.within(0).name == "first_block_cache"


def test_lossless_is_what_moves_images_no_further_than_rounding_does_here() -> None:
    trials = [trial(PLAIN, 1.0), trial("compile", 1.5, 1.4, greatest=60)]
    assert Found(trials).lossless.name == PLAIN
    rebatched = trial("in batches of 2", 1.6, 0.8, greatest=40, is_check=True)
    assert Found([*trials, rebatched]).lossless.name == "compile"
    assert Found([*trials, replace(rebatched, difference=0.3)]).lossless.name == PLAIN
    assert Found([*trials, rebatched]).within(9).name == "compile", "another batch size is no choice"


def test_pairs_are_of_those_that_gained_and_are_best_of_their_flag() -> None:
    caches = {"pab": 1.4, "taylor_seer": 1.3, "cache_dit": 2.0}
    candidates = [Candidate(settings={"cache_type": name}) for name in caches]
    candidates += [Candidate(settings={"enable_compile": True}), Candidate(settings={"enable_fuse_qkv": True})]
    trials = [
        trial(PLAIN, 1.0),
        trial("cache_type pab", 1.4, 3.0),
        trial("cache_type taylor_seer", 1.3, 4.0),
        trial("cache_type cache_dit", 2.0, 9.0),
        trial("enable_compile", 1.5),
        trial("enable_fuse_qkv", 1.01),
    ]
    found = Found(trials).worth_pairing(candidates)
    assert [candidate.name for candidate in found] == ["cache_type pab", "cache_type cache_dit", "enable_compile"]


def test_a_trial_comes_back_from_json() -> None:
    one = trial("taylor", 2.0, 12.0, changes=True, psnr=31.5, worst="000003.png")
    assert Trial.of(json.loads(strict_json.dumps(one.record()))) == one
    assert Trial.of(trial(PLAIN, 1.0).record()).psnr is None


@pytest.mark.parametrize(
    "damage", [{"images_per_s": "fast"}, {"name": 3}, {"psnr": [1]}, {"more": 1}], ids=["text", "name", "list", "key"]
)
def test_what_is_no_trial_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no trial"):
        Trial.of(trial("taylor", 2.0).record() | damage)
    with pytest.raises(ValueError, match="no trial"):
        Trial.of("taylor")
