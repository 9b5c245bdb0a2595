"""Invariants of the lockstep step: what may not matter does not, and what must have a gradient has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core.adapters.adapter import read_peft
from emorl_core.models.registry import load_model
from tests.builders import tiny_adapter, tiny_t5
from training.rl.gradients import GradientStep, Lockstep, StepLoss, Totals, TrainingGroup
from training.rl.logprobs import group_of, reply_logprobs
from training.rl.processes import Processes
from training.rl.settings import RlSettings
from training.rl.stacks import Stacks

EOS = 1
LANES = (1, 2, 3)
Batch = dict[int, list[TrainingGroup]]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    folder = tmp_path_factory.mktemp("lockstep")
    base = tiny_t5(folder / "base")
    model = load_model(base, device=torch.device("cpu"), dtype=torch.float32, training=True)
    adapters = [read_peft(tiny_adapter(base, folder / str(n), 2 * n, 4.0 * n, seed=n), f"o{n}") for n in LANES]
    model.attach(adapters, training=True)
    made = Stacks(model)  # type: ignore[arg-type]
    made.model = model  # type: ignore[attr-defined]
    return made


def batch(*, equal_rewards: bool = False, end: bool = True) -> Batch:
    """Eight prompts, three ragged replies each, per lane."""
    generator = torch.Generator().manual_seed(5)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, 90, (length,), generator=generator).tolist())

    sources = [(*ids(2, 7), EOS) for _ in range(8)]
    made: Batch = {}
    for lane in LANES:
        made[lane] = [
            TrainingGroup(
                source,
                tuple((*ids(1, 6), EOS)[: None if end else -1] for _ in range(3)),
                (0.5, 0.5, 0.5) if equal_rewards else tuple(torch.rand(3, generator=generator).tolist()),
            )
            for source in sources
        ]
    return made


def gradients(
    stacks: Stacks, replies: Batch, *, prompts_per_forward: int | None = None, **settings: Any
) -> dict[int, list[Tensor]]:
    """Copies of every lane's gradients."""
    model = stacks.model  # type: ignore[attr-defined]
    lockstep = Lockstep(
        model, StepLoss.of(RlSettings.model_validate(settings)), prompts_per_forward=prompts_per_forward
    )
    totals = {
        lane: Totals(sum(len(g.replies) for g in groups), sum(len(r) for g in groups for r in g.replies))
        for lane, groups in replies.items()
    }
    stacks.zero_gradients()
    _, broken = lockstep.accumulate(replies, totals)
    assert not broken
    return {lane: [gradient[:, lane - 1].clone() for gradient in stacks.gradients()] for lane in LANES}


def largest(found: list[Tensor]) -> float:
    return max(float(gradient.abs().max()) for gradient in found)


def close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("policy_loss", ["sequence_sum", "sequence_mean", "token_mean"])
def test_accumulation_of_eight_times_one_prompt_equals_one_times_eight(stacks: Stacks, policy_loss: str) -> None:
    whole = gradients(stacks, batch(), policy_loss=policy_loss)
    for size in (1, 3):
        parts = gradients(stacks, batch(), policy_loss=policy_loss, prompts_per_forward=size)
        for lane in LANES:
            assert largest(whole[lane]) > 1e-2
            close(whole[lane], parts[lane])


def test_an_objective_alone_gets_the_gradient_it_gets_beside_the_others(stacks: Stacks) -> None:
    together = gradients(stacks, batch())
    for lane in LANES:
        alone = gradients(stacks, {lane: batch()[lane]})
        close(together[lane], alone[lane])
        for other in set(LANES) - {lane}:
            assert largest(alone[other]) == 0.0


@pytest.mark.parametrize(("kind", "pulls"), [("none", False), ("k3_in_loss", True), ("k1_in_reward", True)])
def test_with_equal_rewards_only_the_kl_has_a_gradient(stacks: Stacks, kind: str, pulls: bool) -> None:
    """The published KL sums to zero; ours must not."""
    found = gradients(stacks, batch(equal_rewards=True), kl={"kind": kind, "coefficient": 0.05})
    for lane in LANES:
        assert (largest(found[lane]) > 1e-3) == pulls


def test_the_end_of_sequence_has_a_gradient_of_its_own(stacks: Stacks) -> None:
    """Replies that are nothing but their end: any gradient is the end's."""
    only_end = {1: [TrainingGroup((5, 6, EOS), ((EOS,), (7, EOS), (EOS,)), (1.0, 0.0, 1.0))]}
    without = {1: [TrainingGroup((5, 6, EOS), ((), (7,), ()), (1.0, 0.0, 1.0))]}
    with_end = gradients(stacks, only_end, kl={"kind": "none"})[1]
    assert largest(with_end) > 1e-2
    left = gradients(stacks, without, kl={"kind": "none"})[1]
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(with_end, left, strict=True))


def test_log_probabilities_have_gradient_at_the_end_and_none_on_padding(stacks: Stacks) -> None:
    model = stacks.model  # type: ignore[attr-defined]
    replies = ((9, 8, 7, EOS), (6, EOS), (5, 4, 3))
    logprobs, mask = reply_logprobs(model, [group_of(model, (5, 6, EOS), 1, replies)])
    assert mask.tolist() == [[True] * 4, [True, True, False, False], [True, True, True, False]]
    assert not logprobs[~mask].any()
    assert (logprobs[mask] < 0).all()
    stacks.zero_gradients()
    logprobs[~mask].sum().backward()
    assert all(not gradient.any() for gradient in stacks.gradients())


def test_padding_changes_nothing(stacks: Stacks) -> None:
    """A ragged batch has the gradient of its rows run alone, where nothing is padded."""
    ragged = batch()[1]
    whole = gradients(stacks, {1: ragged}, kl={"kind": "k3_in_loss", "coefficient": 0.05})[1]
    model = stacks.model  # type: ignore[attr-defined]
    stacks.zero_gradients()
    for group in ragged:
        rewards = torch.tensor(group.rewards)
        advantage = rewards - (rewards.sum() - rewards) / 2
        for reply, own in zip(group.replies, advantage, strict=True):
            logprobs, _ = reply_logprobs(model, [group_of(model, group.source, 1, (reply,))])
            with torch.no_grad():
                base, _ = reply_logprobs(model, [group_of(model, group.source, 0, (reply,))])
            ratio = base - logprobs
            ((-own * logprobs + 0.05 * (ratio.exp() - ratio - 1)).sum() / 24).backward()
    close(whole, [gradient[:, 0].clone() for gradient in stacks.gradients()])


def test_a_wide_vocabulary_in_pieces_equals_the_whole(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients(stacks, batch())
    monkeypatch.setattr("training.rl.logprobs._LOGIT_BYTES", 4 * 400 * 3)  # a few tokens at once
    pieces = gradients(stacks, batch())
    for lane in LANES:
        close(whole[lane], pieces[lane], 1e-6)


def test_infinite_rewards_of_one_objective_leave_the_others_gradients_alone(stacks: Stacks) -> None:
    sound = gradients(stacks, {lane: batch()[lane] for lane in (1, 3)})
    broken = batch()
    first = broken[2][4]
    broken[2][4] = TrainingGroup(first.source, first.replies, (float("inf"), 0.0, 0.0))
    model = stacks.model  # type: ignore[attr-defined]
    step = GradientStep(Lockstep(model, StepLoss.of(RlSettings())), stacks, Processes(device="cpu"), replies=24)

    found = step.compute(broken)

    assert found.faults == {2: "the loss is not finite"}
    assert set(found.norms) == {1, 3}
    for lane in (1, 3):
        close(sound[lane], [gradient[:, lane - 1] for gradient in stacks.gradients()])
    assert all(not gradient[:, 1].any() for gradient in stacks.gradients())


def test_a_gradient_that_is_not_finite_is_traced_to_its_objective(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN times the zeros of the lane mask is NaN: one objective's backward pass can spoil all gradients."""
    sound = gradients(stacks, {lane: batch()[lane] for lane in (1, 3)})
    model = stacks.model  # type: ignore[attr-defined]
    lockstep = Lockstep(model, StepLoss.of(RlSettings()))
    accumulate = lockstep.accumulate

    def spoiling(groups: Any, totals: Any) -> Any:
        found = accumulate(groups, totals)
        if 2 in groups:
            for gradient in stacks.gradients():
                gradient.fill_(float("nan"))
        return found

    monkeypatch.setattr(lockstep, "accumulate", spoiling)
    found = GradientStep(lockstep, stacks, Processes(device="cpu"), replies=24).compute(batch())
    assert found.faults == {2: "the gradient is not finite"}
    for lane in (1, 3):
        close(sound[lane], [gradient[:, lane - 1] for gradient in stacks.gradients()])
