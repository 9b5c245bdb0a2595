"""Where the weights meet: lanes' last hidden states -> one state per row, and the exact attribution of a token.

Letters: B rows, N lanes of a row (rows with fewer lanes are padded, weight 0), D hidden, V vocabulary. Rows come first
because each row gathers its own lanes, so that a NaN in one row's lane never reaches another row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix_hidden(hidden: Tensor, weights: Tensor) -> Tensor:
    """h = sum_i w_i h_i (EMORL; the head being linear, equal to mixing raw logits as in MOD, Shi et al. 2024).

    Args:
        hidden: [B, N, D], any float dtype.
        weights: [B, N] float32.

    Returns:
        [B, D] float32. A lane with weight 0 contributes exactly nothing, whatever its hidden state holds.
    """
    return (weights.unsqueeze(-1) * silenced(hidden, weights)).sum(dim=1)


def mix_probs(logits: Tensor, weights: Tensor) -> Tensor:
    """log sum_i w_i p_i with p_i = softmax(logits_i), for comparison with hidden-state mixing.

    Args:
        logits: [B, N, V] float32.
        weights: [B, N] float32, not negative.

    Returns:
        [B, V] float32 log-probabilities (shifted by the log of the weights' sum).
    """
    return torch.logsumexp(torch.log_softmax(silenced(logits, weights), dim=-1) + weights.log().unsqueeze(-1), dim=1)


def attribute(hidden: Tensor, weights: Tensor, direction: Tensor) -> Tensor:
    """Split a logit margin over the lanes: part_i = w_i (z_i[chosen] - z_i[runner-up]).

    Args:
        hidden: [B, N, D].
        weights: [B, N] float32.
        direction: [B, D] float32, the head's row of the chosen token minus that of the runner-up.

    Returns:
        [B, N] float32; each row sums to the margin of the mixed logits.
    """
    return weights * torch.einsum("bnd,bd->bn", silenced(hidden, weights), direction)


def silenced(values: Tensor, weights: Tensor) -> Tensor:
    """float32 copy with every lane of weight 0 set to 0, since 0 * NaN would still be NaN."""
    return values.float().masked_fill((weights == 0).unsqueeze(-1), 0.0)
