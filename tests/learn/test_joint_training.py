"""One adapter trained on several scorers: its reward, its gradient and its validation, written out again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.scorers import ScorerError, checked
from tests.learn.trainer_tasks import NAMES, WANTED, letter_scorer, tiny_recipe, tiny_task
from training.evaluation.methods.dynaopt import DynaOpt
from training.pipeline.workshop import Joint
from training.rl.logprobs import group_of, reply_logprobs
from training.rl.processes import Processes
from training.rl.rewards import FixedMix, RewardMix
from training.rl.tracking import LOG_FILE
from training.rl.trainer import Trainer

WEIGHTS = {"reflection": 0.5, "empathy": 0.2, "fluency": 0.3}


def joint_trainer(folder: Path, mix: RewardMix, run: str = "run", **rl: Any) -> Trainer:
    settings = {"reward": "log", "advantage": "mean", "kl": {"kind": "none"}, **rl}
    recipe = tiny_recipe(rl=settings, lora={"rank": 4, "alpha": 8, "dropout": 0.0})
    task = tiny_task(folder, recipe, joint=Joint("joint", mix))
    return Trainer(task, Processes(device="cpu"), folder / run)


def records(trainer: Trainer, event: str) -> list[dict[str, Any]]:
    lines = (trainer.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.mark.parametrize("weights", [WEIGHTS, dict.fromkeys(NAMES, 1 / 3)])
def test_the_gradient_is_that_of_the_weighted_log_scores(tmp_path: Path, weights: Mapping[str, float]) -> None:
    """-mean(A sum log p), A = R - mean of the prompt's k rewards, R = sum w log(clip(score)), by autograd."""
    trainer = joint_trainer(tmp_path, FixedMix(weights), max_grad_norm=1e9)
    trainer.start()
    steps = trainer.steps()
    next(steps)  # so that both factors have a gradient in the next one
    before = trainer.stacks.values(1)
    next(steps)
    stepped = [gradient.clone() for gradient in trainer.stacks.gradients()]

    # The plain computation, at the very same parameters.
    batch, model = trainer.batch, trainer.task.model
    assert batch is not None
    trainer.stacks.set_values(1, before)
    trainer.stacks.zero_gradients()
    loss = torch.zeros(())
    for prompt, own in zip(batch.prompts, batch.replies["joint"], strict=True):
        rewards = [reward_of(each.text, weights) for each in own]
        logprobs, mask = reply_logprobs(model, [group_of(model, prompt.source, 1, tuple(each.ids for each in own))])
        centred = torch.tensor(rewards) - sum(rewards) / len(rewards)
        loss = loss - (centred * (logprobs * mask).sum(-1)).sum()
    (loss / (len(batch.prompts) * 3)).backward()
    plain = trainer.stacks.gradients()
    largest = max(float(gradient.abs().max()) for gradient in plain)
    assert largest > 1e-2
    for one, other in zip(stepped, plain, strict=True):
        # Rounding only: sums over one padded batch of all prompts against one of each prompt.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest)


def reward_of(text: str, weights: Mapping[str, float]) -> float:
    scores = {name: min(1.0, 4 * text.count(letter) / max(len(text), 1)) for name, letter in WANTED.items()}
    return sum(weights[name] * math.log(min(max(score, 1e-4), 0.9999)) for name, score in scores.items())


def test_the_log_tells_every_score_and_weight(tmp_path: Path) -> None:
    trainer = joint_trainer(tmp_path, FixedMix(WEIGHTS))
    trainer.run()
    for record in records(trainer, "validation"):
        assert record["by_scorer"]["joint"].keys() == set(NAMES)
        assert record["scores"]["joint"] == pytest.approx(sum(record["by_scorer"]["joint"].values()) / 3)
        assert record["weights"]["joint"] == WEIGHTS
    step = records(trainer, "step")[0]["objectives"]["joint"]
    assert step["scores"].keys() == set(NAMES)
    assert [(o.name, o.status, o.consumption.prompts, o.consumption.samples) for o in trainer.objectives] == [
        ("joint", "finished", 16, 48)
    ]


def test_moving_weights_move_at_validations_and_come_back_after_an_interruption(tmp_path: Path) -> None:
    def trainer(run: str) -> Trainer:
        limits = {"validate_every": 1, "stop": {"rule": "steps", "max_steps": 6}}
        return joint_trainer(tmp_path, DynaOpt(NAMES, 3), run, **limits)

    whole = trainer("whole")
    whole.run()
    seen = [record["weights"]["joint"] for record in records(whole, "validation")]
    assert len({json.dumps(weights) for weights in seen}) > 1
    assert whole.objectives[0].mix.state()["rounds"] == 7
    first = trainer("killed")
    first.start()
    for _ in islice(first.steps(), 3):
        pass
    second = trainer("killed")
    second.run(resume=True)
    assert second.objectives[0].mix.state() == whole.objectives[0].mix.state()
    assert second.objectives[0].statistics == whole.objectives[0].statistics
    for one, two in zip(whole.stacks.values(1), second.stacks.values(1), strict=True):
        assert torch.equal(one, two)


def test_a_scorer_at_fault_is_named(tmp_path: Path) -> None:
    trainer = joint_trainer(tmp_path, FixedMix(WEIGHTS))
    trainer.objectives[0].scorers = {
        **{name: letter_scorer("a", name) for name in NAMES},
        "empathy": checked(lambda prompts, completions, **columns: [2.0] * len(completions)),
    }
    with pytest.raises(ScorerError) as refused:
        trainer.run()
    assert refused.value.param == "objectives.empathy.scorer"
