"""The lean decoder against the library's code over the same checkpoint, and who gets it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.lanes.frozen import FrozenMatrix, packed_product_available
from emorl_core.models.causal import load as loading
from emorl_core.models.causal.body import LibraryBody
from emorl_core.models.causal.lean import LeanBody
from emorl_core.models.causal.rotary import Rotary
from tests.core.causal_reference import lockstep, named_lanes, opened
from tests.core.test_causal_golden import MIXES, PROMPTS, adapters_of, loaded
from tests.core.test_compiled import COMPILED, needs_compiler
from tests.supported_models import ARCHITECTURES, BY_NAME, tiny_causal

KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    ("llama", {"mlp_bias": True, "attention_bias": False}),
    ("llama", {"head_dim": 16, "num_key_value_heads": 1}),
    ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    (
        "qwen3",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 5,
            "use_sliding_window": True,
        },
    ),
]


@pytest.fixture
def library_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(loading, "takes", lambda library: False)
    return monkeypatch


@pytest.mark.parametrize(
    "packed",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not packed_product_available(), reason="this torch packs no matrices")
        ),
    ],
    ids=["plain", "packed"],
)
@pytest.mark.parametrize(
    ("kind", "config"), VARIANTS, ids=lambda value: value if isinstance(value, str) else ",".join(value)
)
def test_its_slow_twin_gives_the_same(
    kind: str, config: dict[str, Any], packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_causal(tmp_path / "base", kind, **config)
    adapters = adapters_of(BY_NAME[kind], base, tmp_path)
    if packed:
        monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    fast = loaded(base, adapters)
    assert isinstance(fast.body, LeanBody)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "takes", lambda library: False)
        slow = loaded(base, adapters)
    assert isinstance(slow.body, LibraryBody)
    for prompt in PROMPTS:
        keys = [opened(model, named_lanes(model, prompt))[0].own.read(2) for model in (fast, slow)]
        torch.testing.assert_close(keys[0], keys[1], atol=2e-5, rtol=1e-4)
    tokens, logits = lockstep(fast, PROMPTS, MIXES, 8)
    expected, wanted = lockstep(slow, PROMPTS, MIXES, 8)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0.0)
    assert fast.parameter_bytes()["base"] == slow.parameter_bytes()["base"]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_models_of_its_form_get_it_and_no_others(architecture: Any, tmp_path: Path) -> None:
    model = loaded(tiny_causal(tmp_path, architecture.name), [])
    assert isinstance(model.body, LeanBody) == (architecture.name in KINDS)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=["another function", "angles that depend on the batch"],
)
def test_what_it_does_not_do_stays_with_the_library(config: dict[str, Any], tmp_path: Path) -> None:
    assert isinstance(loaded(tiny_causal(tmp_path, "llama", **config), []).body, LibraryBody)


def test_training_stays_with_single_matrices(tmp_path: Path) -> None:
    assert isinstance(loaded(tiny_causal(tmp_path, "llama"), [], training=True).body, LibraryBody)


def test_one_that_fails_the_self_test_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_causal(tmp_path / "base", "llama")
    adapters = adapters_of(BY_NAME["llama"], base, tmp_path)
    expected, _ = lockstep(loaded(base, adapters), PROMPTS, MIXES, 4)
    monkeypatch.setattr(Rotary, "turned", lambda x, turn: x)
    with caplog.at_level(logging.WARNING, "emorl.core"):
        model = loaded(base, adapters)
    assert isinstance(model.body, LibraryBody)
    assert [record.getMessage() for record in caplog.records] == [
        "base model_type 'llama': the lean decoder fails its self-test; transformers' slower code runs instead"
    ]
    assert lockstep(model, PROMPTS, MIXES, 4)[0].tolist() == expected.tolist()


def test_positions_beyond_its_first_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_causal(tmp_path, "qwen2")
    expected, _ = lockstep(loaded(base, []), PROMPTS, torch.ones(1, 1), 8)
    monkeypatch.setattr("emorl_core.models.causal.rotary._ROWS", 4)
    assert lockstep(loaded(base, []), PROMPTS, torch.ones(1, 1), 8)[0].tolist() == expected.tolist()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config", "packed"),
    [
        ("llama", {}, False),
        (
            "qwen3",
            {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "use_sliding_window": True},
            False,
        ),
        ("qwen2", {}, True),
        ("smollm3", {"no_rope_layers": [1, 0]}, False),
    ],
    ids=["llama", "windows and norms of heads", "packed, with biases", "layers without positions"],
)
def test_compiled_it_gives_the_same(
    kind: str, config: dict[str, Any], packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed:
        monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    # Two layers: the compiler takes its time for each of them.
    base = tiny_causal(tmp_path / "base", kind, num_hidden_layers=2, **config)
    model = loaded(base, adapters_of(BY_NAME[kind], base, tmp_path))
    expected, wanted = lockstep(model, PROMPTS, MIXES, 40)
    alone, _ = lockstep(model, PROMPTS[1:2], torch.ones(1, 4), 3)
    model = model.compilation(COMPILED).make()
    assert model.compiled
    tokens, logits = lockstep(model, PROMPTS, MIXES, 40)
    assert lockstep(model, PROMPTS[1:2], torch.ones(1, 4), 3)[0].tolist() == alone.tolist()
    torch.testing.assert_close(logits[:, :, 0], wanted[:, :, 0], atol=1e-4, rtol=0.0)
    assert tokens.tolist() == expected.tolist()
