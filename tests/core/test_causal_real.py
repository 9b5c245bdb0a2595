"""SmolLM2-135M-Instruct in lanes against `transformers.generate`: greedy, float32, twenty chats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from emorl_core.models.causal.load import load
from emorl_core.models.config import read_config
from tests.core.causal_reference import lockstep
from tests.core.test_causal_golden import CPU

CHATS = (
    "I can't keep up at work.",
    "What is the capital of France?",
    "My mother left again and nobody listens.",
    "Name three fruits.",
    "How do I stop smoking?",
    "Write one line about the sea.",
    "Why is the sky blue?",
    "I feel tired all the time.",
    "Give me a recipe for pancakes.",
    "What is 12 times 12?",
    "Translate 'good morning' to Spanish.",
    "Who wrote Hamlet?",
    "I am afraid of flying.",
    "Explain gravity to a child.",
    "What should I do on a rainy day?",
    "List the days of the week.",
    "My friend does not talk to me any more.",
    "How long does a cat live?",
    "Tell me a joke about computers.",
    "I want to change, but I don't know how to start.",
)
TOKENS = 24


@pytest.mark.slow
@pytest.mark.real_model
def test_against_hf_generate_twenty_chats(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    prompts = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": chat}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for chat in CHATS
    ]
    model = load(real_model, read_config(real_model), device=CPU, dtype=torch.float32, training=False)
    tokens, _ = lockstep(model, prompts, torch.ones(1, 1), TOKENS)
    library = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    settings = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=list(model.facts.eos_token_ids)
    )
    for prompt, found in zip(prompts, tokens[:, 0].tolist(), strict=True):
        ids = torch.tensor([prompt])
        out = library.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        reply = out[0, len(prompt) :].tolist()
        assert reply
        assert found[: len(reply)] == reply
