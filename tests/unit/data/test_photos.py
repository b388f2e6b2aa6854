"""Photographs of a folder: their order, and how their results are called."""

import pytest

from dglaunch.data.photos import Photo, PhotoList, natural_key, numbered, stem_in_ledger, stems_of


def test_the_order_is_natural() -> None:
    names = [
        "b.jpg",
        "a10.jpg",
        "a2.jpg",
        "B/1.jpg",
        "a/10/x.png",
        "a/9/x.png",
        "01.jpg",
        "1.jpg",
        "A3.JPG",
        "\u00b2.png",
    ]
    assert sorted(names, key=natural_key) == [
        "01.jpg", "1.jpg", "a/9/x.png", "a/10/x.png", "a2.jpg", "A3.JPG", "a10.jpg", "B/1.jpg", "b.jpg", "\u00b2.png",
    ]  # fmt: skip


def test_a_result_is_called_as_its_photograph_where_no_other_would_be() -> None:
    names = ["a.jpg", "A.png", "b.jpg", "day/b.jpg", "c.jpg", "x" * 300 + ".jpg", "what?.jpg"]
    found = stems_of({name: n for n, name in enumerate(names)}, {})
    assert list(found.values()) == ["000000", "000001", "000002", "000003", "c", "000005", "000006"]


def test_a_name_that_is_a_number_takes_no_index_of_another() -> None:
    kept = stems_of({"000003.png": 0, "000007.png": 1}, {})
    assert list(kept.values()) == ["000003", "000007"]
    found = stems_of({"000001.jpg": 0, "a.heic": 1, "a.jpg": 2, "000000.jpg": 3, "000009.jpg": 4}, {})
    assert list(found.values()) == ["000000", "000001", "000002", "000003", "000009"]


def test_what_was_decided_stays_when_others_come() -> None:
    known = {"b.jpg": 0, "c.jpg": 1}
    indexes = numbered(["a.jpg", "b.heic", "b.jpg", "c.jpg"], known)
    assert indexes == {"a.jpg": 2, "b.heic": 3, "b.jpg": 0, "c.jpg": 1}
    assert stems_of(indexes, {"b.jpg": "b", "c.jpg": "c"}) == {
        "b.jpg": "b", "c.jpg": "c", "a.jpg": "a", "b.heic": "000003",
    }  # fmt: skip


@pytest.mark.parametrize("made", [[], ["a.jpg"], ["d.jpg", "b.jpg"], ["b.jpg", "a.heic", "d.jpg"]])
def test_how_far_a_job_is_changes_nothing(made: list[str]) -> None:
    """Ranks and nodes may look at different times."""
    names = ["a.heic", "a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    indexes = numbered(names, {})
    stems = stems_of(indexes, {})
    known = {name: indexes[name] for name in made}
    assert numbered(names, known) == indexes
    assert stems_of(indexes, {name: stems[name] for name in made}) == stems


def test_the_ledger_says_how_a_result_was_called() -> None:
    assert stem_in_ledger("day/a.jpg", "a.png", 4, 0) == "a" == stem_in_ledger("a.jpg", "a_01.png", 4, 1)
    assert stem_in_ledger("a.jpg", "000004.png", 4, 0) == "000004" == stem_in_ledger("a.jpg", "000004_01.png", 4, 1)


def test_a_kept_list_is_read_as_what_a_stranger_may_have_written() -> None:
    kept = PhotoList("/photos", [Photo(0, "a, b.jpg", "a, b"), Photo(7, "\u00fc.jpg", "000007")])
    assert PhotoList.loads(kept.dumps()) == kept
    text = b'{"folder": "/p", "photos": [[0, "a.jpg", "../../x"], [-1, "a.jpg", "a"], [true], 3, [1, "b.jpg", "b"], ["1", 2, 3]]}'
    assert PhotoList.loads(text).photos == [Photo(1, "b.jpg", "b")]
    for other in (b"", b"[]", b'{"prompt": "a"}', b"\xff", b'{"folder": 1, "photos": []}'):
        assert PhotoList.loads(other) == PhotoList("", [])
