"""Fits a judge's network over features, on pairs (Bradley & Terry 1952): mean of -log σ(better - worse)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorl_core.scorers.judge import Head, standardised

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Fit:
    """Hyperparameters of the fit."""

    hidden: int = 64
    dropout: float = 0.3  # on features and on the hidden layer
    epochs: int = 40
    batch: int = 512  # pairs
    learning_rate: float = 1e-3  # decays to zero
    weight_decay: float = 0.1


@dataclass(frozen=True, slots=True)
class Contest:
    """A pair of rows of the feature table: `better` should score higher than `worse`. `row`: its row in the exam,
    `data`: the data set of the replies."""

    row: str
    data: str
    better: int
    worse: int


def fit_head(
    features: torch.Tensor, contests: Sequence[Contest], weights: Sequence[float], *, seed: int, fit: Fit | None = None
) -> Head:
    """`features`: [texts, F]; `weights`: one per contest. Leaves torch's random state unchanged."""
    import torch

    fit = fit or Fit()
    own = sorted({place for each in contests for place in (each.better, each.worse)})
    mean, spread = features[own].mean(0), features[own].std(0).clamp_min(1e-3)
    table = standardised(features, mean, spread)
    worth = torch.tensor(weights) / (sum(weights) / len(weights))
    places = torch.tensor([[each.better, each.worse] for each in contests])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner = torch.nn.Linear(features.shape[1], fit.hidden)
        outer = torch.nn.Linear(fit.hidden, 1, bias=False)  # only differences matter
        drop = torch.nn.Dropout(fit.dropout)
        solver = torch.optim.AdamW(
            [*inner.parameters(), *outer.parameters()], lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        steps = fit.epochs * -(-len(contests) // fit.batch)
        falling = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: 1 - step / steps)
        order = list(range(len(contests)))
        for epoch in range(fit.epochs):
            random.Random(f"{seed}:{epoch}").shuffle(order)
            for start in range(0, len(order), fit.batch):
                some = torch.tensor(order[start : start + fit.batch])
                rows = table[places[some].T.flatten()]  # [2 · pairs, F]
                better, worse = outer(drop(torch.nn.functional.gelu(inner(drop(rows)))))[:, 0].chunk(2)
                loss = (worth[some] * torch.nn.functional.softplus(worse - better)).mean()
                solver.zero_grad()
                loss.backward()
                solver.step()
                falling.step()
    return Head(mean, spread, inner.weight.detach(), inner.bias.detach(), outer.weight.detach()[0])


def won(outputs: Sequence[float], contests: Sequence[Contest]) -> dict[tuple[str, str], tuple[float, int]]:
    """(row, data) -> (share of contests in which the better one scores higher, their number); a tie counts half."""
    held: dict[tuple[str, str], list[float]] = {}
    for each in contests:
        gap = outputs[each.better] - outputs[each.worse]
        held.setdefault((each.row, each.data), []).append(0.5 * (1 + (gap > 0) - (gap < 0)))
    return {key: (sum(wins) / len(wins), len(wins)) for key, wins in held.items()}
