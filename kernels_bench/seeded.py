"""FLUX.1-dev at its true size with seeded random weights that are made on the device: nothing is downloaded or read.

    folder = write_checkpoint(Path("/tmp/flux"), "full")     # JSON, tokenizers, and holes as large as the weights
    install(seed=0)                                          # --backend diffusers is SeededFlux in this process
    dglaunch.__main__.main(["t2i", "--model_name", str(folder), ...])

All but where the weights come from is dglaunch's own: the plan, the text encoders ahead, the optimizations, the loop.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.registry import register
from dglaunch.data.task import Batch
from kernels_bench.vae import FLUX_VAE

SIZES: dict[str, dict[str, Any]] = {
    # black-forest-labs/FLUX.1-dev, the config.json of each folder; T5 is google/t5-v1_1-xxl's encoder, CLIP is ViT-L's.
    "full": {
        "transformer": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
                        "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56)},
        "text_encoder_2": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
                           "vocab_size": 32128, "feed_forward_proj": "gated-gelu"},
        "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "projection_dim": 768, "vocab_size": 49408},
        "vae": FLUX_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "defaults": {"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5,
                     "max_sequence_length": 512},
    },
    "toy": {
        "transformer": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4, "attention_head_dim": 16,
                        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6)},
        "text_encoder_2": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 256},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
                         "projection_dim": 32, "vocab_size": 256},
        "vae": FLUX_VAE | {"block_out_channels": (32, 32, 32, 32), "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "defaults": {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.5,
                     "max_sequence_length": 32},
    },
}  # fmt: skip


def network(part: str, size: str, device: str, dtype: torch.dtype, seed: int = 0) -> torch.nn.Module:
    """One of the four networks; its matrices are drawn with std 1/sqrt(fan_in). On "meta" it takes no memory."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    config = SIZES[size][part]
    makers = {
        "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True, **config),
        "vae": lambda: AutoencoderKL(**config),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda: T5EncoderModel(T5Config(**config)),
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = makers[part]().eval().to(dtype)
    finally:
        torch.set_default_dtype(before)
    if device != "meta":
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
    return made


PARTS = {
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
}
"""The networks, as a model_index.json names them."""


def write_checkpoint(folder: Path, size: str) -> Path:
    """A diffusers folder whose weight files have a true header and a hole for content: estimates read the header."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for part in PARTS:
        (folder / part).mkdir(parents=True)
        count = sum(p.numel() for p in network(part, size, "meta", torch.bfloat16).parameters())
        header = json.dumps({"weights": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
        with (folder / part / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 2 * count)
        always = {"guidance_embeds": True} if part == "transformer" else {}
        (folder / part / "config.json").write_text(json.dumps(SIZES[size][part] | always))
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    for name, length in (("tokenizer", 77), ("tokenizer_2", 512)):
        tokenizer = _tokenizer()
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(folder / name)
    index = {"_class_name": "FluxPipeline", "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"), **PARTS}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "dglaunch.json").write_text(json.dumps(SIZES[size]["defaults"]))
    return folder


def _tokenizer() -> Any:
    from dglaunch.tiny import model

    return model.tokenizer()


class SeededLoader(PipelineLoader):
    """Makes the networks of SIZES instead of reading a checkpoint's."""

    seed = 0

    @property
    def size(self) -> str:
        heads = self.checkpoint.heads
        return next(name for name, parts in SIZES.items() if parts["transformer"]["num_attention_heads"] == heads)

    def _make(self, part: str) -> torch.nn.Module:
        dtype = getattr(torch, self.context.dtype)
        return network(part, self.size, self.context.torch_device, dtype, self.seed)

    def load(self, *_: Any, **__: Any) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        source = Path(self.checkpoint.source)
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler"), vae=self._make("vae"),
            text_encoder=None, text_encoder_2=None, tokenizer=_read_tokenizer(source / "tokenizer"),
            tokenizer_2=_read_tokenizer(source / "tokenizer_2"), transformer=self._make("transformer"),
        )  # fmt: skip

    def load_text_encoders(self, pipeline: Any) -> dict[str, torch.nn.Module]:
        return {part: self._make(part) for part in ("text_encoder", "text_encoder_2")}


class SeededFlux(DiffusersBackend):
    """DiffusersBackend, but for where the weights come from."""

    fits: int | None = None
    """On a machine without a GPU: larger batches raise as torch does when the memory is used up."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.loader = SeededLoader(context)

    def generate(self, batch: Batch) -> Any:
        if self.fits is not None and len(batch) > self.fits:
            raise torch.OutOfMemoryError(f"out of memory, as asked: {len(batch)} images, {self.fits} fit")
        return super().generate(batch)


def _read_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def install(seed: int, fits: int | None = None) -> None:
    """Let --backend diffusers be SeededFlux in this process."""
    SeededLoader.seed, SeededFlux.fits = seed, fits
    register("diffusers", "kernels_bench.seeded:SeededFlux")


def backend(folder: Path, device: str, dtype: str, batches: list[Batch], **optimization: Any) -> SeededFlux:
    """A loaded backend on one rank, as a run has it, with the prompts of these batches encoded."""
    from dglaunch.config import BackendConfig, OptimizationConfig, T2IConfig
    from dglaunch.distributed.channel import Channel
    from dglaunch.distributed.topology import Topology
    from dglaunch.models.checkpoint import resolve

    config = T2IConfig(
        backend=BackendConfig(model_name=str(folder), device=device, torch_dtype=dtype),  # type: ignore[arg-type]
        optimization=OptimizationConfig(**optimization), prompt="unused", output_dir=Path("unused"),
    )  # fmt: skip
    place = Topology()
    context = Context(
        config=config, checkpoint=resolve(config.backend), topology=place, channel=Channel(place, device), device=device,
        dtype=dtype, batches=batches,
    )  # fmt: skip
    made = SeededFlux(context)
    made.load()
    return made
