"""Gradients of the KL and of the reward on a toy that is small enough to enumerate.

A policy over replies of up to three tokens of {end, a, b}, one free distribution after every prefix, and another one as
its base. Every reply, and every pair of replies that a step could sample, has a known probability, so expected gradients
of the trainer's losses are sums, not estimates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from training.rl import losses
from training.rl.settings import Advantage, Normalisation

LONGEST, END, K = 3, 0, 2


def replies() -> Iterator[tuple[int, ...]]:
    """All of them: up to the first end, or cut by the limit."""
    for ids in itertools.product(range(3), repeat=LONGEST):
        length = ids.index(END) + 1 if END in ids else LONGEST
        if all(token == END for token in ids[length:]):
            yield ids[:length]


REPLIES = tuple(replies())
PREFIXES = tuple(dict.fromkeys(reply[:i] for reply in REPLIES for i in range(len(reply))))
MASK = torch.tensor([[i < len(reply) for i in range(LONGEST)] for reply in REPLIES])
SCORES = torch.randn(len(REPLIES), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def parameters(seed: int) -> Tensor:
    """[prefixes, 3] logits."""
    return torch.randn(len(PREFIXES), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logprobs(logits: Tensor) -> Tensor:
    """[replies, LONGEST], 0 on padding."""
    table = torch.log_softmax(logits, dim=1)
    rows = [[table[PREFIXES.index(reply[:i]), reply[i]] for i in range(len(reply))] for reply in REPLIES]
    return torch.stack([torch.stack([*row, *[table.new_zeros(())] * (LONGEST - len(row))]) for row in rows])


POLICY = parameters(107).requires_grad_(True)
with torch.no_grad():
    BASE = logprobs(parameters(207))


def gradient(loss: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, POLICY)
    return found.flatten()


def exact_kl() -> Tensor:
    """The gradient of sum p log(p / base) over whole replies."""
    whole = logprobs(POLICY).sum(1)
    return gradient((whole.exp() * (whole - BASE.sum(1))).sum())


def exact_reward() -> Tensor:
    return gradient((logprobs(POLICY).sum(1).exp() * SCORES).sum())


def expected(loss_of: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]) -> Tensor:
    """The mean gradient of a step's loss over everything that it could sample: K replies to one prompt, independently.

    loss_of: (log-probabilities [K, T] with gradient, the base's, mask, the replies' places) -> the loss.
    """
    with torch.no_grad():
        chances = logprobs(POLICY).sum(1).exp()
    assert float(chances.sum()) == pytest.approx(1.0)
    total = torch.zeros_like(POLICY).flatten()
    for places in itertools.product(range(len(REPLIES)), repeat=K):
        drawn = list(places)
        total += chances[drawn].prod() * gradient(loss_of(logprobs(POLICY)[drawn], BASE[drawn], MASK[drawn], drawn))
    return total


def weights_of(mask: Tensor, kind: Normalisation = "sequence_sum") -> Tensor:
    return losses.token_weights(mask, kind, replies=K, tokens=int(mask.sum())).double()


def in_reward(advantage: Advantage) -> Tensor:
    """`k1_in_reward` with equal rewards, as `training/rl/gradients.py` puts it together."""

    def loss(own: Tensor, base: Tensor, mask: Tensor, drawn: list[int]) -> Tensor:
        rewards = -losses.k1(own.detach(), base, mask).view(1, K)
        return losses.policy_loss(own, losses.advantages(rewards, advantage).flatten(), weights_of(mask))

    return expected(loss)


def rewarded(advantage: Advantage, normalisation: Normalisation) -> Tensor:
    def loss(own: Tensor, base: Tensor, mask: Tensor, drawn: list[int]) -> Tensor:
        found = losses.advantages(SCORES[drawn].view(1, K), advantage).flatten()
        return losses.policy_loss(own, found, weights_of(mask, normalisation))

    return -expected(loss)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_the_toy_has_every_reply_once() -> None:
    assert len(REPLIES) == len(set(REPLIES)) == 1 + 2 + 4 * 3
    assert len(PREFIXES) == 1 + 2 + 4


def test_k1_in_the_reward_has_the_gradient_of_the_kl_exactly() -> None:
    torch.testing.assert_close(in_reward("leave_one_out"), exact_kl(), rtol=0, atol=1e-12)
    torch.testing.assert_close(in_reward("mean"), exact_kl() * (K - 1) / K, rtol=0, atol=1e-12)


def test_k3_in_the_loss_has_the_kl_as_its_value_and_another_gradient() -> None:
    with torch.no_grad():
        chances = logprobs(POLICY).sum(1).exp()
        value = (chances.unsqueeze(1) * losses.k3(logprobs(POLICY), BASE) * MASK).sum()
        kl = (chances * (logprobs(POLICY) - BASE).sum(1)).sum()
    assert float(value) == pytest.approx(float(kl))

    found = expected(lambda own, base, mask, drawn: losses.kl_loss(own, base, weights_of(mask)))
    assert 0 < cosine(found, exact_kl()) < 0.9
    torch.testing.assert_close(found, other_way_round(), rtol=0, atol=1e-12)


def other_way_round() -> Tensor:
    """The gradient of KL(base, policy) of every token, at prefixes as likely as they are: what `kl_loss` says it is."""
    with torch.no_grad():
        whole = logprobs(POLICY)
        reached = {
            prefix: sum(
                (whole[i].sum().exp() for i, reply in enumerate(REPLIES) if reply[: len(prefix)] == prefix),
                start=torch.zeros((), dtype=torch.float64),
            )
            for prefix in PREFIXES
        }
    table, base = torch.log_softmax(POLICY, dim=1), torch.log_softmax(parameters(207), dim=1)
    return gradient(
        torch.stack(
            [reached[prefix] * (base[i].exp() * (base[i] - table[i])).sum() for i, prefix in enumerate(PREFIXES)]
        ).sum()
    )


def test_k1_in_a_loss_would_pull_nowhere() -> None:
    found = expected(lambda own, base, mask, drawn: losses.k1(own, base, mask).mean())
    assert float(found.abs().max()) < 1e-12


def test_whole_replies_and_the_mean_of_the_others_give_the_gradient_of_the_expected_reward() -> None:
    torch.testing.assert_close(rewarded("leave_one_out", "sequence_sum"), exact_reward(), rtol=0, atol=1e-12)
    assert cosine(rewarded("mean", "sequence_sum"), exact_reward()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("advantage", "normalisation"),
    [
        ("leave_one_out", "sequence_mean"),
        ("leave_one_out", "token_mean"),
        ("group_standardised", "sequence_sum"),
    ],
)
def test_the_other_normalisations_are_biased(advantage: Advantage, normalisation: Normalisation) -> None:
    """Not only another length: another direction."""
    assert cosine(rewarded(advantage, normalisation), exact_reward()) < 0.999
