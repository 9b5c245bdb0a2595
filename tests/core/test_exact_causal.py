"""Exact lines and maps of decoder-only models, whose heads may have a bias or a cap after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BaseRef, BundleSpec, ObjectiveSpec, write_spec
from emorl_core.ensemble import Ensemble
from tests.builders import OBJECTIVES
from tests.chats import ENDS, tokenizer_of
from tests.core import test_sweep_line as lines
from tests.core import test_sweep_map as maps
from tests.supported_models import tiny_causal, tiny_causal_adapter

PROMPT = "i feel tired and alone"
# Unlike their sum, the bias counts once whatever the weights are.
UNEVEN: list[dict[str, float]] = [{"reflection": 1.7}, {"empathy": 0.4, "base": 0.1}, {"fluency": 3.0, "base": -0.5}]


def causal(folder: Path, architecture: str) -> Ensemble:
    base = tiny_causal(folder / BASE_DIR, architecture, vocab_size=260)
    tokenizer_of(None).save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ENDS)}), encoding="utf-8")
    for seed, name in enumerate(OBJECTIVES, start=1):
        tiny_causal_adapter(base, folder / ADAPTERS_DIR / name, 2, seed, "all-linear")
    spec: dict[str, Any] = {
        "name": "causal",
        "base": BaseRef(path=BASE_DIR),
        "objectives": {name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}") for name in OBJECTIVES},
    }
    write_spec(folder, BundleSpec.model_validate(spec))
    return Ensemble.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_heads_with_a_bias_or_a_cap_have_exact_lines_and_maps(architecture: str, tmp_path: Path) -> None:
    ensemble = causal(tmp_path, architecture)
    line = ensemble.sweep_line(PROMPT, *UNEVEN[:2], normalize=False, max_new_tokens=4)
    lines.assert_covers(line)
    assert lines.assert_like_grid(line, ensemble, PROMPT, 201, max_new_tokens=4) > 1
    found = ensemble.sweep_map(PROMPT, UNEVEN, normalize=False, max_new_tokens=4)
    maps.assert_covers(found)
    assert maps.assert_like_grid(found, ensemble, PROMPT, 30, max_new_tokens=4) > 3
