"""Pipeline classes that dglaunch has never heard of, each with a trait of its own: they draw stripes from the seed, the prompt,
the guidance and the negative prompt, without a network."""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import ImagePipelineOutput

WORDS = ("glossy", "misty", "ancient", "tiny", "golden", "crooked", "silent", "striped")


def weights_of(text: str) -> torch.Tensor:
    """Three numbers that a text stands for."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor([byte / 255 for byte in digest[:3]])


class Striped(DiffusionPipeline):
    """What they have in common."""

    multiple = 8

    def __init__(self, transformer: Any, vae: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)

    def draw(
        self, prompt: Any, negative: Any, height: int, width: int, steps: int, guidance: float, generators: Any
    ) -> ImagePipelineOutput:
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"`height` and `width` have to be divisible by {self.multiple}")
        images = []
        for number, (text, generator) in enumerate(zip(prompt, generators)):
            noise = torch.rand(height // 8, width // 8, generator=generator)
            against = weights_of(negative[number] if negative else "")
            color = against + guidance / 10 * (weights_of(text) - against) + 0.01 * steps
            pixels = (0.3 * noise[..., None] + 0.7 * color.clamp(0, 1)).repeat_interleave(8, 0).repeat_interleave(8, 1)
            images.append(pixels.clamp(0, 1).numpy())
        return ImagePipelineOutput(images=self.numpy_to_pil(np.stack(images)))


class NovelPipeline(Striped):
    """Right in a batch; its guidance has another name, and it rewrites prompts at random unless it is told not to."""

    def __call__(
        self,
        prompt: list[str],
        negative_prompt: list[str] | None = None,
        height: int = 64,
        width: int = 64,
        num_inference_steps: int = 7,
        distilled_guidance_scale: float = 3.0,
        rewrite_prompts: bool = True,
        generator: list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        if rewrite_prompts:
            prompt = [f"{text}, {WORDS[int(torch.randint(len(WORDS), (1,)))]}" for text in prompt]
        return self.draw(
            prompt, negative_prompt, height, width, num_inference_steps, distilled_guidance_scale, generator
        )


class Hidden(Striped):
    """Rewrites prompts at random, by a switch whose name says nothing."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7, guidance_scale=3.0, magic=True):
        if magic:
            prompt = [f"{text}, {WORDS[int(torch.randint(len(WORDS), (1,)))]}" for text in prompt]
        return self.draw(prompt, None, height, width, num_inference_steps, guidance_scale, generator)


class Padded(Striped):
    """What a prompt is padded to leaks into its image."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7, guidance_scale=3.0):
        longest = max(map(len, prompt))
        return self.draw([text.ljust(longest) for text in prompt], None, height, width, num_inference_steps, guidance_scale, generator)  # fmt: skip


class Alone(Striped):
    """Takes one prompt a call."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7):
        if len(prompt) > 1:
            raise ValueError("one prompt, please")
        return self.draw(prompt, None, height, width, num_inference_steps, 3.0, generator)


class Forgetful(Striped):
    """Cannot make an image twice."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7):
        salted = [f"{text} {os.urandom(8).hex()}" for text in prompt]
        return self.draw(salted, None, height, width, num_inference_steps, 3.0, generator)


class Strict(Striped):
    """Wants sizes in multiples of 32, and calls its guidance something that nobody knows."""

    multiple = 32

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7, cfg_strength=3.0):
        return self.draw(prompt, None, height, width, num_inference_steps, cfg_strength, generator)


class Rounding(Striped):
    """Draws the next smaller multiple of 16, without a word."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7):
        return self.draw(prompt, None, height // 16 * 16, width // 16 * 16, num_inference_steps, 3.0, generator)


class OwnSize(Striped):
    """Draws 64x64, whatever it is asked for."""

    def __call__(self, prompt, generator, height=None, width=None, num_inference_steps=7):
        return self.draw(prompt, None, 64, 64, num_inference_steps, 3.0, generator)


class Filming(Striped):
    """Draws videos."""

    def __call__(self, prompt, generator, num_frames=16):
        return self.draw(prompt, None, 64, 64, 7, 3.0, generator)


class Captions(Striped):
    """Wants captions in JSON."""

    def __call__(self, prompt, generator, height=64, width=64, num_inference_steps=7):
        if not all(text.startswith("{") for text in prompt):
            raise ValueError("no JSON caption")
        return self.draw(prompt, None, height, width, num_inference_steps, 3.0, generator)
