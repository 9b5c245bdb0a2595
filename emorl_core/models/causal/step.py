"""A decoding step of the lean decoder as one function of tensors, for compiling.

This is `LeanDecoder.forward` for one token per row over the cache: tensors in, tensors out, no Python that changes from
step to step. Letters as in `lean.py`; N: most adapters that a row uses, T: tokens that attention reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.models.causal.lean import LeanDecoder, LeanLayer
from emorl_core.models.step_linear import StepLinear, StepTensors

# (x, used, coefficients, places, positions, cosines, sines, masks, own, parameters) -> hidden
Step = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: StepLinear
    o: StepLinear
    gate_up: StepLinear
    down: StepLinear
    heads: int
    shared: int
    size: int
    scale: float
    rotates: bool
    mask: int  # index into the masks
    epsilon: float
    head_norms: bool


class StepFunction:
    """The function for one model with the adapters attached now: its tensors, the settings that it is built from, and
    the windows of its masks."""

    def __init__(self, decoder: LeanDecoder, dtype: torch.dtype) -> None:
        self.tensors = StepTensors([], [])
        layers = [layer for layer in decoder.layers if isinstance(layer, LeanLayer)]
        self.windows = list(dict.fromkeys(layer.sliding_window for layer in layers))
        linears = [[StepLinear.of(linear, self.tensors) for _, linear in layer.linears()] for layer in layers]
        first_norm = len(self.tensors.parameters)
        for layer in layers:
            self.tensors.parameters += layer.norms()
        self.tensors.parameters.append(decoder.norm)
        made = []
        for (qkv, o, gate_up, down), layer in zip(linears, layers, strict=True):
            mask, normed = self.windows.index(layer.sliding_window), layer.head_norms is not None
            sizes = (layer.heads, layer.shared, layer.size, layer.scale)
            made.append(_Layer(qkv, o, gate_up, down, *sizes, layer.rotates, mask, layer.epsilon, normed))
        self.settings = (made, first_norm, decoder.epsilon, dtype)
        self.function = step_of(*self.settings)


def step_of(
    layers: Sequence[_Layer], first_norm: int, epsilon: float, dtype: torch.dtype, ragged: bool = False
) -> Step:
    """The function to compile, for one model's shapes. ragged: rows may share places; else row i has place i."""

    def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight.float()

    def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """x [M, heads, d]; the sign in `Rotary.turned` is included in the sines."""
        return x * cosines + x.roll(x.shape[-1] // 2, dims=-1) * sines

    def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q [M, K, G, d], keys and values [M, K, T, d], mask [M, T] -> [M, H * d]."""
        scores = (q.unsqueeze(3) * keys.unsqueeze(2)).sum(dim=-1) + mask[:, None, None]  # [M, K, G, T]
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(dim=3).flatten(1).to(dtype)

    def step(
        x: Tensor,
        used: Tensor,
        coefficients: Tensor,
        places: Tensor,
        positions: Tensor,
        cosines: Tensor,
        sines: Tensor,
        masks: Sequence[Tensor],
        own: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> Tensor:
        """x [M, D], used and coefficients [M, N], places and positions [M], cosines and sines [M, 1, d], masks [M, T];
        own, one tensor per layer, [2, .., K, .., d] -> [M, D]."""
        count, total = x.shape[0], masks[0].shape[-1]
        norms, factors = iter(parameters[first_norm:]), iter(parameters)
        rows = places if ragged else slice(count)
        x = x.float()
        for i, layer in enumerate(layers):
            normed = norm(x, next(norms), layer.epsilon).to(dtype)
            second = next(norms)
            q, k, v = layer.qkv.apart(normed, used, coefficients, factors)
            q, k = q.view(count, layer.heads, layer.size), k.view(count, layer.shared, layer.size)
            if layer.head_norms:
                q, k = norm(q, next(norms), layer.epsilon), norm(k, next(norms), layer.epsilon)
            if layer.rotates:
                q, k = turned(q, cosines, sines), turned(k, cosines, sines)
            made = torch.stack([k, v.view(count, layer.shared, layer.size)], dim=1)
            own[i][:, places, :, positions] = made.to(own[i].dtype)
            keys, values = own[i][0, rows, :, :total], own[i][1, rows, :, :total]
            grouped = (q * layer.scale).to(keys.dtype).view(count, layer.shared, -1, layer.size)
            mixed = attend(grouped.float(), keys.float(), values.float(), masks[layer.mask])
            x = x + layer.o.apart(mixed, used, coefficients, factors)[0]
            gate, up = layer.gate_up.apart(norm(x, second, layer.epsilon).to(dtype), used, coefficients, factors)
            x = x + layer.down.apart((F.silu(gate) * up).to(dtype), used, coefficients, factors)[0]
        return norm(x, next(norms), epsilon).to(dtype)

    return step
