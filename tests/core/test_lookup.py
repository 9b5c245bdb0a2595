"""What is proposed, when, and how it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emorl_core.engine.speculation.lookup import Lookup
from emorl_core.engine.speculation.step_cost import StepCost
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.types import Request, Sampling
from tests.core.driving import run

_END = 1


def test_sweeps_warm_ups_and_requests_that_want_none_propose_nothing() -> None:
    ensemble = fake_ensemble(prompt_lookup="on")
    ensemble.sweep("you feel you feel you feel", resolution=3, max_new_tokens=8)
    ensemble.warm_up()
    request = ensemble.request("you feel you feel you feel", max_new_tokens=8)
    run(ensemble.engine, [replace(request, prompt_lookup=False)])
    assert ensemble.engine.stats.proposed_tokens == 0
    assert fake_ensemble().generate("you feel you feel you feel").token_ids  # off: as ever


def test_words_that_are_no_mode_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt_lookup is 'yes'; allowed: off, auto, on$"):
        fake_ensemble(prompt_lookup="yes")  # type: ignore[arg-type]


def test_the_lookup_copies_from_the_first_place_and_never_an_end() -> None:
    lookup = Lookup([3, 4, 5, 6, 1, 3, 4, 7, 8, 9, 10, 11], {1})
    assert lookup.propose([3, 4], 4) == (5, 6)  # the end is not proposed, nor what is behind it
    assert lookup.propose([3, 4, 9], 4) == (10, 11)  # behind the last token alone: half as many
    assert lookup.propose([3, 4, 9], 1) == (10,)
    assert lookup.propose([3, 4, 9, 7, 8], 4) == (9, 10, 11, 3)
    assert lookup.propose([3, 4, 9, 7, 8], 2) == (9, 10)
    assert lookup.propose([3, 4, 9, 7, 8], 0) == ()
    assert lookup.propose([3, 4, 9, 7, 8, 77], 4) == ()
    assert lookup.propose([3, 4, 9, 7, 8, 77, 8, 77], 4) == (8, 77)  # of the reply itself


def test_a_branch_goes_on_while_it_is_right_often_enough() -> None:
    """Alone a wrong guess costs little; beside many it costs as much as a token."""
    right, wrong = Lookup((), ()), Lookup((), ())
    for _ in range(20):
        right.learn(4, 2)
        wrong.learn(4, 0)
    assert wrong.rate < 0.3 < 0.6 < right.rate < 0.7
    cost = StepCost()
    for _ in range(200):
        for rows, slower in ((3, 1.0), (1, 3.0)):  # some lane rows take longer than others
            cost.changed()
            cost.observe(0, slower * 0.025)
            cost.observe(4 * rows, slower * 0.025 * (1 + 0.04 * 4 * rows))
            cost.observe(4 * rows, 1.0)  # something else took part
            cost.observe(4 * rows, 0.0)
    assert 0.0 < cost.of_row < 0.5
    cost = StepCost()
    for _ in range(200):
        cost.changed()
        cost.observe(12, 9.0)  # nothing to compare with
        cost.observe(0, 0.025)
        cost.observe(12, 0.025 * (1 + 0.04 * 12))
    assert cost.of_row == pytest.approx(0.04, rel=1e-3)
    alone, among_16 = 3 * cost.of_row, 16 * 3 * cost.of_row
    assert (right.worth(alone), right.worth(among_16), wrong.worth(3 * alone)) == (4, 0, 0)
    assert [right.worth(cost) for cost in (0.7, 0.5, 0.4, 0.25, 0.0)] == [0, 1, 2, 3, 4]


def test_auto_stops_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose rows cost all there is, and one whose rows cost nothing."""
    proposed = {}
    for share in (0.9, 0.0):
        engine = fake_ensemble(prompt_lookup="auto").engine
        monkeypatch.setattr(engine.runner.batches[False].proposer.cost, "of_row", share)
        monkeypatch.setattr(StepCost, "observe", lambda *_: None)
        prompt = (*[260, 261, 262] * 6, _END)
        bias = tuple((token, 60.0) for token in (260, 261, 262))
        run(engine, [Request("a", prompt, (0.0, 1.0, 0.0, 0.0), Sampling(max_new_tokens=40, logit_bias=bias))])
        proposed[share] = engine.stats.proposed_tokens
    assert proposed[0.9] == 0 < proposed[0.0]
