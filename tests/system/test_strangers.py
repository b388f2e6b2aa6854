"""What strangers may have written, torn or made up: every reader gives something, or an error of dglaunch's own.

DG_TEST_FUZZ=20000 pytest tests/system/test_strangers.py
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dglaunch.backends.profiles import profile_of
from dglaunch.config import BackendConfig
from dglaunch.data.images import BadImage, probe
from dglaunch.data.tables import read_table
from dglaunch.errors import UserError
from dglaunch.models import checkpoint
from dglaunch.models.shape import Shape
from dglaunch.output import gallery, ownership
from dglaunch.output.comparison import Comparison
from dglaunch.output.inspection import describe_missing, inspect
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.run_differences import headings
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.status import read_status
from support.commands import dglaunch
from support.grid_folder import fill_run
from support.results import write_jsonl

EXAMPLES = int(os.environ.get("DG_TEST_FUZZ", "40"))
KEYS = ["index", "sample", "file_name", "bytes", "sha256", "key", "error", "prompt", "seed", "settings", "outcome", "num_tasks",
        "config", "seconds", "versions", "images_per_s", "started", "input_images", "input_file_names", "input_sha256", "shape",
        "_class_name", "transformer", "sample_size", "__metadata__", "data_offsets", "dtype", "grid", "defaults", "topology"]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["..", "a\0b", "x" * 300, "\ud800", "run.json", "000000.png", "0" * 64, 2**70, 10**10, -1]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)  # fmt: skip


def nested(depth: int) -> bytes:
    return b'{"index": 0, "sample": 0, "x": ' + b"[" * depth + b"]" * depth + b"}"


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


TEXTS = st.one_of(
    VALUES.map(as_bytes),
    st.lists(VALUES.map(as_bytes), max_size=4).map(b"\n".join),
    st.tuples(VALUES.map(as_bytes), st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]]),
    st.binary(max_size=80),
    st.sampled_from([nested(900), nested(990), nested(100_000), b"\xef\xbb\xbf{}", b"\0" * 50]),
)
fuzz = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def survives(read: Callable[[], object]) -> None:
    """It gives something, or says what is wrong."""
    try:
        read()
    except (UserError, BadImage) as error:
        assert str(error)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_run(tmp_path_factory.mktemp("good"), ["red"], {"seed": 3})


@fuzz
@given(ledger=TEXTS, failures=TEXTS, run=TEXTS)
def test_a_folder_is_looked_at_whatever_its_files_say(
    tmp_path_factory: pytest.TempPathFactory, good: Path, ledger: bytes, failures: bytes, run: bytes
) -> None:
    folder = OutputFolder(tmp_path_factory.mktemp("out"))
    for name, data in (("metadata.jsonl", ledger), ("failures.jsonl", failures), ("run.json", run)):
        (folder.path / name).write_bytes(data)
    survives(folder.require_results)
    survives(lambda: read_status(folder))
    survives(lambda: describe_missing(folder, inspect(folder).right))
    survives(lambda: list(gallery.render(folder.path, folder.path, 0, SortedLines(folder))))
    survives(lambda: headings([*folder.runs().values(), *folder.runs().values(), {}]))
    survives(lambda: list(Comparison.of([folder.path, good]).render(folder.path, lambda _: None)))
    survives(lambda: ownership.refuse_foreign_files(folder, {"000000.png": {"index": 0, "seed": 0}}))


@fuzz
@given(data=TEXTS)
def test_a_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("tables")
    for name in ("t.jsonl", "t.csv", "t.txt", "t.parquet"):
        (folder / name).write_bytes(data)
        survives(lambda name=name: list(read_table(folder / name)))


NAMING = st.just(b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}')


@fuzz
@given(index=TEXTS | NAMING, config=TEXTS, header=TEXTS, length=st.integers(0, 2**64 - 1) | st.none())
def test_a_checkpoint_is_described_or_refused(
    tmp_path_factory: pytest.TempPathFactory, index: bytes, config: bytes, header: bytes, length: int | None
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    for name, data in (
        ("model_index.json", index),
        ("transformer/config.json", config),
        ("scheduler/config.json", config),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    weights = struct.pack("<Q", len(header) if length is None else length) + header
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    survives(lambda: use(folder))


def use(folder: Path) -> None:
    found = checkpoint.resolve(BackendConfig(model_name=str(folder)))
    assert found.parameters is not None and found.components is not None
    assert found.settings is not None
    found.image_tokens(Shape(64, 64))
    profile_of("diffusers")


@pytest.mark.parametrize(
    "index",
    [
        b'{"_class_name": "FluxPipeline"}',
        b'{"_class_name": "FluxPipeline", "transformer": 5}',
        b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}',
    ],
)
@fuzz
@given(config=TEXTS)
def test_a_plan_of_a_damaged_checkpoint_is_made_or_refused(
    tmp_path_factory: pytest.TempPathFactory, index: bytes, config: bytes
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "transformer").mkdir()
    (folder / "model_index.json").write_bytes(index)
    (folder / "transformer" / "config.json").write_bytes(config)
    table = write_jsonl(folder / "p.jsonl", [{"prompt": "x"}])
    ended = dglaunch("plan", "t2i", "--model_name", folder, "--prompts_file", table, "--output_dir", folder / "out")
    assert ended.code in (0, 2) and "Traceback" not in ended.output, ended.output


@fuzz
@given(
    data=TEXTS,
    kind=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF....WEBP", b"GIF89a", b"BM", b"II*\0"]),
)
def test_an_image_is_probed_or_refused(data: bytes, kind: bytes) -> None:
    survives(lambda: probe("x.png", Path("x.png"), kind + data))
