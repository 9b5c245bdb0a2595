"""Decoder-only bases in the trainer: gradients against PEFT, prompts read once, replies in rows of like length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from emorl_core.adapters.writer import write_peft
from tests.core.causal_reference import SeparateModels
from tests.core.test_causal_training import trained_peft
from tests.learn.causal_tasks import END, START, causal_recipe, tiny_chat_base
from tests.learn.test_trainer_against_peft import compare
from tests.learn.trainer_tasks import NAMES, tiny_task, tiny_trainer
from training.config import RecipeError
from training.rl.gradients import GradientStep, Lockstep, StepLoss, TrainingGroup
from training.rl.processes import Processes
from training.rl.trainer import Trainer

COEFFICIENT = 0.05
TEMPLATE = "{prompt}\nReply:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("causal")
    tiny_chat_base(made / "base")
    return made


def lora(act_on: str, dropout: float = 0.0) -> dict[str, Any]:
    return {"rank": 4, "alpha": 8, "dropout": dropout, "act_on": act_on}


def stepped(folder: Path, run: str, steps: int, **values: Any) -> Trainer:
    trainer = tiny_trainer(folder, causal_recipe(**values), run=run)
    trainer.start()
    for _ in islice(trainer.steps(), steps):
        pass
    return trainer


def peft_gradients(base: Path, adapter: Path, groups: list[TrainingGroup]) -> dict[str, Tensor]:
    """One objective's gradients by PEFT: every reply a sequence of its own, whole, nothing shared."""
    judge = SeparateModels(base, [adapter])
    trained_peft(judge)
    head = judge.models[0].get_output_embeddings()

    def logprobs(lane: int, source: tuple[int, ...], reply: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*source, *reply[:-1]]])
        hidden = judge.hidden_of(lane, ids, len(source))[0, len(source) - 1 :]
        return torch.log_softmax(head(hidden), dim=-1).gather(1, torch.tensor(reply).unsqueeze(1)).squeeze(1)

    count = sum(len(group.replies) for group in groups)
    for group in groups:
        rewards = torch.tensor(group.rewards)
        advantage = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
        for reply, own in zip(group.replies, advantage, strict=True):
            found = logprobs(1, group.source, reply)
            with torch.no_grad():
                bare = logprobs(0, group.source, reply)
            ratio = bare - found
            ((-own * found + COEFFICIENT * (ratio.exp() - ratio - 1)).sum() / count).backward()
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in judge.models[1].named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("act_on", "wording"),
    [("all", {}), ("reply", {}), ("all", {"prompt_template": TEMPLATE}), ("reply", {"prompt_template": TEMPLATE})],
)
def test_against_peft_gradients_of_a_running_trainer(
    folder: Path, tmp_path: Path, act_on: str, wording: dict[str, Any]
) -> None:
    """What was sampled, scored and masked is what the judge gets, with the adapters as they then are; the end of the
    turn is trained on."""
    rl = {"reward": "raw", "kl": {"kind": "k3_in_loss", "coefficient": COEFFICIENT}, "max_grad_norm": 1e9}
    trainer = stepped(folder, f"peft-{act_on}-{len(wording)}", 2, lora=lora(act_on), rl=rl, **wording)
    before = [trainer.stacks.adapter(o.lane, o.name, o.fresh) for o in trainer.objectives]
    next(trainer.steps())
    assert trainer.batch is not None
    (end,) = trainer.task.model.facts.eos_token_ids
    every = [reply for own in trainer.batch.groups.values() for group in own for reply in group.replies]
    assert any(reply[-1] == end for reply in every), "or nothing is proved of the end"
    for objective, adapter in zip(trainer.objectives, before, strict=True):
        write_peft(adapter, tmp_path / adapter.name, task="CAUSAL_LM")
        groups = trainer.batch.groups[objective.lane]
        judged = peft_gradients(folder / "base", tmp_path / adapter.name, groups)
        assert max(float(gradient.abs().max()) for gradient in judged.values()) > 1e-3
        compare(trainer.stacks, objective.lane, judged)


@contextmanager
def counted(trainer: Trainer) -> Iterator[list[tuple[int, bool]]]:
    """Tokens of every pass through the decoder, and whether gradients were on."""
    passes: list[tuple[int, bool]] = []
    model: Any = trainer.task.model
    hook = model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append((kwargs["input_ids"].numel(), torch.is_grad_enabled())),
        with_kwargs=True,
    )
    yield passes
    hook.remove()


def learning(trainer: Trainer) -> tuple[GradientStep, dict[int, list[TrainingGroup]]]:
    assert trainer.batch is not None
    return trainer._gradients, trainer.batch.groups


@pytest.mark.parametrize("per_forward", [None, 1])
def test_adapters_of_the_reply_leave_one_reading_of_each_prompt(folder: Path, per_forward: int | None) -> None:
    """Without gradients, once a step for all lanes, all samples, the base's log-probabilities and all micro-batches."""
    compute = {"device": "cpu", "prompts_per_forward": per_forward}
    trainer = stepped(folder, f"once-{per_forward}", 1, lora=lora("reply"), compute=compute)
    gradients, batch = learning(trainer)
    header = trainer.task.invocation
    assert header is not None
    with counted(trainer) as passes:
        gradients.compute(batch)
    groups = [group for own in batch.values() for group in own]
    prompts = {group.source[: -len(header)] for group in groups}
    fed = [len(header) + sum(max(0, len(reply) - 1) for reply in group.replies) for group in groups]
    parts = 1 if per_forward is None else len(groups) // len(batch)
    reading = sorted(tokens for tokens, graded in passes if not graded)
    if per_forward is None:  # all in one row each, padded to the longest
        assert reading == sorted([len(prompts) * max(map(len, prompts)), len(groups) * max(fed)])
    assert len([tokens for tokens, graded in passes if graded]) == parts
    read = sum(tokens for tokens, graded in passes if not graded) - sum(tokens for tokens, graded in passes if graded)
    assert sum(map(len, prompts)) <= read <= len(prompts) * max(map(len, prompts))

    plain = stepped(folder, f"each-{per_forward}", 1, lora=lora("all"), compute=compute)
    with counted(plain) as passes:
        gradients, batch = learning(plain)
        gradients.compute(batch)
    assert len([tokens for tokens, graded in passes if graded]) == 2 * parts  # each lane reads its prompts, with them


def test_a_rollout_reads_each_prompt_once_too(folder: Path) -> None:
    trainer = stepped(folder, "rollout", 0, lora=lora("reply"))
    header = trainer.task.invocation
    assert header is not None
    read: list[tuple[Any, ...]] = []  # for each token that is computed, the labels up to it
    model: Any = trainer.task.model
    prefill = model.prefill

    def counting(pieces: Any) -> Any:
        read.extend(each.passage.labels[: i + 1] for each in pieces for i in range(each.start, each.stop))
        return prefill(pieces)

    model.prefill = counting
    next(trainer.steps())
    assert trainer.batch is not None
    assert len(read) == len(set(read)), "what prompts and lanes begin with is computed once"
    shared = {prompt.source[: len(prompt.source) - len(header)] for prompt in trainer.batch.prompts}
    untouched = {labels for labels in read if not any(labels[-1][1])}
    assert {tuple(token for token, _ in labels) for labels in untouched} >= shared


def gradients_of(trainer: Trainer, **options: Any) -> list[Tensor]:
    """Of one batch, by a `Lockstep` with other options."""
    gradients, batch = learning(trainer)
    gradients._lockstep = Lockstep(trainer.task.model, StepLoss.of(trainer.settings), **options)
    found = gradients.compute(batch)
    assert not found.faults
    return [gradient.clone() for gradient in trainer.stacks.gradients()]


@pytest.mark.parametrize("act_on", ["all", "reply"])
def test_micro_batches_of_like_length_add_up_to_the_whole(
    folder: Path, act_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stepped(folder, f"parts-{act_on}", 1, lora=lora(act_on))
    whole = gradients_of(trainer)
    lengths: list[list[int]] = []
    accumulate = Lockstep._forward_backward

    def noting(self: Lockstep, part: Any, totals: Any) -> Any:
        lengths.append([group.tokens for _, group in part])
        return accumulate(self, part, totals)

    monkeypatch.setattr(Lockstep, "_forward_backward", noting)
    monkeypatch.setattr("training.rl.gradients.SORTED_TOKENS", 60)
    parts = gradients_of(trainer)
    flat = [tokens for part in lengths for tokens in part]
    assert len(lengths) > 3
    assert flat == sorted(flat, reverse=True)
    assert all(len(part) * part[0] <= 60 or len(part) == 1 for part in lengths)
    singly = gradients_of(trainer, prompts_per_forward=1)
    for one, two, three in zip(whole, parts, singly, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-5)


def test_an_objective_alone_gets_the_gradient_it_gets_beside_the_others(folder: Path) -> None:
    trainer = stepped(folder, "alone", 1, lora=lora("reply"))
    together = gradients_of(trainer)
    gradients, batch = learning(trainer)
    for lane in (1, 2, 3):
        gradients.compute({lane: batch[lane]})
        for one, own in zip(together, trainer.stacks.gradients(), strict=True):
            torch.testing.assert_close(own[:, lane - 1], one[:, lane - 1], rtol=1e-4, atol=1e-5)


def test_bfloat16_gradients_point_where_those_of_float32_do(folder: Path) -> None:
    trainer = stepped(folder, "bf16", 1, lora=lora("reply"))
    assert trainer.batch is not None
    for own in trainer.batch.groups.values():
        own[:] = [TrainingGroup(group.source, group.replies, (1.0, 0.0, 0.3)) for group in own]
    full = gradients_of(trainer)
    mixed = gradients_of(trainer, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    for lane in range(3):
        one, two = (torch.cat([g[:, lane].flatten() for g in found]) for found in (full, mixed))
        assert not torch.equal(one, two)
        assert float(torch.cosine_similarity(one, two, dim=0)) > 0.98


@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_few_tokens_have_logits_in_float32_in_mixed_precision_too(folder: Path, tokens: int) -> None:
    """A step of a few short replies ended a training: their logits came in bfloat16."""
    model = stepped(folder, f"few-{tokens}", 1).task.model
    hidden = torch.randn(tokens, model.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.head(hidden)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, model.head(hidden), atol=0.05, rtol=0.05)


def test_a_run_in_mixed_precision(folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision a program
    recipe = causal_recipe(lora=lora("reply"), compute={"device": "cpu", "precision": "bf16"})
    trainer = Trainer(tiny_task(folder, recipe), Processes(device="cpu", precision="bf16"), folder / "mixed")
    assert [objective.status for objective in trainer.run()] == ["finished"] * 3
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("act_on", ["all", "reply"])
def test_every_objective_learns_what_its_scorer_rewards(folder: Path, act_on: str) -> None:
    rl = {"stop": {"rule": "steps", "max_steps": 24}, "validate_every": 24, "learning_rate": 2e-2, "max_new_tokens": 12}
    trainer = tiny_trainer(folder, causal_recipe(lora=lora(act_on), rl=rl), run=f"learns-{act_on}")
    trainer.start()
    steps = list(trainer.steps())
    for name in NAMES:
        first, last = (sum(s["objectives"][name]["score"] for s in part) / 4 for part in (steps[:4], steps[-4:]))
        assert last > first + 0.15, name


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_presets(folder: Path, preset: str) -> None:
    rl = {"stop": {"rule": "steps", "max_steps": 2, "check": "validation"}}
    trainer = stepped(folder, preset, 2, preset=preset, rl=rl, lora=lora("all", 0.1))
    assert trainer.batch is not None
    (end,) = trainer.task.model.facts.eos_token_ids
    replies = [reply for own in trainer.batch.groups.values() for group in own for reply in group.replies]
    sampled = [sample for own in trainer.batch.replies.values() for of_prompt in own for sample in of_prompt]
    assert any(sample.ended for sample in sampled)
    assert any(reply[-1:] == (end,) for reply in replies) == (preset == "default")
    trained = {name for names, layer in trainer.stacks.layers for name in names}
    assert {name.rsplit(".", 1)[-1] for name in trained} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_a_reencoded_reply_keeps_the_end_that_was_sampled(folder: Path) -> None:
    task = tiny_task(folder, causal_recipe(rl={"train_on": "reencoded"}))
    (end,) = task.model.facts.eos_token_ids
    trainer = stepped(folder, "reencoded", 1, rl={"train_on": "reencoded"})
    assert trainer.batch is not None
    samples = [sample for own in trainer.batch.replies.values() for of_prompt in own for sample in of_prompt]
    assert {sample.ended for sample in samples} == {True, False}
    start = task.tokenizer.encode(START)[0]
    for sample in samples:  # characters are tokens here, and control tokens are no text
        assert task.trained_ids(sample) == tuple(i for i in sample.ids if i != start)
        assert sample.text.count(END) == 0
        assert (sample.ids[-1] == end) == sample.ended


def test_a_prompt_and_reply_beyond_the_positions_are_refused(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"the longest prompt has \d+ tokens and rl.max_new_tokens is 200, \d+ in all"
    ):
        tiny_task(folder, causal_recipe(rl={"max_new_tokens": 200}))


def test_resuming_at_any_checkpoint_gives_the_same_bits(folder: Path) -> None:
    recipe = causal_recipe(lora=lora("reply", 0.3), compute={"device": "cpu", "prompts_per_forward": 2})
    whole = tiny_trainer(folder, recipe, run="whole")
    whole.run()
    expected = [value for o in whole.objectives for value in (*whole.stacks.values(o.lane), *o.best)]
    for stop_at in (1, 3):
        first = tiny_trainer(folder, recipe, run=f"cut-{stop_at}")
        first.start()
        for _ in islice(first.steps(), stop_at):
            pass
        first.save()
        torch.rand(3)  # the new process has another random state
        second = tiny_trainer(folder, recipe, run=f"cut-{stop_at}")
        second.run(resume=True)
        found = [value for o in second.objectives for value in (*second.stacks.values(o.lane), *o.best)]
        assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True)), stop_at
