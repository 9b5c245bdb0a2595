"""Advantages, losses, KL, rewards and stop rules: exact values, by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from training.rl import losses
from training.rl.rewards import RunningStatistics, to_rewards
from training.rl.settings import StopSettings
from training.rl.stopping import StopState, ask, is_improvement, reason_to_stop, record

REWARDS = torch.tensor([[0.1, 0.4, 0.7], [0.5, 0.5, 0.5]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_mean_baseline() -> None:
    torch.testing.assert_close(losses.advantages(REWARDS, "mean"), torch.tensor([[-0.3, 0.0, 0.3], [0.0, 0.0, 0.0]]))


def test_leave_one_out_baseline_is_the_mean_of_the_others() -> None:
    expected = torch.tensor([[0.1 - 0.55, 0.4 - 0.4, 0.7 - 0.25], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.advantages(REWARDS, "leave_one_out"), expected)


def test_group_standardised_divides_by_the_deviation_and_survives_equal_rewards() -> None:
    deviation = statistics.stdev([0.1, 0.4, 0.7]) + 1e-4
    expected = torch.tensor([[-0.3 / deviation, 0.0, 0.3 / deviation], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.advantages(REWARDS, "group_standardised"), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sequence_sum", [[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]]),
        ("sequence_mean", [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]),
        ("token_mean", [[1 / 3, 1 / 3, 0.0], [1 / 3, 0.0, 0.0]]),
    ],
)
def test_what_a_token_counts(kind: str, expected: list[list[float]]) -> None:
    found = losses.token_weights(MASK, kind, replies=2, tokens=3)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_policy_loss_is_minus_advantage_times_log_probability() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0]], requires_grad=True)
    weights = losses.token_weights(MASK, "sequence_sum", replies=2, tokens=3)
    loss = losses.policy_loss(logprobs, torch.tensor([0.5, -1.0]), weights)
    assert float(loss.detach()) == pytest.approx(-(0.5 * -3.0 + -1.0 * -3.0) / 2)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.25, -0.25, 0.0], [0.5, 0.0, 0.0]]  # padding has none


def test_the_advantage_carries_no_gradient() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    advantage = (logprobs * 3).squeeze(1)
    losses.policy_loss(logprobs, advantage, torch.ones(1, 1)).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[3.0]]  # -A alone, not the product rule


def test_k3_by_hand_and_never_negative() -> None:
    found = losses.k3(torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -2.0, -0.5]]))
    assert found.tolist() == [pytest.approx([0.0, math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1])]
    assert (losses.k3(torch.randn(100), torch.randn(100)) >= 0).all()


def test_k1_sums_a_reply_and_leaves_padding_out() -> None:
    found = losses.k1(torch.tensor([[-1.0, -2.0, 7.0]]), torch.tensor([[-1.5, -2.5, -7.0]]), MASK[:1])
    assert found.tolist() == [1.0]


def test_k1_and_k3_estimate_the_kl_of_two_distributions() -> None:
    """The mean over samples of the first distribution is its KL to the second, for both estimators."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.softmax(torch.randn(2, 6, generator=generator), dim=1)
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    own, base = p.log()[drawn].unsqueeze(1), q.log()[drawn].unsqueeze(1)
    truth = float((p * (p / q).log()).sum())
    everywhere = torch.ones_like(own, dtype=torch.bool)
    assert float(losses.k1(own, base, everywhere).mean()) == pytest.approx(truth, rel=0.02)
    assert float(losses.k3(own, base).mean()) == pytest.approx(truth, rel=0.02)


def test_the_kl_of_the_loss_pulls_towards_the_base() -> None:
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    losses.kl_loss(logprobs, torch.tensor([[-2.0, -0.5]]), torch.ones(1, 2)).backward()
    assert logprobs.grad is not None
    down, up = logprobs.grad[0].tolist()
    assert down == pytest.approx(1 - math.exp(-1))  # likelier than under the base: its log p falls
    assert up == pytest.approx(1 - math.exp(0.5))


def test_rewards_raw_log_and_standardised() -> None:
    scores = [0.0, 0.5, 1.0]
    assert to_rewards(scores, "raw", RunningStatistics()) == scores
    assert to_rewards(scores, "log", RunningStatistics()) == pytest.approx(
        [math.log(1e-4), math.log(0.5), math.log(0.9999)]
    )
    deviation = statistics.pstdev(scores)
    assert to_rewards(scores, "standardised", RunningStatistics()) == pytest.approx(
        [-0.5 / deviation, 0.0, 0.5 / deviation]
    )


def test_standardised_rewards_remember_earlier_steps_and_do_not_blow_up_noise() -> None:
    running = RunningStatistics()
    to_rewards([0.2, 0.4], "standardised", running)
    everything = [0.2, 0.4, 0.9, 0.9]
    expected = (0.9 - statistics.fmean(everything)) / statistics.pstdev(everything)
    assert to_rewards([0.9, 0.9], "standardised", running) == pytest.approx([expected, expected])
    assert to_rewards([0.5, 0.5 + 1e-6], "standardised", RunningStatistics())[1] < 1e-4


def stopped(settings: StopSettings, validations: list[list[float]]) -> list[bool]:
    state = StopState()
    answers = []
    for step, scores in enumerate(validations, start=1):
        record(state, scores)
        ask(settings, state)
        answers.append(reason_to_stop(settings, state, step, ends_pass=False) is not None)
    return answers


def test_the_papers_rule_needs_a_full_window_after_the_base_and_little_spread() -> None:
    settings = StopSettings(rule="paper", window=3, threshold=0.015)
    base = [0.5]
    assert stopped(settings, [base, [0.5], [0.5], [0.5]]) == [False, False, False, True]
    spread = [[0.5], [0.52], [0.54]]  # population deviation / mean = 0.0314
    assert stopped(settings, [base, *spread]) == [False] * 4
    assert stopped(settings, [base, [0.0], [0.0], [0.0]]) == [False] * 4  # no mean to compare with


def test_patience_counts_only_improvements_beyond_their_standard_error() -> None:
    settings = StopSettings(rule="patience", patience=2)
    flat = [0.5, 0.5, 0.5, 0.5]
    noise = [0.9, 0.2, 0.5, 0.5]  # mean + 0.025, standard error 0.144
    real = [0.6, 0.6, 0.6, 0.7]
    assert stopped(settings, [flat, noise, noise]) == [False, False, True]
    assert stopped(settings, [flat, noise, real, noise, noise]) == [False, False, False, False, True]


def test_small_steady_improvements_add_up_for_patience() -> None:
    """The reference is the last real improvement, not the last validation: a slow climb is not noise."""
    settings = StopSettings(rule="patience", patience=3)
    climb = [[0.5 + 0.01 * i + wobble for wobble in (0.0, 0.03 * (-1) ** i)] for i in range(12)]
    assert not any(stopped(settings, climb))


def test_is_improvement_is_paired_by_prompt() -> None:
    easy_and_hard = [0.1, 0.9, 0.1, 0.9]
    assert is_improvement([0.15, 0.95, 0.16, 0.94], easy_and_hard)
    assert not is_improvement(easy_and_hard, easy_and_hard)


@pytest.mark.parametrize("rule", ["paper", "patience", "steps"])
def test_max_steps_holds_under_every_rule(rule: str) -> None:
    settings = StopSettings(rule=rule, max_steps=3)  # type: ignore[arg-type]
    assert stopped(settings, [[0.1], [0.5], [0.9]]) == [False, False, True]
