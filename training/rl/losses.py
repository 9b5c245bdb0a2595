"""Advantages, policy loss and KL, as pure functions. Letters: B prompts, k samples, M = B * k replies, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from training.rl.settings import Advantage, Normalisation

_SPREAD_FLOOR = 1e-4  # group standardisation divides by the deviation plus this, as GRPO's published code does


def advantages(rewards: Tensor, kind: Advantage) -> Tensor:
    """rewards [B, k] -> advantages [B, k]; every group sums to zero.

    `mean`: R - mean (k-self-critical training, Laban et al. 2021). `leave_one_out`: R - mean of the k - 1 others
    (RLOO, Kool et al. 2019; Ahmadian et al. 2024) = k / (k - 1) times `mean`. `group_standardised`: `mean` divided by
    the group's deviation (GRPO, Shao et al. 2024).
    """
    k = rewards.shape[1]
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "leave_one_out":
        return centred * (k / (k - 1))
    if kind == "group_standardised":
        return centred / (rewards.std(dim=1, keepdim=True) + _SPREAD_FLOOR)
    return centred


def token_weights(mask: Tensor, normalisation: Normalisation, *, replies: int, tokens: int) -> Tensor:
    """What one token counts in a loss, [M, T]; 0 on padding.

    `replies` and `tokens` are totals of the objective's whole step, of which mask [M, T] may be one part: summed over
    the parts, the loss is the same however the step was cut.
    """
    real = mask.to(torch.float32)
    if normalisation == "token_mean":
        return real / max(tokens, 1)
    if normalisation == "sequence_mean":
        return real / mask.sum(dim=1, keepdim=True).clamp(min=1) / replies
    return real / replies


def policy_loss(logprobs: Tensor, advantage: Tensor, weights: Tensor) -> Tensor:
    """-sum of weight * A * log p: the score-function gradient (Williams 1992) of the expected reward.

    Args:
        logprobs: [M, T] of the trained tokens, with gradient.
        advantage: [M], constant.
        weights: [M, T] from `token_weights`.
    """
    return -(weights * advantage.detach().unsqueeze(1) * logprobs).sum()


def k1(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """[M]: log p - log p_base summed over each reply: an unbiased estimate, in nats, of the KL of whole replies."""
    return ((logprobs - reference) * mask).sum(dim=1)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[M, T]: exp(r) - r - 1 with r = log p_base - log p, never negative (Schulman 2020, Approximating KL)."""
    ratio = reference - logprobs
    return torch.exp(ratio) - ratio - 1.0


def kl_loss(logprobs: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """The k3 estimate added up like the policy loss; its gradient is not zero."""
    return (weights * k3(logprobs, reference.detach())).sum()
