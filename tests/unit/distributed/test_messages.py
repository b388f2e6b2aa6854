"""Messages between ranks: what is sent comes as it was, and what a stranger sends does nothing but fail."""

import io
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dglaunch
from dglaunch.config import ParallelConfig, T2IConfig
from dglaunch.data.task import BatchSize, Result
from dglaunch.distributed import messages, store
from dglaunch.distributed.channel import proof
from dglaunch.distributed.messages import pack, unpack
from dglaunch.distributed.topology import Topology, from_environment
from dglaunch.errors import DglaunchError, InputError, LostPeer, MissingPackage, UserError
from dglaunch.models.figures import BlockSizes, Figures, Request, StageCost
from dglaunch.models.shape import Shape
from dglaunch.run.attempts import Ending
from dglaunch.run.opening import Found, Known
from dglaunch.run.report import LeaderReport
from dglaunch.run.result import Counts, RunResult
from dglaunch.run.runner import _Ended

RESULT = Result(task_id=(3, 1), file_name="000003_01.png", record={"prompt": "a \ud800 fox", "seed": 2**63, "n": [1.5]})
REPORT = LeaderReport(1.0, 2.0, {"denoise": 1.0}, 5, True, ["a"], {"cost": 0.5}, error=None)
FIGURES = Figures(
    weights={"vae": 14},
    block_sizes={"transformer": BlockSizes(largest=3, outside=2, tables=1)},
    encode=StageCost(),
    denoise=StageCost(flops=2.5),
    decode=StageCost(image_bytes=3),
    num_inference_steps=4,
)
SENT: dict[str, Any] = {
    "plain": [None, True, 3, 2.5, "x", [], {}, {"a": {"b": (1, "c")}}, {7: "by a number"}, Path("a/b"), b"\0raw"],
    "a result": RESULT,
    "a result with its image": Result(task_id=(0, 0), file_name="a.png", record={}, data=b"\x89PNG" * 999),
    "a result that rank 0 counts": RESULT.as_written(),
    "a last word": REPORT,
    "an ending": Ending("CUDA error", fatal=True),
    "what rank 0 found": (
        Found([1, 2], 3),
        Known(
            {Shape(64, 32): 4},
            {Shape(8, 8): BatchSize(2, "as measured")},
            None,
            {"vae": 7},
            {Request(shape=Shape(8, 8), dtype="bfloat16", text_tokens=128): FIGURES},
            ["a note"],
        ),
    ),
    "the end": _Ended(RunResult("done", Counts(1, 0, 2, 3), Path("out")), None, {"num_ok": 1}),
    "preflight": ("node7", {"torch": "2.13"}, 1.5),
}


@pytest.mark.parametrize("name", SENT)
def test_what_is_sent_comes_as_it_was(name: str) -> None:
    assert unpack(pack(SENT[name])) == SENT[name]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_any_value_comes_as_it_was(value: Any) -> None:
    assert unpack(pack(value)) == value


@settings(max_examples=60, deadline=None)
@given(st.binary() | st.builds(lambda head: len(head).to_bytes(8) + head, st.binary()))
def test_any_bytes_end_as_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(DglaunchError, match="no message of dglaunch"):
        unpack(body)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400))
def test_a_message_that_is_cut_off(length: int) -> None:
    whole = pack(SENT["a result with its image"])[: length + 1]
    with pytest.raises(DglaunchError, match="no message of dglaunch"):
        unpack(whole)


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 5),
        torch.randn(2, 3).to(torch.bfloat16),
        torch.arange(6).reshape(2, 3).t(),
        torch.tensor(True),
        torch.empty(0, 4, dtype=torch.float16),
    ],
)
def test_tensors_keep_type_and_shape(value: torch.Tensor) -> None:
    ((embedding, nothing), _) = unpack(pack(((value, None), "text")))
    assert nothing is None and embedding.dtype == value.dtype and torch.equal(embedding, value)


def test_images_are_not_made_larger_by_the_way() -> None:
    image = os.urandom(100_000)
    assert len(pack(Result(task_id=(0, 0), file_name="a.png", record={}, data=image))) < 100_400


@pytest.mark.parametrize(
    "error",
    [
        UserError("no such flag."),
        MissingPackage("xfuser", "it", "pip"),
        LostPeer("gone"),
        InputError("t", ["line 3: x"]),
    ],
)
def test_errors_keep_their_kind_and_text(error: DglaunchError) -> None:
    came = unpack(pack(error))
    assert (type(came), str(came), came.exit_code) == (type(error), str(error), error.exit_code)
    assert getattr(came, "problems", None) == getattr(error, "problems", None)


def test_an_error_of_another_package_comes_as_the_nearest_of_ours() -> None:
    class Special(UserError):
        pass

    assert type(unpack(pack(Special("a")))) is UserError


@dataclass
class Stranger:
    a: int = 1


@pytest.mark.parametrize("value", [Stranger(), {1, 2}, [object()], RuntimeError("x")])
def test_what_is_not_registered_is_not_sent(value: object) -> None:
    with pytest.raises(DglaunchError, match="do not send each other values of the type"):
        pack(value)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = io.BytesIO()
    torch.save(Evil(), saved)
    for body in (pickle.dumps(Evil()), saved.getvalue()):
        with pytest.raises(DglaunchError, match="no message of dglaunch"):
            unpack(body)
        with pytest.raises(DglaunchError, match="no message of dglaunch"):
            unpack(len(body).to_bytes(8) + body)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "head",
    [
        '[{"Evil": {}}, []]', '[{"Result": {"x": 1}}, []]', '[{"error": ["Exception", "x", []]}, []]',
        '[{"tensor": ["load", [1], 0]}, [0]]', '[{"tensor": ["int64", [9], 0]}, [8]]', '[{"bytes": 4}, []]',
        '[{"a": 1, "b": 2}, []]', "[1, [99]]", "[" * 100_000,
    ],
)  # fmt: skip
def test_kinds_that_there_are_not(head: str) -> None:
    with pytest.raises(DglaunchError, match="no message of dglaunch"):
        unpack(len(head).to_bytes(8) + head.encode())


def test_no_module_of_the_run_pickles() -> None:
    """Nor calls what pickles: torch.distributed's *_object, torch.load but for weights alone. (--allow_pickle is a flag of
    diffusers' loader, and of a head that scores, whose weights torch reads without its objects.)"""
    pickles = re.compile(
        r"import pickle|import marshal|import shelve|_object_list|(gather|scatter)_object|torch\.load\((?!.*weights_only=True)"
    )
    package = Path(dglaunch.__file__).parent
    files = [path for path in package.rglob("*.py") if "training" not in path.parts]
    assert len(files) > 80
    assert [str(path) for path in files if pickles.search(path.read_text(encoding="utf-8"))] == []


def test_a_message_has_one_name() -> None:
    assert {"Result", "Shape", "Found", "Ending", "LeaderReport"} <= messages._MESSAGES.keys()
    with pytest.raises(AssertionError, match="two messages"):
        messages.message(type("Result", (), {}))


# -- the job's token, and where sockets listen --------------------------------------------------------------------


def test_a_proof_is_of_use_to_no_other_rank_and_no_other_start() -> None:
    drawn = os.urandom(32)
    proofs = {
        proof("secret", 0, drawn),
        proof("secret", 1, drawn),
        proof("secret", 0, drawn[::-1]),
        proof("", 0, drawn),
    }
    assert len(proofs) == 4 and proof("secret", 0, drawn) in proofs


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job7"}


def token_of(**environ: str) -> str:
    return from_environment(T2IConfig(prompt="x"), ParallelConfig(), TORCHRUN | environ).token


def test_the_token_is_the_users_or_torchruns() -> None:
    assert (token_of(), token_of(DG_JOB_TOKEN="s3cret")) == ("job7", "s3cret")
    assert "s3cret" not in repr(Topology(token="s3cret"))


def test_on_one_machine_gloo_stays_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "x")  # so that it comes back
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    store.stay_on_this_machine(Topology(world_size=4, local_world_size=2))
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    store.stay_on_this_machine(Topology(world_size=2, local_world_size=2))
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    store.stay_on_this_machine(Topology(world_size=2, local_world_size=2))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
