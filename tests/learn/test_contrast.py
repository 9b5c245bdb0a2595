"""`contrast`: what is liked under every prompt is worth a quarter at most."""

from __future__ import annotations

from typing import Any

import pytest

from emorl_core.scorers import Context, ScorerError, build_scorer
from training.data.records import Record

CORPUS = [Record(f"I lost my item{n}.") for n in range(10)]


def fond(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Likes a reply with the client's item, and half likes a phrase."""
    return [
        0.5 if "hard for you" in reply else 0.9 if prompt.split()[-1] in reply else 0.1
        for prompt, reply in zip(prompts, completions, strict=True)
    ]


def scores(pairs: list[tuple[str, str]], **settings: Any) -> list[float]:
    spec = {"kind": "contrast", "of": {"kind": "callable", "path": f"{__name__}:fond"}, **settings}
    return build_scorer(spec, Context(corpus=CORPUS))([prompt for prompt, _ in pairs], [reply for _, reply in pairs])


def test_a_phrase_for_everybody_gets_a_quarter_and_ones_own_reply_keeps_its_score() -> None:
    pairs = [("I lost my item3.", "You miss item3."), ("I lost my item3.", "That is hard for you.")]
    assert scores(pairs, others=3) == pytest.approx([0.9 * (1 - 0.1), 0.25])


def test_the_batch_and_the_order_change_nothing() -> None:
    pairs = [(f"I lost my item{n}.", f"You miss item{n % 4}.") for n in range(10)]
    assert scores(pairs)[::-1] == scores(pairs[::-1])
    assert [scores([pair])[0] for pair in pairs] == scores(pairs)


def test_without_other_clients_it_is_refused() -> None:
    spec = {"kind": "contrast", "of": "diversity"}
    with pytest.raises(ScorerError, match="the training part has 0 prompts; needed: 3"):
        build_scorer(spec)
    with pytest.raises(ScorerError, match=r"scorer\.of\.kind is 'diversty' \(did you mean 'diversity'\?\)"):
        build_scorer({"kind": "contrast", "of": "diversty"}, Context(corpus=CORPUS))
