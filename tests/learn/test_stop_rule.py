"""The paper's stop rule against what the published code does, written down from its description as a plain loop:

an epoch takes the shuffled training prompts in whole batches and drops the rest; every eighth step validates, and a
validation reward joins the history, which begins empty; when the standard deviation of the last 20 divided by their mean
is below 0.015, a flag goes up that never comes down; the flag is looked at between epochs only.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.learn.trainer_tasks import letter_scorer, tiny_recipe, tiny_trainer
from training.config import RecipeError
from training.pipeline.plan import make_plan
from training.pipeline.prepare import check_passes, load_data
from training.recipe.recipe import parse_recipe
from training.rl.settings import RlSettings, with_preset
from training.rl.stopping import StopState, ask, reason_to_stop, record
from training.rl.task import Order

PAPER = RlSettings.model_validate(with_preset("paper", {}))


def published(prompts: int, reward: Callable[[int], float]) -> int:
    """Steps until training ends."""
    history: list[float] = []
    steps, converged = 0, False
    while not converged:
        for _ in range(prompts // 16):
            steps += 1
            if steps % 8 == 0:
                history.append(reward(steps))
                last = history[-20:]
                if len(last) == 20 and statistics.pstdev(last) / statistics.fmean(last) < 0.015:
                    converged = True
    return steps


def ours(prompts: int, reward: Callable[[int], float], settings: RlSettings = PAPER) -> int:
    """The trainer's calls, without a model. The base's validation comes first and has a reward of its own."""
    order = Order(prompts, settings.prompts_per_step, seed=1, drop_last=settings.drop_last)
    state = StopState()
    record(state, [0.9])
    for step in itertools.count(1):
        if step % settings.validate_every == 0:
            record(state, [reward(step)])
            ask(settings.stop, state)
        if reason_to_stop(settings.stop, state, step, ends_pass=order.ends_pass(step - 1)):
            return step
    raise AssertionError


def test_constant_rewards_stop_where_the_published_code_does() -> None:
    """204 training prompts are PAIR's: 12 steps a pass, the 20th validation after 160, the end of the 14th pass."""
    assert published(204, lambda step: 0.5) == ours(204, lambda step: 0.5) == 168


@pytest.mark.parametrize("prompts", [16, 30, 100, 204, 205, 333])
@pytest.mark.parametrize("seed", range(4))
def test_noisy_rewards_stop_where_the_published_code_does(prompts: int, seed: int) -> None:
    """Rewards that settle slowly, with outliers that would lower a flag that can come down."""
    draw = Random(seed)
    rewards = {8 * i: 0.6 - 0.3 / i + draw.gauss(0, 0.002) + 0.1 * (draw.random() < 0.04) for i in range(1, 2000)}
    assert ours(prompts, rewards.__getitem__) == published(prompts, rewards.__getitem__)


def test_a_rule_once_met_stays_met_until_the_pass_ends() -> None:
    settings = PAPER.stop
    state = StopState()
    for _ in range(21):
        record(state, [0.5])
        ask(settings, state)
    assert state.met
    assert reason_to_stop(settings, state, 160, ends_pass=False) is None
    record(state, [0.9])  # the window is no longer flat
    ask(settings, state)
    assert reason_to_stop(settings, state, 168, ends_pass=True) == state.met
    assert reason_to_stop(settings.model_copy(update={"check": "validation"}), state, 167, ends_pass=False) == state.met
    assert StopState.from_dict({"means": [0.1], "reference": [0.1], "waited": 0}).met == ""


def test_by_default_the_rule_takes_effect_at_its_validation() -> None:
    default = RlSettings.model_validate({"stop": {"rule": "paper"}})
    assert ours(204, lambda step: 0.5, default) == 160


def test_passes_with_dropped_ends_are_shuffles_of_whole_steps() -> None:
    order = Order(10, 4, seed=3, drop_last=True)
    taken = [order.step(step) for step in range(6)]
    for first in range(0, 6, 2):
        prompts = [*taken[first], *taken[first + 1]]
        assert len(set(prompts)) == 8
        assert set(prompts) <= set(range(10))
    assert taken[0] + taken[1] != taken[2] + taken[3]
    assert [order.ends_pass(step) for step in range(6)] == [False, True] * 3
    assert Order(10, 4, seed=3, drop_last=True).step(3) == taken[3]


def test_passes_without_a_whole_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 prompts fill no step of 16"):
        Order(10, 16, seed=0, drop_last=True)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"prompt {i}"}) for i in range(15)))
    recipe = tiny_recipe(rl={"prompts_per_step": 16, "drop_last": True})
    data = load_data(recipe, tmp_path)
    said = "rl.drop_last is true and 12 training prompts fill no step of 16"
    with pytest.raises(RecipeError, match=said) as refused:
        check_passes(recipe, data)
    assert refused.value.param == "rl.drop_last"
    with pytest.raises(RecipeError, match=said):
        make_plan(recipe, tmp_path)
    check_passes(tiny_recipe(rl={"prompts_per_step": 16}), data)


def test_the_trainer_stops_at_the_end_of_the_pass(tmp_path: Path) -> None:
    """Eight prompts, three a step: two steps a pass. Two validations of a constant score, after steps 2 and 4, fill the
    window; validating every step, the second step does, and the pass ends there."""
    scorers = {"reflection": letter_scorer("", "constant")}
    stop = {"rule": "paper", "window": 2, "check": "epoch", "max_steps": 50}
    for every, steps in ((1, 2), (2, 4), (3, 6)):
        recipe = tiny_recipe(
            ("reflection",),
            rl={"prompts_per_step": 3, "drop_last": True, "validate_every": every, "stop": stop},
        )
        trainer = tiny_trainer(tmp_path, recipe, scorers, run=f"every-{every}")
        trainer.run()
        assert trainer.taken == steps
        assert trainer.objectives[0].consumption.prompts == 3 * steps


def test_sampled_validations_are_counted_averaged_and_repeated(tmp_path: Path) -> None:
    recipe = tiny_recipe(rl={"validation_samples": 3})
    runs = [tiny_trainer(tmp_path, recipe, run=name) for name in ("one", "two")]
    for trainer in runs:
        trainer.run()
    greedy = tiny_trainer(tmp_path, tiny_recipe(), run="greedy")
    greedy.run()
    means = [[objective.stop.means for objective in trainer.objectives] for trainer in (*runs, greedy)]
    assert means[0] == means[1]
    assert means[0] != means[2]
    for objective in runs[0].objectives:
        assert objective.consumption.validation_samples == 2 * 4 * 3


def test_presets_say_which_validation_and_which_passes() -> None:
    assert (PAPER.drop_last, PAPER.validation_samples, PAPER.stop.check) == (True, 3, "epoch")
    least = {"name": "x", "base": {"path": "b"}, "data": {"sources": [{"kind": "pair", "path": "p.csv"}]}}
    default = parse_recipe({**least, "objectives": {"a": {"scorer": "lexical_empathy"}}}).rl
    assert (default.drop_last, default.validation_samples, default.stop.check) == (False, 0, "validation")
    dumped = default.model_dump(mode="json")
    assert not {"drop_last", "validation_samples"} & dumped.keys(), "a recipe without them has the hash it always had"
