"""A file is replaced in one step, or stays as it was; the temporary one never stays behind."""

from pathlib import Path

import pytest

from dglaunch.atomic import atomic_write


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file.txt"
    target.parent.mkdir()
    target.write_text("old")
    with atomic_write(target, tmp_path, "-node0of2") as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert (
            temporary.parent == tmp_path and temporary.name.startswith(".dglaunch-") and "-node0of2-" in temporary.name
        )
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target.parent]


def test_a_failure_leaves_it_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
