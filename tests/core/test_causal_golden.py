"""Golden tests of decoder-only models: every architecture of the table against Hugging Face and PEFT, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorl_core.adapters.adapter import read_peft
from emorl_core.models.causal.load import load
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.config import read_config
from tests.core.causal_reference import SeparateModels, lockstep
from tests.supported_models import ARCHITECTURES, Architecture, tiny_causal, tiny_causal_adapter

PROMPTS = ((5, 9, 33, 60, 71, 8, 14, 52, 90, 7), (40, 66, 3), (12, 80, 22, 41, 41, 9, 77))
MIXES = torch.tensor(  # base and three adapters; the last two are used as they are
    [
        [0.0, 0.7, 0.3, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.25, 0.25, 0.25, 0.25],
        [-0.6, 0.0, 1.6, 0.0],
        [0.0, 1.9, 0.4, 1.1],
    ]
)
TOKENS = 8
CPU = torch.device("cpu")


def adapters_of(architecture: Architecture, base: Path, folder: Path) -> list[Path]:
    """Three adapters that differ in rank, alpha, scaling rule, layers and modules."""
    names = architecture.linears
    first, last = names[0], names[-1]
    common = {"fan_in_fan_out": architecture.fan_in_fan_out}
    return [
        tiny_causal_adapter(base, folder / "one", 2, 1, names if architecture.experts else "all-linear", **common),
        tiny_causal_adapter(
            base, folder / "two", 4, 2, names, rank_pattern={first: 6}, alpha_pattern={last: 5}, **common
        ),
        tiny_causal_adapter(base, folder / "three", 3, 3, names[:-1], use_rslora=True, **common),
    ]


def loaded(base: Path, adapters: list[Path], *, training: bool = False, device: torch.device = CPU) -> CausalModel:
    model = load(base, read_config(base), device=device, dtype=torch.float32, training=training)
    model.attach([read_peft(folder, folder.name) for folder in adapters], training=training)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_against_hf_peft_greedy_tokens_and_logits_are_those_of_separate_models(
    architecture: Architecture, tmp_path: Path
) -> None:
    """Ragged prompts and several mixes in one batch, prefilled and cached, against whole sequences one by one."""
    base = tiny_causal(tmp_path / "base", architecture.name)
    adapters = adapters_of(architecture, base, tmp_path)
    judge = SeparateModels(base, adapters)
    expected = [judge.greedy(prompt, MIXES, TOKENS) for prompt in PROMPTS]
    tokens, logits = lockstep(loaded(base, adapters), PROMPTS, MIXES, TOKENS)
    assert tokens.tolist() == [ids.tolist() for ids, _ in expected]
    torch.testing.assert_close(logits, torch.stack([steps for _, steps in expected]), atol=1e-4, rtol=0.0)
    texts = {tuple(row) for row in tokens.flatten(0, 1).tolist()}
    assert len(texts) > len(PROMPTS) * len(MIXES) // 2, "the judge's texts must differ, or this proves nothing"
