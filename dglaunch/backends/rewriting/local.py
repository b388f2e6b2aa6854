"""Prompts are rewritten by a causal language model of transformers on this rank's device.

Prompts of a batch are padded on the left, which the attention mask hides. The likeliest word is taken; with a temperature words
are drawn by the Gumbel-max trick: noise from a generator of the image's own seed is added to the logits, so that what is
drawn does not depend on what else is in the batch. Only safetensors are read, and no code that comes with the model.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dglaunch.backends.rewriting.base import Failed, answer
from dglaunch.data.rewriting import Ask, Rewriting
from dglaunch.errors import UserError

ON_GPU, ON_CPU = 16, 4
"""Prompts at a time."""
TYPES = ("bfloat16", "float16", "float32")


class LocalRewriter:
    """See the module's docstring."""

    def __init__(self, wanted: Rewriting, device: str, dtype: str, should_stop: Callable[[], bool]) -> None:
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        transformers.utils.logging.disable_progress_bar()
        self._wanted, self._should_stop, self._device = wanted, should_stop, device
        self.at_a_time = ON_CPU if device == "cpu" else ON_GPU
        source = str(wanted.model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, dtype if dtype in TYPES else "float32"), use_safetensors=True,
                trust_remote_code=False,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise _no_such_model(source, error) from None
        self._model = model.to(device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._ends = _ends(self._model, self._tokenizer)
        if self._tokenizer.pad_token_id is None or not self._ends:
            raise UserError(
                f"--rewrite_prompts {source}: its tokenizer has no token that ends an answer. Choose a model that was trained to chat."
            )

    def rewrite(self, asks: Sequence[Ask]) -> Sequence[str | Failed | None]:
        if not asks:
            return []
        texts = [self._as_chat(ask.prompt) for ask in asks]
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **self._arguments(asks)
            )
        if self._should_stop():
            return [None] * len(asks)
        return [self._answer(row) for row in tokens[:, batch["input_ids"].shape[1] :].tolist()]

    def close(self) -> None:
        """The memory is free for the text encoders."""
        del self._model
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def _as_chat(self, prompt: str) -> str:
        """The instruction and a prompt as the model was trained to read them."""
        instruction, tokenizer = self._wanted.instruction, self._tokenizer
        if tokenizer.chat_template is None:
            start = tokenizer.bos_token or ""
            return f"{start}{instruction}\n\nPrompt: {prompt}\nNew prompt:"
        system = [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
        try:
            return str(self._templated(system))
        except Exception:  # a template of the model's, in jinja: some know no system's words
            return str(self._templated([{"role": "user", "content": f"{instruction}\n\n{prompt}"}]))

    def _templated(self, messages: list[dict[str, str]]) -> object:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _arguments(self, asks: Sequence[Ask]) -> dict[str, Any]:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        arguments: dict[str, Any] = {
            "generation_config": GenerationConfig(
                max_new_tokens=self._wanted.max_tokens, do_sample=False, eos_token_id=self._ends,
                pad_token_id=self._tokenizer.pad_token_id, bos_token_id=self._tokenizer.bos_token_id,
            ),
            "stopping_criteria": StoppingCriteriaList([self._stops]),
        }  # fmt: skip
        if any(ask.seed is not None for ask in asks):
            drawn = _Drawn([ask.seed or 0 for ask in asks], self._wanted.temperature)
            arguments["logits_processor"] = LogitsProcessorList([drawn])
        return arguments

    def _stops(self, tokens: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        return torch.full((tokens.shape[0],), self._should_stop(), dtype=torch.bool, device=tokens.device)

    def _answer(self, tokens: list[int]) -> str | Failed:
        length = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return answer(text, length is None, self._wanted.max_tokens)


class _Drawn:
    """Each row of the logits, cooled by the temperature, with noise of its own: the greatest is then a draw."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, _tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size = scores.shape[-1]
        uniform = torch.stack([torch.rand(size, generator=each, dtype=torch.float64) for each in self._generators])
        noise = -(-(uniform.clamp_min(1e-300)).log()).log()
        return scores.double() / self._temperature + noise.to(scores.device)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own list (of a chat model, the end of a turn), and the tokenizer's."""
    told = getattr(model.generation_config, "eos_token_id", None)
    several = told if isinstance(told, list) else [told]
    return sorted({token for token in (*several, tokenizer.eos_token_id) if isinstance(token, int)})


def _no_such_model(source: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:500]
    return UserError(
        f"--rewrite_prompts {source} is no causal language model that transformers reads from safetensors, without code of "
        f"the model's own: {said} Name one, such as Qwen/Qwen3-4B-Instruct-2507, or a server's with --rewrite_api_base."
    )
