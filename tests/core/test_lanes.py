"""`LaneLinear` against separate linear layers with their own LoRA, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.lanes.frozen import FrozenMatrix, packed_product_available
from emorl_core.lanes.index import round_rows
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.stacking import stack_adapters
from tests.core.driving import one_hot

IN, OUT = 24, 20
RANKS = (2, 5, 3)
LANES = (0, 1, 2, 3, 3, 1, 0, 2, 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Separate(nn.Module):
    """One projection of one lane: x W^T + scale * (x A^T) B^T with parameters of its own."""

    def __init__(self, weight: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale
        self.a = nn.Parameter(a.clone()) if a is not None else None
        self.b = nn.Parameter(b.clone()) if b is not None else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.t()
        if self.a is None or self.b is None:
            return y
        return y + self.scale * (x @ self.a.t()) @ self.b.t()


def build(projections: int, missing: tuple[int, int] | None = None) -> tuple[LaneLinear, list[list[Separate]]]:
    """A layer with three stacked adapters, and its twins [P][lane]. `missing`: (projection, adapter) without LoRA."""
    weight = random(projections * OUT, IN, seed=1)
    layer = LaneLinear(weight, projections)
    names = [f"m{p}" for p in range(projections)]
    adapters, twins = [], [[Separate(weight[p * OUT : (p + 1) * OUT], None, None, 0.0)] for p in range(projections)]
    for n, rank in enumerate(RANKS):
        modules = {}
        for p, name in enumerate(names):
            if (p, n) == missing:
                twins[p].append(Separate(weight[p * OUT : (p + 1) * OUT], None, None, 0.0))
                continue
            a, b = random(rank, IN, seed=10 * n + p + 2), random(OUT, rank, seed=100 * n + p + 3)
            modules[name] = LoraPair(a, b, 0.5 + n)
            twins[p].append(Separate(weight[p * OUT : (p + 1) * OUT], a, b, 0.5 + n))
        adapters.append(Adapter(f"a{n}", modules))
    stack_adapters([(names, layer)], adapters)
    return layer, twins


def expected_of(twins: list[list[Separate]], x: Tensor, lanes: tuple[int, ...]) -> Tensor:
    out = torch.stack([torch.stack([row[lane](x[m]) for m, lane in enumerate(lanes)]) for row in twins])
    return out[0] if len(twins) == 1 else out


@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("lanes", [LANES, (0, 0), (2,), (1, 1, 1)])
def test_all_lanes_at_once_equal_separate_layers(projections: int, lanes: tuple[int, ...]) -> None:
    layer, twins = build(projections)
    x = random(len(lanes), IN)
    out = layer(x, one_hot(torch.tensor(lanes), len(RANKS)))
    assert out.shape == ((len(lanes), OUT) if projections == 1 else (projections, len(lanes), OUT))
    torch.testing.assert_close(out, expected_of(twins, x, lanes))


def test_an_adapter_that_leaves_a_projection_out_is_the_base_there() -> None:
    layer, twins = build(3, missing=(1, 2))
    x = random(len(LANES), IN)
    torch.testing.assert_close(layer(x, one_hot(torch.tensor(LANES), 3)), expected_of(twins, x, LANES))


def test_rows_repeat_for_the_tokens_of_a_lane_row() -> None:
    layer, twins = build(1)
    index = one_hot(torch.tensor([3, 0, 1]), 3)
    x = random(12, IN)
    torch.testing.assert_close(layer(x, index.repeat(4)), expected_of(twins, x, (3,) * 4 + (0,) * 4 + (1,) * 4))
    assert index.repeat(1) is index
    assert index.repeat(4) is index.repeat(4)


@pytest.mark.parametrize("projections", [1, 3])
def test_prompts_of_any_length_meet_few_products_and_change_nothing(
    projections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, twins = build(projections)
    met: set[int] = set()
    product = layer.base.forward
    monkeypatch.setattr(layer.base, "forward", lambda x: met.add(x.shape[0]) or product(x))
    for tokens in range(2, 200):
        index = one_hot(torch.tensor([3, 0, 1]), 3)
        x = random(3 * tokens, IN)
        with torch.no_grad():
            out = layer(x, index.repeat(tokens))
        assert out.shape[-2] == 3 * tokens
        if tokens in (2, 11, 199):
            lanes = (3,) * tokens + (0,) * tokens + (1,) * tokens
            torch.testing.assert_close(out, expected_of(twins, x, lanes))
    assert met <= {round_rows(rows) for rows in range(600)}
    assert len(met) < 24


def test_rounded_rows_are_few_and_not_far() -> None:
    rounded = [round_rows(rows) for rows in range(1, 4097)]
    assert len(set(rounded)) < 32
    assert all(0 <= more - rows <= max(15, rows / 4) for rows, more in enumerate(rounded, start=1))
    assert rounded == sorted(rounded)


def test_a_layer_that_no_adapter_touches_keeps_none() -> None:
    layer = LaneLinear(random(OUT, IN))
    stack_adapters([(["m"], layer)], [Adapter("a", {})])
    assert layer.lora_a is None
    assert layer(random(2, IN), one_hot(torch.tensor([0, 1]), 1)).shape == (2, OUT)


def trainable(projections: int) -> tuple[LaneLinear, list[list[Separate]]]:
    """Stacked factors that take gradients, with the scale outside of B as training has it."""
    layer, twins = build(projections)
    rank = max(RANKS)
    a, b = torch.zeros(projections, 3, rank, IN), torch.zeros(projections, 3, rank, OUT)
    a, b = a.double(), b.double()
    for p, row in enumerate(twins):
        for n, twin in enumerate(row[1:]):
            assert twin.a is not None
            assert twin.b is not None
            a[p, n, : RANKS[n]], b[p, n, : RANKS[n]] = twin.a.detach(), twin.b.detach().t()
    scale = torch.tensor([[0.5, 1.5, 2.5]] * projections, dtype=torch.float64)
    layer.attach(a, b, scale)
    assert layer.lora_a is not None
    assert layer.lora_b is not None
    layer.lora_a.requires_grad_(True)
    layer.lora_b.requires_grad_(True)
    return layer, twins


@pytest.mark.parametrize("projections", [1, 3])
def test_gradients_equal_those_of_separate_layers_and_padding_gets_none(projections: int) -> None:
    layer, twins = trainable(projections)
    x = random(len(LANES), IN).requires_grad_()
    y = random(len(LANES), IN).requires_grad_()
    with torch.no_grad():
        y.copy_(x)
    pull = random(*([projections] if projections > 1 else []), len(LANES), OUT, seed=9)
    (layer(x, one_hot(torch.tensor(LANES), 3)) * pull).sum().backward()
    (expected_of(twins, y, LANES) * pull).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert layer.lora_a is not None
    assert layer.lora_a.grad is not None
    assert layer.lora_b is not None
    assert layer.lora_b.grad is not None
    for p, row in enumerate(twins):
        for n, twin in enumerate(row[1:]):
            assert twin.a is not None
            assert twin.b is not None
            assert twin.b.grad is not None
            torch.testing.assert_close(layer.lora_a.grad[p, n, : RANKS[n]], twin.a.grad)
            torch.testing.assert_close(layer.lora_b.grad[p, n, : RANKS[n]], twin.b.grad.t())
            assert not layer.lora_a.grad[p, n, RANKS[n] :].any()
            assert not layer.lora_b.grad[p, n, RANKS[n] :].any()
    assert layer.base.weight is not None
    assert not layer.base.weight.requires_grad


def test_adapters_of_lanes_that_do_not_run_get_zero_gradients() -> None:
    layer, _ = trainable(1)
    layer(random(4, IN), one_hot(torch.tensor([0, 2, 2, 0]), 3)).sum().backward()
    assert layer.lora_a is not None
    assert layer.lora_a.grad is not None
    assert [bool(layer.lora_a.grad[0, n].any()) for n in range(3)] == [False, True, False]


def test_dropout_is_on_the_adapters_input_and_in_training_only() -> None:
    layer, twins = trainable(1)
    layer.dropout = 0.5
    x, index = random(len(LANES), IN), one_hot(torch.tensor(LANES), 3)
    layer.eval()
    torch.testing.assert_close(layer(x, index), expected_of(twins, x, LANES))
    layer.train()
    torch.manual_seed(0)
    out = layer(x, index)
    assert not torch.allclose(out, expected_of(twins, x, LANES))
    base_rows = [m for m, lane in enumerate(LANES) if lane == 0]
    torch.testing.assert_close(out[base_rows], expected_of(twins, x, LANES)[base_rows])


@pytest.mark.skipif(not packed_product_available(), reason="this build of torch has no packed product")
class TestPacked:
    WEIGHT = torch.randn(512, 640, generator=torch.Generator().manual_seed(0))

    def product(self, x: Tensor, prepare: Callable[[FrozenMatrix], None]) -> Tensor:
        matrix = FrozenMatrix(self.WEIGHT.clone())
        prepare(matrix)
        out: Tensor = matrix(x)
        return out

    @pytest.mark.parametrize("rows", [1, 2, 7, 33])
    def test_packed_equals_plain(self, rows: int) -> None:
        x = torch.randn(rows, 640, generator=torch.Generator().manual_seed(1))
        packed = self.product(x, lambda matrix: matrix.pack())
        torch.testing.assert_close(packed, x @ self.WEIGHT.t(), atol=1e-4, rtol=1e-5)

    def test_the_bits_of_a_row_do_not_depend_on_how_many_rows_there_are(self) -> None:
        matrix = FrozenMatrix(self.WEIGHT.clone())
        matrix.pack()
        x = torch.randn(24, 640, generator=torch.Generator().manual_seed(1))
        whole = matrix(x)
        for rows in (1, 2, 5, 16):
            assert torch.equal(matrix(x[:rows]), whole[:rows])

    def test_gradients_need_the_plain_matrix(self) -> None:
        x = torch.randn(3, 640, requires_grad=True)
        with pytest.raises(RuntimeError, match="training=True"):
            self.product(x, lambda matrix: matrix.pack())
        self.product(x, lambda matrix: matrix.pack(keep_plain=True)).sum().backward()
        torch.testing.assert_close(x.grad, self.WEIGHT.sum(0).expand(3, -1), atol=1e-3, rtol=0)  # sums of 512

    def test_rows_that_autocast_left_in_another_format_take_the_plain_matrix(self) -> None:
        x = torch.randn(3, 640, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            out = self.product(x.bfloat16(), lambda matrix: matrix.pack(keep_plain=True))
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), x @ self.WEIGHT.t(), atol=1.0, rtol=2e-2)  # sums of 640

    def test_small_and_other_matrices_stay_plain(self) -> None:
        for weight in (torch.zeros(4, 4), torch.zeros(512, 512, dtype=torch.float64)):
            matrix = FrozenMatrix(weight)
            matrix.pack()
            assert matrix.weight is not None

    def test_bfloat16_stays_plain_where_the_cpu_cannot_multiply_it_packed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
        matrix = FrozenMatrix(torch.ones(512, 512, dtype=torch.bfloat16))
        matrix.pack()
        assert matrix.weight is not None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("keep_plain", [False, True])
    def test_further_rows_come_and_go(self, dtype: torch.dtype, keep_plain: bool) -> None:
        weight = self.WEIGHT.to(dtype)
        x = torch.randn(3, 640, generator=torch.Generator().manual_seed(1)).to(dtype)
        matrix = FrozenMatrix(weight)
        matrix.pack(keep_plain=keep_plain)
        bare = matrix(x)
        assert (matrix.weight is not None) == (keep_plain or not packed_product_available(dtype))
        for rows in (24, 5):  # the second ones take the place of the first
            extra = torch.randn(rows, 640, generator=torch.Generator().manual_seed(rows)).to(dtype)
            matrix.extend(extra)
            out = matrix(x)
            assert out.shape == (3, 512 + rows)
            torch.testing.assert_close(out, x @ torch.cat([weight, extra]).t(), atol=2e-4, rtol=2e-2)
            assert matrix.extra_nbytes == extra.nbytes
        matrix.extend(None)
        assert torch.equal(matrix(x), bare)
        assert matrix.extra_nbytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_adapters_can_take_the_place_of_attached_ones(dtype: torch.dtype) -> None:
    """The first factors are rows of the base matrix when serving: nothing of the old ones may stay there."""
    weight = random(512, 512, seed=1).to(dtype)
    layer, fresh = LaneLinear(weight.clone()), LaneLinear(weight.clone())
    for each in (layer, fresh):
        each.base.pack()
    adapters = [
        [Adapter("a", {"m": LoraPair(random(rank, 512, seed=rank).to(dtype), random(512, rank).to(dtype), 1.0)})]
        for rank in (6, 3)
    ]
    x, index = random(4, 512).to(dtype), one_hot(torch.tensor([0, 1, 1, 0]), 1)
    for own in adapters:
        stack_adapters([(["m"], layer)], own)
    stack_adapters([(["m"], fresh)], adapters[1])
    assert torch.equal(layer(x, index), fresh(x, index))
    assert layer.adapter_bytes == fresh.adapter_bytes == 3 * 1024 * weight.element_size()
    stack_adapters([(["m"], layer)], [Adapter("a", {})])
    torch.testing.assert_close(layer(x, index), x @ weight.t(), atol=1e-4, rtol=1e-4)


def test_adapters_of_t5_base_shape_cost_less_than_a_tenth_of_the_base() -> None:
    """Three adapters of rank 8 on every linear layer, counted on the meta device: nothing is allocated."""
    d, ff, layers, vocabulary = 768, 3072, 12, 32128
    with torch.device("meta"):
        attention = [LaneLinear(torch.empty(3 * d, d), 3), LaneLinear(torch.empty(d, d))]
        dense = [LaneLinear(torch.empty(ff, d)), LaneLinear(torch.empty(d, ff))]
        cross = [LaneLinear(torch.empty(d, d)), LaneLinear(torch.empty(d, d))]
        memory = [LaneLinear(torch.empty(2 * layers * d, d), 2 * layers)]
        for layer in attention + dense + cross + memory:
            layer.attach(
                torch.empty(layer.projections, 3, 8, layer.in_features),
                torch.empty(layer.projections, 3, 8, layer.out_features),
            )

    def count(each: list[LaneLinear], times: int) -> tuple[int, int]:
        base = sum(layer.base.nbytes for layer in each) * times
        adapters = sum(
            part.numel() * part.element_size()
            for layer in each
            for part in (layer.lora_a, layer.lora_b)
            if part is not None
        )
        return base, adapters * times

    parts = [count(attention + dense, 2 * layers), count(cross, layers), count(memory, 1)]
    base = vocabulary * d * 4 + sum(part[0] for part in parts)
    adapters = sum(part[1] for part in parts)
    assert 220e6 < base / 4 < 225e6, "T5-base has 223 million parameters"
    assert base + adapters <= 1.1 * base
