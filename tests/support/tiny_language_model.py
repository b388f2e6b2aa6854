"""A tiny random causal language model in a folder as transformers writes it, with a chat template, and whose answers end.

language_model(tmp_path / "lm")        then: --rewrite_prompts tmp_path/lm
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny_models import CHAT_TEMPLATE, char_tokenizer, randomise

ENDS = ("a", "d", "p", "U", "~")
"""Letters that end an answer, besides the tokenizer's own end: some tens of letters come before one of them."""


def language_model(folder: Path, ends: bool = True) -> Path:
    """Write it; its answers may have no end."""
    tokenizer = char_tokenizer("$A", max_length=4096)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        randomise(model)
        model.lm_head.weight[: tokenizer.eos_token_id + 1] *= 0
    letters = tokenizer.convert_tokens_to_ids(list(ENDS)) if ends else []
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *letters]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
