"""Scores of a rollout's replies, with scorer faults distinguished from program faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emorl_core.scorers import Checked, ScorerError
from emorl_core.scorers.asking import ask
from training.data.prompts import Prompt
from training.rl.rollout import Sample


class ScoringFault(Exception):
    """This objective cannot continue; the message names the scorer and the prompt. The others can."""

    def __init__(self, message: str, scorer: str) -> None:
        """scorer: its name in the recipe."""
        super().__init__(message)
        self.scorer = scorer


def score_by_each(
    scorers: Mapping[str, Checked], prompts: Sequence[Prompt], replies: Sequence[Sequence[Sample]]
) -> dict[str, list[list[float]]]:
    """Scorer -> one score in [0, 1] per reply, [prompts][replies of a prompt].

    Raises:
        ScoringFault: an answer of the wrong length or range, NaN, or any exception of the scorer.
    """
    return {name: _score(name, scorer, prompts, replies) for name, scorer in scorers.items()}


def _score(
    name: str, scorer: Checked, prompts: Sequence[Prompt], replies: Sequence[Sequence[Sample]]
) -> list[list[float]]:
    if not prompts:
        return []
    k = len(replies[0])
    about = [prompt for prompt in prompts for _ in range(k)]
    try:
        flat = ask(scorer, about, [sample.text for own in replies for sample in own])
    except ScorerError as fault:
        raise ScoringFault(f"{fault.message}{_whose(fault.index, prompts, k)}", name) from None
    except Exception as fault:
        # Its message may quote a prompt, so only its type is shown.
        raise ScoringFault(f"scorer {scorer.__name__!r} failed with {type(fault).__name__}", name) from fault
    return [flat[first : first + k] for first in range(0, len(flat), k)]


def _whose(index: int | None, prompts: Sequence[Prompt], k: int) -> str:
    if index is None:
        return ""
    prompt = prompts[index // k]
    where = f", {prompt.where}" if prompt.where else ""
    return f" (prompt {prompt.index}{where}; sample {index % k})"
