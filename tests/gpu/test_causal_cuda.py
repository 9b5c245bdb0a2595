"""Decoder-only lanes on a CUDA device against Hugging Face and PEFT on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorl_core.models.causal.load import load
from emorl_core.models.config import read_config
from tests.core.causal_reference import SeparateModels, lockstep
from tests.core.test_causal_golden import MIXES, PROMPTS, TOKENS, adapters_of, loaded
from tests.supported_models import ARCHITECTURES, Architecture, tiny_causal

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_against_hf_peft_greedy_tokens_and_logits(architecture: Architecture, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", architecture.name)
    adapters = adapters_of(architecture, base, tmp_path)
    judge = SeparateModels(base, adapters)
    expected = [judge.greedy(prompt, MIXES, TOKENS) for prompt in PROMPTS]
    tokens, logits = lockstep(loaded(base, adapters, device=CUDA), PROMPTS, MIXES, TOKENS)
    assert tokens.tolist() == [ids.tolist() for ids, _ in expected]
    torch.testing.assert_close(logits.cpu(), torch.stack([steps for _, steps in expected]), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_the_self_test_passes_in_bfloat16(name: str, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path, name)
    model = load(base, read_config(base), device=CUDA, dtype=torch.bfloat16, training=False)
    assert model.facts.dtype == torch.bfloat16
