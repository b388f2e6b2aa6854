"""hf://datasets/...: tables of the hub, from a server on loopback that answers as the hub does."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dglaunch.data.tables import Table
from dglaunch.errors import UserError
from support.commands import dglaunch
from support.hub_server import HubServer
from support.results import ledger


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in (
        "two/data/train-00000-of-00002",
        "two/data/train-00001-of-00002",
        "two/data/test-00000-of-00001",
        "one/all",
    ):
        file = tmp_path / "hub" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"caption": [f"{file.stem} {n}" for n in range(2)]}), file)
        (tmp_path / "hub" / name.partition("/")[0] / "README.md").write_text("# prompts")
    (tmp_path / "hub" / "mixed").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "hub" / "mixed" / name).write_text("caption\nx\n")
    (tmp_path / "hub" / "empty").mkdir()
    (tmp_path / "hub" / "empty" / "README.md").write_text("# nothing")
    with HubServer({f"me/{name}": tmp_path / "hub" / name for name in ("one", "two", "mixed", "empty")}) as server:
        server.in_use(monkeypatch, tmp_path / "cache")
        yield server


def captions(address: str) -> list[str]:
    return [row["caption"] for _, row in Table([Path(address)]).rows() if isinstance(row, dict)]


TRAIN = [f"train-0000{part}-of-00002 {n}" for part in range(2) for n in range(2)]
TEST = ["test-00000-of-00001 0", "test-00000-of-00001 1"]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("hf://datasets/me/one", ["all 0", "all 1"]),
        ("hf://datasets/me/one:train", ["all 0", "all 1"]),
        ("hf://datasets/me/two:train", TRAIN),
        ("hf://datasets/me/two:test", TEST),
        ("hf://datasets/me/two@main/data/test-*.parquet", TEST),
        ("hf://datasets/me/two/data", [*TEST, *TRAIN]),
        ("hf://datasets/me/two/data/train-00001-of-00002.parquet", TRAIN[2:]),
        ("hf://datasets/me/mixed/*.csv", ["x"]),
    ],
)
def test_what_an_address_names(hub: HubServer, address: str, found: list[str]) -> None:
    assert captions(address) == found


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "hf://datasets/me/two",
            r"has the splits test and train\. Name the one that is meant: hf://datasets/me/two:test or",
        ),
        ("hf://datasets/me/two:validation", "has no split validation; it has test and train"),
        ("hf://datasets/me/two/none/*.parquet", r"has no such table\. It has: README\.md, data/test-00000"),
        ("hf://datasets/me/mixed", r"has tables of several kinds \(a\.csv, b\.jsonl\)"),
        ("hf://datasets/me/empty", r"has no tables .*It has: README\.md\."),
        ("hf://datasets/me/other", r"The hub does not give the dataset me/other: .*Check the name"),
        ("hf://datasets/me/one@v9", r"The hub does not give the dataset me/one: "),
        ("hf://me/one", r"is no address of a dataset\. Write hf://datasets/OWNER/NAME"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(hub: HubServer, address: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        captions(address)


def test_a_job_of_a_dataset_goes_on_without_a_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["t2i", "--backend", "fake", "--prompts_file", "hf://datasets/me/two:train", "--prompt_column", "caption"]
    ended = dglaunch(*words, "--output_dir", tmp_path / "out", "--limit", "1")
    assert ended.code == 0, ended.output
    assert hub.fetched.keys() == {f"data/train-0000{part}-of-00002.parquet" for part in range(2)}
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = dglaunch(*words, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    assert [line["prompt"] for line in ledger(tmp_path / "out")] == TRAIN
    ended = dglaunch(*words[:4], "hf://datasets/me/one", "--output_dir", tmp_path / "other")
    assert ended.code == 2
    assert "The dataset me/one is not in this machine's hub cache and the hub cannot be reached." in ended.output
