"""A weighted sum of adapters is exact, whatever their ranks, scales and modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emorl_core.adapters.adapter import Adapter, LoraPair, read_peft
from emorl_core.adapters.sums import weighted_sum
from emorl_core.adapters.writer import write_peft
from emorl_core.errors import AdapterError

MODULES = {"encoder.block.0.q": (12, 8), "decoder.block.1.wo": (6, 20), "decoder.block.0.v": (9, 9)}  # [out, in]


def adapter(name: str, rank: int, seed: int, modules: tuple[str, ...] = tuple(MODULES)) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for module in modules:
        rows, columns = MODULES[module]
        a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        pairs[module] = LoraPair(a, b, scale=4.0 / rank)
    return Adapter(name, pairs)


ADAPTERS = [adapter("reflection", 2, 1), adapter("empathy", 8, 2, tuple(MODULES)[:2]), adapter("fluency", 3, 3)]


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (-0.5, 2.0, 1.0)])
def test_the_update_of_a_sum_is_the_weighted_sum_of_the_updates(weights: tuple[float, float, float]) -> None:
    named = dict(zip((each.name for each in ADAPTERS), weights, strict=True))
    made = weighted_sum("sum", ADAPTERS, weights)
    assert set(made.modules) == set(MODULES)
    assert {pair.rank for pair in made.modules.values()} == {2 + 8 + 3}
    for module in MODULES:
        expected = sum(
            named[each.name] * pair.scale * (pair.b.double() @ pair.a.double())
            for each in ADAPTERS
            if (pair := each.modules.get(module)) is not None
        )
        torch.testing.assert_close(made.modules[module].delta().double(), expected, rtol=0, atol=1e-5)


def test_averaging_the_factors_is_another_matrix() -> None:
    """What PEFT's `linear` combination does: its cross terms are larger than the sum itself."""
    pairs = [ADAPTERS[i].modules["encoder.block.0.q"] for i in (0, 0)]
    other = adapter("other", 2, 9).modules["encoder.block.0.q"]
    pairs[1] = LoraPair(other.a, other.b, pairs[0].scale)
    averaged = LoraPair(sum(0.5 * p.a for p in pairs), sum(0.5 * p.b for p in pairs), pairs[0].scale)  # type: ignore[arg-type]
    exact = sum(0.5 * pair.delta() for pair in pairs)
    assert torch.linalg.norm(averaged.delta() - exact) > 0.5 * torch.linalg.norm(exact)


def test_a_sum_survives_a_peft_folder(tmp_path: Path) -> None:
    made = weighted_sum("sum", ADAPTERS, (0.2, 0.5, 0.3))
    write_peft(made, tmp_path)
    again = read_peft(tmp_path, "sum")
    for module, pair in made.modules.items():
        torch.testing.assert_close(again.modules[module].delta(), pair.delta(), rtol=0, atol=1e-6)


def test_a_sum_of_activated_adapters_is_activated() -> None:
    pair = LoraPair(torch.ones(2, 3), torch.ones(4, 2), 1.0)
    one, two, other = (
        Adapter(name, {"q": pair}, invocation_tokens=tokens, task="CAUSAL_LM")
        for name, tokens in (("one", (7, 8)), ("two", (7, 8)), ("other", (8,)))
    )
    made = weighted_sum("sum", [one, two], (0.5, 0.5))
    assert (made.invocation_tokens, made.task) == ((7, 8), "CAUSAL_LM")
    for first, second in ((one, other), (one, replace(two, invocation_tokens=None))):
        with pytest.raises(AdapterError, match="allowed in one sum: adapters that begin to act at the same tokens"):
            weighted_sum("sum", [first, second], (0.5, 0.5))
