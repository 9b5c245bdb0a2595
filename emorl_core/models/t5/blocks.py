"""The blocks of a T5 stack: attention and feed-forward. Letters as in `model.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.t5.config import T5Config

_FEW_QUERIES = 4  # a decoding step has one
_HEAD = "lm_head.weight"
_TIED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", _HEAD)


class T5Block(nn.Module):
    """One encoder or decoder block; x is flat, [rows * tokens, D]."""

    def __init__(self, config: T5Config, checkpoint: Checkpoint, stack: str, number: int) -> None:
        super().__init__()
        self.config = config
        self.is_decoder = stack == "decoder"
        path, inner, d_model = f"{stack}.block.{number}.layer", config.inner, config.d_model
        last = 2 if self.is_decoder else 1
        self.norms = [checkpoint.tensor(f"{path}.{i}.layer_norm.weight", (d_model,)) for i in range(last + 1)]
        self.qkv = fused(checkpoint, [f"{path}.0.SelfAttention.{p}" for p in "qkv"], inner, d_model)
        self.o = fused(checkpoint, [f"{path}.0.SelfAttention.o"], d_model, inner)
        if self.is_decoder:
            self.cross_q = fused(checkpoint, [f"{path}.1.EncDecAttention.q"], inner, d_model)
            self.cross_o = fused(checkpoint, [f"{path}.1.EncDecAttention.o"], d_model, inner)
        wi = ["wi_0", "wi_1"] if config.gated else ["wi"]
        dense = f"{path}.{last}.DenseReluDense"
        self.wi = fused(checkpoint, [f"{dense}.{name}" for name in wi], config.d_ff, d_model)
        self.wo = fused(checkpoint, [f"{dense}.wo"], d_model, config.d_ff)

    def linears(self, path: str) -> Iterator[tuple[list[str], LaneLinear]]:
        last = 2 if self.is_decoder else 1
        yield [f"{path}.layer.0.SelfAttention.{p}" for p in "qkv"], self.qkv
        yield [f"{path}.layer.0.SelfAttention.o"], self.o
        if self.is_decoder:
            yield [f"{path}.layer.1.EncDecAttention.q"], self.cross_q
            yield [f"{path}.layer.1.EncDecAttention.o"], self.cross_o
        dense = f"{path}.layer.{last}.DenseReluDense"
        yield [f"{dense}.{name}" for name in (["wi_0", "wi_1"] if self.config.gated else ["wi"])], self.wi
        yield [f"{dense}.wo"], self.wo

    def project(self, x: Tensor, lanes: LaneIndex, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention's q, k, v: [M, H, q, d_kv] each."""
        qkv = self.qkv(self._norm(x, 0), lanes)  # [3, M * q, inner]
        q, k, v = (_split(part, rows, self.config) for part in qkv)
        return q, k, v

    def attend_runs(self, x: Tensor, lanes: LaneIndex, runs: Sequence[tuple[int, Tensor]]) -> Tensor:
        """The encoder's self-attention over sequences side by side. runs: of equally long ones, how many, and their
        mask [1 or that many, H, S, S]."""
        qkv = self.qkv(self._norm(x, 0), lanes)  # [3, tokens of all, inner]
        mixed, start = [], 0
        for rows, mask in runs:
            end = start + rows * mask.shape[-1]
            q, k, v = (_split(part, rows, self.config) for part in qkv[:, start:end])
            mixed.append(_join(attention(q, k, v, mask)))
            start = end
        return x + self.o(torch.cat(mixed), lanes)

    def attended(self, x: Tensor, attention: Tensor, lanes: LaneIndex) -> Tensor:
        return x + self.o(_join(attention), lanes)

    def cross_attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, lanes: LaneIndex, rows: int
    ) -> Tensor:
        q = _split(self.cross_q(self._norm(x, 1), lanes), rows, self.config)
        return x + self.cross_o(_join(attention(q, keys, values, mask)), lanes)

    def feed_forward(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        up = self.wi(self._norm(x, len(self.norms) - 1), lanes)
        # The tanh approximation of GELU, with which the released T5 1.1 checkpoints were trained.
        hidden = F.gelu(up[0], approximate="tanh") * up[1] if self.config.gated else F.relu(up)
        return x + self.wo(hidden, lanes)

    def _norm(self, x: Tensor, which: int) -> Tensor:
        return F.rms_norm(x, (self.config.d_model,), self.norms[which], self.config.epsilon)


def embedding_and_head(config: T5Config, checkpoint: Checkpoint) -> tuple[FrozenMatrix, FrozenMatrix]:
    """The embedding shared by encoder and decoder, and the head: the same matrix, or a separate one.

    transformers ties all of `_TIED`: a stored one replaces missing ones, and copies that differ stay separate. Encoder
    and decoder with different embeddings are refused.
    """
    shape = (config.vocab_size, config.d_model)
    first, *copies = [name for name in _TIED if name in checkpoint] or _TIED[:1]
    shared = checkpoint.tensor(first, shape)
    embedding = head = FrozenMatrix(shared)
    for name in copies:
        copy = checkpoint.tensor(name, shape)
        if torch.equal(copy, shared):
            continue
        if name != _HEAD:
            raise UnsupportedModel(f"tensor {name!r} differs from {first!r}; allowed: one embedding for both stacks")
        head = FrozenMatrix(copy)
    return embedding, head


def fused(checkpoint: Checkpoint, names: list[str], out_features: int, in_features: int) -> LaneLinear:
    parts = [checkpoint.tensor(f"{name}.weight", (out_features, in_features)) for name in names]
    return LaneLinear(torch.cat(parts) if len(parts) > 1 else parts[0], projections=len(parts))


def _split(x: Tensor, rows: int, config: T5Config) -> Tensor:
    """[M * q, inner] -> [M, H, q, d_kv]."""
    return x.reshape(rows, -1, config.num_heads, config.d_kv).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """[M, H, q, d_kv] -> [M * q, inner]."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T + mask) v. q [M, H, q, d_kv], k and v [M, H, T, d_kv], mask broadcast to [M, H, q, T] -> like q."""
    if q.device.type == "cpu" and q.shape[2] <= _FEW_QUERIES and not (torch.is_grad_enabled() and q.requires_grad):
        # Two batched products are up to six times as fast as torch's fused kernel here (docs/log.md).
        scores = torch.bmm(q.to(k.dtype).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], -1)
        if mask is not None:
            scores += mask
        return torch.bmm(torch.softmax(scores, dim=-1).flatten(0, 1), v.flatten(0, 1)).to(q.dtype).view(q.shape)
    mask = mask if mask is None else mask.to(k.dtype)
    return F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask, scale=1.0).to(q.dtype)
