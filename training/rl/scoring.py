"""Asking an objective's scorer, and telling a fault of its answer from a fault of the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.data.prompts import Prompt
from training.rl.rollout import Sample
from training.scorers import Checked, ScorerError


class ScoringFault(Exception):
    """This objective cannot go on; the message names the scorer and the prompt. The others can."""

    scorer: str = ""  # its name in the recipe; set by `score_by_each`


def score_by_each(
    scorers: Mapping[str, Checked], prompts: Sequence[Prompt], replies: Sequence[Sequence[Sample]]
) -> dict[str, list[list[float]]]:
    """`score` by every scorer. Raises `ScoringFault` with the name of the first at fault."""
    scores = {}
    for name, scorer in scorers.items():
        try:
            scores[name] = score(scorer, prompts, replies)
        except ScoringFault as fault:
            fault.scorer = name
            raise
    return scores


def score(scorer: Checked, prompts: Sequence[Prompt], replies: Sequence[Sequence[Sample]]) -> list[list[float]]:
    """One score in [0, 1] per reply, [prompts][replies of a prompt].

    Raises:
        ScoringFault: an answer of the wrong length or range, NaN, or any exception of the scorer.
    """
    if not prompts:
        return []
    k = len(replies[0])
    texts = [prompt.text for prompt in prompts for _ in range(k)]
    columns = {
        "references": [list(prompt.references) for prompt in prompts for _ in range(k)],
        "extras": [dict(prompt.extras) for prompt in prompts for _ in range(k)],
    }
    try:
        flat = scorer(prompts=texts, completions=[sample.text for own in replies for sample in own], **columns)
    except ScorerError as fault:
        raise ScoringFault(f"{fault.message}{_whose(fault.index, prompts, k)}") from None
    except Exception as fault:
        # Its text may quote a prompt, so only its kind is told.
        raise ScoringFault(f"scorer {scorer.__name__!r} failed with {type(fault).__name__}") from fault
    return [flat[first : first + k] for first in range(0, len(flat), k)]


def _whose(index: int | None, prompts: Sequence[Prompt], k: int) -> str:
    if index is None:
        return ""
    prompt = prompts[index // k]
    where = f", {prompt.where}" if prompt.where else ""
    return f" (prompt {prompt.index}{where}; sample {index % k})"
