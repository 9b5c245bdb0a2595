"""A judge of replies: a small network over a causal language model's states and likelihoods for a reply.

The model is frozen. Its states represent the reply's content and style; its likelihoods after this prompt and after
another client's show whether the reply answers this client. The network is fitted on human replies against everything
that should score lower (`emorl train-scorer --loss states`).
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from emorl_core.config import Strict, faults
from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError, check_texts
from emorl_core.scorers.calibration import Calibration, read_calibration
from emorl_core.scorers.cross_encoder import local_or_hub
from emorl_core.scorers.passes import Dtype
from emorl_core.scorers.states import Reading, shared_reader

if TYPE_CHECKING:
    import torch

HEAD_FILE, ABOUT_FILE = "judge.safetensors", "judge.json"
_OUTLIER = 6.0  # standard deviations at which features are clipped
_CERTAIN = -0.1  # log-likelihood above which a token is predictable, as in a repetition
_LOWEST_END = -10.0
_STATES, NUMBERS = 2, 17  # per reading


class JudgeAbout(Strict):
    """Properties that must be the same in scoring as in training."""

    format: Literal["emorl-judge/1"] = "emorl-judge/1"
    dtype: Dtype  # number format in which the model computes


class JudgeConfig(ScorerConfig):
    """Needs the causal model whose states the judge was trained on."""

    kind: Literal["judge"] = "judge"
    model: str  # a folder or hub id of that model
    revision: str | None = None
    weights: str  # the folder written by `emorl train-scorer --loss states`

    def build(self, context: Context) -> Scorer:
        return Judge(self, context)


@dataclass(frozen=True)
class Head:
    """Features [texts, F] -> one number each: standardisation, one hidden layer [H, F], GELU, one output [H]."""

    mean: torch.Tensor
    spread: torch.Tensor
    inner: torch.Tensor
    inner_bias: torch.Tensor
    outer: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        import torch

        hidden = torch.nn.functional.linear(standardised(features, self.mean, self.spread), self.inner, self.inner_bias)
        return torch.nn.functional.gelu(hidden) @ self.outer


def standardised(features: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return ((features - mean) / spread).clamp(-_OUTLIER, _OUTLIER)


class Judge:
    __name__ = "judge"

    def __init__(self, config: JudgeConfig, context: Context) -> None:
        folder = (context.base or Path()) / Path(config.weights).expanduser()
        self.head, about, self.calibration = read_judge(folder)
        self.reader = shared_reader(
            local_or_hub(config.model, context.base), config.revision, device=context.device, dtype=about.dtype
        )
        made, wanted = _STATES * self.reader.width + NUMBERS, self.head.mean.shape[0]
        if made != wanted:
            raise ScorerError(
                f"weights {config.weights!r} are for a model with {wanted} features; {config.model!r} has {made}",
                param="weights",
            )

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        check_texts(self.__name__, prompts, completions)
        scores = [0.0] * len(prompts)
        by_prompt: dict[str, list[int]] = {}
        for at, (prompt, reply) in enumerate(zip(prompts, completions, strict=True)):
            if reply.strip():  # an empty reply gets 0
                by_prompt.setdefault(prompt, []).append(at)
        for prompt, places in by_prompt.items():
            for at, reading in zip(places, self.reader.read(prompt, [completions[at] for at in places]), strict=True):
                scores[at] = self.calibration.apply([float(self.head(features_of(reading)[None])[0])])
        return scores


def features_of(reading: Reading) -> torch.Tensor:
    """[F]: the state, its change due to the prompt, and statistics of the likelihoods."""
    import torch

    numbers = torch.tensor(_numbers(reading.likely, reading.other_likely))
    return torch.cat([reading.means, reading.changed, numbers])


def _numbers(likely: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Statistics of the log-likelihoods [T + 1] after this prompt and another client's: level, extremes and trend."""
    count = max(1, len(likely) - 1)
    here = likely[:count]
    gain = here - other[:count]  # how much more likely this prompt makes each token
    quarter, half = max(1, count // 4), max(1, count // 2)
    numbers = [math.log(count), float(here.std(unbiased=False)), float((here > _CERTAIN).float().mean())]
    for each in (here, gain):
        ordered = each.sort().values
        numbers += [
            float(each.mean()),
            float(ordered[0]),
            float(ordered[:quarter].mean()),
            float(ordered[-quarter:].mean()),
            float(each[-half:].mean() - each[:half].mean()),
            float(each[:2].mean()),
        ]
    end = float(likely[-1])
    return [*numbers, max(_LOWEST_END, end), max(_LOWEST_END, end - float(other[-1]))]


def read_judge(folder: Path) -> tuple[Head, JudgeAbout, Calibration]:
    """Raises `ScorerError` if files are missing or not in this format."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = JudgeAbout.model_validate_json((folder / ABOUT_FILE).read_bytes())
        tensors = load_file(folder / HEAD_FILE)
    except OSError as error:
        missing = Path(str(error.filename or HEAD_FILE)).name
        raise ScorerError(f"weights {str(folder)!r} has no {missing}", param="weights") from None
    except ValidationError as fault:
        raise ScorerError(f"{ABOUT_FILE}: {faults(fault)[0]}", param="weights") from None
    except SafetensorError as error:
        raise ScorerError(f"{HEAD_FILE}: {error}", param="weights") from None
    calibration = read_calibration(folder)
    if calibration is None or calibration.outputs_needed != 1:
        raise ScorerError(f"weights {str(folder)!r} has no calibration of one output", param="weights")
    names = set(Head.__dataclass_fields__)
    if set(tensors) != names:
        raise ScorerError(f"{HEAD_FILE}: tensors must be {', '.join(sorted(names))}", param="weights")
    inner = tensors["inner"].shape
    shapes = {"mean": inner[1:], "spread": inner[1:], "inner_bias": inner[:1], "outer": inner[:1]}
    for name, shape in shapes.items():
        if len(inner) != 2 or tensors[name].shape != shape:
            raise ScorerError(
                f"{HEAD_FILE}: {name} is {list(tensors[name].shape)} beside inner {list(inner)}", param="weights"
            )
    return Head(**{name: tensor.to(torch.float32) for name, tensor in tensors.items()}), about, calibration
