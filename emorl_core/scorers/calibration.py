"""Calibration of a classifier's raw outputs to scores in [0, 1]; stored with the model.

Platt: Platt 1999, "Probabilistic outputs for support vector machines". Temperature: Guo et al. 2017, "On calibration of
modern neural networks". Isotonic: Zadrozny & Elkan 2002, by pool-adjacent-violators.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from emorl_core.config import Strict, faults
from emorl_core.scorers.base import ScorerError

CALIBRATION_FILE = "calibration.json"


class _Calibration(Strict):
    model_config = ConfigDict(allow_inf_nan=False)
    format: Literal["emorl-calibration/1"] = "emorl-calibration/1"

    @property
    def outputs_needed(self) -> int:
        """The number of outputs that the classifier must have."""
        return 1

    @abstractmethod
    def apply(self, row: Sequence[float]) -> float:
        """One row of raw outputs -> [0, 1]."""


class Platt(_Calibration):
    """One output z -> sigmoid(slope · z + intercept)."""

    kind: Literal["platt"] = "platt"
    slope: float
    intercept: float

    def apply(self, row: Sequence[float]) -> float:
        return sigmoid(self.slope * row[0] + self.intercept)


class Isotonic(_Calibration):
    """One output, interpolated linearly between the knots and constant outside. It preserves order but has plateaus,
    where a reward cannot distinguish two replies and teaches nothing, so Platt is the default."""

    kind: Literal["isotonic"] = "isotonic"
    inputs: tuple[float, ...] = Field(min_length=1)
    outputs: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _knots(self) -> Isotonic:
        if len(self.inputs) != len(self.outputs):
            raise ValueError("inputs and outputs differ in length")
        for name, values in (("inputs", self.inputs), ("outputs", self.outputs)):
            if any(right < left for left, right in itertools.pairwise(values)):
                raise ValueError(f"{name} must not decrease")
        return self

    def apply(self, row: Sequence[float]) -> float:
        at = bisect.bisect_left(self.inputs, row[0])
        if at == 0 or at == len(self.inputs):
            return self.outputs[min(at, len(self.outputs) - 1)]
        left, right = self.inputs[at - 1], self.inputs[at]
        share = (row[0] - left) / (right - left) if right > left else 1.0
        return self.outputs[at - 1] + share * (self.outputs[at] - self.outputs[at - 1])


class Temperature(_Calibration):
    """Class logits -> the expected value under softmax(z / temperature + bias); `values` has the value of each class.

    The biases (Alexandari et al. 2020, "bias-corrected temperature scaling") correct the effect of class weights in the
    loss: a model trained with them overestimates rare levels.
    """

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)
    bias: tuple[float, ...] = ()  # one per class; empty: none
    values: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _sizes(self) -> Temperature:
        if self.bias and len(self.bias) != len(self.values):
            raise ValueError("bias and values differ in length")
        return self

    @property
    def outputs_needed(self) -> int:
        return len(self.values)

    def likely(self, row: Sequence[float]) -> list[float]:
        """The probability of each class."""
        bias = self.bias or (0.0,) * len(row)
        return softmax([z / self.temperature + b for z, b in zip(row, bias, strict=True)])

    def apply(self, row: Sequence[float]) -> float:
        return expected(self.likely(row), self.values)


Calibration = Platt | Isotonic | Temperature
_ANY: TypeAdapter[Calibration] = TypeAdapter(Annotated[Calibration, Field(discriminator="kind")])


def read_calibration(folder: Path) -> Calibration | None:
    """The folder's calibration, or None if it has none. Raises `ScorerError` for an invalid file."""
    file = folder / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        return _ANY.validate_json(file.read_bytes())
    except ValidationError as fault:
        raise ScorerError(f"{file}: {faults(fault)[0]}", param="model") from None


def write_calibration(folder: Path, calibration: Calibration) -> None:
    text = json.dumps(calibration.model_dump(mode="json"), indent=2) + "\n"
    (folder / CALIBRATION_FILE).write_text(text, encoding="utf-8")


def fit_platt(outputs: Sequence[float], targets: Sequence[float]) -> Platt:
    """Minimise the cross-entropy against `targets` in [0, 1] by Newton's method.

    Targets are smoothed by 1/(n+2), as Platt does: otherwise perfectly separated scores would give an infinite slope,
    and so a reward that is 0 or 1 everywhere.
    """
    count = len(outputs)
    pull = 1.0 / (count + 2)
    soft = [target * (1 - 2 * pull) + pull for target in targets]
    # Newton's method is well-conditioned on standardised outputs; parameters are converted to the raw scale at the end.
    mean = math.fsum(outputs) / count
    spread = math.sqrt(math.fsum((z - mean) ** 2 for z in outputs) / count) or 1.0
    scaled = [(z - mean) / spread for z in outputs]
    slope, intercept = 1.0, 0.0
    loss = _cross_entropy(scaled, soft, slope, intercept)
    for _ in range(100):
        likely = [sigmoid(slope * z + intercept) for z in scaled]
        residual = [p - y for p, y in zip(likely, soft, strict=True)]
        curve = [p * (1 - p) for p in likely]
        g_slope = math.fsum(r * z for r, z in zip(residual, scaled, strict=True))
        g_intercept = math.fsum(residual)
        h11 = math.fsum(c * z * z for c, z in zip(curve, scaled, strict=True)) + 1e-9
        h22 = math.fsum(curve) + 1e-9
        h12 = math.fsum(c * z for c, z in zip(curve, scaled, strict=True))
        determinant = h11 * h22 - h12 * h12
        if determinant <= 0:
            break
        d_slope = (h22 * g_slope - h12 * g_intercept) / determinant
        d_intercept = (h11 * g_intercept - h12 * g_slope) / determinant
        step = 1.0
        while step > 1e-8:  # a full Newton step can overshoot if most scores are far from the decision boundary
            tried = _cross_entropy(scaled, soft, slope - step * d_slope, intercept - step * d_intercept)
            if tried <= loss:
                break
            step /= 2
        slope, intercept = slope - step * d_slope, intercept - step * d_intercept
        if loss - tried < 1e-12:
            break
        loss = tried
    return Platt(slope=slope / spread, intercept=intercept - slope * mean / spread)


def fit_isotonic(outputs: Sequence[float], targets: Sequence[float]) -> Isotonic:
    """Least squares, constrained so that a higher output never gives a lower value."""
    blocks: list[list[float]] = []  # [sum of targets, count, sum of outputs]
    for z, same in itertools.groupby(sorted(zip(outputs, targets, strict=True)), key=lambda pair: pair[0]):
        tied = [y for _, y in same]  # equal outputs get one value, whatever the order of their targets
        blocks.append([math.fsum(tied), float(len(tied)), z * len(tied)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            total, count, where = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count, blocks[-1][2] + where]
    return Isotonic(
        inputs=tuple(where / count for _, count, where in blocks),
        outputs=tuple(min(1.0, max(0.0, total / count)) for total, count, _ in blocks),
    )


def fit_temperature(rows: Sequence[Sequence[float]], classes: Sequence[int], values: Sequence[float]) -> Temperature:
    """Minimise the mean negative log-likelihood over (log T, biases), which is smooth, by L-BFGS in float64.

    An L2 penalty of 1e-3 on the parameters prevents a bias of minus infinity for a class that the data lack.
    """
    import torch

    logits = torch.tensor(rows, dtype=torch.float64)  # [pairs, classes]
    truth = torch.tensor(classes)
    parameters = torch.zeros(1 + logits.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        scaled = logits * torch.exp(-parameters[0]) + parameters[1:]
        value = torch.nn.functional.cross_entropy(scaled, truth) + 1e-3 * parameters.square().sum()
        value.backward()
        return value

    solver.step(loss)
    log_t, *bias = parameters.detach().tolist()
    return Temperature(temperature=math.exp(log_t), bias=tuple(bias), values=tuple(values))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def log_softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    rest = top + math.log(math.fsum(math.exp(z - top) for z in row))
    return [z - rest for z in row]


def softmax(row: Sequence[float]) -> list[float]:
    return [math.exp(z) for z in log_softmax(row)]


def expected(likely: Sequence[float], values: Sequence[float]) -> float:
    return min(1.0, max(0.0, math.fsum(p * value for p, value in zip(likely, values, strict=True))))


def _cross_entropy(outputs: Sequence[float], targets: Sequence[float], slope: float, intercept: float) -> float:
    total = 0.0
    for z, y in zip(outputs, targets, strict=True):
        at = slope * z + intercept
        # log(1 + e^at) - y·at, without overflow
        total += (at if at > 0 else 0.0) + math.log1p(math.exp(-abs(at))) - y * at
    return total
