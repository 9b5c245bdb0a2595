"""Warnings before a training starts: scorers that rate one constant sentence higher than the data's replies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from emorl_core.scorers import Checked
from emorl_core.scorers.asking import ask_rounded
from training.data.records import Record
from training.progress import Say
from training.scorers.exam.examine import Asking, ExamSettings, best_constant

SEARCH = ExamSettings(candidates=120, prompts=12)  # kept short, since it is part of every start


def warn_of_constants(scorers: Mapping[str, Checked], train: Sequence[Record], say: Say) -> None:
    """One line, with the sentence, for each scorer that rates a constant higher than human replies. Skips data without
    replies and failing scorers; training reports those and continues with the others."""
    human = [record for record in train if record.response is not None]
    if not human:
        return
    some = human[:: max(1, len(human) // SEARCH.prompts)][: SEARCH.prompts]
    for name, scorer in scorers.items():
        try:
            constant = best_constant(Asking(scorer), human, SEARCH)
            scores = ask_rounded(scorer, some, [str(record.response) for record in some])
        except Exception:  # noqa: BLE001  whatever a user's own function raises
            continue
        mean = math.fsum(scores) / len(scores)
        if constant.mean > mean:
            say(
                f"warning: {name}: one sentence for everybody scores {constant.mean:.3f}, the data's replies "
                f"{mean:.3f}; training may find it: {constant.text}"
            )
