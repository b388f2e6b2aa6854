"""Every family's way over a GPU that is only pretended: no tensor is left on the host, and the images are the CPU's.

What this cannot show (kernels, memory, speed) is in tests/gpu, for a machine that has one.
"""

from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dglaunch.backends.base import Arriving, ItemError, arrived
from dglaunch.backends.diffusers import prompt_encoder
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.pixels import NOT_A_NUMBER, to_images
from dglaunch.cli.main import main
from support.edit_images import save_table
from support.family_runs import DIFFERENT_LENGTHS, EDITORS, GUIDED, SETS, SIZE, T2I
from support.pretend_gpu import PretendGpu, on_gpu
from support.ranks import Case, launch
from support.results import difference, images, ledger, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

WAYS: dict[str, list[str]] = {
    "ahead": ["--encode", "ahead"],
    "inline": ["--encode", "inline"],
    "offload": ["--enable_cpu_offload"],
}


def run(*words: Any, gpu: bool = True, code: int = 0) -> None:
    with PretendGpu() if gpu else nullcontext():
        assert main([*map(str, words), "--torch_dtype", "float32", "--device", "cuda" if gpu else "cpu"]) == code


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": prompt} for prompt in DIFFERENT_LENGTHS]
    return write_jsonl(tmp_path_factory.mktemp("gpu") / "prompts.jsonl", rows)


def test_a_tensor_left_on_the_host_is_caught() -> None:
    """Else the rest of this file could not fail."""
    with PretendGpu():
        here, there = torch.ones(3), torch.ones(3, device="cuda:0")
        assert (there.device.type, here.device.type) == ("cuda", "cpu")
        assert (there * 2 + torch.tensor(1.0)).device.type == "cuda"
        for wrong in (lambda: here + there, lambda: torch.cat([here, there]), there.numpy):
            with pytest.raises((RuntimeError, TypeError), match="device"):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda:0", generator=torch.Generator())


def test_images_are_read_once_their_copies_are_there() -> None:
    pixels = torch.rand(3, 3, 8, 8)
    pixels[1, 0, 0, 0] = torch.nan
    with PretendGpu():
        slots = to_images(pixels.to("cuda:0"))
        slots_of_another = to_images(torch.rand(3, 3, 8, 8, device="cuda:0"))
    assert all(isinstance(slot, Arriving) for slot in [*slots, *slots_of_another])
    here, there = to_images(pixels), list(map(arrived, slots))
    assert here[1] == there[1] == ItemError(NOT_A_NUMBER)
    assert [here[n].tobytes() for n in (0, 2)] == [there[n].tobytes() for n in (0, 2)]


COMMON = {*product(("flux",), WAYS), ("qwenimage", "ahead"), ("zimage", "ahead"), ("lumina2", "ahead")}
"""What make test has; make soak has every family in each way."""
EVERY = list(product(T2I, WAYS))


def on_the_cpu(families: Path, prompts: Path, family: str) -> Path:
    """What this family draws without any GPU; made when the first test asks for it."""
    build(family, families / family)
    out = prompts.parent / f"{family}-cpu"
    if not out.exists():
        command = ["t2i", "--model_name", families / family, "--prompts_file", prompts, *SIZE, *GUIDED.get(family, [])]
        run(*command, "--batch_size", "3", "--encode", "inline", "--output_dir", out, gpu=False)
    return out


@pytest.mark.parametrize(("family", "way"), rarely(EVERY, set(EVERY) - COMMON))
def test_text_to_image(families: Path, prompts: Path, tmp_path: Path, family: str, way: str) -> None:
    expected = on_the_cpu(families, prompts, family)
    command = ["t2i", "--model_name", families / family, "--prompts_file", prompts, *SIZE, *GUIDED.get(family, [])]
    run(*command, "--batch_size", "3", *WAYS[way], "--output_dir", tmp_path / way)
    assert run_json(tmp_path / way)["device"] == "Pretended GPU"
    assert difference(tmp_path / way, expected) <= 2


@pytest.fixture(scope="module")
def splits(
    request: pytest.FixtureRequest, families: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Case]]:
    """Two ranks of one replica, each with a pretended GPU: each chosen family's folder, and how it ended."""
    folder = tmp_path_factory.mktemp("splits")
    commands: list[tuple[list[Any], dict[str, str]]] = []
    chosen = [family for (family,) in selected(request, "split_family")]
    for family in chosen:
        build(family, families / family)
        command = ["t2i", "--model_name", families / family, "--prompts_file", prompts, *SIZE, *GUIDED.get(family, [])]
        command += ["--batch_size", "3", "--torch_dtype", "float32", "--backend", "xdit"]
        command += ["--attention_backend", "SDPA"]  # that xfuser would take in float32 is for GPUs
        command += ["--device", "cuda", "--output_dir", folder / family]
        commands.append((command, {"DG_XDIT_ULYSSES_DEGREE": "2"}))
    return {family: (folder / family, case) for family, case in zip(chosen, launch(folder, 2, commands))}


@pytest.mark.parametrize("split_family", rarely(T2I, set(T2I) - {"flux", "sd3"}))
def test_text_to_image_split_by_xdit(
    splits: dict[str, tuple[Path, Case]], families: Path, prompts: Path, split_family: str
) -> None:
    folder, case = splits[split_family]
    assert case.codes == [0, 0], case.output
    assert all(sum(rank.values()) > 0 for rank in case.collectives), "the ranks of a replica did not talk"
    assert run_json(folder)["device"] == "Pretended GPU"
    assert difference(folder, on_the_cpu(families, prompts, split_family)) <= 2


@pytest.mark.parametrize("family", rarely(EDITORS, {"flux2", "flux2_klein", "qwen_singleimg", "longcat"}))
def test_edit(families: Path, tmp_path: Path, family: str) -> None:
    model = families / EDITORS[family]
    build(EDITORS[family], model)
    table = save_table(tmp_path / "t.csv", SETS[family])
    command = ["edit", "--model_name", model, "--input", table, "--num_inference_steps", "2", "--filter_rows", "0:3"]
    run(*command, "--batch_size", "2", "--output_dir", tmp_path / "cpu", gpu=False)
    run(*command, "--batch_size", "2", "--output_dir", tmp_path / "gpu")
    assert len(images(tmp_path / "gpu")) == 3
    assert difference(tmp_path / "gpu", tmp_path / "cpu") <= 2


def place(module: torch.nn.Module | None) -> str:
    return "-" if module is None else "gpu" if all(map(on_gpu, module.parameters())) else "host"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the networks of `tiny` were whenever one computed. There is host memory for one round of two prompts."""
    from diffusers import FluxTransformer2DModel
    from transformers import T5EncoderModel

    seen: list[str] = []
    backends: list[DiffusersBackend] = []
    load = DiffusersBackend.load

    def loading(self: DiffusersBackend) -> Any:
        backends.append(self)
        return load(self)

    def watched(name: str, forward: Any) -> Any:
        def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            pipeline: Any = backends[-1].pipeline
            told = f"{name}: text {place(pipeline.text_encoder_2)}, transformer {place(pipeline.transformer)}"
            seen.extend([told] if told not in seen[-1:] else [])
            return forward(self, *args, **kwargs)

        return call

    monkeypatch.setattr(DiffusersBackend, "load", loading)
    for name, cls in (("encodes", T5EncoderModel), ("denoises", FluxTransformer2DModel)):
        monkeypatch.setattr(cls, "forward", watched(name, cls.forward))
    monkeypatch.setattr(prompt_encoder, "ROUND", 2)
    monkeypatch.setattr(prompt_encoder, "HOST_SHARE", 0.0)
    return seen


TINY = ["t2i", "--num_inference_steps", "1", "--batch_size", "2"]


@pytest.mark.parametrize("other", rarely(["", "--enable_fuse_qkv"], {"--enable_fuse_qkv"}))
def test_weights_that_are_kept_in_8_bits_come_to_the_gpu_in_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Else the whole model in its full type has to fit there first: 22.3 GiB for FLUX.1-dev, which then needs 14.3."""
    from diffusers import FluxTransformer2DModel

    to, moved = FluxTransformer2DModel.to, []

    def moving(self: FluxTransformer2DModel, *args: Any, **kwargs: Any) -> Any:
        moved.append((self, num_bytes(self)))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(FluxTransformer2DModel, "to", moving)
    words = [*TINY, "--prompt", "a red fox", "--enable_layerwise_casting", *other.split()]
    run(*words, "--output_dir", tmp_path / "o")
    assert moved and place(moved[0][0]) == "gpu"
    for model, size in moved:
        assert size == num_bytes(model) < 2 * sum(weight.numel() for weight in model.parameters())


def num_bytes(module: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def test_the_text_encoders_are_on_the_gpu_only_while_they_encode(
    prompts: Path, tmp_path: Path, seen: list[str]
) -> None:
    run(*TINY, "--prompts_file", prompts, "--output_dir", tmp_path / "o")
    assert seen == [
        "encodes: text gpu, transformer host",
        "denoises: text -, transformer gpu",
        "encodes: text gpu, transformer gpu",
        "denoises: text -, transformer gpu",
    ]


def test_where_both_do_not_fit_the_transformer_leaves_for_a_round(
    prompts: Path, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5EncoderModel

    forward = T5EncoderModel.forward

    def short(self: T5EncoderModel, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if seen[-1] == "encodes: text gpu, transformer gpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    monkeypatch.setattr(T5EncoderModel, "forward", short)
    run(*TINY, "--prompts_file", prompts, "--output_dir", tmp_path / "o")
    assert seen[2:] == [
        "encodes: text gpu, transformer gpu",
        "encodes: text gpu, transformer host",
        "denoises: text -, transformer gpu",
    ]
    assert len(ledger(tmp_path / "o")) == len(DIFFERENT_LENGTHS)


def test_text_encoders_that_do_not_fit_alone_end_the_run(
    prompts: Path, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import T5EncoderModel

    def short(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(T5EncoderModel, "forward", short)
    run(*TINY, "--prompts_file", prompts, "--output_dir", tmp_path / "o", code=2)
    assert "The text encoders run out of memory on cuda:0" in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "o" / "failures.jsonl").exists()
