"""Best of n: n replies are sampled, and the training scorers choose one. It needs no weights and computes as many rows
as n lanes: the baseline that steering must beat."""

from __future__ import annotations

import time
from collections.abc import Sequence

from emorl_core.scorers.asking import Panel
from emorl_core.types import Completion
from emorl_core.weights import ResolvedWeights
from training.evaluation.methods.answers import Answered, Answers
from training.evaluation.methods.experiment import Experiment
from training.progress import Progress


def best_of(
    experiment: Experiment,
    answers: Answers,
    vector: ResolvedWeights,
    count: int,
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> Answered:
    """For each prompt the reply with the highest mean of the objectives' scores, the first one in a tie. The cost
    includes all replies and the scoring."""
    sampled, seconds = answers.sampled(experiment.test, vector, count, seed)
    progress("choosing the best", 0, len(sampled))
    started = time.perf_counter()
    means, scored = _means(experiment, sampled)
    seconds += time.perf_counter() - started
    chosen = tuple(own[max(range(count), key=means[place].__getitem__)] for place, own in enumerate(sampled))
    progress("choosing the best", len(sampled), len(sampled))
    return Answered(chosen, sum(reply.lane_row_steps for own in sampled for reply in own), seconds, scored)


def _means(experiment: Experiment, sampled: Sequence[Sequence[Completion]]) -> tuple[list[list[float]], int]:
    """[prompts][replies], and the number of texts that were scored."""
    panel = Panel(experiment.scorers)
    texts = {(place, reply.text): reply.text for place, own in enumerate(sampled) for reply in own}
    panel.score({key: (experiment.test[key[0]], text) for key, text in texts.items()})
    means = [
        [sum(panel[place, reply.text]) / len(experiment.scorers) for reply in own] for place, own in enumerate(sampled)
    ]
    return means, len(texts)
