"""Advantages, policy loss and KL, as pure functions. Letters: B prompts, k samples, M = B * k replies, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from training.rl.settings import Advantage, Normalisation

_SPREAD_FLOOR = 1e-4  # group standardisation divides by the deviation plus this, as GRPO's published code does


def advantages(rewards: Tensor, kind: Advantage) -> Tensor:
    """rewards [B, k] -> advantages [B, k]; every group sums to zero.

    `leave_one_out`: R - mean of the k - 1 others (RLOO, Kool et al. 2019; Ahmadian et al. 2024). The others do not
    depend on the reply, so the policy gradient is that of the expected reward, unbiased. `mean`: R - mean (k-self-
    critical training, Laban et al. 2021) = (k - 1) / k times `leave_one_out`: the same direction. `group_standardised`:
    `mean` divided by the group's deviation (GRPO, Shao et al. 2024), which also depends on the reply: biased, and
    prompts whose replies differ less count more.
    """
    k = rewards.shape[1]
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "leave_one_out":
        return centred * (k / (k - 1))
    if kind == "group_standardised":
        return centred / (rewards.std(dim=1, keepdim=True) + _SPREAD_FLOOR)
    return centred


def token_weights(mask: Tensor, normalisation: Normalisation, *, replies: int, tokens: int) -> Tensor:
    """The weight of each token in a loss, [M, T]; 0 on padding.

    `sequence_sum` keeps the log-probability of a whole reply, so that the policy loss has the gradient of the expected
    reward. `sequence_mean` divides it by the reply's length and `token_mean` by the number of tokens in the step. The
    policy chooses those lengths, so both have another gradient (Liu et al. 2025, arXiv 2503.20783): with
    `sequence_mean` tokens of long replies count less, with `token_mean` all tokens of a step with long replies do.

    `replies` and `tokens` are totals of the objective's step, of which mask [M, T] may be a part: summed over the
    parts, the loss does not depend on how the step was split.
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
    """[M]: log p - log p_base summed over each reply: an unbiased estimate, in nats, of the KL of whole replies.

    Subtracted from the reward (`k1_in_reward`), it gives the gradient of the KL, E[k1 grad log p] (the rest, E[grad
    k1], is 0), exactly so under `sequence_sum` and `leave_one_out`. As a term of a loss its gradient would be 0 in
    expectation.
    """
    return ((logprobs - reference) * mask).sum(dim=1)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[M, T]: exp(r) - r - 1 with r = log p_base - log p, never negative (Schulman 2020, Approximating KL). Its
    expected value is the KL of each token, with less noise than `k1`; see `kl_loss` for its gradient."""
    ratio = reference - logprobs
    return torch.exp(ratio) - ratio - 1.0


def kl_loss(logprobs: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """The k3 estimate, summed like the policy loss.

    Its expected gradient is not that of the KL of whole replies: at each token it is the gradient of the reverse,
    KL(base, policy), and it ignores a token's effect on the KL of later tokens (`tests/learn/test_kl_toy.py` enumerates
    a toy where the two differ)."""
    return (weights * k3(logprobs, reference.detach())).sum()
