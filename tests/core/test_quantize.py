"""Matrices in fewer bits: how far products and models are off, what stays, and who gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.lanes.fbgemm import Float16Matrix, Int8Matrix
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.machine.precision import fbgemm_available, pick_quantize
from emorl_core.models.causal.model import CausalModel
from emorl_core.types import Quantize, Request, Sampling
from tests.builders import tiny_t5_bundle
from tests.core.causal_reference import lockstep
from tests.core.driving import run
from tests.core.test_causal_golden import CPU, MIXES, PROMPTS, adapters_of, loaded
from tests.core.test_compiled import COMPILED, needs_compiler
from tests.supported_models import BY_NAME, tiny_causal

KINDS: tuple[Quantize, ...] = ("float16", "int8")
needs_fbgemm = pytest.mark.skipif(not fbgemm_available(), reason="this torch has no FBGEMM")


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@needs_fbgemm
@pytest.mark.parametrize("kind", [Float16Matrix, Int8Matrix])
def test_a_product_is_off_by_the_rounding_of_the_weights_alone(kind: type[Float16Matrix] | type[Int8Matrix]) -> None:
    """Also where one input is a thousand times as large as the others: they still count."""
    weight, x = drawn(70, 96, 1), drawn(5, 96, 2)
    x[1, 7], x[2] = 3000.0, 0.0
    matrix = kind(weight, looked_up=True)
    rounded = matrix.rows(torch.arange(70))
    step = weight.abs().amax(dim=1, keepdim=True) / 254 if kind is Int8Matrix else weight.abs() / 2048
    assert bool(((rounded - weight).abs() <= step * 1.001 + 1e-7).all())
    error = matrix.product(x) - x @ rounded.t()
    assert float((error.norm(dim=1) / (x @ rounded.t()).norm(dim=1).clamp(min=1e-9)).max()) < 1e-3
    assert not matrix.product(x)[2].any()


@needs_fbgemm
@pytest.mark.parametrize(("kind", "rounded"), [(Float16Matrix, 1e-6), (Int8Matrix, 0.0)])
def test_a_row_does_not_depend_on_those_beside_it(kind: type[Float16Matrix] | type[Int8Matrix], rounded: float) -> None:
    """Sums of float16 may be rounded in another order."""

    def same(one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one, other, atol=10 * rounded, rtol=rounded)

    matrix, x = kind(drawn(70, 96, 1)), drawn(40, 96, 2)
    x[3] *= 100
    together = matrix.product(x)
    for rows in (1, 2, 3, 7, 17):
        same(matrix.product(x[:rows]), together[:rows])
    x[5, 0] = float("nan")
    x[6, 0] = float("inf")
    sick = matrix.product(x)
    assert not torch.isfinite(sick[5:7]).all(dim=1).any()
    same(sick[:5], together[:5])
    same(sick[7:], together[7:])


@needs_fbgemm
def test_extreme_weights() -> None:
    weight = drawn(8, 16, 1)
    weight[2], weight[3] = 0.0, 1e-30
    for kind in (Float16Matrix, Int8Matrix):
        made = kind(weight).product(drawn(3, 16, 2))
        assert torch.isfinite(made).all()
        assert not made[:, 2].any()
    weight[1, 1] = 7e4
    assert not Float16Matrix.takes(weight)


@needs_fbgemm
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_biases_stay_as_they_are(kind: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    weight, bias, x = drawn(12, 16, 1), drawn(1, 12, 2)[0], drawn(3, 16, 3)
    layer = LaneLinear(weight, outs=(8, 4), bias=bias)
    layer.base.pack()
    layer.base.quantize(kind)
    bare = layer.side_by_side(x, LaneIndex(torch.zeros(3, 2)))
    a, b = drawn(8, 16, 4).view(2, 2, 2, 16), drawn(8, 8, 5).view(2, 2, 2, 8)
    layer.attach(a, b)
    lanes = LaneIndex(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.3, 0.7]]))
    for p, (first, out) in enumerate(((0, 8), (8, 4))):
        low = torch.einsum("mi,nri->mnr", x, a[p]) * lanes.coefficients.unsqueeze(2)
        own = torch.einsum("mnr,nro->mo", low, b[p, :, :, :out])
        found = layer.side_by_side(x, lanes)[:, first : first + out]
        torch.testing.assert_close(found, bare[:, first : first + out] + own, atol=1e-5, rtol=1e-5)
    assert layer.base.nbytes == (12 * 16 * 2 if kind == "float16" else 12 * 16 + 4 * 12) + 4 * 12
    layer.detach()
    torch.testing.assert_close(layer.side_by_side(x, lanes), bare)


def in_fewer_bits(base: Path, adapters: list[Path], how: Quantize) -> CausalModel:
    from emorl_core.adapters.adapter import read_peft

    model = loaded(base, [])
    model.quantize(how)
    model.attach([read_peft(folder, folder.name) for folder in adapters])
    return model


@needs_fbgemm
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral"])
def test_a_model_in_fewer_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lean and through the library's code, with a tied head and without, with experts."""
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    base = tiny_causal(tmp_path / "base", kind)
    adapters = adapters_of(BY_NAME[kind], base, tmp_path)
    exact, wanted = lockstep(loaded(base, adapters), PROMPTS, MIXES, 3)
    whole = loaded(base, adapters).parameter_bytes()
    spread = float(wanted.std())
    bytes_of = {}
    for how, allowed in (("float16", 5e-3), ("int8", 0.12)):
        model = in_fewer_bits(base, adapters, how)
        tokens, logits = lockstep(model, PROMPTS, MIXES, 3)
        error = float((logits[:, :, 0] - wanted[:, :, 0]).square().mean().sqrt()) / spread
        assert 0 < error < allowed
        assert how == "int8" or tokens.tolist() == exact.tolist()
        bytes_of[how] = model.parameter_bytes()
        assert bytes_of[how]["adapters"] == whole["adapters"]
    assert bytes_of["int8"]["base"] < bytes_of["float16"]["base"] < whole["base"]


@needs_fbgemm
@pytest.mark.parametrize("kind", KINDS)
def test_t5_in_fewer_bits(kind: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_t5_bundle(tmp_path)
    request = Request("one", (5, 9, 7, 1), (0.0, 0.3, 0.3, 0.4), Sampling(max_new_tokens=6, min_new_tokens=6))
    exact = Ensemble.load(folder, device="cpu", dtype="float32", quantize="off")
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    found = Ensemble.load(folder, device="cpu", dtype="float32", quantize=kind)
    assert found.quantize == kind
    assert found.parameter_bytes()["base"] < exact.parameter_bytes()["base"]
    ids = run(found.engine, [request])[0].token_ids
    assert len(ids) == 6
    if kind == "float16":
        assert ids == run(exact.engine, [request])[0].token_ids


@needs_fbgemm
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_they_give_the_same(kind: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    base = tiny_causal(tmp_path / "base", "qwen2", num_hidden_layers=1)
    model = in_fewer_bits(base, adapters_of(BY_NAME["qwen2"], base, tmp_path), kind)
    expected, wanted = lockstep(model, PROMPTS, MIXES, 6)
    tokens, logits = lockstep(model.compilation(COMPILED).make(), PROMPTS, MIXES, 6)
    # An input near the middle between two steps may be rounded to the other one.
    torch.testing.assert_close(logits[:, :, 0], wanted[:, :, 0], atol=1e-3, rtol=0.0)
    assert tokens.tolist() == expected.tolist()


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emorl_core.machine.precision.fbgemm_available", lambda: True)
    for native, expected in ((False, "float16"), (True, "off")):
        monkeypatch.setattr("emorl_core.machine.precision._native_bfloat16", lambda device, native=native: native)
        assert pick_quantize("auto", "auto", CPU) == expected
    assert [pick_quantize("auto", dtype, CPU) for dtype in ("float32", "bfloat16")] == ["off", "off"]
    assert pick_quantize("auto", "auto", torch.device("cuda")) == "off"
    assert [pick_quantize(how, "float32", CPU) for how in ("off", *KINDS)] == ["off", *KINDS]
    with pytest.raises(InvalidRequest, match="quantize is 'int4'; allowed: auto, off, float16, int8"):
        pick_quantize("int4", "auto", CPU)
    for device, here in ((torch.device("cuda"), True), (CPU, False)):
        monkeypatch.setattr("emorl_core.machine.precision.fbgemm_available", lambda here=here: here)
        assert pick_quantize("off", "auto", device) == "off"
        with pytest.raises(InvalidRequest, match="quantize is 'int8', for which the device must be a CPU with FBGEMM"):
            pick_quantize("int8", "auto", device)
    assert pick_quantize("auto", "auto", CPU) == "off"
