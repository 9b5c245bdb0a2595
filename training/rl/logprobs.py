"""Log-probabilities of replies under their lanes: whole sequences under autograd, one forward for all objectives.

Replies come in *groups* that share a prompt: the k samples of one prompt in one lane. The prompt runs once a group.
Letters: G groups, k replies a group, M = G * k rows, T reply tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.models.family import Group, LaneModel, TrainableModel

# Bytes of logits held at once; a large vocabulary would otherwise need gigabytes for the tokens of one step. The C
# library reuses blocks of up to 32 MiB; larger ones are requested from the system, page by page, every time.
_LOGIT_BYTES = 24 * 2**20
# Bytes of logits turned into probabilities at once, so that they stay in the processor's cache.
_SOFTMAX_BYTES = 2**20


def group_of(model: LaneModel, prompt: tuple[int, ...], lane: int, replies: tuple[tuple[int, ...], ...]) -> Group:
    """lane: its number, 0 for the base."""
    return Group(Lane(lane_points(len(model.adapters))[lane], prompt), replies)


def padded(replies: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids [M, T] padded with 0 on the right, and the mask [M, T] of real tokens."""
    longest = max(1, max(len(reply) for reply in replies))
    ids = torch.tensor([[*reply, *[0] * (longest - len(reply))] for reply in replies], device=device)
    lengths = torch.tensor([len(reply) for reply in replies], device=device)
    return ids, torch.arange(longest, device=device) < lengths.unsqueeze(1)


def reply_logprobs(model: TrainableModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """log p of every token of every reply under its group's lane: ([M, T] float32, 0 on padding; mask [M, T]).

    All groups have the same number of replies. Padding is not part of the graph.
    """
    targets, _ = padded([reply for group in groups for reply in group.replies], model.facts.device)
    hidden, mask = model.reply_hidden(groups)  # [M, T, D], [M, T]
    logprobs = torch.zeros(mask.shape, device=mask.device)
    return logprobs.masked_scatter(mask, token_logprobs(model, hidden[mask], targets[mask])), mask


def token_logprobs(model: LaneModel, hidden: Tensor, ids: Tensor) -> Tensor:
    """hidden [n, D], ids [n] -> log p [n] float32, in chunks that bound the logits held at once.

    The head is frozen, so the backward pass only needs each token's gradient with respect to its hidden state. That is
    computed together with the value, so no logits are kept.
    """
    if not (hidden.requires_grad and torch.is_grad_enabled()):
        return torch.cat([_logprobs(model, *piece) for piece in _pieces(model, hidden, ids)])
    return _TokenLogprobs.apply(hidden, ids, model)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ids: Tensor, model: LaneModel) -> Tensor:
        values, gradients = [], []
        for some, targets in _pieces(model, hidden, ids):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_(True)
                logits = model.head(leaf)  # [n, V]
            value, slope = _logprobs_and_slope(logits.detach(), targets)
            # A token's value depends on its own row only, so the product with all slopes gives each row's own gradient.
            (gradient,) = torch.autograd.grad(logits, leaf, slope)
            values.append(value)
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * upstream[0].unsqueeze(1).to(gradients.dtype), None, None


def _logprobs(model: LaneModel, hidden: Tensor, ids: Tensor) -> Tensor:
    logits = model.head(hidden)  # [n, V]
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1) - torch.logsumexp(logits, dim=1)


def _logprobs_and_slope(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log p [n] of the ids, and its derivative with respect to the logits, [id is v] - p_v [n, V].

    One pass of exponentials serves both, and the slope takes the place of the logits, some rows at a time.
    """
    size = max(1, _SOFTMAX_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    values = [_softmax_in_place(*some) for some in zip(logits.split(size), ids.split(size), strict=True)]
    return torch.cat(values), logits


def _softmax_in_place(logits: Tensor, ids: Tensor) -> Tensor:
    rows = torch.arange(len(ids), device=ids.device)
    chosen = logits[rows, ids]
    largest = logits.amax(dim=1)
    powers = logits.sub_(largest.unsqueeze(1)).exp_()
    total = powers.sum(dim=1)
    slope = powers.div_(-total.unsqueeze(1))
    slope[rows, ids] += 1.0
    return chosen - largest - total.log()


def _pieces(model: LaneModel, hidden: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = max(1, _LOGIT_BYTES // (4 * model.facts.vocab_size))
    return list(zip(hidden.split(size), ids.split(size), strict=True))
