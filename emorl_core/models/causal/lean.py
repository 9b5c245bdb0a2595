"""A Llama-style decoder written for lanes: RMSNorm, rotary positions, grouped-query attention, gated MLP.

transformers' code runs some sixty small operations per layer and one product per matrix, which takes several times as
long as reading the weights. Here q, k, v and gate, up are one product each, including the adapters' first factors.
Weights and settings are taken from the library's own modules; `load` compares the logits with theirs before use, and
models of another form run in the library's code.

Letters: M lane rows, q new tokens per row, D hidden, H heads, K key-value heads, d head size, F inner features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.causal.attention import Pass, attend
from emorl_core.models.causal.rotary import Rotary
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.parallel.layers import ColumnLinear, RowLinear, VocabularyMatrix

# By model_type. The structure of the modules is checked too, and the self-test checks the whole.
KINDS = frozenset({"llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3"})
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def takes(library: Any) -> bool:
    """Whether the library's model (`...ForCausalLM`) has this form."""
    config, decoder = library.config, library.get_decoder()
    if config.model_type not in KINDS or config.hidden_act != "silu" or not Rotary.takes(config):
        return False
    return {name for name, _ in decoder.named_children()} == {"embed_tokens", "layers", "norm", "rotary_emb"} and all(
        _of_this_form(layer) for layer in decoder.layers
    )


def _of_this_form(layer: nn.Module) -> bool:
    parts = {name: {child for child, _ in module.named_children()} for name, module in layer.named_children()}
    attention = parts.get("self_attn", set())
    return (
        set(parts) == _LAYER
        and parts["mlp"] == _MLP
        and (attention == _ATTENTION or attention == _ATTENTION | _HEAD_NORMS)
        and all(type(module) is nn.Linear for name, module in layer.named_modules() if name.endswith("_proj"))
        and all(hasattr(module, "variance_epsilon") for name, module in layer.named_modules() if name.endswith("norm"))
    )


class LeanBody:
    """See `emorl_core.models.causal.body.Body`."""

    routed: frozenset[str] = frozenset()

    def __init__(self, library: Any, group: ProcessGroup | None = None) -> None:
        """Moves the weights out of the library's model, layer by layer, so that they are never in memory twice. group:
        processes that each have a part of every matrix, as left by `parts`."""
        name = next(name for name, module in library.named_modules() if module is library.get_decoder())
        self.decoder = LeanDecoder(library.get_decoder(), library.config, name, group)

    def share(self, head: FrozenMatrix) -> FrozenMatrix:
        embedding, weight = self.decoder.embedding, head.weight
        if weight is not None and embedding.weight is not None and weight.data_ptr() == embedding.weight.data_ptr():
            self.decoder.embedding = head
        return self.decoder.embedding

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        for layer in self.decoder.layers:
            assert isinstance(layer, LeanLayer)
            yield from layer.linears()

    def tensors(self) -> Iterator[Tensor]:
        yield self.decoder.norm
        for layer in self.decoder.layers:
            assert isinstance(layer, LeanLayer)
            yield from layer.norms()

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        hidden: Tensor = self.decoder(tokens, positions, lanes, seen)
        return hidden


class LeanDecoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, decoder: Any, config: Any, name: str, group: ProcessGroup | None) -> None:
        """decoder: the library's; name: its name in checkpoints."""
        super().__init__()
        self.config = config
        self.embedding = vocabulary_matrix(decoder.embed_tokens.weight.detach(), config.vocab_size, group)
        self.norm: Tensor = decoder.norm.weight.detach()
        self.epsilon: float = decoder.norm.variance_epsilon
        self.rotary = Rotary(decoder.rotary_emb, self.norm)
        self.layers = nn.ModuleList()
        for i, layer in enumerate(decoder.layers):
            self.layers.append(LeanLayer(layer, config, f"{name}.layers.{i}", i, group))
            decoder.layers[i] = nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        """Arguments and result as `CausalModel.run`."""
        rows, new = tokens.shape
        if lanes is None:
            lanes = LaneIndex(torch.zeros(rows * new, 0, device=tokens.device))
        x = self.embedding.rows(tokens.reshape(-1))
        if lanes.rows > len(x):
            x = F.pad(x, (0, 0, 0, lanes.rows - len(x)))
        turn = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, rows, lanes, seen, turn)
        x = F.rms_norm(x[: rows * new], self.norm.shape, self.norm, self.epsilon)
        return x.view(rows, new, -1)


class LeanLayer(nn.Module):
    """One layer, over all tokens of a pass at once."""

    def __init__(self, layer: Any, config: Any, name: str, number: int, group: ProcessGroup | None) -> None:
        """layer: the library's; name: its name in checkpoints."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._name, self._number = name, number
        self.size: int = attention.head_dim
        self.scale: float = attention.scaling
        in_config = getattr(config, "sliding_window", None)  # where Mistral has it
        self.sliding_window: int | None = getattr(attention, "sliding_window", in_config)
        self.rotates = bool(getattr(attention, "use_rope", True))  # some layers of SmolLM3 do not
        self.qkv = _fused(group, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = _summed(group, attention.o_proj)
        self.gate_up = _fused(group, mlp.gate_proj, mlp.up_proj)
        self.down = _summed(group, mlp.down_proj)
        self._first_norm: Tensor = layer.input_layernorm.weight.detach()
        self._second_norm: Tensor = layer.post_attention_layernorm.weight.detach()
        self.epsilon: float = layer.input_layernorm.variance_epsilon
        self.heads, self.shared = (out // self.size for out in self.qkv.outs[:2])
        self.head_norms: Tensor | None = None  # [H + K, d]
        if hasattr(attention, "q_norm"):
            norms = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
            self.head_norms = torch.cat([norms[0].expand(self.heads, -1), norms[1].expand(self.shared, -1)])

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """The checkpoint names of the fused projections, in order, and the layer."""
        yield [f"{self._name}.self_attn.{p}_proj" for p in "qkv"], self.qkv
        yield [f"{self._name}.self_attn.o_proj"], self.o
        yield [f"{self._name}.mlp.{p}_proj" for p in ("gate", "up")], self.gate_up
        yield [f"{self._name}.mlp.down_proj"], self.down

    def norms(self) -> Iterator[Tensor]:
        yield from (self._first_norm, self._second_norm)
        if self.head_norms is not None:
            yield from (self.head_norms[0], self.head_norms[-1])

    def forward(self, x: Tensor, rows: int, lanes: LaneIndex, seen: Pass, turn: tuple[Tensor, Tensor]) -> Tensor:
        """x [M * q or more, D], spare rows last; turn: from `Rotary`, for the M * q tokens -> like x."""
        q, k, v = self._project(x, rows, lanes, turn)
        mixed = attend(self._number, q, k, v, seen, scale=self.scale, window=self.sliding_window)
        x = x + self.o.side_by_side(mixed.reshape(len(turn[0]), -1), lanes)
        normed = F.rms_norm(x, self._second_norm.shape, self._second_norm, self.epsilon)
        gate, up = self.gate_up.side_by_side(normed, lanes).chunk(2, dim=-1)
        return x + self.down.side_by_side(F.silu(gate).mul_(up), lanes)

    def _project(
        self, x: Tensor, rows: int, lanes: LaneIndex, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [M, H, q, d], k and v [M, K, q, d], with positions applied."""
        normed = F.rms_norm(x, self._first_norm.shape, self._first_norm, self.epsilon)
        made = self.qkv.side_by_side(normed, lanes)
        made = made[: len(turn[0])].view(rows, -1, self.heads + 2 * self.shared, self.size)
        turned, values = made.split([self.heads + self.shared, self.shared], dim=2)
        if self.head_norms is not None:
            turned = F.rms_norm(turned, (self.size,), None, self.epsilon) * self.head_norms
        if self.rotates:
            turned = Rotary.turned(turned, turn)
        query, keys = turned.split([self.heads, self.shared], dim=2)
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if keys.shape[2] > 1:  # a pass may store them, which must not keep the whole product alive
            keys, values = keys.contiguous(), values.contiguous()
        return query.transpose(1, 2), keys, values


def vocabulary_matrix(weight: Tensor, vocabulary: int, group: ProcessGroup | None) -> FrozenMatrix:
    """An embedding or a head; weight: this process's."""
    if group is None or len(weight) == vocabulary:
        return FrozenMatrix(weight)
    return VocabularyMatrix(weight, vocabulary, group)


def _fused(group: ProcessGroup | None, *projections: nn.Linear) -> LaneLinear:
    """Projections of one input; with a group they are split by columns."""
    weights = [projection.weight.detach() for projection in projections]
    bias = None
    if any(projection.bias is not None for projection in projections):
        bias = torch.cat(
            [
                w.new_zeros(len(w)) if p.bias is None else p.bias.detach()
                for w, p in zip(weights, projections, strict=True)
            ]
        )
    weight, outs = torch.cat(weights), [len(weight) for weight in weights]
    return LaneLinear(weight, outs=outs, bias=bias) if group is None else ColumnLinear(weight, outs, bias, group)


def _summed(group: ProcessGroup | None, projection: nn.Linear) -> LaneLinear:
    """One projection; with a group it is split by rows."""
    weight = projection.weight.detach()
    bias = None if projection.bias is None else projection.bias.detach()
    return LaneLinear(weight, bias=bias) if group is None else RowLinear(weight, bias, group)
