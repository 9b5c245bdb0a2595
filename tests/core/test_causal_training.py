"""Gradients of decoder-only lanes against PEFT models on the same samples, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emorl_core.models.causal.model import CausalModel
from emorl_core.models.family import Group
from tests.core.causal_reference import SeparateModels, named_lanes
from tests.core.test_causal_golden import adapters_of, loaded
from tests.supported_models import BY_NAME, tiny_causal, tiny_causal_adapter

LONG, SHORT, ONE = (5, 9, 33, 60, 71, 8, 14, 52, 90, 7), (40, 66, 3, 12), (17,)
REPLIES = {LONG: ((22, 41, 9, 77, 1), (8, 1)), SHORT: ((50,), (7, 7, 30)), ONE: ((3, 61, 20, 1), (90, 2))}


def groups_of(model: CausalModel, prompts: tuple[tuple[int, ...], ...] = (LONG, SHORT, ONE)) -> list[Group]:
    """Every lane's replies to every prompt."""
    return [Group(lane, REPLIES[prompt]) for prompt in prompts for lane in named_lanes(model, prompt)]


def direction(reply: tuple[int, ...], size: int) -> Tensor:
    """What a reply's hidden states [T, D] are multiplied with to make a loss."""
    generator = torch.Generator().manual_seed(sum(reply))
    return torch.randn(len(reply), size, generator=generator)


def ours(model: CausalModel, groups: list[Group]) -> float:
    hidden, mask = model.reply_hidden(groups)
    rows = [reply for group in groups for reply in group.replies]
    losses = [(hidden[i, : len(reply)] * direction(reply, hidden.shape[2])).sum() for i, reply in enumerate(rows)]
    assert mask.sum(1).tolist() == [len(reply) for reply in rows]
    loss = torch.stack(losses).sum()
    loss.backward()
    return float(loss.detach())


def theirs(judge: SeparateModels, groups: list[Group]) -> float:
    total = 0.0
    for group in groups:
        prompt, point = group.lane.prompt_ids, group.lane.coefficients
        number = point.index(1.0) + 1 if any(point) else 0
        for reply in group.replies:
            ids = torch.tensor([[*prompt, *reply[:-1]]])
            hidden = judge.hidden_of(number, ids, len(prompt))[0, len(prompt) - 1 :]
            loss = (hidden * direction(reply, hidden.shape[-1])).sum()
            total += float(loss.detach())
            if loss.requires_grad:
                loss.backward()
    return total


def assert_same_gradients(model: CausalModel, judge: SeparateModels) -> None:
    compared = 0
    for (name,), layer in model.linears():
        for lane, peft_model in enumerate(judge.models[1:], start=1):
            module: Any = dict(peft_model.named_modules()).get(f"base_model.model.{name}")
            if not hasattr(module, "lora_A"):
                continue
            assert layer.lora_a is not None
            assert layer.lora_b is not None
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            rank = a.shape[0]
            pairs = [
                (layer.lora_a.grad[0, lane - 1, :rank], a.grad),
                (layer.lora_b.grad[0, lane - 1, :rank].t(), b.grad),
            ]
            for found, wanted in pairs:
                wanted = torch.zeros_like(found) if wanted is None else wanted
                torch.testing.assert_close(found, wanted, atol=2e-4 * max(1.0, float(wanted.abs().max())), rtol=1e-3)
                compared += 1
    assert compared > 8


def trained_peft(judge: SeparateModels) -> None:
    for model in judge.models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_oss"])
def test_against_peft_gradients_of_replies_are_theirs(name: str, tmp_path: Path) -> None:
    """Ragged prompts and replies, three adapters and the base in one pass; gradients also go through the prompt."""
    base = tiny_causal(tmp_path / "base", name)
    adapters = adapters_of(BY_NAME[name], base, tmp_path)
    judge = SeparateModels(base, adapters)
    trained_peft(judge)
    model = loaded(base, adapters, training=True)
    groups = groups_of(model)
    assert ours(model, groups) == pytest.approx(theirs(judge, groups), rel=1e-4, abs=1e-2)
    assert_same_gradients(model, judge)


def test_against_peft_gradients_of_adapters_that_act_on_the_reply(tmp_path: Path) -> None:
    """Activated adapters: prompts run once for all lanes, without gradients, and the gradients are still PEFT's."""
    base = tiny_causal(tmp_path / "base", "llama")
    adapters = [
        tiny_causal_adapter(base, tmp_path / "one", 4, 1, "all-linear", alora_invocation_tokens=[52, 90]),
        tiny_causal_adapter(
            base, tmp_path / "two", 2, 2, ("q_proj", "v_proj", "up_proj"), alora_invocation_tokens=[3, 12]
        ),
    ]
    judge = SeparateModels(base, adapters)
    trained_peft(judge)
    model = loaded(base, adapters, training=True)
    groups = groups_of(model)
    calls: list[tuple[tuple[int, int], bool]] = []
    hook = model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((tuple(kwargs["input_ids"].shape), torch.is_grad_enabled())),
        with_kwargs=True,
    )
    loss = ours(model, groups)
    hook.remove()
    assert loss == pytest.approx(theirs(judge, groups), rel=1e-4, abs=1e-2)
    assert_same_gradients(model, judge)
    assert [graded for _, graded in calls] == [False, True]
    assert calls[0][0][0] == 3  # each prompt once: bare lanes read it up to where an adapter begins, as that one does


def test_dropout_is_the_adapters_alone(tmp_path: Path) -> None:
    """GPT-2 drops out a tenth of everything when it trains; the base here runs as it serves."""
    base = tiny_causal(tmp_path / "base", "gpt2")
    model = loaded(base, adapters_of(BY_NAME["gpt2"], base, tmp_path), training=True)
    groups = groups_of(model)
    with torch.no_grad():
        still, _ = model.reply_hidden(groups)
        model.train()
        torch.testing.assert_close(model.reply_hidden(groups)[0], still)
        for _, layer in model.linears():
            layer.dropout = 0.5
        assert not torch.allclose(model.reply_hidden(groups)[0], still)
        model.train(False)
        torch.testing.assert_close(model.reply_hidden(groups)[0], still)
    assert not any(module.training for module in model.decoder.modules() if isinstance(module, nn.Dropout))
