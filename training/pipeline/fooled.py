"""Said before a training starts: which rewards like one sentence for everybody better than the data's replies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from emorl_core.scorers import Checked
from emorl_core.scorers.asking import ask_rounded
from training.data.records import Record
from training.progress import Say
from training.scorers.exam.examine import Asking, ExamSettings, best_constant

SEARCH = ExamSettings(candidates=120, prompts=12)  # short: it is part of every start


def warn_of_constants(scorers: Mapping[str, Checked], train: Sequence[Record], say: Say) -> None:
    """One line for each scorer that likes a constant better than human replies, with the sentence. Says nothing about
    data without replies, nor about a scorer that fails: training itself tells that, and goes on with the others."""
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
