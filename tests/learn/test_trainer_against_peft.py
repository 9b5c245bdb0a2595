"""The judge is three separate Hugging Face + PEFT models, each trained alone on the same samples, in float32."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import T5ForConditionalGeneration

from emorl_core.adapters.adapter import read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.models.registry import load_model
from tests.builders import outdated_peft, tiny_adapter, tiny_t5
from tests.learn.trainer_tasks import tiny_recipe, tiny_trainer
from training.rl.gradients import Lockstep, StepLoss, Totals, TrainingGroup
from training.rl.settings import RlSettings
from training.rl.stacks import Stacks

EOS = 1
RANKS = (2, 4, 8)
K = 3
SOURCES = ((5, 9, 14, 3, EOS), (11, 6, 3, EOS), (22, 31, 8, 40, 17, 3, EOS), (9, 3, EOS))
COEFFICIENT = 0.05  # the default


def samples(lane: int) -> list[TrainingGroup]:
    """Ragged replies, most with their end of sequence, some cut by the limit, one that is nothing but the end."""
    generator = torch.Generator().manual_seed(lane)
    groups = []
    for source in SOURCES:
        replies = []
        for number in range(K):
            length = int(torch.randint(1, 7, (1,), generator=generator))
            ids = torch.randint(3, 90, (length,), generator=generator).tolist()
            replies.append((*ids, EOS) if number else (*ids, 7))
        rewards = torch.rand(K, generator=generator).tolist()
        groups.append(TrainingGroup(source, tuple(replies), tuple(rewards)))
    groups[1] = TrainingGroup(SOURCES[1], ((EOS,), (5, 6, EOS), (8,)), (0.1, 0.9, 0.4))
    return groups


def peft_gradients(base: Path, adapter: Path, groups: list[TrainingGroup], kl: str) -> dict[str, Tensor]:
    """One model, one adapter, plain padded batch: the loss as method.md states it, written out again."""
    hf = T5ForConditionalGeneration.from_pretrained(base)
    with outdated_peft():
        model = PeftModel.from_pretrained(hf, adapter, is_trainable=True)
    model.train(False)  # no dropout
    rows = [(group.source, reply) for group in groups for reply in group.replies]
    longest = max(len(source) for source, _ in rows)
    ids = torch.tensor([[*source, *[0] * (longest - len(source))] for source, _ in rows])
    attention = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source, _ in rows])
    size = max(len(reply) for _, reply in rows)
    targets = torch.tensor([[*reply, *[0] * (size - len(reply))] for _, reply in rows])
    mask = torch.tensor([[1.0] * len(reply) + [0.0] * (size - len(reply)) for _, reply in rows])
    inputs = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), targets[:, :-1]], dim=1)

    def logprobs() -> Tensor:
        logits = model(input_ids=ids, attention_mask=attention, decoder_input_ids=inputs).logits
        return torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2)

    own = logprobs()
    with torch.no_grad(), model.disable_adapter():
        base_logprobs = logprobs()
    rewards = torch.tensor([group.rewards for group in groups])
    if kl == "k1_in_reward":
        rewards = rewards - COEFFICIENT * ((own.detach() - base_logprobs) * mask).sum(1).view_as(rewards)
    others = (rewards.sum(1, keepdim=True) - rewards) / (K - 1)
    advantage = (rewards - others).flatten()
    loss = -(advantage * (own * mask).sum(1)).mean()
    if kl == "k3_in_loss":
        ratio = base_logprobs - own
        loss = loss + COEFFICIENT * ((ratio.exp() - ratio - 1) * mask).sum(1).mean()
    loss.backward()
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def close(own: Tensor, judged: Tensor) -> None:
    """To 1e-5, or 1e-5 of the factor's largest entry where that is above 1: float32 sums of large terms that cancel
    leave their rounding in the small ones."""
    torch.testing.assert_close(own, judged, rtol=0.0, atol=1e-5 * max(1.0, float(judged.abs().max())))


def compare(stacks: Stacks, lane: int, judged: dict[str, Tensor]) -> None:
    """Every module's two factors, and that whatever pads the rank has no gradient."""
    for names, layer in stacks.layers:
        assert layer.lora_a is not None
        assert layer.lora_b is not None
        for p, module in enumerate(names):
            a, b = judged.pop(f"{module}.lora_A.weight"), judged.pop(f"{module}.lora_B.weight")
            rank = a.shape[0]
            assert layer.lora_a.grad is not None
            assert layer.lora_b.grad is not None
            own_a, own_b = layer.lora_a.grad[p, lane - 1], layer.lora_b.grad[p, lane - 1]
            close(own_a[:rank], a)
            close(own_b[:rank], b.t())
            assert not own_a[rank:].any()
            assert not own_b[rank:].any()
    assert not judged, "the judge trains something that the lanes do not"


@pytest.mark.parametrize("gated", [False, True], ids=["t5", "t5-gated"])
@pytest.mark.parametrize("kl", ["none", "k3_in_loss", "k1_in_reward"])
def test_gradients_equal_those_of_three_separate_peft_models(tmp_path: Path, kl: str, gated: bool) -> None:
    base = tiny_t5(tmp_path / "base", gated=gated)
    folders = [tiny_adapter(base, tmp_path / str(rank), rank, 2.0 * rank, seed=rank) for rank in RANKS]
    model = load_model(base, device=torch.device("cpu"), dtype=torch.float32, training=True)
    model.attach([read_peft(folder, folder.name) for folder in folders], training=True)
    stacks = Stacks(model)  # type: ignore[arg-type]
    settings = RlSettings.model_validate({"kl": {"kind": kl, "coefficient": COEFFICIENT}})
    batch = {lane: samples(lane) for lane in (1, 2, 3)}
    totals = {lane: Totals(len(SOURCES) * K, 0) for lane in batch}

    _, broken = Lockstep(model, StepLoss.of(settings)).accumulate(batch, totals)  # type: ignore[arg-type]

    assert not broken
    for lane, folder in enumerate(folders, start=1):
        judged = peft_gradients(base, folder, batch[lane], kl)
        assert max(float(gradient.abs().max()) for gradient in judged.values()) > 1e-2
        compare(stacks, lane, judged)


def test_gradients_of_a_running_trainer_equal_those_of_peft_on_its_samples(tmp_path: Path) -> None:
    """The whole step: what was sampled, scored and masked is what the judge gets, with the adapters as they then are."""
    recipe = tiny_recipe(
        rl={"reward": "raw", "kl": {"kind": "k3_in_loss", "coefficient": COEFFICIENT}, "max_grad_norm": 1e9},
        lora={"rank": 4, "alpha": 8, "dropout": 0.0},
    )
    trainer = tiny_trainer(tmp_path, recipe)
    trainer.start()
    steps = trainer.steps()
    for _ in range(3):
        next(steps)
    before = [trainer.stacks.adapter(o.lane, o.name, o.fresh) for o in trainer.objectives]

    next(steps)

    assert trainer.batch is not None
    for objective, adapter in zip(trainer.objectives, before, strict=True):
        write_peft(adapter, tmp_path / adapter.name)
        judged = peft_gradients(
            tmp_path / "base", tmp_path / adapter.name, trainer.batch.groups[objective.lane], "k3_in_loss"
        )
        assert max(float(gradient.abs().max()) for gradient in judged.values()) > 1e-3
        compare(trainer.stacks, objective.lane, judged)


def test_a_fresh_adapter_is_drawn_as_peft_draws_it(tmp_path: Path) -> None:
    """Same distribution for A (uniform within 1 / sqrt(in)), B zero, same modules."""
    base = tiny_t5(tmp_path / "base")
    trainer = tiny_trainer(tmp_path)
    fresh = trainer.objectives[0].fresh
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = get_peft_model(
            T5ForConditionalGeneration.from_pretrained(base),
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"),
        )
    judged = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): parameter
        for name, parameter in judge.named_parameters()
        if "lora_A" in name
    }
    assert set(judged) == set(fresh.modules)
    for module, pair in fresh.modules.items():
        bound = pair.a.shape[1] ** -0.5
        assert judged[module].abs().max() <= bound
        assert 0.8 * bound < pair.a.abs().max() <= bound
        assert abs(float(pair.a.std()) / (bound / 3**0.5) - 1) < 0.25
        assert not pair.b.any()
        assert pair.scale == 2.0
