"""Choices are kept for good and without words, and weights are learned from them."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.choices.learning import CREDIBLE, Preference, grid
from emorl_core.choices.outline import hull
from emorl_core.choices.record import Choice
from emorl_core.choices.store import ChoicesError, ChoiceStore
from emorl_core.errors import InvalidRequest

NAMES = ("reflection", "empathy", "fluency")
HASH = hashlib.sha256(b"ZEBRAFISH").hexdigest()


def choice(*shown: tuple[dict[str, float], str], **fields: Any) -> Choice:
    drafts = [{"weights": weights, "outcome": outcome, "text_sha256": HASH} for weights, outcome in shown]
    return Choice.model_validate({"user": "ward-3", "shown": drafts, **fields})


PLAIN = choice(({"empathy": 1.0}, "taken"), ({"reflection": 1.0}, "left"), reason="warmer")


def test_a_choice_is_kept_as_it_was(tmp_path: Path) -> None:
    store = ChoiceStore(tmp_path / "choices.db")
    edited = choice(({"empathy": 1.0}, "edited"), ({"fluency": 1.0}, "rejected"))
    assert [store.add(each, "demo") for each in (PLAIN, edited)] == [1, 2]
    again = ChoiceStore(tmp_path / "choices.db", create=False)
    assert again.of("ward-3", "demo") == [PLAIN, edited]
    assert again.of("ward-4", "demo") == again.of("ward-3", "other") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "ZEBRAFISH"}, "text"),
        ({"user": "Anna Smith said so"}, "user"),
        ({"reason": "she was sad"}, "reason"),
        ({"shown": []}, "shown"),
        ({"shown": [{"weights": {"empathy": 1.0}, "outcome": "taken", "text_sha256": "a text"}]}, "text_sha256"),
        ({"shown": [{"weights": {"a word or two": 1.0}, "outcome": "taken", "text_sha256": HASH}]}, "weights"),
        ({"shown": [{"weights": {"empathy": 0.0}, "outcome": "taken", "text_sha256": HASH}]}, "all 0"),
        ({"shown": [{"weights": {"empathy": -1.0}, "outcome": "taken", "text_sha256": HASH}]}, "weights"),
        ({"shown": [{"weights": {"empathy": 1.0}, "text_sha256": HASH}]}, "no draft was taken"),
        ({"shown": [{"weights": {"empathy": 1.0}, "outcome": "taken", "text_sha256": HASH}] * 2}, "more than one"),
    ],
)
def test_what_is_no_choice_or_could_hold_words_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Choice.model_validate({**PLAIN.model_dump(), **change})


def test_a_file_that_is_none_of_choices_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but a text that is long enough" * 9, encoding="utf-8")
    for path in (tmp_path / "text", tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(ChoicesError) as raised:
            ChoiceStore(path)
        assert "\n" not in raised.value.message
    with pytest.raises(ChoicesError, match="no such file"):
        ChoiceStore(tmp_path / "none", create=False)


WRITER = """
import sys
from pathlib import Path
from emorl_core.choices.outline import hull
from emorl_core.choices.record import Choice
from emorl_core.choices.store import ChoiceStore
store, choice = ChoiceStore(Path(sys.argv[1])), Choice.model_validate_json(sys.argv[2])
while True:
    print(store.add(choice, "demo"), flush=True)
"""


def test_a_process_that_is_killed_loses_at_most_the_choice_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "choices.db"
    command = [sys.executable, "-c", WRITER, str(path), PLAIN.model_dump_json()]
    told = 0
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(7):
                told = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            told = max([told, *map(int, child.stdout.read().split())])
        kept = ChoiceStore(path).of("ward-3", "demo")
        assert all(each == PLAIN for each in kept)
        assert told <= len(kept) <= told + 1


def test_a_chooser_with_known_weights_is_recovered() -> None:
    true = np.array([0.6, 0.3, 0.1])
    candidates = grid(3, 6)
    belief = Preference(NAMES)
    before = belief.result()
    for _ in range(15):
        pair = candidates[list(belief.next_pair(candidates))]
        belief.take(pair, int(np.argmin(((pair - true) ** 2).sum(axis=1))))
    learned = belief.result()
    assert learned.choices == 15
    assert sum(learned.weights.values()) == pytest.approx(1.0)
    for name, value in zip(NAMES, true, strict=True):
        low, high = learned.region[name]
        assert low <= learned.weights[name] <= high
        assert abs(learned.weights[name] - value) < 0.1
        assert learned.deviation[name] < before.deviation[name] / 2
    origin = learned.origin("emorl learn-weights", "ward-3")
    assert (origin["choices"], origin["credible"], origin["user"]) == (15, CREDIBLE, "ward-3")


def test_learning_is_what_bayes_says_by_hand() -> None:
    belief = Preference(("a", "b"))
    belief.learn([choice(({"a": 1.0}, "taken"), ({"b": 2.0}, "left"))])
    # Bradley and Terry, point by point: the chance of a over b at w is a sigmoid of s (|w - b|^2 - |w - a|^2).
    from emorl_core.choices.learning import SHARPNESS

    chances = []
    for point in belief.points:
        gap = (point[0] ** 2 + (point[1] - 1) ** 2) - ((point[0] - 1) ** 2 + point[1] ** 2)
        chances.append(sum(1 / (1 + np.exp(-s * gap)) for s in SHARPNESS))
    expected = np.array(chances) @ belief.points / sum(chances)
    assert list(belief.result().weights.values()) == pytest.approx(expected.tolist())


def test_what_says_nothing_about_weights_teaches_nothing() -> None:
    belief = Preference(NAMES)
    before = belief.result()
    belief.learn(
        [
            choice(({"empathy": 1.0}, "taken")),
            choice(({"empathy": 1.0}, "rejected"), ({"fluency": 1.0}, "rejected")),
        ]
    )
    assert belief.result() == before
    assert list(before.weights.values()) == pytest.approx([1 / 3] * 3)


def test_order_and_scale_of_weights_do_not_matter() -> None:
    small = choice(({"empathy": 0.2, "fluency": 0.2}, "taken"), ({"reflection": 0.1}, "left"))
    large = choice(({"reflection": 7.0}, "left"), ({"fluency": 3.0, "empathy": 3.0}, "edited"))
    huge = choice(({"empathy": 1e308, "fluency": 1e308}, "taken"), ({"reflection": 1e308}, "left"))
    results = []
    for each in (small, large, huge):
        belief = Preference(NAMES)
        belief.learn([each])
        results.append(list(belief.result().weights.values()))
    assert results[0] == pytest.approx(results[1])
    assert results[0] == pytest.approx(results[2]), "their sum does not overflow"


@pytest.mark.parametrize("count", [0, 1, 40])
def test_objectives_that_no_grid_holds_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match="objectives"):
        Preference([f"o{i}" for i in range(count)])


# --- the next pair, the outline, and what was learned --------------------------------------------------------------------


def test_a_pair_that_was_shown_does_not_come_again() -> None:
    belief = Preference(NAMES)
    candidates = np.eye(3)
    seen: list[tuple[int, int]] = []
    for _ in range(3):
        seen.append(belief.next_pair(candidates, without=[(b, a) for a, b in seen]))
    assert sorted(seen) == [(0, 1), (0, 2), (1, 2)]
    with pytest.raises(InvalidRequest, match="no pair of them is left"):
        belief.next_pair(candidates, without=seen)


def test_the_outline_is_the_corners_around() -> None:
    corners = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    assert sorted(hull(grid(3, 12))) == sorted(corners), "points on the edges are left out"
    assert hull(np.array([[0.2, 0.3, 0.5]] * 4)) == [(0.2, 0.3, 0.5)]
    on_a_line = np.array([[0.2, 0.3, 0.5], [0.4, 0.1, 0.5], [0.3, 0.2, 0.5]])
    assert sorted(hull(on_a_line)) == [(0.2, 0.3, 0.5), (0.4, 0.1, 0.5)]
    found = Preference(NAMES).result()
    assert found.outline is not None
    assert {name: (min(own), max(own)) for name, own in zip(NAMES, zip(*found.outline, strict=True), strict=True)} == (
        found.region
    )
    assert Preference(NAMES[:2]).result().outline is None


def test_a_learned_profile_is_kept_by_bundle_and_name(tmp_path: Path) -> None:
    store = ChoiceStore(tmp_path / "choices.db")
    first, second = (ProfileSpec(weights={"empathy": each}, origin={"user": "ward-3"}) for each in (1.0, 2.0))
    store.keep_profile("demo", "ward-3", first)
    store.keep_profile("demo", "ward-4", first)
    store.keep_profile("demo", "ward-3", second)
    assert ChoiceStore(tmp_path / "choices.db").profiles("demo") == {"ward-3": second, "ward-4": first}
    assert store.profiles("other") == {}
