"""Asking scorers: the columns they get, the rounding, and that nothing is asked twice."""

from __future__ import annotations

from typing import Any

import pytest

from emorl_core.scorers import ScorerError, checked
from emorl_core.scorers.asking import Panel, ask, ask_rounded
from training.data.prompts import Prompt
from training.data.records import Record

RECORD = Record("i feel sad", references=("you feel sad",), extras={"topic": "sad"})
PROMPT = Prompt(0, "i feel sad", (1,), (1,), ("you feel sad",), extras={"topic": "sad"})


class Thirds:
    """Scores a third for everything, and remembers what it was called with."""

    __name__ = "thirds"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.calls.append({"prompts": prompts, "completions": completions, **columns})
        return [1 / 3 for _ in completions]


def test_a_record_and_a_prompt_made_of_it_are_asked_about_alike() -> None:
    scorer = Thirds()
    for about in (RECORD, PROMPT):
        assert ask(checked(scorer), [about], ["sad?"]) == [1 / 3]
    first, second = scorer.calls
    assert first == second
    assert first == {
        "prompts": ["i feel sad"],
        "completions": ["sad?"],
        "references": [["you feel sad"]],
        "extras": [{"topic": "sad"}],
    }
    assert ask_rounded(checked(scorer), [RECORD], ["sad?"]) == [0.333333]


def test_a_panel_scores_what_is_new_in_one_call_and_remembers_the_rest() -> None:
    scorer = Thirds()
    panel = Panel({"thirds": checked(scorer), "again": checked(scorer)})
    panel.remember("old", [0.5, 0.25])
    panel.score({"new": (RECORD, "one"), "newer": (RECORD, "two")})
    panel.score({})
    assert [call["completions"] for call in scorer.calls] == [["one", "two"]] * 2
    assert (panel["old"], panel["new"]) == ((0.5, 0.25), (0.333333, 0.333333))
    assert "newer" in panel
    assert "never" not in panel


def test_a_broken_answer_leaves_the_panel_as_it_was() -> None:
    panel = Panel({"much": checked(lambda prompts, completions, **columns: [2.0] * len(completions))})
    with pytest.raises(ScorerError):
        panel.score({"new": (RECORD, "one")})
    assert "new" not in panel
