"""Fixtures that several files use. How dglaunch is started and what it left is in tests/support; tests/README.md names the layers."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import small_images
from support.results import PROMPTS, write_jsonl

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: threads of several processes wait for one another
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, by whichever test comes first
small_images.install()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of seconds come last, after pytest-randomly's order: no process waits at the end for a file of minutes."""
    items.sort(key=lambda item: "/unit/" in item.path.as_posix())


@pytest.fixture(autouse=True)
def untraced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` in this process has the figures that dglaunch ships, or formulas: a trace takes seconds. `traced` marks the tests
    of traces."""
    if request.node.get_closest_marker("traced") is None:
        monkeypatch.setattr("dglaunch.cli.plan.in_this_process", lambda *_: None)


@pytest.fixture
def published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The editing pipelines work at the sizes at which they were published."""
    monkeypatch.setattr(small_images, "SHRINK", 1)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """23 prompts, a number that no batch size or world size divides."""
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once for all tests, by whichever process of pytest-xdist needs it first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def families(common: Path) -> Path:
    """Folder of the tiny random checkpoints, filled by `tiny_models.build(family, families / family)`."""
    folder = common / "families"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that the loopback servers of the APIs accept, and nothing else that would change a run."""
    from support.api_servers import KEYS

    for name in [name for name in os.environ if name.startswith(("DG_", "OPENAI_", "GOOGLE_", "GEMINI_"))]:
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(keys: None) -> Iterator[Any]:
    """A server on loopback that speaks the image APIs."""
    from support.api_servers import ApiServer

    with ApiServer() as running:
        yield running
