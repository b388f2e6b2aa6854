"""A backend is found by its name; one of your own is registered the same way."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dglaunch.backends import fake, registry
from dglaunch.backends.fake import FakeBackend
from dglaunch.errors import UserError
from support.commands import ROOT


def test_every_name_finds_a_module() -> None:
    for name in ("fake", "openai", "google_genai"):
        assert callable(registry.backend_factory(name))


def test_a_backend_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", dict(registry.BACKENDS))
    registry.register("mine", "dglaunch.backends.fake:FakeBackend")
    config = SimpleNamespace(backend=SimpleNamespace(backend="mine"), debug=True, takes_inputs=False)
    context: Any = SimpleNamespace(config=config, batches=())
    assert isinstance(registry.create(context), FakeBackend)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"There is no backend 'difusers'\. The nearest: diffusers; all: diffusers, xdit, "
    ):
        registry.backend_factory("difusers")


def test_a_module_that_the_user_named_may_lie_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies_here.py").write_text("Mine = 'mine'")
    (tmp_path / "jinja2.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert registry.imported("lies_here:Mine") == "mine"
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    assert callable(registry.imported("jinja2:Template"))  # what is installed comes first
    assert sys.path == before


def test_every_marker_of_the_fake_backend_is_explained_to_users() -> None:
    page = (ROOT / "docs" / "HOW_DO_I.md").read_text(encoding="utf-8")
    kinds = re.findall(r"[a-z ]+", fake._MARKER.pattern.partition(")")[0])
    assert "oom" in kinds and all(re.search(rf"^\| `\[{kind}", page, re.MULTILINE) for kind in kinds)
