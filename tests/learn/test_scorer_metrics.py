"""Metrics and calibration against their definitions, and the ranking loss against a plain loop."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from emorl_core.scorers.calibration import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    read_calibration,
    sigmoid,
    softmax,
    write_calibration,
)
from training.data.records import Record
from training.scorers.learned.batches import examples_of, margin_loss, plan_epoch
from training.scorers.learned.metrics import brier, expected_calibration_error, macro_f1, ranking_accuracy


def test_ranking_accuracy_counts_pairs_inside_groups_and_ties_half() -> None:
    scores, levels, groups = [0.9, 0.1, 0.5, 0.5, 0.2, 0.8], [2, 0, 1, 0, 2, 0], ["a", "a", "a", "b", "b", "b"]
    # a: 2>0 won, 2>1 won, 1>0 won; b: 2>0 (0.2 against 0.5) lost, 2>0 (0.2 against 0.8) lost
    assert ranking_accuracy(scores, levels, groups) == (3 / 5, 5)
    assert ranking_accuracy(scores, levels, groups, better=2, worse=0) == (1 / 3, 3)
    assert ranking_accuracy([0.5, 0.5], [1, 0], [0, 0]) == (0.5, 1)
    value, pairs = ranking_accuracy([0.5, 0.5], [1, 1], [0, 0])
    assert math.isnan(value)
    assert pairs == 0


def test_macro_f1_by_hand() -> None:
    # class 0: 2 hits, 1 miss -> 4/5; class 1: 1 hit, 2 misses -> 2/4; class 2: 0 hits, 1 miss -> 0
    value, each = macro_f1([0, 0, 1, 1, 0], [0, 0, 1, 0, 1], 3)
    assert math.isnan(each[2]), "neither predicted nor true"
    assert value == pytest.approx((each[0] + each[1]) / 2)
    assert each[:2] == pytest.approx([4 / 6, 2 / 4])
    assert macro_f1([0, 0, 0], [0, 1, 2], 3)[0] == pytest.approx((2 / 4) / 3)


def test_brier_and_calibration_error_by_hand() -> None:
    assert brier([0.0, 1.0, 0.5], [0.0, 0.0, 1.0]) == pytest.approx((0 + 1 + 0.25) / 3)
    # bins 0.1-0.2: two scores of mean 0.15 against 0.5; last bin: one score of 1.0 against 1.0
    assert expected_calibration_error([0.1, 0.19, 1.0], [0.0, 1.0, 1.0]) == pytest.approx(abs(0.29 - 1.0) / 3)
    assert expected_calibration_error([0.3, 0.7], [0.3, 0.7]) == pytest.approx(0.0)


def test_platt_finds_the_line_the_targets_were_made_with() -> None:
    outputs = [z / 1000 for z in range(-2000, 2001)]
    fitted = fit_platt(outputs, [sigmoid(1.7 * z - 0.6) for z in outputs])
    assert fitted.slope == pytest.approx(1.7, rel=0.01)
    assert fitted.intercept == pytest.approx(-0.6, rel=0.01)


def test_platt_is_the_minimum_of_its_loss() -> None:
    draw = random.Random(1)
    outputs = [draw.gauss(3, 5) for _ in range(80)]
    targets = [draw.choice([0.0, 0.5, 1.0]) if abs(z) < 4 else float(z > 0) for z in outputs]
    z, y = torch.tensor(outputs, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    soft = y * (1 - 2 / 82) + 1 / 82

    def loss(slope: float, intercept: float) -> float:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(slope * z + intercept, soft, reduction="sum"))

    fitted = fit_platt(outputs, targets)
    best = loss(fitted.slope, fitted.intercept)
    for slope, intercept in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert loss(fitted.slope + slope, fitted.intercept + intercept) >= best - 1e-9


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_separated_or_constant_outputs_do_not_break_platt(scale: float) -> None:
    fitted = fit_platt([-scale, -2 * scale, scale, 2 * scale], [0.0, 0.0, 1.0, 1.0])
    assert 0.5 < fitted.apply([2 * scale]) < 1.0
    assert fitted.slope > 0
    assert fit_platt([scale] * 4, [0.0, 1.0, 0.0, 1.0]).apply([scale]) == pytest.approx(0.5)


def test_isotonic_never_decreases_and_pools_violators() -> None:
    fitted = fit_isotonic([1.0, 2.0, 3.0, 4.0], [0.0, 0.8, 0.4, 1.0])
    assert fitted.inputs == (1.0, 2.5, 4.0)
    assert fitted.outputs == pytest.approx((0.0, 0.6, 1.0))
    values = [fitted.apply([z / 10]) for z in range(60)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert fitted.apply([1.75]) == pytest.approx(0.3)


def test_isotonic_handles_equal_outputs() -> None:
    fitted = fit_isotonic([1.0, 1.0, 1.0], [0.0, 1.0, 0.5])
    assert fitted.apply([1.0]) == pytest.approx(0.5)
    assert Isotonic(inputs=(0.0, 0.0, 1.0), outputs=(0.1, 0.2, 0.9)).apply([0.0]) == pytest.approx(0.1)


def test_temperature_and_biases_find_what_the_classes_were_drawn_with() -> None:
    draw = random.Random(2)
    rows = [[draw.gauss(0, 6) for _ in range(3)] for _ in range(2000)]
    bias = (1.0, 0.0, -1.0)
    drawn = [softmax([z / 3 + b for z, b in zip(row, bias, strict=True)]) for row in rows]
    classes = [draw.choices(range(3), likely)[0] for likely in drawn]
    fitted = fit_temperature(rows, classes, (0.0, 0.5, 1.0))
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert [b - fitted.bias[1] for b in fitted.bias] == pytest.approx(bias, abs=0.25)
    assert fitted.apply(rows[0]) == pytest.approx(drawn[0][1] * 0.5 + drawn[0][2], abs=0.1)


def test_a_class_that_the_part_lacks_keeps_a_finite_bias() -> None:
    fitted = fit_temperature([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]] * 10, [0, 1] * 10, (0.0, 0.5, 1.0))
    assert all(math.isfinite(b) for b in fitted.bias)
    assert fitted.likely([0.0, 0.0, 5.0])[2] > 0


def test_calibrations_survive_the_disk(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    platt, isotonic = Platt(slope=0.1 + 0.2, intercept=-3.0), fit_isotonic([1.0, 2.0], [0.2, 0.7])
    for calibration in (platt, isotonic, fit_temperature([[1.0, 0.0]], [0], (0.0, 1.0))):
        write_calibration(tmp_path, calibration)
        assert read_calibration(tmp_path) == calibration


def test_the_margin_loss_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    scores = torch.randn(12, requires_grad=True)
    levels = torch.randint(0, 3, (12,)).float()
    groups = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    values = scores.tolist()
    terms = [
        max(0.0, 0.7 * float(levels[i] - levels[j]) - (values[i] - values[j]))
        for i in range(12)
        for j in range(12)
        if groups[i] == groups[j] and levels[i] > levels[j]
    ]
    loss = margin_loss(scores, levels, groups, 0.7)
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    loss.backward()
    assert scores.grad is not None
    assert float(scores.grad.abs().sum()) > 0


def test_the_margin_loss_of_one_level_is_zero_with_a_gradient() -> None:
    scores = torch.randn(3, requires_grad=True)
    loss = margin_loss(scores, torch.ones(3), torch.zeros(3), 1.0)
    loss.backward()
    assert loss.item() == 0.0


def graded(prompts: int) -> list[Record]:
    return [Record(f"prompt {p}", f"reply {p} {level}", float(level)) for p in range(prompts) for level in (2, 1, 0, 0)]


def test_an_epoch_shows_every_pair_once_and_keeps_prompts_together() -> None:
    examples = examples_of(graded(20))
    batches = plan_epoch(examples, 0, 0, batch_size=12, mismatched=2)
    shown = [example for batch in batches for example in batch]
    own = [example for example in shown if example.response.split()[1] == example.prompt.split()[1]]
    assert sorted(example.response for example in own) == sorted(example.response for example in examples)
    strangers = [example for example in shown if example not in own]
    assert len(strangers) == 40
    assert all(example.level == 0.0 and example.response.endswith(" 2") for example in strangers)
    for batch in batches:
        assert len(batch) <= 12
        for group in {example.group for example in batch}:
            assert sum(example.group == group for example in batch) == 6, "a prompt is never torn apart"


def test_epochs_differ_and_repeat_from_their_seed() -> None:
    examples = examples_of(graded(20))
    first, again, second, other = (
        plan_epoch(examples, seed, epoch, batch_size=8, mismatched=1)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert first not in (second, other)
    assert len(first) == len(second)


def test_independent_pairs_are_batched_by_size() -> None:
    batches = plan_epoch(examples_of(graded(10)), 0, 0, batch_size=16, mismatched=None)
    assert [len(batch) for batch in sorted(batches, key=len)] == [8, 16, 16]


def test_a_single_prompt_gets_no_strangers() -> None:
    [batch] = plan_epoch(examples_of(graded(1)), 0, 0, batch_size=8, mismatched=2)
    assert len(batch) == 4
