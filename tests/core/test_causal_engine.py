"""Decoder-only models in the engine: continuous batching over prompts of any length, against separate models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from emorl_core.adapters.adapter import read_peft
from emorl_core.engine.engine import Engine
from emorl_core.models.config import read_config
from emorl_core.models.registry import family_of, load_model
from emorl_core.types import Request, Sampling
from tests.core.causal_reference import SeparateModels
from tests.core.driving import run
from tests.core.test_causal_golden import CPU, MIXES, PROMPTS, TOKENS, adapters_of
from tests.supported_models import ARCHITECTURES, BY_NAME, Architecture, tiny_causal, tiny_causal_adapter

NAMES = ("base", "one", "two", "three")


def engine_of(base: Path, adapters: list[Path], **options: int | None) -> Engine:
    model = load_model(base, device=CPU, dtype=torch.float32)
    model.attach([read_peft(folder, folder.name) for folder in adapters])
    return Engine(model, lambda ids: " ".join(map(str, ids)), NAMES[: len(adapters) + 1], **options)


def requests_of(prompts: Sequence[tuple[int, ...]]) -> list[Request]:
    """Every prompt under every mix."""
    return [
        Request(f"{i} {j}", prompt, tuple(mix), Sampling(max_new_tokens=TOKENS))
        for i, prompt in enumerate(prompts)
        for j, mix in enumerate(MIXES.tolist())
    ]


def expected_of(judge: SeparateModels, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    rows = [row for prompt in prompts for row in judge.greedy(prompt, MIXES, TOKENS)[0].tolist()]
    return [tuple(row[: row.index(1) + 1] if 1 in row else row) for row in rows]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_against_hf_peft_through_the_engine(name: str, tmp_path: Path) -> None:
    """Ragged prompts and mixes in one batch, and one of them alone."""
    base = tiny_causal(tmp_path / "base", name)
    adapters = adapters_of(BY_NAME[name], base, tmp_path)
    engine, requests = engine_of(base, adapters), requests_of(PROMPTS)
    done = run(engine, requests)
    assert [completion.token_ids for completion in done] == expected_of(SeparateModels(base, adapters), PROMPTS)
    assert run(engine, requests[3:4])[0].token_ids == done[3].token_ids


def test_activated_lanes_read_a_prompt_once(tmp_path: Path) -> None:
    """Three adapters and the base, one prefill of the prompt's tokens; tokens are still those of PEFT's models."""
    base = tiny_causal(tmp_path / "base", "qwen2")
    adapters = [
        tiny_causal_adapter(base, tmp_path / name, 2 + i, i, "all-linear", alora_invocation_tokens=[33, 60])
        for i, name in enumerate(NAMES[1:])
    ]
    prompts = ((5, 9, 71, 8, 14, 33, 60), (5, 9, 71), (33, 60))
    engine = engine_of(base, adapters)
    done = run(engine, requests_of(prompts))
    assert [completion.token_ids for completion in done] == expected_of(SeparateModels(base, adapters), prompts)
    # The first prompt up to its invocation, and that once for each lane; nothing is new in the second but its last
    # token, which the first step feeds; the invocation at the beginning of the third is the only adapted one.
    assert engine.stats.prefill_tokens_computed == (5 + 4) + 0 + 4


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_sizes_are_those_of_the_loaded_model(architecture: Architecture, tmp_path: Path) -> None:
    config = read_config(tiny_causal(tmp_path, architecture.name))
    family = family_of(config)
    model = load_model(tmp_path, device=CPU, dtype=torch.float32)
    shape = family.shape(config)
    assert (family.name, family.adapter_task) == ("causal", "CAUSAL_LM")
    assert shape.base_parameters() * 4 == model.parameter_bytes()["base"]
    assert shape.vocabulary == model.facts.vocab_size
    own = model.new_cache().own
    assert shape.reply.keys_and_values == 2 * len(own.layers) * own.layers[0].shape[2] * own.layers[0].shape[4]
    assert sum(linear.count for linear in shape.linears) == sum(len(names) for names, _ in model.linears())
